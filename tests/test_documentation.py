"""The documentation says what is true: reference pages, commands, options, files, names and links are the code's."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest

from masam_auto.core import plan as plan_module
from masam_auto.models.sam_files import SAM_FILES
from tests import reference_pages
from tests.reference_pages import DOCUMENTATION, ROOT, SCRIPTS

PAGES = [ROOT / "README.md", *sorted(DOCUMENTATION.glob("*.md"))]
# The others tell of a day in the past.
LIVING_PAGES = [page for page in PAGES if page.name not in ("log.md", "changelog.md")]
OPTIONS = {
    name
    for command in SCRIPTS
    for action in reference_pages.command_parser(command)._actions
    for name in action.option_strings
}
SECTIONS = {
    "training": "TrainingPlan",
    "network": "NetworkPlan",
    "inference": "InferencePlan",
    "augmentation": "AugmentationPlan",
}
OTHERS_OPTIONS = {"--nworkers", "--only"}  # of dask worker, and of make fuzz


def anchors(text: str) -> set[str]:
    """What links to the headings of a page end with, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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


@pytest.mark.parametrize(
    "path", [page for page in LIVING_PAGES if page.name != "reference_commands.md"], ids=lambda p: p.name
)
def test_commands_in_the_blocks_of_a_page_are_accepted(path: Path) -> None:
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", path.read_text(), flags=re.DOTALL)).replace("\\\n", " ")
    for line in re.findall(r"^\s*(?:\w+=\w+ |srun )*(masam_\w+ [^#\n]*?) *&?(?: *#.*)?$", blocks, flags=re.MULTILINE):
        command, *arguments = shlex.split(re.sub(r" \$go_on\b", "", line).replace("$fold", "0"))
        reference_pages.command_parser(command).parse_args(arguments)


@pytest.mark.parametrize("path", LIVING_PAGES, ids=lambda path: path.name)
def test_options_that_a_page_names_exist(path: Path) -> None:
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    named = {
        option
        for code in re.findall(r"`((?:masam_|-)[^`\n]+)`", prose)
        for option in re.findall(r"(?<![\w=])--?[a-zA-Z][\w-]*", code)
    }
    assert named - OPTIONS - OTHERS_OPTIONS == set()


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


@pytest.mark.parametrize("path", LIVING_PAGES, ids=lambda path: path.name)
def test_fields_that_a_page_sets_are_in_the_plan(path: Path) -> None:
    for section, name in re.findall(r"\b(training|network|inference|axis\d|augmentation)\.(\w+)=", path.read_text()):
        fields = dataclasses.fields(getattr(plan_module, SECTIONS.get(section, "Configuration")))
        assert name in {field.name for field in fields}, f"{section}.{name}"


def test_the_table_of_weights_is_the_codes() -> None:
    page = (DOCUMENTATION / "weights.md").read_text()
    for name, file in SAM_FILES.items():
        size = f"{file.size:,}" if file.sha256 else "?"
        assert f"| `{name}` | `{file.encoder}` | `{file.name}` | {size} | {file.licence} | <{file.page}>" in page
        assert f"| `{name}` | {f'`{file.sha256}`' if file.sha256 else 'none is published'} |" in page
        assert file.wheel is None or f"`{file.wheel.requirement}`" in page
