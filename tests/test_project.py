"""The project's own files agree with each other: metadata, commands, tested set, changelog."""

import ast
import importlib
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import masam_auto

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTATION = ROOT / "documentation"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS: dict[str, str] = PROJECT["scripts"]


def distributions(requirements: Iterable[str]) -> set[str]:
    """Names of packages as package indexes spell them, without versions."""
    return {re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def imported_by_us() -> set[str]:
    """What the two packages import of others, also in functions, or look for with `find_spec`."""
    modules = set()
    for file in [*(ROOT / "masam_auto").rglob("*.py"), *(ROOT / "dataset_conversion").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("find_spec"):
                modules |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    # nnU-Net is run by its own Python: .nnunet_env. pip comes with Python, and is run apart.
    names = {module.partition(".")[0] for module in modules} - {"masam_auto", "dataset_conversion", "nnunetv2", "pip"}
    providers = importlib.metadata.packages_distributions()
    return distributions(each for name in names - sys.stdlib_module_names for each in providers.get(name, [name]))


def test_what_is_declared_is_imported_and_what_is_imported_is_declared() -> None:
    needed = distributions(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"].items()
    optional = distributions(each for extra, wanted in extras if extra != "test" for each in wanted)
    imported = imported_by_us()
    assert needed - imported == set()
    assert imported - needed - optional == set()
    assert optional - imported == {"tensorboard"}  # through torch.utils.tensorboard


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_command_can_be_started(command: str) -> None:
    module_name, _, function = SCRIPTS[command].partition(":")
    module = importlib.import_module(module_name)
    assert callable(getattr(module, function))
    assert module_name == f"masam_auto.cli.{command.removeprefix('masam_')}"


def test_tested_set_holds_every_dependency_once() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pinned = [line.partition("==")[0] for line in lines]
    assert len(pinned) == len(set(pinned))
    assert distributions([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]) <= set(pinned)
    assert "torch==2.13.0" in lines
    hashed = re.findall(r"^([a-z0-9-]+==\S+)", (ROOT / "constraints-hashes.txt").read_text(), flags=re.MULTILINE)
    assert sorted(hashed) == sorted(line for line in lines if not line.startswith("torch==")), "run make lock"


def test_version_is_in_the_changelog() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", masam_auto.__version__)
    assert f"## {masam_auto.__version__}" in (DOCUMENTATION / "changelog.md").read_text()
