"""The two reference pages, written from the code: `make docs`, or `python -m tests.reference_pages`.

reference_commands.md comes from the parsers of the commands, reference_plan.md from `core/plan.py`: the dataclasses and
the docstring under each field. `tests/test_documentation.py` fails where a page is not what this module writes.
"""

import argparse
import ast
import dataclasses
import importlib
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from masam_auto.core import plan as plan_module

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTATION = ROOT / "documentation"
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
SECTIONS = (
    "Plan",
    "Configuration",
    "StepSize",
    "Speed",
    "NormalizationPlan",
    "NetworkPlan",
    "TrainingPlan",
    "AugmentationPlan",
    "InferencePlan",
)
# An option that so many commands have in the same words is explained once.
SHARED_BY = 4
ROOTS = "`--raw`, `--preprocessed`, `--results`, `--weights`"
EXAMPLES = {
    "masam_plan_and_preprocess": "masam_plan_and_preprocess -d 4",
    "masam_extract_fingerprint": "masam_extract_fingerprint -d 4",
    "masam_plan": "masam_plan -d 4 --set training.num_epochs=50 axis0.window=7",
    "masam_preprocess": "masam_preprocess -d 4 -c axis0",
    "masam_fetch_weights": "masam_fetch_weights lite_medsam",
    "masam_import_checkpoint": "masam_import_checkpoint epoch_159.pth -d Dataset010_BTCV --dataset_json dataset.json "
    "--spacing 3 0.76 0.76",
    "masam_train": "masam_train 4 fold0",
    "masam_predict": "masam_predict -i images -o segmentations",
    "masam_segment": "masam_segment -i images -o segmentations --boxes boxes.json",
    "masam_evaluate": "masam_evaluate segmentations references --tolerance 2",
    "masam_ensemble": "masam_ensemble -i A B -o mean",
    "masam_apply_postprocessing": "masam_apply_postprocessing -i mean -o segmentations -pp postprocessing.json",
    "masam_find_best_configuration": "masam_find_best_configuration 4",
    "masam_export_model": "masam_export_model -d 4 -o hippocampus.zip --licence CC-BY-4.0",
    "masam_install_model": "masam_install_model hippocampus.zip",
    "masam_demo": "masam_demo",
    "masam_convert_dataset": "masam_convert_dataset btcv -i ~/downloads/Abdomen -o masam_data/raw --merge_adrenals",
    "masam_benchmark": "masam_benchmark -backbone vit_b -canvas 448",
    "masam_compare": "masam_compare 4 fold0 --with nnunet_3d_fullres samed --budget 30min",
}
MORE = {
    "masam_plan_and_preprocess": "[tutorial.md](tutorial.md)",
    "masam_plan": "[reference_plan.md](reference_plan.md)",
    "masam_fetch_weights": "[weights.md](weights.md)",
    "masam_import_checkpoint": "[published_models.md](published_models.md)",
    "masam_train": "[training.md](training.md), [many_gpus.md](many_gpus.md)",
    "masam_predict": "[inputs.md](inputs.md), [boxes.md](boxes.md), [many_gpus.md](many_gpus.md)",
    "masam_segment": "[segment.md](segment.md), [weights.md](weights.md)",
    "masam_evaluate": "[metrics.md](metrics.md), [boxes.md](boxes.md)",
    "masam_ensemble": "[ensembles.md](ensembles.md)",
    "masam_apply_postprocessing": "[ensembles.md](ensembles.md)",
    "masam_find_best_configuration": "[ensembles.md](ensembles.md)",
    "masam_export_model": "[sharing.md](sharing.md)",
    "masam_install_model": "[sharing.md](sharing.md)",
    "masam_convert_dataset": "[datasets.md](datasets.md)",
    "masam_benchmark": "[benchmarks.md](benchmarks.md)",
    "masam_compare": "[comparison.md](comparison.md)",
}
COMMANDS_HEAD = """# Commands

<!-- Written by `make docs` from the parsers. Change the help texts in `masam_auto/cli/`, then run it. -->

Every command answers `--help` at once. It ends with exit code 0 when all is done, and with 2 and one clear message
when there is something for you to fix ([errors.md](errors.md)).

You can name a data set by number (`4`, `004`), by name (`Dataset004_Hippocampus`) or by path. Raw data are read from
that path; for everything else only the name counts.
"""
PLAN_HEAD = """# The plan, field by field

<!-- Written by `make docs` from the docstrings in `masam_auto/core/plan.py`. Change them there, then run it. -->

`preprocessed/DatasetXXX_Name/plan.json` holds every decision. `masam_plan` makes it and prints it as a table, you may
edit it, and everything else obeys it. Three ways to change a field:

```
masam_plan -d 4 --set training.num_epochs=50 --set axis0.canvas=448,448  # while planning
masam_train 4 fold0 --set training.learning_rate=4e-4  # for one training, stored with the model
$EDITOR masam_data/preprocessed/Dataset004_X/plan.json  # by hand
```

All three are typed and checked; unknown fields and impossible values are refused. In `--set`, the first word is
`training`, `training.augmentation`, `network`, `inference` or the name of a configuration. Separate the values of a
tuple by commas (`448,448`); booleans are `true` and `false`.

Fields marked **(P)** decide what preprocessed arrays contain: preprocess again after you change one. A training or
prediction that meets arrays of another plan says so and stops.

The defaults are those of the dataclass; for most data sets the planner chooses other values and says why in
`reasons`.
"""


