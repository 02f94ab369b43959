"""BTCV: abdominal CT with 13 organs ("Multi-Atlas Labeling Beyond the Cranial Vault", abdomen)."""

import functools
from pathlib import Path

from dataset_conversion.conversion import Conversion, SourceCase, SourceImage
from dataset_conversion.download import find_folder, named_files
from dataset_conversion.nifti import AS_DOWNLOADED, VolumeOptions, write_volume
from masam_auto.core.jsonio import to_plain

NUMBERS = tuple(f"{number:04d}" for number in (*range(1, 11), *range(21, 41)))
TEST = ("0035", "0036", "0037", "0038", "0039", "0040")
"""Source: preprocessing/dataset_split.md of the reference implementation of MA-SAM."""

ORGANS = (
    "spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "portal_and_splenic_vein", "pancreas", "right_adrenal_gland", "left_adrenal_gland",
)  # fmt: skip
ABOUT = {
    "description": "Abdominal CT, portal venous phase, 30 labelled cases",
    "licence": "terms of use of the challenge at Synapse (registration)",
    "source": "https://www.synapse.org/#!Synapse:syn3193805",
    "citation": "Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault - Workshop and Challenge, 2015",
}


def find_btcv(
    download: Path, *, merge_adrenals: bool = False, volumes: VolumeOptions = AS_DOWNLOADED
) -> tuple[Conversion, ...]:
    """Look through the download: `Training/img/img0001.nii.gz`, `Training/label/label0001.nii.gz`.

    Args:
        download: its folder, or a folder that contains it.
        merge_adrenals: make both adrenal glands one class, for the paper's 12 classes.
        volumes: how volumes are written.

    Raises:
        DatasetError: there is no such folder.
    """
    folder = find_folder(
        download, _is_training, what='folder "Training" with img/img0001.nii.gz and label/label0001.nii.gz'
    )
    images = named_files(folder / "img", r"img(\d{4})\.nii\.gz")
    labels = named_files(folder / "label", r"label(\d{4})\.nii\.gz")
    cases, missing = [], []
    for number in NUMBERS:
        if lacking := [
            f"{kind}{number}.nii.gz" for kind, files in (("img", images), ("label", labels)) if number not in files
        ]:
            missing.append(f"{folder}: {' and '.join(lacking)}")
            continue
        name = f"btcv_{number}"
        image = SourceImage(identifier=name, image=images[number], label=labels[number])
        cases.append(SourceCase(identifier=name, images=(image,), test=number in TEST))
    organs = (*ORGANS[:11], "adrenal_glands") if merge_adrenals else ORGANS
    values = {"background": 0} | {organ: value for value, organ in enumerate(organs, start=1)}
    return (
        Conversion(
            number=10,
            name="BTCV",
            download=download,
            settings={
                "data_set": "btcv",
                "merge_adrenals": merge_adrenals,
                **to_plain(volumes),
            },
            about=ABOUT,
            channel_names=("CT",),
            channel_files=1,
            labels=values,
            file_ending=".nii.gz",
            cases=tuple(cases),
            write=functools.partial(
                write_volume,
                values={13: 12} if merge_adrenals else {},
                known=frozenset(values.values()),
                options=volumes,
            ),
            missing=tuple(missing),
            notes=tuple(
                f"{path}: not one of the 30 cases, left out" for number, path in images.items() if number not in NUMBERS
            ),
        ),
    )


def _is_training(folder: Path) -> bool:
    return bool(named_files(folder / "img", r"img(\d{4})\.nii\.gz")) and bool(
        named_files(folder / "label", r"label(\d{4})\.nii\.gz")
    )
