"""masam_convert_dataset: make a raw data set from a public download or from DICOM studies."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from masam_auto.cli.common import DONE, add_workers, make_parser, run, start_without_roots, whole_number
from masam_auto.core.log import shown
from masam_auto.core.paths import resolve_paths
from masam_auto.core.plugins import find_entry

VOLUME_OPTIONS = ("ignore_label_geometry", "reorient")
OPTIONS: dict[str, tuple[str, ...]] = {
    "amos22": ("modality", *VOLUME_OPTIONS),
    "btcv": ("merge_adrenals", *VOLUME_OPTIONS),
    "dicom": ("name", "list_rois", "rois", "roi_map", "modality", "series_description"),
    "endovis18": (),
    "msd": ("tumor_only", "splits", *VOLUME_OPTIONS),
    "prostate": ("joint", *VOLUME_OPTIONS),
}
"""The data sets and the options that each one takes. Converters of plug-ins take none."""

NOTES_SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one data set."""
    parser = _make_parser()
    parsed = parser.parse_args(arguments)
    options = _options(parser, parsed)
    start_without_roots(parsed)
    raw = parsed.output or resolve_paths({}, os.environ, Path.cwd()).raw

    from dataset_conversion.convert import REPORT_NAME, convert
    from dataset_conversion.dicom import list_rois
    from dataset_conversion.nifti import VolumeOptions
    from dataset_conversion.registry import CONVERTERS

    if options.pop("list_rois", False):
        chosen = {option: options.get(option) for option in ("roi_map", "modality", "series_description")}
        print("\n".join(map(shown, list_rois(parsed.input.expanduser(), **chosen))))
        return DONE
    if volumes := {option: options.pop(option) for option in VOLUME_OPTIONS if option in options}:
        options["volumes"] = VolumeOptions(**volumes)
    find = find_entry("converters", parsed.data_set, CONVERTERS, field="the data set")
    conversions = find(parsed.input.expanduser(), **options)
    if parsed.dataset is not None:
        conversions = tuple(
            dataclasses.replace(conversion, number=parsed.dataset + index)
            for index, conversion in enumerate(conversions)
        )
    done = convert(conversions, raw.expanduser().absolute(), workers=parsed.workers, allow_missing=parsed.allow_missing)
    for folder, record in done.items():
        test = sum(case.test for case in record.cases.values())
        print(f"{folder}: {len(record.cases) - test} training cases, {test} test cases")
        notes = [*(f"missing: {text}" for text in record.missing), *record.notes, *record.case_notes]
        for note in notes[:NOTES_SHOWN]:
            print(f"  - {shown(note)}")
        if len(notes) > NOTES_SHOWN:
            print(f"  and {len(notes) - NOTES_SHOWN} more notes")
        print(f"  report: {folder / REPORT_NAME}")
    print(f"next: masam_plan_and_preprocess -d {' '.join(str(folder) for folder in done)}")
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_convert_dataset",
        "Convert a public data set (downloaded and extracted), or DICOM studies with RTSTRUCT or SEG, into a raw data "
        "set. The input is not changed. After an interruption, run it again to continue.",
        roots=False,
    )
    parser.add_argument("data_set", metavar="NAME", help=f"converter: {', '.join(OPTIONS)}, or one of a plug-in")
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="DOWNLOAD", help="folder with the extracted download"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="RAW",
        help="folder for raw data sets (default: MASAM_RAW, nnUNet_raw, else ./masam_data/raw)",
    )
    parser.add_argument(
        "-d",
        "--dataset",
        type=whole_number,
        metavar="NUMBER",
        help="number of the new data set, or of the first if there are several (default: see "
        "documentation/datasets.md)",
    )
    parser.add_argument("--allow_missing", action="store_true", help="convert even if the download lacks cases")
    add_workers(parser)
    group = parser.add_argument_group("options for certain data sets")
    group.add_argument(
        "--ignore_label_geometry",
        action="store_true",
        help="NIfTI downloads: match labels to images voxel by voxel, even if their headers disagree",
    )
    group.add_argument(
        "--reorient",
        action="store_true",
        help="NIfTI downloads: turn all volumes so that their voxel axes point left, back and up (LPS)",
    )
    group.add_argument("--merge_adrenals", action="store_true", help="btcv: make both adrenal glands one class")
    group.add_argument("--joint", action="store_true", help="prostate: make one data set of all sites")
    group.add_argument(
        "--tumor_only",
        action="store_true",
        help="msd: keep only the tumour class. Task07 also gets the paper's split.",
    )
    group.add_argument(
        "--splits",
        type=Path,
        metavar="FILE",
        help='msd: folds in nnU-Net\'s splits_final.json format. Cases in a "test" list are held out.',
    )
    group.add_argument(
        "--modality", help="amos22: CT (default), MRI or both. dicom: use only series of this modality, e.g. CT or MR."
    )
    group.add_argument("--name", help="dicom: name of the data set (default: DICOM)")
    group.add_argument(
        "--list_rois", action="store_true", help="dicom: only list the ROIs, with the number of series of each"
    )
    group.add_argument(
        "--rois",
        nargs="+",
        metavar="ROI",
        help="dicom: ROIs to use, in label order; where they overlap, the later one wins (default: all, by name)",
    )
    group.add_argument(
        "--roi_map",
        type=Path,
        metavar="FILE",
        help='dicom: JSON file that renames ROIs: {"name in DICOM": "name in the data set", ...}',
    )
    group.add_argument(
        "--series_description", metavar="TEXT", help="dicom: use only series whose description contains this text"
    )
    return parser


def _options(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> dict[str, Any]:
    """The given options by name. An option of another data set ends the program."""
    given = {option: getattr(parsed, option) for options in OPTIONS.values() for option in options}
    given = {option: value for option, value in given.items() if value not in (None, False)}
    for option in given:
        if option not in OPTIONS.get(parsed.data_set, ()):
            takers = ", ".join(name for name, options in OPTIONS.items() if option in options)
            parser.error(f"argument --{option}: only for {takers}, not for {parsed.data_set}")
    return given


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
