"""SAM's checkpoint files: the official ones, those in a folder, and whether one is unchanged."""

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
    """A SAM checkpoint that a network starts from or needs: its path and the SHA-256 of the file."""

    path: Path
    sha256: str


def sam_encoders(folder: Path) -> tuple[str, ...]:
    """Encoders with SAM weights in the weights folder, judged by file names only."""
    return tuple(name for name in known_names("encoders", SAM_FILES) if _named_files(folder, name))


def find_sam_file(folder: Path, encoder: str) -> Path:
    """Find the SAM checkpoint of an encoder in the weights folder: the official file first, then others by name.

    Raises:
        ModelError: there is none; the message says which names were tried and how to get one.
    """
    found = _named_files(folder, encoder)
    if found:
        return found[0]
    raise ModelError(
        f"no SAM weights of {encoder} in {folder} (looked for {', '.join(_patterns(encoder))}). {_how_to_get(encoder)}"
    )


def weights_to_start_from(encoder: str, *, file: Path | None, folder: Path) -> SamWeights:
    """Find the SAM checkpoint that a training starts from.

    Args:
        encoder: its name.
        file: the user's checkpoint, or None.
        folder: the weights folder, searched if `file` is None.

    Raises:
        ModelError: no such file, or none in the folder.
    """
    path = (find_sam_file(folder, encoder) if file is None else _existing(file)).absolute()
    return SamWeights(path=path, sha256=file_sha256(path))


def weights_of_model(
    sha256: str, *, recorded: Path, encoder: str, file: Path | None, folder: Path | None, model: str
) -> SamWeights:
    """Find the SAM checkpoint that a trained model needs, by its SHA-256, even if it was moved.

    Checks the user's file, the recorded path, the encoder's file in the weights folder, and any other checkpoint there.
    Folds may need different files, and the user can name only one.

    Args:
        sha256: of the file that the model was trained with.
        recorded: where that file was.
        encoder: name of the encoder, to recognise files in the folder.
        file: the user's checkpoint, or None.
        folder: the weights folder, or None.
        model: the model's path, for messages.

    Raises:
        ModelError: the user's file, or every file found, is a different one; or there is none.
    """
    looked_at = {}
    for path in _candidates(recorded, encoder, file, folder):
        looked_at[path] = file_sha256(path)
        if looked_at[path] == sha256:
            if file is not None and path != file:
                logger.warning("%s was not trained with %s but with %s, which is used", model, file, path)
            return SamWeights(path=path.absolute(), sha256=sha256)
    if recorded in looked_at and file is None:
        problem = f"{recorded} has changed: its SHA-256 now begins with {looked_at[recorded][:12]}"
    elif looked_at:
        problem = "; ".join(f"that of {path} with {digest[:12]}" for path, digest in looked_at.items())
    else:
        problem = f"{recorded} is gone" + (f", and {folder} holds no SAM checkpoint" if folder else "")
    official = [known.name for known in SAM_FILES.values() if known.sha256 == sha256]
    remedy = (
        f"Run masam_fetch_weights {encoder}" if official else "Put that file back, for example in the weights folder"
    )
    raise ModelError(
        f"{model} needs SAM weights whose SHA-256 begins with {sha256[:12]}, but {problem}. {remedy}, or name the "
        "file with `sam_checkpoint=PATH`."
    )


def _candidates(recorded: Path, encoder: str, file: Path | None, folder: Path | None) -> Iterable[Path]:
    """Files that may be the right one, the likeliest first; each once."""
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
    """Possible names of the file, in order of preference."""
    official = (SAM_FILES[encoder].name,) if encoder in SAM_FILES else ()
    plain = tuple(f"{encoder}{ending}" for ending in ENDINGS)
    return (*official, *plain, *(f"sam_{encoder}*{ending}" for ending in ENDINGS))


def _how_to_get(encoder: str) -> str:
    fetch = f"Fetch them (masam_fetch_weights {encoder}), name" if encoder in SAM_FILES else "Name"
    return (
        f"{fetch} a file (`sam_checkpoint=PATH`) or another folder (`weights`, MASAM_WEIGHTS), or train without "
        "SAM's weights (`from_scratch`)."
    )
