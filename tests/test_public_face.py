"""What `from masam_auto import ...` gives, and the page that shows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import masam_auto
from dataset_conversion.synthetic import write_synthetic_dataset
from tests import raw_data

PAGE = Path(__file__).resolve().parents[1] / "documentation" / "python.md"


@pytest.mark.parametrize("name", masam_auto.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(masam_auto, name).__doc__ and name in dir(masam_auto)
    assert re.search(rf"\b{name}\b", PAGE.read_text())


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="masam_auto has no 'predict'; it has Paths, Predictor"):
        masam_auto.predict  # noqa: B018


def test_importing_the_package_imports_nothing_large() -> None:
    code = "import masam_auto, sys; print([name for name in ('torch', 'numpy', 'SimpleITK') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    raw_data.make_raw_dataset(tmp_path / "masam_data" / "raw", cases=3, shape=(5, 16, 14))
    said = run_blocks(PAGE, tmp_path)
    assert (
        said[0].startswith("axis0 ")
        and "True" in said
        and 0 < float(said[-2]) < 1
        and said[-1] == "1.0"
        and "fold_0 ['1', '2']" in said
    )


def test_the_readme_runs_on_the_data_of_the_demo(tmp_path: Path) -> None:
    write_synthetic_dataset(tmp_path / "masam_demo" / "raw", cases=2, test_cases=1)
    said = run_blocks(PAGE.parents[1] / "README.md", tmp_path)
    assert said[0].startswith("slice distance 3 mm, 15 mm of context wanted") and said[-1].startswith("(23, ")


def run_blocks(page: Path, folder: Path) -> list[str]:
    """Run the Python blocks of a page in a folder, and return the lines that they print."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()
