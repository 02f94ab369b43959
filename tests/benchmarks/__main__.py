"""`make bench`, or `python -m tests.benchmarks [NAME ...] [--data FOLDER]`: measure, and print Markdown rows."""

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import (
    data_path,
    evaluation_time,
    help_time,
    large_volume,
    memory_model,
    network_speed,
    planning_time,
    predict_memory,
    prediction_throughput,
)

# Each takes the raw data set to measure on (None: a made-up one) and returns what was measured, with its unit.
MEASUREMENTS: dict[str, Callable[[Path | None], dict[str, str]]] = {
    "data_path": data_path.measure,
    "evaluation_time": evaluation_time.measure,
    "help_time": help_time.measure,
    "large_volume": large_volume.measure,
    "memory_model": memory_model.measure,
    "network_speed": network_speed.measure,
    "planning_time": planning_time.measure,
    "predict_memory": predict_memory.measure,
    "prediction_throughput": prediction_throughput.measure,
}


def main() -> int:
    """Run the named measurements, all of them by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)} (default: all)")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="raw data set, DatasetXXX_Name (default: a made-up one)"
    )
    parsed = parser.parse_args()
    if unknown := [name for name in parsed.names if name not in MEASUREMENTS]:
        parser.error(f"unknown measurement {unknown[0]}; known: {', '.join(MEASUREMENTS)}")
    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.system()}\n")
    print("| measurement | of | value |\n|---|---|---|")
    for name in parsed.names or MEASUREMENTS:
        for what, value in MEASUREMENTS[name](parsed.data).items():
            print(f"| {name} | {what} | {value} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
