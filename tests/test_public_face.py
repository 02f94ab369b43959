"""What `from masam_auto import ...` gives, and the page that shows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import masam_auto
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
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    assert said[0].startswith("axis0 ") and said[-2:] == ["True", "1.0"] and "fold_0 ['1', '2']" in said
