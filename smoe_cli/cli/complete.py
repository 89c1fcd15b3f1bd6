"""Values that the shell offers after an option; a broken or missing recipe offers fewer, never an error."""

from __future__ import annotations

from typing import Any

from smoe_cli.presets import PRESETS
from smoe_cli.tags import TASK_KINDS


def preset(incomplete: str) -> list[str]:
    return [name for name in PRESETS if name.startswith(incomplete)]


def task(ctx: Any, incomplete: str) -> list[str]:
    return [name for name in _tasks(ctx) if name.startswith(incomplete)]


def language(ctx: Any, incomplete: str) -> list[str]:
    languages = dict.fromkeys(lang for names in _tasks(ctx).values() for lang in names)
    return [name for name in languages if name.startswith(incomplete)]


def _tasks(ctx: Any) -> dict[str, list[str]]:
    """Task -> languages of the recipe on the command line so far; without one, the known kinds of task."""
    from smoe_cli.config import load_config
    from smoe_cli.errors import SmoeError

    try:
        recipe = load_config(ctx.params.get("config"), ctx.params.get("overrides") or ())
    except SmoeError:
        return {kind: [] for kind in TASK_KINDS}
    return {name: settings.languages for name, settings in recipe.tasks.items()}
