"""The presets of `build-zoo` side by side: what a recipe is drawn from, and what all runs share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

LOGARITHMIC = ("learning_rate", "weight_decay", "init_std")
LEFT_OUT = ("name", "space", "runs_per_part")


def table() -> str:
    from weightsearch.zoo.recipes import PRESETS

    presets = list(PRESETS.values())
    rows = [
        (field.name, [getattr(preset.space, field.name) for preset in presets]) for field in fields(presets[0].space)
    ]
    rows += [
        (field.name, [getattr(preset, field.name) for preset in presets])
        for field in fields(presets[0])
        if field.name not in LEFT_OUT
    ]
    lines = [f"| key | {' | '.join(f'`{name}`' for name in PRESETS)} |", f"|---|{'---|' * len(presets)}"]
    lines += [f"| `{key}` | {' | '.join(shown(key, value) for value in values)} |" for key, values in rows]
    return "\n".join(lines)


def shown(key: str, value: Any) -> str:
    if value is None:
        return "every epoch" if key == "checkpoint_epochs" else "–"
    if not isinstance(value, tuple):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if key in (*LOGARITHMIC, "dropout"):
        return f"{value[0]:g} to {value[1]:g}, {'log-uniform' if key in LOGARITHMIC else 'uniform'}"
    return ", ".join(map(str, value))
