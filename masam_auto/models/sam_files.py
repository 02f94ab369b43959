"""SAM's checkpoints as files: the official ones, which of them are in a folder, and whether one is still the same."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from masam_auto.core.errors import ModelError
from masam_auto.core.plugins import known_names
from masam_auto.core.raw_files import file_sha256

logger = logging.getLogger(__name__)

SOURCE = "https://dl.fbaipublicfiles.com/segment_anything/"
ENDINGS = (".pth", ".safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamFile:
    """An official checkpoint: its encoder, file name, size in bytes and SHA-256."""

    encoder: str
    name: str
    size: int
    sha256: str


# Source: the files that segment-anything's README links to.
SAM_FILES: dict[str, SamFile] = {
    file.encoder: file
    for file in (
        SamFile(
            encoder="vit_b",
            name="sam_vit_b_01ec64.pth",
            size=375042383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        SamFile(
            encoder="vit_l",
            name="sam_vit_l_0b3195.pth",
            size=1249524607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        SamFile(
            encoder="vit_h",
            name="sam_vit_h_4b8939.pth",
            size=2564550879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SamWeights:
    """A SAM checkpoint that a network starts from or stands on: where it is, and the SHA-256 of the file."""

    path: Path
    sha256: str


def sam_encoders(folder: Path) -> tuple[str, ...]:
    """Encoders whose SAM weights are in the weights folder, by their names; nothing is read."""
    return tuple(name for name in known_names("encoders", SAM_FILES) if _named_files(folder, name))


def find_sam_file(folder: Path, encoder: str) -> Path:
    """The SAM checkpoint of an encoder in the weights folder: the official file first, then others by their names.

    Raises:
        ModelError: there is none; the message says what was looked for and how to get one.
    """
    found = _named_files(folder, encoder)
    if found:
        return found[0]
    raise ModelError(
        f"no SAM weights of {encoder} in {folder} (looked for {', '.join(_patterns(encoder))}). {_how_to_get(encoder)}"
    )


def weights_to_start_from(encoder: str, *, file: Path | None, folder: Path) -> SamWeights:
    """The SAM checkpoint that a training starts from.

    Args:
        encoder: its name.
        file: the checkpoint that was asked for, or None.
        folder: the weights folder, looked into where none was asked for.

    Raises:
        ModelError: no such file, or none in the folder.
    """
    path = (find_sam_file(folder, encoder) if file is None else _existing(file)).absolute()
    return SamWeights(path=path, sha256=file_sha256(path))


def weights_of_model(
    sha256: str, *, recorded: Path, encoder: str, file: Path | None, folder: Path | None, model: str
) -> SamWeights:
    """The SAM checkpoint that a trained model stands on, wherever it is now: the file with the SHA-256 of then.

    Looked at: the file that was named, the recorded one, the encoder's in the weights folder, and any other checkpoint
    there; folds may stand on different files, of which one can be named.

    Args:
        sha256: of the file that the model was trained on.
        recorded: where that file was.
        encoder: name of the encoder, for the names in the folder.
        file: the checkpoint that was asked for, or None.
        folder: the weights folder, or None for none.
        model: the model's place, for messages.

    Raises:
        ModelError: the file that was named, or every file found, is another; or none is there.
    """
    looked_at = {}
    for path in _candidates(recorded, encoder, file, folder):
        looked_at[path] = file_sha256(path)
        if looked_at[path] == sha256:
            if file is not None and path != file:
                logger.warning("%s does not stand on %s, but on %s, which is used", model, file, path)
            return SamWeights(path=path.absolute(), sha256=sha256)
    if recorded in looked_at and file is None:
        problem = f"{recorded} has changed since: its own now begins with {looked_at[recorded][:12]}"
    elif looked_at:
        problem = "; ".join(f"that of {path} with {digest[:12]}" for path, digest in looked_at.items())
    else:
        problem = f"{recorded} is gone" + (f", and {folder} holds no SAM checkpoint" if folder else "")
    official = [known.name for known in SAM_FILES.values() if known.sha256 == sha256]
    remedy = (
        f"masam_fetch_weights {encoder} brings it" if official else "Bring that file back, e.g. into the weights folder"
    )
    raise ModelError(
        f"{model} stands on SAM weights whose SHA-256 begins with {sha256[:12]}, but {problem}. {remedy}, or name the "
        "file with `sam_checkpoint=PATH`."
    )


def _candidates(recorded: Path, encoder: str, file: Path | None, folder: Path | None) -> Iterable[Path]:
    """Files that may be the one that is looked for, likeliest first; each once."""
    found = [] if file is None else [_existing(file)]
    found += [recorded] if recorded.is_file() else []
    if folder is not None and folder.is_dir():
        found += _named_files(folder, encoder)
        there = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
        found += [path for path in there if not path.name.startswith(".")]  # a half-written file is hidden
    return dict.fromkeys(found)


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ModelError(
            f"`sam_checkpoint={file}`: no such file; give the path of a SAM checkpoint, .pth or .safetensors"
        )
    return file


def _named_files(folder: Path, encoder: str) -> list[Path]:
    found = [path for pattern in _patterns(encoder) for path in sorted(folder.glob(pattern)) if path.is_file()]
    return list(dict.fromkeys(found))


def _patterns(encoder: str) -> tuple[str, ...]:
    """What the file may be called, in the order of preference."""
    official = (SAM_FILES[encoder].name,) if encoder in SAM_FILES else ()
    plain = tuple(f"{encoder}{ending}" for ending in ENDINGS)
    return (*official, *plain, *(f"sam_{encoder}*{ending}" for ending in ENDINGS))


def _how_to_get(encoder: str) -> str:
    fetch = f"Fetch them (masam_fetch_weights {encoder}), name" if encoder in SAM_FILES else "Name"
    return (
        f"{fetch} a file (`sam_checkpoint=PATH`) or another folder (`weights`, MASAM_WEIGHTS), or go on without SAM's "
        "knowledge (`from_scratch`)."
    )
