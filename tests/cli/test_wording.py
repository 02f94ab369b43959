"""Options in messages, as one types them."""

import ast
import re
from pathlib import Path

import pytest

import masam_auto
from masam_auto.cli import common
from masam_auto.cli.wording import FLAGS, worded
from tests.reference_pages import SCRIPTS, command_parser

PACKAGE = Path(masam_auto.__file__).parent
FLAG = r"(?<![\w}-])--?[a-z][a-z_]{2,}(?= |$)|(?<= )-[a-z](?= |[.;,)]|$)"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Give `overwrite`.", "Give --overwrite."),
        ("with `resume`, or `workers=0`", "with --c, or --workers 0"),
        ("`training.num_epochs=5` or `training.seed`", "--set training.num_epochs=5 or --set training.seed"),
        ("`masam_train 4 0 configuration=axis0 validate`", "masam_train 4 0 -c axis0 --val"),
        ("`axis0.normalization.0.scheme=x`", "--set axis0.normalization.0.scheme=x"),
        ("`masam_fetch_weights sam2.1_hiera_t overwrite`", "masam_fetch_weights sam2.1_hiera_t --overwrite"),
        ("`masam_plan`", "masam_plan"),
        ("Remove `plan.json`.", "Remove `plan.json`."),
        ("Start it with `dask scheduler`.", "Start it with `dask scheduler`."),
        ("the class `liver` and an odd ` stay", "the class `liver` and an odd ` stay"),
    ],
)  # fmt: skip
def test_options_become_flags(message: str, shown: str) -> None:
    assert worded(message) == shown


def test_every_flag_is_one_of_a_command() -> None:
    known: set[str] = set()
    for command in SCRIPTS:
        known.update(flag for action in command_parser(command)._actions for flag in action.option_strings)
    assert {flag for flag in FLAGS.values() if flag not in known} == set()


def test_errors_are_shown_as_one_types(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: object) -> int:
        raise common.MasamError("it is there. Give `overwrite`.")

    assert common.run(main) == common.FAILED
    assert capsys.readouterr().err == "error: it is there. Give --overwrite.\n"


def test_the_library_words_no_flags() -> None:
    """Docstrings and comments may; what is shown goes through `worded`."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        # a document for users of commands; and words for pip
        if path.parent.name in {"cli", "baselines"} or path.name in {"model_card.py", "package_weights.py"}:
            continue
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found += [f"{path.name}:{node.lineno}: {flag}" for flag in re.findall(FLAG, node.value)]
    assert found == []
