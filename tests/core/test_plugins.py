"""core.plugins: what may be added, by whom, and what is said where it may not. Each test asks a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from masam_auto.core.plugins import VARIABLE

ROOT = Path(__file__).resolve().parents[2]
FIND = """
import sys
from masam_auto.core.errors import MasamError
from masam_auto.core.plugins import added_names, find_entry, known_names, use_plugins

def ask(name, own={"mean": sum}):
    try:
        print(find_entry("losses", name, own, field="training.loss").__name__)
    except MasamError as error:
        print(type(error).__name__, error)
"""


def ask(code: str, *, files: str = "", path: Path | None = None) -> str:
    """What a process prints, with plug-in files in its environment and a folder of packages on its path."""
    environment = {
        **os.environ,
        VARIABLE: files,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *([str(path)] if path else [])]),
    }
    run = subprocess.run([sys.executable, "-c", FIND + code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def write_file(folder: Path, text: str, name: str = "extra.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def install(folder: Path, name: str, code: str, *points: str, group: str = "masam_auto.losses") -> None:
    """A package of one module, as pip leaves it."""
    (folder / f"{name}.py").write_text(code)
    information = folder / f"{name}-2.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Name: {name}\nVersion: 2.0\n")
    (information / "entry_points.txt").write_text("\n".join([f"[{group}]", *points]))


FOCAL = "def focal(): pass\nLOSSES = {'focal': focal}\n"


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    install(tmp_path, "more", "", "dice = more:dice")
    said = ask("ask('focl')", files=write_file(tmp_path, FOCAL), path=tmp_path)
    assert said.startswith("PlanError training.loss 'focl' is unknown; known: mean, dice, focal. ")
    assert "plug-in" in said and "documentation/extending.md" in said


def test_files_and_packages_add_names(tmp_path: Path) -> None:
    install(tmp_path, "more", "def dice(): pass", "dice = more:dice")
    file = write_file(tmp_path, FOCAL)
    assert ask("[ask(name) for name in ('mean', 'focal', 'dice')]", files=file, path=tmp_path) == "sum\nfocal\ndice"
    assert (
        ask(f"use_plugins({file!r}, {file!r}); ask('focal'); print(known_names('losses', {{}}))") == "focal\n('focal',)"
    )


def test_a_package_is_imported_for_its_names_only(tmp_path: Path) -> None:
    install(tmp_path, "broken", "raise RuntimeError('no library')", "dice = broken:dice")
    install(tmp_path, "more", "def focal(): pass", "focal = more:focal")
    said = ask(
        "ask('mean'); ask('focal'); print(added_names('losses'), 'broken' in sys.modules); ask('dice')", path=tmp_path
    )
    assert said.splitlines() == [
        "sum",
        "focal",
        "('dice', 'focal') False",
        "MasamError package broken 2.0 has losses 'dice', but cannot be loaded: RuntimeError: no library. Repair it, "
        "or "
        "remove it.",
    ]


def test_own_names_are_not_replaced(tmp_path: Path) -> None:
    install(tmp_path, "more", "def mean(): pass", "mean = more:mean", "max = more:mean")
    twice = "PlanError training.loss: the name 'mean' is used twice, by masam_auto and by "
    assert ask("ask('mean')", path=tmp_path).startswith(f"{twice}package more 2.0. Rename it")
    assert ask("ask('max')", path=tmp_path) == "mean"  # its other names are as good as ever
    file = write_file(tmp_path, "LOSSES = {'mean': max}")
    assert ask("ask('mean')", files=file).startswith(f"{twice}plug-in {file}. Rename it")


def test_a_file_may_import_our_dict(tmp_path: Path) -> None:
    ours = "from masam_auto.training.schedule import SCHEDULES\n"
    file = write_file(tmp_path, f"{ours}LOSSES = {{'focal': max}}")
    code = f"{ours}print(find_entry('schedules', 'poly', SCHEDULES, field='').__name__)"
    assert ask(code, files=file) == "poly"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("LOSSES = {", "cannot be used: SyntaxError: '{' was never closed"),
        ("x = 1\nLOSSES = {'a': 1 / 0}", "cannot be used: line 2: ZeroDivisionError: division by zero. Correct it"),
        ("import sys\nsys.exit(0)", "cannot be used: line 2: SystemExit: 0. Correct it"),
        ("LOSS = {'a': max}", "adds nothing: it needs a dict of names and entries called AUGMENTATIONS, "),
    ],
)
def test_a_file_that_fails_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = write_file(tmp_path, text)
    found = ask("ask('a')", files=file)
    assert found.startswith(f"MasamError plug-in {file} {said}") and "\n" not in found


def test_a_file_must_be_there_and_be_python(tmp_path: Path) -> None:
    assert ask("ask('a')", files="/nowhere/a.py").startswith(
        "MasamError plug-in /nowhere/a.py cannot be read: No such file"
    )
    file = write_file(tmp_path, FOCAL, name="extra.txt")
    assert ask("ask('focal')", files=file) == f"MasamError plug-in {file}: must be a Python file, FILE.py"


def test_an_entry_has_the_right_form(tmp_path: Path) -> None:
    file = write_file(tmp_path, "LOSSES = {'a': 1}\nREADERS = {'.a': max}")
    assert (
        ask("ask('a')", files=file)
        == f"MasamError plug-in {file}: its losses 'a' must be a function or class, got int."
    )
    code = "from pathlib import Path; from masam_auto.formats.io import read_image; read_image(Path('x.a'))"
    with pytest.raises(AssertionError, match=r"its readers '\.a' must be a Reader, got builtin_function_or_method"):
        ask(code, files=file)


def test_a_changed_file_is_executed_again(tmp_path: Path) -> None:
    file = write_file(tmp_path, "LOSSES = {'a': min}")
    change = f"open({file!r}, 'w').write('LOSSES = {{\"a\": max}}')"
    code = f"use_plugins({file!r}); ask('a'); {change}; use_plugins({file!r}); ask('a')"
    assert ask(code) == "min\nmax"


def test_processes_that_are_started_know_the_files(tmp_path: Path) -> None:
    file = write_file(tmp_path, "def run(item):\n    return item + 1\nLOSSES = {'run': run}")
    code = f"""
from masam_auto.compute.parallel import map_cases
if __name__ == "__main__":
    use_plugins({file!r})
    run = find_entry("losses", "run", {{}}, field="loss")
    print(map_cases(run, [1, 2], names=["a", "b"], what="adding", workers=1))
"""
    assert ask(code) == "[2, 3]"


def test_help_and_imports_do_not_wait_for_plug_ins(tmp_path: Path) -> None:
    code = """
import importlib.metadata
importlib.metadata.distributions = None  # looking for packages would be an error
from masam_auto.cli.train import main
try:
    main(["--help"])
except SystemExit as ended:
    print(ended.code)
"""
    assert ask(code, files="/nowhere/a.py").splitlines()[-1] == "0"


def test_a_normalisation_of_a_plug_in_must_give_numbers(tmp_path: Path) -> None:
    file = write_file(
        tmp_path, "def spoil(channel, plan, mask): channel[0] = float('nan')\nNORMALIZERS = {'spoil': spoil}"
    )
    code = """
import numpy as np
from masam_auto.core.plan import NormalizationPlan
from masam_auto.imaging.normalize import normalize
try:
    normalize(np.ones((1, 2, 3, 4), np.float32), (NormalizationPlan(scheme="spoil"),))
except MasamError as error:
    print(error)
"""
    assert ask(code, files=file) == "channel 0: the plug-in's 'spoil' gave NaN or infinite values"
