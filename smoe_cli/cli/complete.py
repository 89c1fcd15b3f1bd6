"""Values that the shell offers after an option; a broken or missing recipe offers fewer, never an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smoe_cli.presets import PRESETS
from smoe_cli.tags import TASK_KINDS

if TYPE_CHECKING:
    from smoe_cli.config import Config


def preset(incomplete: str) -> list[str]:
    return [name for name in PRESETS if name.startswith(incomplete)]


def task(ctx: Any, incomplete: str) -> list[str]:
    return [name for name in _tasks(ctx) if name.startswith(incomplete)]


def language(ctx: Any, incomplete: str) -> list[str]:
    languages = dict.fromkeys(lang for names in _tasks(ctx).values() for lang in names)
    return [name for name in languages if name.startswith(incomplete)]


def tag(ctx: Any, incomplete: str) -> list[str]:
    recipe = _recipe(ctx)
    tags = [f"{axis}={value}" for axis, values in recipe.axes.items() for value in values] if recipe else []
    return [text for text in tags if text.startswith(incomplete)]


def _tasks(ctx: Any) -> dict[str, list[str]]:
    """Task -> languages of the recipe on the command line so far; without one, the known kinds of task."""
    recipe = _recipe(ctx)
    return {name: recipe.languages(name) for name in recipe.tasks} if recipe else {kind: [] for kind in TASK_KINDS}


def _recipe(ctx: Any) -> Config | None:
    from smoe_cli.errors import SmoeError
    from smoe_cli.recipe import load_config

    try:
        return load_config(ctx.params.get("config"), ctx.params.get("overrides") or ())
    except SmoeError:
        return None
