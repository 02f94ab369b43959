"""The project's own files agree with each other: metadata, commands, tested set, documentation."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

import masam_auto
from tests import reference_pages

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTATION = ROOT / "documentation"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS: dict[str, str] = PROJECT["scripts"]
PAGES = [ROOT / "README.md", *sorted(DOCUMENTATION.glob("*.md"))]
# The others tell of a day in the past.
LIVING_PAGES = [page for page in PAGES if page.name not in ("log.md", "changelog.md")]


def anchors(text: str) -> set[str]:
    """What links to the headings of a page end with, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_command_can_be_started(command: str) -> None:
    module_name, _, function = SCRIPTS[command].partition(":")
    module = importlib.import_module(module_name)
    assert callable(getattr(module, function))
    assert module_name == f"masam_auto.cli.{command.removeprefix('masam_')}"


@pytest.mark.parametrize("name", reference_pages.pages())
def test_reference_pages_are_what_the_code_says(name: str) -> None:
    assert (DOCUMENTATION / name).read_text() == reference_pages.pages()[name], "run make docs"


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_option_of_a_command_has_a_help_text(command: str) -> None:
    parser = reference_pages.command_parser(command)
    assert parser.prog == command and parser.description
    assert [action.dest for action in parser._actions if not action.help] == []


@pytest.mark.parametrize("command", SCRIPTS)
def test_the_example_of_a_command_is_accepted(command: str) -> None:
    name, *arguments = shlex.split(reference_pages.EXAMPLES[command])
    assert name == command
    reference_pages.command_parser(command).parse_args(arguments)


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


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", path.read_text()):
        file, _, heading = target.partition("#")
        page = path.parent / file if file else path
        assert page.exists(), target
        assert not heading or heading in anchors(page.read_text()), target


@pytest.mark.parametrize("path", LIVING_PAGES, ids=lambda path: path.name)
def test_files_that_a_page_names_exist(path: Path) -> None:
    text = path.read_text()
    full = re.findall(r"(?<![\w./])(?:masam_auto|tests|dataset_conversion|documentation)/[\w/]+\.\w+", text)
    short = [name for name in re.findall(r"`([a-z_]+/[\w/]+\.py)`", text) if name not in full]
    assert [name for name in full if not (ROOT / name).exists()] == []
    assert [name for name in short if not (ROOT / "masam_auto" / name).exists()] == []


@pytest.mark.parametrize("path", LIVING_PAGES, ids=lambda path: path.name)
def test_names_are_in_the_files_that_a_page_gives_for_them(path: Path) -> None:
    """In `name` (`file.py`), `name` in `file.py`, and rows of a table whose last cell is a file."""
    text = path.read_text()
    found = re.findall(r"`(\w+)`(?: \(| in )`((?:masam_auto|tests|dataset_conversion)/[\w/]+\.py)`", text)
    for cells, file in re.findall(r"^\|.*?\|(.*)\| `([\w/]+\.py)` \|$", text, flags=re.MULTILINE):
        found += [(name, file) for name in re.findall(r"`(\w+)`", cells)]
    missing = [pair for pair in found if not re.search(rf"\b{pair[0]}\b", (ROOT / pair[1]).read_text())]
    assert missing == []


@pytest.mark.parametrize("path", sorted(DOCUMENTATION.glob("*.md")), ids=lambda path: path.name)
def test_what_examples_import_is_there(path: Path) -> None:
    imports = re.findall(r"^from (masam_auto[\w.]*) import (.+)$", path.read_text(), flags=re.MULTILINE)
    wanted = [(module, name.strip()) for module, names in imports for name in names.split(",")]
    assert [pair for pair in wanted if not hasattr(importlib.import_module(pair[0]), pair[1])] == []


def test_version_is_in_the_changelog() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", masam_auto.__version__)
    assert f"## {masam_auto.__version__}" in (DOCUMENTATION / "changelog.md").read_text()
