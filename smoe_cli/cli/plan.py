"""What a step would do (`--dry-run`), and where its page lies afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smoe_cli.cli.console import print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from smoe_cli.config import Config


def show_plan(
    recipe: Config | None,
    step: str,
    as_json: bool,
    reads: Sequence[Path] = (),
    writes: Sequence[Path] | None = None,
    reason: str = "",
) -> None:
    """Print what a step would read and write; nothing is written.

    Args:
        recipe: The recipe; None: there is none, and other options name all files.
        step: Name of the command.
        as_json: Print JSON.
        reads: What other options make it read instead of what the step before left.
        writes: What other options make it write instead.
        reason: What else to say of it, where there is no recipe.

    Raises:
        SmoeError: If the recipe does not allow the step.
    """
    from smoe_cli.steps import Step, plan_step

    plan = Step(name=step, state="would run", reason=reason) if recipe is None else plan_step(recipe, step)
    asked = {"reads": list(reads) or plan.reads, "writes": plan.writes if writes is None else list(writes)}
    if asked != {"reads": plan.reads, "writes": plan.writes}:
        # Only the recipe's own files are remembered as up to date.
        plan = plan.model_copy(update={"state": "would run", "reason": reason, **asked})
    elif plan.state == "up to date":
        plan = plan.model_copy(update={"state": "would run", "reason": "nothing that it reads has changed since it last ran"})
    if as_json:
        print_json(plan)
        return
    say(f"{plan.name}: {plan.state}" + (f" ({plan.reason})" if plan.reason else ""))
    rows = [("reads", path, "exists" if path.exists() else "missing") for path in plan.reads]
    rows += [("writes", path, "exists" if path.exists() else "") for path in plan.writes]
    print_table(("", "path", "now"), rows)


def show_page(out: Path | None, folder: Path | None, name: str) -> None:
    """Print the path of the page that a step wrote.

    Args:
        out: `--out`.
        folder: The recipe's folder; None: without a recipe and `--out` no page is written.
        name: The page.
    """
    written_to = out or folder
    if written_to is not None:
        say(written_to / name)
