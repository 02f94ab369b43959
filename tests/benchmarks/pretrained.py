"""What pretraining is worth: LiteMedSAM adapted in several ways, and vit_t from scratch, on the same cases and budget.

`python -m tests.benchmarks.pretrained --data raw/Dataset027_ACDC --weights FOLDER --shots 5 --budget 300cpus`

It needs a raw data set and the folder with `lite_medsam.pth` (`masam_fetch_weights lite_medsam`). Each training has one
thread and ends with whole volumes of its validation cases, without flips. Rows are printed as they are made.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What to add to `masam_train`, by the name of a variant: the encoder that is planned, and the fields that are changed.
VARIANTS: Mapping[str, tuple[str, Sequence[str]]] = {
    "from scratch": ("vit_t", ()),
    "adapted": ("lite_medsam", ()),
    "without 3D adapters": ("lite_medsam", ("network.adapters=none",)),
    "LoRA": ("lite_medsam", ("network.increment=lora",)),
    "decoder only": ("lite_medsam", ("network.trained=none",)),
    "everything learns": ("lite_medsam", ("network.trained=all",)),
    "random weights, adapted": ("lite_medsam", ("network.weights=none", "network.masks_start=new")),
}


def main() -> int:
    """Train and print, variant by variant and seed by seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pretrained", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="raw data set, DatasetXXX_Name")
    parser.add_argument("--weights", type=Path, required=True, metavar="FOLDER", help="has lite_medsam.pth")
    parser.add_argument("--work", type=Path, default=Path("pretrained_benchmark"), metavar="FOLDER")
    parser.add_argument("--shots", type=int, metavar="K", help="training cases (default: all of the fold)")
    parser.add_argument("--budget", default="300cpus")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parsed = parser.parse_args()
    print("| variant | Dice of each seed | median | steps |\n|---|---|---|---|")
    for variant in parsed.variants:
        found = [train(parsed, variant, seed) for seed in parsed.seeds]
        scores, steps = zip(*found, strict=True)
        each = ", ".join(f"{score:.3f}" for score in scores)
        print(f"| {variant} | {each} | {statistics.median(scores):.3f} | {steps[0]} |", flush=True)
    return 0


def train(parsed: argparse.Namespace, variant: str, seed: int) -> tuple[float, int]:
    """Mean Dice of the foreground over the validation cases, and the steps made; found again if it was run before."""
    encoder, changes = VARIANTS[variant]
    roots = {
        "--raw": parsed.data.resolve().parent,
        "--weights": parsed.weights.resolve(),
        "--preprocessed": (parsed.work / f"preprocessed_{encoder}").resolve(),
        "--results": (parsed.work / f"{variant}_{seed}_{parsed.shots or 'all'}_{parsed.budget}").resolve(),
    }
    where = [str(part) for root in roots.items() for part in root]
    if not (roots["--preprocessed"] / parsed.data.name / "plan.json").is_file():
        run("plan_and_preprocess", ["-d", parsed.data.name, "-backbone", encoder, *where])
    results = roots["--results"] / parsed.data.name
    if not list(results.rglob("summary.json")):
        shots = ["--shots", str(parsed.shots)] if parsed.shots else []
        again = ["--overwrite"] if list(results.rglob("training.log")) else []
        options = ["--budget", parsed.budget, "--seed", str(seed), "--no-mirror", "-device", "cpu", *shots, *again]
        sets = ["--set", *changes] if changes else []
        run("train", [parsed.data.name, "0", *options, *where, *sets])
    summary = json.loads(next(results.rglob("summary.json")).read_text())
    metrics = next(results.rglob("metrics.jsonl")).read_text().splitlines()
    return summary["foreground_mean"]["Dice"], json.loads(metrics[-1])["step"]


def run(command: str, arguments: Sequence[str]) -> None:
    """Run one of our commands with one thread; its output goes to standard error."""
    code = f"import sys; from masam_auto.cli.{command} import main; sys.exit(main(sys.argv[1:]))"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, stdout=sys.stderr, env=os.environ | threads
    )


if __name__ == "__main__":
    sys.exit(main())
