"""Download SAM's official checkpoints: a cut transfer goes on where it was, and only the right file gets its name."""

import contextlib
import email.message
import http.client
import logging
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from masam_auto import __version__
from masam_auto.core.claims import claimed
from masam_auto.core.errors import ModelError, OutputError
from masam_auto.core.jsonio import NO_SPACE, WRITE_FAILURES
from masam_auto.core.log import SECONDS_BETWEEN_LINES
from masam_auto.core.raw_files import file_sha256
from masam_auto.models.sam_files import SOURCE, SamFile

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each new attempt; an attempt that brought something begins them anew
BLOCK = 1 << 20
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
CANNOT_GO_ON = 416


class _Dropped(Exception):
    """The connection broke, or could not be made, for a reason that may pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Transfer:
    """A file on its way: what it is to be, where from, and the partial file that it grows in."""

    file: SamFile
    url: str
    partial: Path

    @property
    def validator(self) -> Path:
        """Where the server's name for this version of the file is kept, so that no two versions are joined."""
        return self.partial.with_name(self.partial.name + ".etag")

    @property
    def received(self) -> int:
        """Bytes of the file that are there."""
        return self.partial.stat().st_size

    def start_anew(self) -> None:
        """Forget what was received."""
        os.truncate(self.partial, 0)
        self.validator.unlink(missing_ok=True)


