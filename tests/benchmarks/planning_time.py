"""How long masam_plan_and_preprocess takes for a data set, checking included, from the start of the process."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dataset_conversion.synthetic import write_synthetic_dataset

ROOT = Path(__file__).resolve().parents[2]


def measure(data: Path | None = None) -> dict[str, str]:
    """Wall-clock and CPU seconds, workers included."""
    with tempfile.TemporaryDirectory() as name:
        folder = data.resolve() if data else write_synthetic_dataset(Path(name) / "raw")
        roots = ["--raw", str(folder.parent), "--preprocessed", f"{name}/preprocessed", "--results", f"{name}/results"]
        code = "from masam_auto.cli.plan_and_preprocess import entry; entry()"
        before, started = os.times(), time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code, "-d", folder.name, *roots], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        wall, after = time.perf_counter() - started, os.times()
    computed = after.children_user + after.children_system - before.children_user - before.children_system
    return {folder.name: f"{wall:.1f} s ({computed:.1f} CPU-s)"}
