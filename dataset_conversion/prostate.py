"""Prostate T2 MRI from six sites, collected by Liu et al.: one data set per site, or one of all sites."""

import functools
from pathlib import Path

from dataset_conversion.conversion import Conversion, SourceCase, SourceImage
from dataset_conversion.download import archives_hint, check_download, folders_in, named_files
from dataset_conversion.nifti import AS_DOWNLOADED, VolumeOptions, write_volume
from masam_auto.core.errors import DatasetError
from masam_auto.core.jsonio import to_plain

SITES = {"A": "RUNMC", "B": "BMC", "C": "I2CVB", "D": "UCL", "E": "BIDMC", "F": "HK"}
COUNTS = {"A": 30, "B": 30, "C": 19, "D": 13, "E": 12, "F": 12}
"""Source: the table figure/protocol.png in https://github.com/liuquande/SAML (it calls site C HCRUDB)."""

TEST = {
    "A": ("03", "08", "12", "15", "18", "26"),
    "B": ("03", "08", "12", "15", "18", "26"),
    "C": ("03", "08", "13", "15"),
    "D": ("01", "32", "34"),
    "E": ("00", "04", "09"),
    "F": ("38", "41", "46"),
}
"""Source: preprocessing/dataset_split.md of the reference implementation of MA-SAM."""

LABELS = {"background": 0, "prostate": 1}
ZONES_TO_PROSTATE = dict.fromkeys(range(2, 256), 1)
"""RUNMC and BMC have separate zones (1 and 2); the paper segments the whole gland."""

ABOUT = {
    "description": "Prostate in T2-weighted MRI",
    "licence": "those of the sources: NCI-ISBI 2013 (RUNMC, BMC; CC BY 3.0), I2CVB, PROMISE12 (UCL, BIDMC, HK)",
    "source": "https://liuquande.github.io/SAML/",
    "citation": "Liu et al., Shape-aware Meta-learning for Generalizing Prostate MRI Segmentation to Unseen Domains, "
    "MICCAI 2020; and the sources",
}


def find_prostate(
    download: Path, *, joint: bool = False, volumes: VolumeOptions = AS_DOWNLOADED
) -> tuple[Conversion, ...]:
    """Look through the download: `RUNMC/Case00.nii.gz`, `RUNMC/Case00_segmentation.nii.gz`, and the other sites.

    Args:
        download: the folder with the sites, or a folder that contains it.
        joint: make one data set of all sites instead of one per site.
        volumes: how volumes are written.

    Raises:
        DatasetError: there are no sites, or one exists twice.
    """
    folders = _find_sites(download)
    cases: dict[str, list[SourceCase]] = {}
    missing: dict[str, list[str]] = {}
    for site in SITES:
        if site in folders:
            cases[site], missing[site] = _site_cases(site, folders[site])
        else:
            cases[site], missing[site] = [], [f"{download}: site {site}, the folder {SITES[site]}"]
    common = {"joint": joint, **to_plain(volumes)}
    write = functools.partial(
        write_volume,
        values=ZONES_TO_PROSTATE,
        known=frozenset({0, 1}),
        options=volumes,
    )

    def conversion(number: int, name: str, sites: tuple[str, ...]) -> Conversion:
        return Conversion(
            number=number,
            name=name,
            download=download,
            settings={"data_set": "prostate", "sites": list(sites), **common},
            about=ABOUT | {"sites": ", ".join(f"{site}: {SITES[site]}" for site in sites)},
            channel_names=("T2",),
            channel_files=1,
            labels=LABELS,
            file_ending=".nii.gz",
            cases=tuple(case for site in sites for case in cases[site]),
            write=write,
            missing=tuple(text for site in sites for text in missing[site]),
        )

    if joint:
        return (conversion(26, "Prostate", tuple(SITES)),)
    return tuple(conversion(20 + index, f"Prostate{site}", (site,)) for index, site in enumerate(SITES))


def _find_sites(download: Path) -> dict[str, Path]:
    check_download(download)
    found: dict[str, Path] = {}
    for folder in folders_in(download):
        for site, name in SITES.items():
            if folder.name.upper() == name and _images(folder):
                if site in found:
                    raise DatasetError(f"{folder} and {found[site]} are both site {name}. Remove one of them.")
                found[site] = folder
    if not found:
        names = ", ".join(SITES.values())
        raise DatasetError(
            f"{download}: holds none of the folders {names} with Case00.nii.gz, ...{archives_hint(download)}"
        )
    return found


def _images(folder: Path) -> dict[str, Path]:
    return named_files(folder, r"Case(\d{2})\.nii\.gz")


def _site_cases(site: str, folder: Path) -> tuple[list[SourceCase], list[str]]:
    """Cases of a site, and what is missing."""
    images, labels = _images(folder), named_files(folder, r"Case(\d{2})_segmentation\.nii\.gz")
    missing = [f"{images[number]}: its segmentation" for number in images if number not in labels]
    missing += [f"{labels[number]}: its image" for number in labels if number not in images]
    missing += [f"{folder}: the test case {number}" for number in TEST[site] if number not in images]
    if len({*images, *labels}) < COUNTS[site]:
        missing.append(f"{folder}: only {len(images)} of {COUNTS[site]} cases exist")
    cases = []
    for number in images:
        if number in labels:
            name = f"prostate{site}_{number}"
            image = SourceImage(identifier=name, image=images[number], label=labels[number])
            cases.append(SourceCase(identifier=name, images=(image,), test=number in TEST[site], group=site))
    return cases, missing
