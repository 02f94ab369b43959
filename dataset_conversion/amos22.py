"""AMOS22: abdominal CT and MRI with 15 organs, in the release after the challenge (with validation labels)."""

import functools
import re
from pathlib import Path

from dataset_conversion.conversion import Conversion, SourceCase, SourceImage
from dataset_conversion.download import find_folder
from dataset_conversion.nifti import AS_DOWNLOADED, VolumeOptions, write_volume
from masam_auto.core.errors import DatasetError
from masam_auto.core.jsonio import read_plain, to_plain
from masam_auto.core.splits import Split

LAST_CT = 500
"""CT has the numbers 1 to 500 and MRI 501 to 600, says the download's readme. nnU-Net's converters use 410 and 409, the
last CT among the training and validation cases, which selects the same cases."""

MODALITIES = {"CT": (40, "AMOS22_CT", "CT"), "MRI": (41, "AMOS22_MRI", "MRI"), "both": (42, "AMOS22", "CT_or_MRI")}
"""Number and name of the data set, and name of its channel. A channel not called CT is normalised case by case."""

ORGANS = (
    "spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "pancreas", "right_adrenal_gland", "left_adrenal_gland", "duodenum", "bladder",
    "prostate_or_uterus",
)  # fmt: skip
PARTS = {"training": "Tr", "validation": "Va", "test": "Ts"}
ABOUT = {
    "description": "Abdominal CT and MRI from several centres and scanners",
    "licence": "as its Zenodo record says",
    "source": "https://zenodo.org/records/7262581",
    "citation": "Ji et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile Medical Image "
    "Segmentation, NeurIPS 2022",
}


def find_amos22(
    download: Path, *, modality: str = "CT", volumes: VolumeOptions = AS_DOWNLOADED
) -> tuple[Conversion, ...]:
    """Look through the download: `imagesTr`, `labelsTr`, `imagesVa`, `labelsVa`, `imagesTs`, dataset.json.

    Its training and validation cases form the only fold of splits.json. Its test cases have no labels.

    Args:
        download: the folder, or a folder that contains it.
        modality: "CT", "MRI" or "both".
        volumes: how volumes are written.

    Raises:
        DatasetError: there is no such folder, its dataset.json is not as expected, or the modality is unknown.
    """
    folder = find_folder(download, _is_amos, what="folder with dataset.json, imagesTr and imagesVa")
    listed = _read_lists(folder / "dataset.json")
    if modality not in MODALITIES:
        raise DatasetError(f"--modality {modality}: AMOS22 has {', '.join(MODALITIES)}")
    number, name, channel = MODALITIES[modality]
    cases, missing = [], []
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, identifiers in listed.items():
        for identifier in identifiers:
            kind = "CT" if int(identifier[-4:]) <= LAST_CT else "MRI"
            if modality not in (kind, "both"):
                continue
            case, lacking = _case(folder, identifier, part, kind)
            missing += lacking
            if not lacking:
                cases.append(case)
                parts[part].append(identifier)
    values = {"background": 0} | {organ: value for value, organ in enumerate(ORGANS, start=1)}
    split = Split(train=tuple(parts["training"]), val=tuple(parts["validation"]))
    return (
        Conversion(
            number=number,
            name=name,
            download=download,
            settings={
                "data_set": "amos22",
                "modality": modality,
                **to_plain(volumes),
            },
            about=ABOUT,
            channel_names=(channel,),
            channel_files=1,
            labels=values,
            file_ending=".nii.gz",
            cases=tuple(cases),
            write=functools.partial(
                write_volume,
                values={},
                known=frozenset(values.values()),
                options=volumes,
            ),
            missing=tuple(missing),
            splits=(split,) if split.train and split.val else None,
        ),
    )


def _is_amos(folder: Path) -> bool:
    return (folder / "dataset.json").is_file() and (folder / "imagesTr").is_dir() and (folder / "imagesVa").is_dir()


def _read_lists(path: Path) -> dict[str, list[str]]:
    """Identifiers by part, from the lists in dataset.json. Entries are files or {"image": file, "label": file}."""
    plain = read_plain(path, what="dataset.json")
    listed: dict[str, list[str]] = {}
    for part in PARTS:
        entries = plain.get(part) if isinstance(plain, dict) else None
        if not isinstance(entries, list):
            entries = []
        files = [entry.get("image") if isinstance(entry, dict) else entry for entry in entries]
        found = [re.fullmatch(r"(amos_\d{4})\.nii\.gz", Path(str(file)).name) for file in files]
        if not found or None in found:
            raise DatasetError(
                f'{path}: expected a list "{part}" of images like ./images{PARTS[part]}/amos_0001.nii.gz. Is it the '
                "release at https://zenodo.org/records/7262581?"
            )
        listed[part] = [match[1] for match in found if match]
    return listed


def _case(folder: Path, identifier: str, part: str, kind: str) -> tuple[SourceCase, list[str]]:
    """A case and its missing files."""
    end = PARTS[part]
    image = folder / f"images{end}" / f"{identifier}.nii.gz"
    label = None if part == "test" else folder / f"labels{end}" / f"{identifier}.nii.gz"
    missing = [f"{path}: listed in dataset.json" for path in (image, label) if path is not None and not path.is_file()]
    source = SourceImage(identifier=identifier, image=image, label=label)
    return SourceCase(identifier=identifier, images=(source,), test=part == "test", group=kind), missing