def write_pages() -> None:
    """Write both pages into documentation/."""
    for name, text in pages().items():
        (DOCUMENTATION / name).write_text(text)


def pages() -> dict[str, str]:
    """The pages by file name."""
    return {"reference_commands.md": _commands_page(), "reference_plan.md": _plan_page()}


def command_parser(command: str) -> argparse.ArgumentParser:
    """The parser that a command's main builds."""

    class Built(Exception):
        pass

    def stop(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        raise Built(parser)

    main = importlib.import_module(SCRIPTS[command].partition(":")[0]).main
    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            main([])
        except Built as built:
            parser = built.args[0]
            assert isinstance(parser, argparse.ArgumentParser)
            return parser
    raise AssertionError(f"{command} parses no arguments")


def _commands_page() -> str:
    parsers = {command: command_parser(command) for command in SCRIPTS}
    rows = {command: _option_rows(parser) for command, parser in parsers.items()}
    counts = Counter(row for found in rows.values() for row in found)
    shared = [row for row, count in counts.items() if count >= SHARED_BY]
    parts = [COMMANDS_HEAD, "## Options that many commands have\n", _table("option", shared)]
    for command, parser in parsers.items():
        own = [row for row in rows[command] if row not in shared]
        common = [
            row[0].split(" ")[0].rstrip(",") for row in rows[command] if row in shared and counts[row] < len(rows)
        ]
        parts.append(f"## {command}\n")
        more = f" More: {MORE[command]}." if command in MORE else ""
        parts.append(f"{parser.description}{more}\n")
        parts.append(f"```\n{_usage(parser)}\n{EXAMPLES[command]}\n```\n")
        if own:
            parts.append(_table("option", own))
        listed = ", ".join(common).replace(ROOTS, "root folders")
        parts.append(f"And, as above: {listed}.\n" if listed else "")
    return "\n".join(parts)


def _usage(parser: argparse.ArgumentParser) -> str:
    """What must be given, and that there are options."""
    words = []
    for action in _actions(parser):
        value = " ".join(_value(action).split())
        if not action.option_strings:
            words.append({"+": f"{value} [{value} ...]", "*": f"[{value} ...]"}.get(str(action.nargs), value))
        elif action.required:
            words.append(f"{action.option_strings[0]} {value}{' [...]' if action.nargs == '+' else ''}")
    return " ".join([parser.prog, *words, "[options]"])


def _option_rows(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Names and meaning of every option, as the cells of a table."""
    formatter = parser._get_formatter()
    rows = []
    for action in _actions(parser):
        meaning = " ".join(formatter._expand_help(action).split())
        if action.choices and action.metavar and not all(str(choice) in meaning for choice in action.choices):
            meaning += f"; one of {', '.join(map(str, action.choices))}"
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{_value(action)}`"
        value = f" {_value(action)}" if action.option_strings and action.nargs != 0 else ""
        rows.append((names + value, meaning.replace("|", "\\|").replace("*", "\\*").replace("<", "\\<")))
    return rows


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Positional arguments first."""
    return sorted(parser._actions, key=lambda action: bool(action.option_strings))


def _value(action: argparse.Action) -> str:
    """What stands for the value of an option in its help."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.metavar is None and action.choices:
        return "\\|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _plan_page() -> str:
    tree = ast.parse(Path(plan_module.__file__).read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    parts = [PLAN_HEAD]
    for name in SECTIONS:
        node, kind = classes[name], getattr(plan_module, name)
        meanings, preprocessed = dict(_field_docs(node)), _preprocessing_fields(node)
        parts.append(f"## {name}\n\n{_paragraph(ast.get_docstring(node) or '')}\n")
        rows = []
        for field in dataclasses.fields(kind):
            mark = " **(P)**" if field.name in preprocessed else ""
            rows.append((f"`{field.name}`{mark}", _default(field), meanings[field.name].replace("|", "\\|")))
        parts.append(_table("field", rows, "default"))
    return "\n".join(parts)


def _field_docs(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Each field with the docstring that stands under it."""
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            assert said, f"{node.name}.{field.target.id} has no docstring under it"
            yield field.target.id, _paragraph(below.value.value)


def _preprocessing_fields(node: ast.ClassDef) -> set[str]:
    """The fields that `preprocessing_digest` reads."""
    digests = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "preprocessing_digest"]
    return {found.attr for digest in digests for found in ast.walk(digest) if isinstance(found, ast.Attribute)}


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "its own defaults" if dataclasses.is_dataclass(field.default_factory) else "empty"
    if field.default is dataclasses.MISSING:
        return ""
    value = field.default
    if isinstance(value, tuple):
        return f"`{','.join(f'{part:g}' for part in value)}`" if value else "empty"
    if isinstance(value, float):
        return f"`{value:.3g}`"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`".replace("` ", "`").replace(" `", "`")
    return f"`{value}`" if value != "" else "empty"


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _table(first: str, rows: list[Any], *between: str) -> str:
    names = (first, *between, "meaning")
    lines = [names, ("---",) * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    write_pages()
