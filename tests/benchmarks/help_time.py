"""How long `--help` of each command takes: the best of three starts."""

import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STARTS = 3


def measure(data: Path | None = None) -> dict[str, str]:
    """Seconds of `--help`, for each command."""
    scripts: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    best = {command: min(_time_of_help(target) for _ in range(STARTS)) for command, target in scripts.items()}
    return {command: f"{seconds:.2f} s" for command, seconds in best.items()}


def _time_of_help(target: str) -> float:
    module = target.partition(":")[0]
    code = f"from {module} import main; main(['--help'])"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
