"""A plan as a readable table: field, value, reason."""

import textwrap
from typing import Any

from masam_auto.core.plan import NormalizationPlan, Plan, StepSize

FIELD_WIDTH, VALUE_WIDTH, WIDTH = 35, 24, 140


def plan_table(plan: Plan) -> str:
    """Show the plan as text, one row per decision that has a reason.

    The default configuration is shown in full; the others only where they differ from it.

    Example:
        >>> from masam_auto.planning.plan_table import plan_table
        >>> print(plan_table(plan).splitlines()[0])
        plan 'masam' of Dataset001_Toy for a machine without a GPU
    """
    rows = [row for key in plan.reasons if (row := _row(plan, key)) is not None]
    heading = f"plan {plan.name!r} of {plan.dataset_name} for {_memory(plan.gpu_memory_gb)}"
    ruler = f"{'-' * (FIELD_WIDTH - 2)}  {'-' * (VALUE_WIDTH - 2)}  {'-' * (WIDTH - FIELD_WIDTH - VALUE_WIDTH)}"
    titles = f"{'field':<{FIELD_WIDTH}}{'value':<{VALUE_WIDTH}}reason"
    return "\n".join([heading, titles, ruler, *rows])


def _row(plan: Plan, key: str) -> str | None:
    section, _, field = key.partition(".")
    value = _lookup(plan, key)
    default = plan.default_configuration
    if section in plan.configurations and section != default:
        same = value == _lookup(plan, f"{default}.{field}")
        if same and plan.reasons.get(f"{default}.{field}") is not None:
            return None
    return _wrapped(key, _shown(value), plan.reasons[key])


def _lookup(plan: Plan, key: str) -> Any:
    section, *fields = key.split(".")
    value: Any = plan.configurations[section] if section in plan.configurations else getattr(plan, section, None)
    for field in fields:
        if isinstance(value, dict):
            value = value.get(field)
        elif isinstance(value, tuple):
            value = value[int(field)]
        else:
            value = getattr(value, field, None)
    return value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return ", ".join(_shown(part) for part in value) if value else "none"
    if isinstance(value, NormalizationPlan):
        return value.scheme + (" (non-zero only)" if value.inside_mask else "")
    if isinstance(value, StepSize):
        return f"{value.batch_size} x {value.window} x {value.canvas[0]} x {value.canvas[1]}"
    return str(value)


def _wrapped(key: str, value: str, reason: str) -> str:
    columns = [
        textwrap.wrap(key, FIELD_WIDTH - 2) or [""],
        textwrap.wrap(value, VALUE_WIDTH - 2) or [""],
        textwrap.wrap(reason, WIDTH - FIELD_WIDTH - VALUE_WIDTH) or [""],
    ]
    height = max(map(len, columns))
    field, shown, why = ([*column, *[""] * (height - len(column))] for column in columns)
    lines = zip(field, shown, why, strict=True)
    return "\n".join(f"{a:<{FIELD_WIDTH}}{b:<{VALUE_WIDTH}}{c}".rstrip() for a, b, c in lines)


def _memory(gpu_memory_gb: float) -> str:
    return f"a GPU of {gpu_memory_gb:g} GiB" if gpu_memory_gb > 0 else "a machine without a GPU"
