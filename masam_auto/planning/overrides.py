"""`--set section.field=value`: changes of a plan, typed by its fields."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from masam_auto.core.errors import PlanError
from masam_auto.core.plan import Plan


def override(plan: Plan, assignments: Sequence[str]) -> Plan:
    """Apply `--set` assignments such as "training.num_epochs=50" or "axis0.canvas=448,448".

    The first word is `training`, `network`, `inference`, `training.augmentation` or a configuration's name. Values are
    typed by the field: tuples are comma-separated, booleans true or false.

    Raises:
        PlanError: unknown field (the known ones are listed) or a value that the field refuses.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not separator or len(keys) < 2:
            raise PlanError(f"--set {assignment}: expected section.field=value, e.g. training.num_epochs=50")
        if keys[0] in plan.configurations:
            changed = _replaced(plan.configurations[keys[0]], keys[1:], text, assignment)
            plan = dataclasses.replace(plan, configurations=plan.configurations | {keys[0]: changed})
        elif keys[0] in ("training", "network", "inference"):
            plan = dataclasses.replace(plan, **{keys[0]: _replaced(getattr(plan, keys[0]), keys[1:], text, assignment)})
        else:
            raise PlanError(
                f"--set {assignment}: unknown section {keys[0]!r}; known: training, network, inference, {', '.join(plan.configurations)}"
            )
        reasons = {key: value for key, value in plan.reasons.items() if key != path.strip()}
        plan = dataclasses.replace(plan, reasons=reasons | {path.strip(): "set by hand"})
    return plan


def _replaced(section: Any, keys: list[str], text: str, assignment: str) -> Any:
    hints = typing.get_type_hints(type(section))
    if keys[0] not in hints or keys[0] == "name":
        raise PlanError(
            f"--set {assignment}: unknown field {keys[0]!r}; known: {', '.join(n for n in hints if n != 'name')}"
        )
    hint = hints[keys[0]]
    if dataclasses.is_dataclass(hint):
        if len(keys) < 2:
            raise PlanError(f"--set {assignment}: name a field of {keys[0]}: {', '.join(typing.get_type_hints(hint))}")
        return dataclasses.replace(
            section, **{keys[0]: _replaced(getattr(section, keys[0]), keys[1:], text, assignment)}
        )
    if len(keys) > 1:
        raise PlanError(f"--set {assignment}: {keys[0]} has no fields of its own")
    plain: Any = text.strip()
    if typing.get_origin(hint) is Literal and plain not in typing.get_args(hint):
        raise PlanError(f"--set {assignment}: {keys[0]} must be one of {', '.join(typing.get_args(hint))}")
    if typing.get_origin(hint) is tuple:
        plain = [part.strip() for part in plain.strip("()[]").split(",") if part.strip()]
    try:
        return dataclasses.replace(section, **{keys[0]: msgspec.convert(plain, hint, strict=False)})
    except msgspec.ValidationError as error:
        raise PlanError(f"--set {assignment}: {error}") from error
    except PlanError as error:
        raise PlanError(f"--set {assignment}: {error}") from error
