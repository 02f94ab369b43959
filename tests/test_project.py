"""The project's own files agree with each other: metadata, commands, tested set, documentation."""

import argparse
import dataclasses
import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import masam_auto
from masam_auto.core import plan as plan_module

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTATION = ROOT / "documentation"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS: dict[str, str] = PROJECT["scripts"]
SECTIONS = (
    plan_module.Plan, plan_module.Configuration, plan_module.NormalizationPlan, plan_module.NetworkPlan,
    plan_module.TrainingPlan, plan_module.AugmentationPlan, plan_module.InferencePlan,
)  # fmt: skip


def section(text: str, heading: str) -> str:
    """The part of a Markdown text below a heading, up to the next heading."""
    match = re.search(rf"^#+ {re.escape(heading)}$\n(.*?)(?=^#|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert match, f"no heading {heading!r}"
    return match[1]


def command_parser(command: str) -> argparse.ArgumentParser:
    """The parser that a command's main builds."""

    class Built(Exception):
        pass

    def stop(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        raise Built(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Built) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        importlib.import_module(SCRIPTS[command].partition(":")[0]).main([])
    parser = caught.value.args[0]
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_command_can_be_started(command: str) -> None:
    module_name, _, function = SCRIPTS[command].partition(":")
    module = importlib.import_module(module_name)
    assert callable(getattr(module, function))
    assert module_name == f"masam_auto.cli.{command.removeprefix('masam_')}"


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_option_of_a_command_is_documented(command: str) -> None:
    text = section((DOCUMENTATION / "reference_commands.md").read_text(), command)
    shared = section((DOCUMENTATION / "reference_commands.md").read_text(), "Options that several commands share")
    parser = command_parser(command)
    assert parser.prog == command
    for action in parser._actions:
        names = [*action.option_strings] or [str(action.metavar or action.dest)]
        for name in names:
            assert f"`{name}" in text or f"`{name}" in shared, f"{command}: {name} is not documented"
        assert action.help, f"{command}: {names[0]} has no help text"


def test_no_option_is_documented_that_does_not_exist() -> None:
    known = {
        name for command in SCRIPTS for action in command_parser(command)._actions for name in action.option_strings
    }
    text = (DOCUMENTATION / "reference_commands.md").read_text()
    documented = set(re.findall(r"(?<![\w-])`(--?[a-zA-Z][\w-]*)", text))
    assert documented <= known


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_field_of_the_plan_is_documented_and_no_other(kind: type) -> None:
    table = section((DOCUMENTATION / "reference_plan.md").read_text(), kind.__name__)
    rows = re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert documented == {field.name for field in dataclasses.fields(kind)}


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


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(DOCUMENTATION.glob("*.md"))], ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", sorted(DOCUMENTATION.glob("*.md")), ids=lambda path: path.name)
def test_what_examples_import_is_there(path: Path) -> None:
    imports = re.findall(r"^from (masam_auto[\w.]*) import (.+)$", path.read_text(), flags=re.MULTILINE)
    wanted = [(module, name.strip()) for module, names in imports for name in names.split(",")]
    assert [pair for pair in wanted if not hasattr(importlib.import_module(pair[0]), pair[1])] == []


def test_version_is_in_the_changelog() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", masam_auto.__version__)
    assert f"## {masam_auto.__version__}" in (DOCUMENTATION / "changelog.md").read_text()
