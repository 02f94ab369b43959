"""Checks that plan sections run on themselves. Each raises PlanError with one clear line."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from masam_auto.core.errors import PlanError

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def check(condition: bool, message: str) -> None:
    """Raise PlanError with the message unless the condition holds."""
    if not condition:
        raise PlanError(message)


def check_finite(where: str, section: Any) -> None:
    """Refuse infinite and not-a-number fields, also within tuples, of a dataclass.

    Args:
        where: how the section is called in the plan, e.g. "training".
        section: the dataclass; sections inside it check themselves.

    Raises:
        PlanError: naming the field.
    """
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        numbers = [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, float)]
        check(all(map(math.isfinite, numbers)), f"{where}.{field.name} must be finite, got {value}")


def check_limits(where: str, section: Any, limits: Mapping[str, int]) -> None:
    """Refuse whole numbers that are not from 1 to their limit.

    The limits are far above sensible values. They stop mistyped or foreign plans from running for years or using all
    memory.

    Args:
        where: how the section is called in the plan, e.g. "network.".
        section: the dataclass.
        limits: of its fields.

    Raises:
        PlanError: naming the field.
    """
    for name, limit in limits.items():
        value = getattr(section, name)
        check(1 <= value <= limit, f"{where}{name} must be at least 1 and at most {limit}, got {value}")


def check_range(field: str, bounds: tuple[float, float], *, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuse a range that is not in order or not within limits.

    Args:
        field: the field's full name, e.g. "training.augmentation.gamma".
        bounds: its value.
        low, high: the smallest and largest allowed value.

    Raises:
        PlanError: naming the field.
    """
    check(bounds[0] <= bounds[1], f"{field} must go from the smaller to the larger value, got {bounds}")
    check(low <= bounds[0] and bounds[1] <= high, f"{field} must be {_within(low, high)}, got {bounds}")


def check_name(field: str, name: str) -> None:
    """Refuse names that cannot be part of a folder name, where "__" separates the parts. Raises PlanError."""
    check(
        NAME.fullmatch(name) is not None and "__" not in name,
        f"{field} must be made of letters, digits, '.', '_' and '-', without '__' and not starting with '.', got "
        f"{name!r}",
    )


def _within(low: float, high: float) -> str:
    return f"at least {low:g}" if math.isinf(high) else f"within {low:g}..{high:g}"
