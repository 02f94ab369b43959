"""The project's own files agree with each other: metadata, commands, tested set, changelog."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import masam_auto

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTATION = ROOT / "documentation"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS: dict[str, str] = PROJECT["scripts"]


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
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    names = {re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names <= set(pinned)
    assert "torch==2.13.0" in lines
    hashed = re.findall(r"^([a-z0-9-]+==\S+)", (ROOT / "constraints-hashes.txt").read_text(), flags=re.MULTILINE)
    assert sorted(hashed) == sorted(line for line in lines if not line.startswith("torch==")), "run make lock"


def test_version_is_in_the_changelog() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", masam_auto.__version__)
    assert f"## {masam_auto.__version__}" in (DOCUMENTATION / "changelog.md").read_text()
