"""Download SAM's official checkpoints. Partial downloads are continued. Only a verified file gets its final name."""

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
from masam_auto.core.raw_files import file_sha256
from masam_auto.models.sam_files import SOURCE, SamFile

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


def fetch_weights(file: SamFile, folder: Path, *, mirror: str = SOURCE, overwrite: bool = False) -> bool:
    """Download an official SAM checkpoint to the weights folder, unless it is there already.

    Received data stays in NAME.partial, even if the process ends. The next call continues from there.

    Args:
        file: the checkpoint to download.
        folder: the weights folder; made if it does not exist.
        mirror: the address (http or https) of the folder that holds the file, or of the file itself.
        overwrite: replace a different file of the same name.

    Returns:
        Whether it was downloaded; False if it was there already.

    Raises:
        ModelError: the server cannot be reached, does not have the file, or sent another one.
        OutputError: a different file of that name exists, the disk is full, or the folder cannot be written.
    """
    target, partial, url = folder / file.name, folder / f"{file.name}.partial", _address(mirror, file)
    if _is_there(target, file, overwrite):
        return False
    kept = "the received part has been kept; run the command again to continue from there."
    with told_if_unwritable(target, kept), claimed(folder, file.name):
        if _is_there(target, file, overwrite):
            return False  # another process has just brought it
        _receive_all(file, url, partial)
        if not _is_right(partial, file):
            partial.unlink()
            raise ModelError(
                f"{url}: the received file is not {file.name} (its SHA-256 is not {file.sha256[:12]}...). It has been "
                "removed. Run the command again, or give another source with `url`."
            )
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(target)
    return True


def _is_there(target: Path, file: SamFile, overwrite: bool) -> bool:
    if not target.is_file() or _is_right(target, file):
        return target.is_file()
    if overwrite:
        return False
    raise OutputError(
        f"{target} exists, but it is not the official file (its size or SHA-256 differs). Give `overwrite` to "
        "replace it, or move it away."
    )


def _address(mirror: str, file: SamFile) -> str:
    if not mirror.startswith(("http://", "https://")):
        raise ModelError(f"`url={mirror}`: expected an address that begins with http:// or https://")
    return mirror if mirror.endswith(file.name) else f"{mirror.rstrip('/')}/{file.name}"


def _is_right(path: Path, file: SamFile) -> bool:
    return path.stat().st_size == file.size and file_sha256(path) == file.sha256


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
                    "the network and run the command again to continue from there, or give another source with `url`."
                ) from dropped
            logger.info("%s: %s; trying again in %g s", file.name, dropped, WAITS[failed - 1])
            time.sleep(WAITS[failed - 1])


def _receive(file: SamFile, url: str, partial: Path, received: int) -> None:
    """One request: append the rest to the partial file, or start it over if the server sends the whole.

    Raises:
        _Dropped: a retry may succeed; the received data are in the partial file.
        ModelError: the server does not have the file.
    """
    other = f"Give another source with `url`, or copy {file.name} to {partial.parent} yourself."
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
