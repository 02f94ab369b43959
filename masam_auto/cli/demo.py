"""masam_demo: make a small CT-like data set and run the usual commands on it."""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from masam_auto import __version__
from masam_auto.cli import evaluate, plan_and_preprocess, predict, train
from masam_auto.cli.common import DONE, make_parser, run, start_without_roots, whole_number
from masam_auto.core.errors import OutputError
from masam_auto.core.jsonio import read_plain, write_json
from masam_auto.core.selection import CHECKPOINTS

DATASET = "Dataset999_Demo"
RECORD = "demo.json"
Main = Callable[[Sequence[str] | None], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the data, run the commands that plan, train, predict and evaluate, and show the results."""
    parser = make_parser(
        "masam_demo",
        "Make a small CT-like data set and run the whole pipeline on it. It takes a few minutes and needs neither a "
        "GPU nor a network.",
        roots=False,
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("masam_demo"), metavar="FOLDER", help="folder for everything"
    )
    parser.add_argument("--seed", type=whole_number, default=1, metavar="N", help="random seed of the made-up patients")
    parser.add_argument(
        "--budget",
        default="700steps",
        metavar="AMOUNT",
        help="training budget: 700steps, 10min, 20epochs, ... More gives better results.",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier demo in FOLDER and start over")
    parsed = parser.parse_args(arguments)
    start_without_roots(parsed)

    from masam_auto.core.budget import parse_budget
    from masam_auto.core.plan import TrainingPlan

    parse_budget(parsed.budget, TrainingPlan())  # report a typo now, not after minutes
    folder = parsed.output.expanduser().absolute()
    times: dict[str, float] = {}
    prepare_folder(
        folder, {"version": __version__, "seed": parsed.seed, "budget": parsed.budget}, overwrite=parsed.overwrite
    )
    write_data(folder, parsed, times)
    code = run_commands(folder, parsed, times)
    if code == DONE:
        report(folder, times)
    return code


def prepare_folder(folder: Path, record: dict[str, Any], *, overwrite: bool) -> None:
    """Check that the folder is new or holds an earlier demo with the same settings, which is then continued.

    Raises:
        OutputError: the folder holds something else.
    """
    found = read_plain(folder / RECORD, what="demo") if (folder / RECORD).is_file() else None
    if found is not None and overwrite:
        shutil.rmtree(folder)
    elif found is not None and found != record:
        changed = ", ".join(f"{key} {found.get(key)}" for key in record if found.get(key) != record[key])
        raise OutputError(
            f"{folder} holds a demo with other settings ({changed}). Delete it with --overwrite, or choose another "
            "folder with -o."
        )
    elif found is not None:
        print(f"{folder} holds an earlier demo; finished steps are kept.")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and holds no demo. Choose another folder with -o.")
    write_json(folder / RECORD, record)


def write_data(folder: Path, parsed: argparse.Namespace, times: dict[str, float]) -> None:
    """Write the raw data set unless it is complete (dataset.json is written last)."""
    if (folder / "raw" / DATASET / "dataset.json").is_file():
        return
    from dataset_conversion.synthetic import write_synthetic_dataset

    print("making CT scans of 25 made-up patients: 20 to learn from, 5 held out")
    started = time.monotonic()
    write_synthetic_dataset(folder / "raw", seed=parsed.seed)
    times["make the data"] = time.monotonic() - started


def run_commands(folder: Path, parsed: argparse.Namespace, times: dict[str, float]) -> int:
    """Run the commands as a user would, each printed first, with the root folders in the environment."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"MASAM_{name.upper()}"] = str(folder / name)
        print(f"$ export MASAM_{name.upper()}={shlex.quote(short_path(folder / name))}")
    images, references = (short_path(folder / "raw" / DATASET / name) for name in ("imagesTs", "labelsTs"))
    segmentations = short_path(folder / "segmentations")
    begun = any((folder / "results").glob(f"*/masam__*/fold_0/{CHECKPOINTS['latest']}"))
    trained = any((folder / "results").glob("*/masam__*/fold_0/validation/summary.json"))
    predicted = (folder / "segmentations").exists()
    model, again = ["-d", "999", "-p", "masam"], ["--overwrite"] if predicted else []
    commands: list[tuple[str, Main, list[str]]] = [
        ("masam_plan_and_preprocess", plan_and_preprocess.main, ["-d", "999"]),
        ("masam_train", train.main, ["999", "fold0", "--budget", parsed.budget, *(["--c"] if begun else [])]),
        ("masam_predict", predict.main, ["-i", images, "-o", segmentations, *model, *again]),
        ("masam_evaluate", evaluate.main, [segmentations, references]),
    ]
    for command, command_main, given in commands:
        if command == "masam_train" and trained:
            continue  # by an earlier run
        print(f"\n$ {shlex.join([command, *given])}", flush=True)
        started = time.monotonic()
        if (code := command_main(given)) != DONE:
            return code
        times[command] = time.monotonic() - started
    return DONE


def report(folder: Path, times: dict[str, float]) -> None:
    """Draw the picture, and print how long each step took and where its files are."""
    picture = draw_picture(folder)
    print("\ntime: " + ", ".join(f"{what} {seconds:.0f} s" for what, seconds in times.items()))
    model = next((folder / "results" / DATASET).glob("*__*"))
    rows = {
        "picture": picture,
        "segmentations": folder / "segmentations",
        "scores of each case": folder / "segmentations" / "summary.json",
        "plan with reasons": folder / "preprocessed" / DATASET / "plan.json",
        "how training went": model / "fold_0" / "progress.png",
        "raw data, as yours should be laid out": folder / "raw" / DATASET,
    }
    print("\nwhere to look next")
    for what, path in rows.items():
        print(f"  {what + ':':<39}{short_path(path)}")


def draw_picture(folder: Path) -> Path:
    """Overlay of reference and prediction for the first held-out patient."""
    from masam_auto.formats.io import read_image, read_labels
    from masam_auto.imaging.picture import draw_overlay

    raw = folder / "raw" / DATASET
    reference_file = min((raw / "labelsTs").glob("*.nii.gz"))
    image, geometry = read_image(raw / "imagesTs" / reference_file.name.replace(".nii.gz", "_0000.nii.gz"))
    draw_overlay(
        folder / "overlay.png",
        image[0],
        read_labels(reference_file)[0],
        read_labels(folder / "segmentations" / reference_file.name)[0],
        names=class_names(folder),
        pixel_aspect=geometry.spacing[1] / geometry.spacing[2],
        title=f"masam_demo: held-out patient {reference_file.name.removesuffix('.nii.gz')}",
    )
    return folder / "overlay.png"


def class_names(folder: Path) -> dict[int, str]:
    """Label value -> class name of the demo's data set."""
    labels = json.loads((folder / "raw" / DATASET / "dataset.json").read_bytes())["labels"]
    return {value: name for name, value in labels.items() if value > 0}


def short_path(path: Path) -> str:
    """The path as a user would type it: relative if it is inside the working folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
