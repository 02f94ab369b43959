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
    typed by the field: tuples are comma-separated, booleans true or false. Fields of one of several are named by its
    number, those of a table by their name: "axis0.normalization.0.scheme=zscore",
    "training.augmentation.added.blur=0.5,2".

    Raises:
        PlanError: unknown field (the known ones are listed) or a value that the field refuses.
    """
    for assignment in assignments:
        try:
            plan = _override_one(plan, assignment)
        except (PlanError, msgspec.ValidationError) as error:
            raise PlanError(f"{assignment}: {error}") from error
    return plan


def _override_one(plan: Plan, assignment: str) -> Plan:
    path, separator, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not separator or len(keys) < 2:
        raise PlanError("expected section.field=value, e.g. training.num_epochs=50")
    if keys[0] in plan.configurations:
        changed = _replaced(plan.configurations[keys[0]], keys[1:], text)
        plan = dataclasses.replace(plan, configurations=plan.configurations | {keys[0]: changed})
    elif keys[0] in ("training", "network", "inference"):
        plan = dataclasses.replace(plan, **{keys[0]: _replaced(getattr(plan, keys[0]), keys[1:], text)})
    else:
        known = ", ".join(("training", "network", "inference", *plan.configurations))
        raise PlanError(f"unknown section {keys[0]!r}; known: {known}")
    reasons = {key: value for key, value in plan.reasons.items() if key != path.strip()}
    return dataclasses.replace(plan, reasons=reasons | {path.strip(): "set by hand"})


def _replaced(section: Any, keys: Sequence[str], text: str) -> Any:
    """A section with the field changed that the keys name."""
    hints = typing.get_type_hints(type(section))
    if keys[0] not in hints or keys[0] == "name":
        raise PlanError(f"unknown field {keys[0]!r}; known: {', '.join(n for n in hints if n != 'name')}")
    value = _changed(getattr(section, keys[0]), hints[keys[0]], keys, text)
    return dataclasses.replace(section, **{keys[0]: value})


def _changed(value: Any, hint: Any, keys: Sequence[str], text: str) -> Any:
    """The new value of the field keys[0]; the keys after it name a part of it."""
    field, *rest = keys
    if dataclasses.is_dataclass(hint):
        if not rest:
            raise PlanError(f"name a field of {field}: {', '.join(typing.get_type_hints(hint))}")
        return _replaced(value, rest, text)
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        if len(rest) < 2 or rest[0] not in map(str, range(len(value))):
            raise PlanError(f"name a field of one of {field}, 0 to {len(value) - 1}, like {field}.0.FIELD=VALUE")
        number = int(rest[0])
        return (*value[:number], _replaced(value[number], rest[1:], text), *value[number + 1 :])
    if typing.get_origin(hint) is dict:
        if len(rest) != 1:
            raise PlanError(f"name an entry of {field}, like {field}.NAME=VALUE")
        return {**value, rest[0]: _typed(text, typing.get_args(hint)[1], field)}
    if rest:
        raise PlanError(f"{field} has no fields of its own")
    return _typed(text, hint, field)


def _typed(text: str, hint: Any, field: str) -> Any:
    plain: Any = text.strip()
    if typing.get_origin(hint) is Literal and plain not in typing.get_args(hint):
        raise PlanError(f"{field} must be one of {', '.join(typing.get_args(hint))}")
    if typing.get_origin(hint) is tuple:
        plain = [part.strip() for part in plain.strip("()[]").split(",") if part.strip()]
    return msgspec.convert(plain, hint, strict=False)