def fetch_weights(
    file: SamFile, folder: Path, *, mirror: str = SOURCE, overwrite: bool = False, waits: Sequence[float] = WAITS
) -> bool:
    """Bring an official SAM checkpoint into the weights folder, unless it is there.

    What has been received stays in NAME.partial, also when the process ends, and the next call goes on from there.

    Args:
        file: which one.
        folder: where it goes; made where it is missing.
        mirror: the address (http or https) below which the file lies under its own name, or its whole address.
        overwrite: replace a file of that name that is another.
        waits: seconds before each new attempt when the connection drops.

    Returns:
        Whether it was downloaded; False where it was there already.

    Raises:
        ModelError: the server cannot be reached, does not have the file, or sent another one.
        OutputError: another file of that name is there, the disk is full, or the folder cannot be written.
    """
    target = folder / file.name
    if target.is_file():
        if _is_right(target, file):
            return False
        if not overwrite:
            raise OutputError(
                f"{target} is there, but it is not the official file (its size or SHA-256 differs). Give --overwrite to "
                "replace it, or move it away."
            )
    transfer = _Transfer(file=file, url=_address(mirror, file), partial=folder / f"{file.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder, file.name), _kept_if_begun(transfer.partial):
            if target.is_file() and _is_right(target, file):  # another process has just brought it
                return False
            going_on = f", going on after {transfer.received / 1e6:.1f} MB" if transfer.received else ""
            logger.info("%s: %.1f MB from %s%s", file.name, file.size / 1e6, transfer.url, going_on)
            _receive_all(transfer, waits)
            _check(transfer)
            transfer.partial.replace(target)
            transfer.validator.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in WRITE_FAILURES:
            raise
        remedy = "Free some space" if error.errno in NO_SPACE else "Check its permissions"
        raise OutputError(
            f"cannot write {target}: {os.strerror(error.errno or 0)}. {remedy}, or choose another folder (--weights), and "
            "run the command again: it goes on from what was received."
        ) from error
    return True


def _address(mirror: str, file: SamFile) -> str:
    try:
        scheme = urllib.parse.urlsplit(mirror).scheme
    except ValueError as error:
        raise ModelError(f"--url {mirror}: not an address ({error})") from error
    if scheme not in ("http", "https"):
        raise ModelError(f"--url {mirror}: expected an address that begins with http:// or https://")
    return mirror if mirror.endswith(file.name) else f"{mirror.rstrip('/')}/{file.name}"


def _is_right(path: Path, file: SamFile) -> bool:
    return path.stat().st_size == file.size and file_sha256(path) == file.sha256


@contextlib.contextmanager
def _kept_if_begun(partial: Path) -> Iterator[None]:
    """Make the partial file where it is not there, and leave no empty one behind."""
    partial.touch()
    try:
        yield
    finally:
        if partial.is_file() and partial.stat().st_size == 0:
            partial.unlink()


def _check(transfer: _Transfer) -> None:
    """Refuse and remove a file that is not the right one; make the right one safe on the disk."""
    if not _is_right(transfer.partial, transfer.file):
        transfer.start_anew()
        raise ModelError(
            f"{transfer.url}: what came is not {transfer.file.name} (its SHA-256 is not {transfer.file.sha256[:12]}...), and "
            "has been removed. Run the command again, or give another source with --url."
        )
    with transfer.partial.open("rb") as handle:
        os.fsync(handle.fileno())


def _receive_all(transfer: _Transfer, waits: Sequence[float]) -> None:
    """Receive until the partial file has its full size; each dropped connection is taken up again, a few times."""
    failed = 0
    while (before := transfer.received) < transfer.file.size:
        try:
            _receive(transfer, before)
        except _Dropped as dropped:
            failed = 1 if transfer.received > before else failed + 1
            if failed > len(waits):
                raise ModelError(_gave_up(transfer, dropped)) from dropped
            logger.info("%s: %s; trying again in %g s", transfer.file.name, dropped, waits[failed - 1])
            time.sleep(waits[failed - 1])


def _gave_up(transfer: _Transfer, dropped: _Dropped) -> str:
    if transfer.received:
        amount = f"{transfer.received / 1e6:.1f} of {transfer.file.size / 1e6:.1f} MB are there"
        return f"{transfer.url}: {dropped}; {amount}. Run the command again: it goes on from there."
    return f"{transfer.url}: {dropped}. Check the network, {_other_ways(transfer)}"


def _other_ways(transfer: _Transfer) -> str:
    return (
        f"give another source with --url, or bring {transfer.file.name} into {transfer.partial.parent} by other means."
    )


def _receive(transfer: _Transfer, received: int) -> None:
    """One request: append the rest to the partial file, or start it anew where the server sends the whole.

    Raises:
        _Dropped: it may be tried again; what came is in the partial file.
        ModelError: the server does not have the file.
    """
    request = urllib.request.Request(transfer.url, headers={"User-Agent": f"masam_auto/{__version__}"})
    if received:
        request.add_header("Range", f"bytes={received}-")
        if transfer.validator.is_file():
            request.add_header("If-Range", transfer.validator.read_text().strip())
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        answer = f"the server answers {error.code} {_one_line(error.reason)}"
        error.close()
        if error.code in TRY_AGAIN:
            raise _Dropped(answer) from error
        if error.code == CANNOT_GO_ON:
            answer += f", so that it cannot go on after {received} bytes. Remove {transfer.partial} to begin anew"
        raise ModelError(f"{transfer.url}: {answer}. Instead {_other_ways(transfer)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Dropped(f"no connection ({_one_line(getattr(error, 'reason', None) or error)})") from error
    with response:
        start = _start_of(response, transfer, received)
        with transfer.partial.open("r+b") as handle, _shown(transfer.file, start) as show:
            handle.truncate(start)
            handle.seek(start)
            for block in _blocks(response):
                handle.write(block)
                show(len(block))
                if handle.tell() > transfer.file.size:
                    return  # too much: another file, as its SHA-256 will tell
    if transfer.received < transfer.file.size:
        told = response.status == 206 or "Content-Length" in response.headers or transfer.validator.is_file()
        if not told:  # perhaps a page in the file's place, such as a network's log-in: nothing may be joined to it
            transfer.start_anew()
        raise _Dropped("the connection broke" if told else "the server sent less than the file, and not how much it is")


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())


def _blocks(response: IO[bytes]) -> Iterator[bytes]:
    """The answer, block by block; what goes wrong here is the network's fault, not the disk's."""
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Dropped(f"the connection broke ({_one_line(error)})") from error
        if not block:
            return
        yield block


def _start_of(response: http.client.HTTPResponse, transfer: _Transfer, received: int) -> int:
    """The position in the file of the answer's first byte: where to go on, or 0 where the server sends the whole.

    Raises:
        ModelError: the server's file has another size.
        _Dropped: it is another part of the file than was asked for.
    """
    partial = response.status == 206
    span = response.headers.get("Content-Range", "") if partial else ""
    total = span.rpartition("/")[2] if partial else response.headers.get("Content-Length", "")
    if total.isdigit() and int(total) != transfer.file.size:
        raise ModelError(
            f"{transfer.url}: the server's file has {total} bytes, {transfer.file.name} has {transfer.file.size}. Give "
            "another source with --url."
        )
    if partial and not span.startswith(f"bytes {received}-"):
        transfer.start_anew()
        raise _Dropped("the server sent another part of the file than was asked for")
    if not partial:
        _keep_validator(response.headers, transfer.validator)
    return received if partial else 0


def _keep_validator(headers: email.message.Message, file: Path) -> None:
    """Note the version that the file's beginning comes from. A weak ETag does not tell equal bytes."""
    tag = headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        file.write_text(tag)
    else:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _shown(file: SamFile, start: int) -> Iterator[Callable[[int], object]]:
    """A progress bar on a terminal, a line every ten seconds elsewhere; gives the function to tell of new bytes."""
    if sys.stderr.isatty():
        with tqdm(
            desc=file.name, total=file.size, initial=start, unit="B", unit_scale=True, dynamic_ncols=True, leave=False
        ) as bar:
            yield bar.update
        return
    received, last = start, time.monotonic()

    def log(count: int) -> None:
        nonlocal received, last
        received += count
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            logger.info("%s: %.0f of %.0f MB", file.name, received / 1e6, file.size / 1e6)

    yield log
