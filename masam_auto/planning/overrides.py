"""`--set section.field=value`: change fields of a plan, with values checked against the field types."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from masam_auto.core.errors import PlanError
from masam_auto.core.plan import BY_HAND, Plan
from masam_auto.planning.window_length import with_depth


def override(plan: Plan, assignments: Sequence[str]) -> Plan:
    """Apply `--set` assignments such as "training.num_epochs=50" or "axis0.canvas=448,448".

    The section is `training`, `network`, `inference`, `training.augmentation` or a configuration's name. The field
    decides how its value is read: tuples are comma-separated, booleans are true or false. An item of a list is chosen
    by its number ("axis0.normalization.0.scheme=zscore"), an entry of a table by its name
    ("training.augmentation.added.blur=0.5,2").

    Depth and slice stride at inference follow the window of the default configuration, unless they are set by hand too.

    Raises:
        PlanError: unknown field (the known ones are listed) or a value that the field does not allow.
    """
    changed = plan
    for assignment in assignments:
        try:
            changed = _override_one(changed, assignment)
        except (PlanError, msgspec.ValidationError) as error:
            raise PlanError(f"`{assignment}`: {error}") from error
    window = changed.configuration(None).window
    if window == plan.configuration(None).window or changed.network.custom_encoder is not None:
        return changed
    return with_depth(changed, window)


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
    return dataclasses.replace(plan, reasons=plan.reasons | {path.strip(): BY_HAND})


def _replaced(section: Any, keys: Sequence[str], text: str) -> Any:
    """The section with one field changed; the keys say which."""
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
            raise PlanError(f"{field} has several fields. Name one: {', '.join(typing.get_type_hints(hint))}")
        return _replaced(value, rest, text)
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        if len(rest) < 2 or rest[0] not in map(str, range(len(value))):
            raise PlanError(
                f"{field} is a list. Give a number, 0 to {len(value) - 1}, and a field: {field}.0.FIELD=VALUE"
            )
        number = int(rest[0])
        return (*value[:number], _replaced(value[number], rest[1:], text), *value[number + 1 :])
    if typing.get_origin(hint) is dict:
        if len(rest) != 1:
            raise PlanError(f"{field} is a table. Name an entry: {field}.NAME=VALUE")
        return {**value, rest[0]: _typed(text, typing.get_args(hint)[1], field)}
    if rest:
        raise PlanError(f"{field} is a single value and has no fields")
    return _typed(text, hint, field)


def _typed(text: str, hint: Any, field: str) -> Any:
    plain: Any = text.strip()
    if typing.get_origin(hint) is Literal and plain not in typing.get_args(hint):
        raise PlanError(f"{field} must be one of {', '.join(typing.get_args(hint))}")
    if typing.get_origin(hint) is tuple:
        plain = [part.strip() for part in plain.strip("()[]").split(",") if part.strip()]
    return msgspec.convert(plain, hint, strict=False)
