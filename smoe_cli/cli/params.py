"""`smoe params`."""

from __future__ import annotations

from smoe_cli.cli import options
from smoe_cli.cli.console import print_json, print_table


def params(
    config: options.RecipePath = None,
    overrides: options.Overrides = None,
    preset: options.Preset = None,
    as_json: options.AsJson = False,
) -> None:
    """Count parameters: in all, active for one utterance, and in each expert.

    Checks that the model can be built; needs neither data nor a checkpoint.

    Example: smoe params --preset base
    """
    recipe = options.load_recipe(config, overrides, [] if preset is None else [f"model.preset={preset}"])
    from smoe_cli import pipeline

    report = pipeline.params(recipe)
    if as_json:
        print_json(report)
        return
    rows = [("total", report.total), ("active for one utterance", report.active)]
    rows += [(f"expert {name}", count) for name, count in report.experts.items()]
    rows += [("CTC head, not in the total", report.ctc_head)]
    print_table(("parameters", "count"), rows, title=f"{report.preset}, vocabulary {report.vocab_size:,}")
