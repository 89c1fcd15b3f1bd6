"""Options that several commands share, and the recipe that they add up to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from smoe_cli.cli import complete
from smoe_cli.presets import PRESETS
from smoe_cli.tags import Bandwidth

if TYPE_CHECKING:
    from smoe_cli.config import Config, DecodeSettings

RecipePath = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="PATH", help="The recipe.", show_default="smoe.yaml in this folder"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting of the recipe, e.g. `train.max_steps=500`; repeatable.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON; nothing else goes to stdout.")]


def _dry_run(besides: str = "") -> Any:
    return typer.Option("--dry-run", help=f"Check options and configuration, {besides}say what would be read and written, write nothing.")


DryRun = Annotated[bool, _dry_run()]
DryRunOfCorpora = Annotated[bool, _dry_run("look for the corpora, ")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FOLDER",
        exists=True,
        help="A trained model; it brings its own configuration.",
        show_default="what `train` wrote",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FOLDER", file_okay=False, help="Folder to write to.", show_default="in the recipe's `exp_dir`"),
]
TrainedModel = Annotated[Path, typer.Argument(metavar="CHECKPOINT", exists=True, file_okay=False, help="The trained model.")]
NewFolder = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.", show_default=False)]
OneTask = Annotated[str | None, typer.Option("--task", metavar="NAME", help="What it will produce.", show_default="the only one")]
OneLanguage = Annotated[
    str | None, typer.Option("--lang", metavar="LANG", help="Language it will write.", show_default="the only one of the task")
]
OneBand = Annotated[Bandwidth | None, typer.Option("--bandwidth", help="Band it will hear.", show_default="the only one of the task")]
TaskName = Annotated[
    str | None,
    typer.Option("--task", metavar="NAME", help="What to produce.", autocompletion=complete.task, show_default="all of the recipe"),
]
Language = Annotated[
    str | None,
    typer.Option("--lang", metavar="LANG", help="Language to write.", autocompletion=complete.language, show_default="all of the task"),
]
Band = Annotated[
    Bandwidth | None,
    typer.Option("--bandwidth", help="`nb`: telephone speech, `wb`: 16 kHz or more.", show_default="as the data is tagged"),
]


def _tag(default: str) -> Any:
    help_text = "Value on an axis of the recipe's own, e.g. `accent=us`; repeatable."
    return typer.Option("--tag", metavar="AXIS=VALUE", help=help_text, autocompletion=complete.tag, show_default=default)


RouteTags = Annotated[list[str] | None, _tag("as the data is tagged")]
RouteTag = Annotated[list[str] | None, _tag("the only one")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help=f"Model variant, at paper scale: no recipe is read. One of {', '.join(PRESETS)}.",
        autocompletion=complete.preset,
        show_default="the recipe's model",
    ),
]


def load_recipe(path: Path | None, overrides: Sequence[str] | None, flags: Sequence[str] = ()) -> Config:
    """Read the recipe of a command.

    Args:
        path: `--config`.
        overrides: Every `--set`, as `key=value`.
        flags: What other options of the command say, in the same form; they win.

    Raises:
        ConfigError: If the recipe is missing or a setting is unknown or impossible.
    """
    from smoe_cli.recipe import load_config

    return load_config(path, [*(overrides or ()), *flags])


def load_recipe_if_any(
    path: Path | None, overrides: Sequence[str] | None, flags: Sequence[str], instead: bool, brings: str = ""
) -> Config | None:
    """Read the recipe, unless there is none and the command can do without.

    Args:
        path: `--config`.
        overrides: Every `--set`.
        flags: What other options say.
        instead: Whether the command was given files that stand for a recipe, such as a checkpoint.
        brings: Group of settings that these files have too, so that it can be changed without a recipe.

    Returns:
        None when neither `--config` nor `smoe.yaml` in this folder is there and `instead` is true.

    Raises:
        ConfigError: If the recipe is missing although it is needed, or a setting is unknown or impossible.
    """
    from smoe_cli.config import RECIPE_FILE
    from smoe_cli.errors import ConfigError

    if path is not None or not instead or Path(RECIPE_FILE).exists():
        return load_recipe(path, overrides, flags)
    lost = [f"`{change}`" for change in (*(overrides or ()), *flags) if not (brings and change.startswith(f"{brings}."))]
    if lost:
        raise ConfigError(
            f"no recipe `{RECIPE_FILE}` here that {', '.join(lost)} could change", "name the recipe with --config, or leave the change out"
        )
    return None


def init_flags(folder: Path | None) -> list[str]:
    """Overrides that name a checkpoint to start from; what stands on the command line starts from the working folder."""
    return [] if folder is None else [f"train.init_from={json.dumps(str(folder.resolve()), ensure_ascii=False)}"]


def search_changes(overrides: Sequence[str] | None, flags: Sequence[str] = ()) -> DecodeSettings:
    """What `--set decode.*` and other options say about the search, and nothing else: a checkpoint has its own settings.

    Raises:
        ConfigError: If a setting is unknown or impossible.
    """
    from smoe_cli.config import DecodeSettings
    from smoe_cli.recipe import parse_settings

    pairs = (change.partition("=") for change in (*(overrides or ()), *flags))
    changes = {key.removeprefix("decode."): value for key, _, value in pairs if key.startswith("decode.")}
    return parse_settings(DecodeSettings, changes, "decode.")


def corpus_flags(names: Sequence[str], recipe: Config) -> list[str]:
    """Overrides that add corpora which the recipe lacks but which need no settings, e.g. `synth`."""
    from smoe_cli.corpus_settings import Corpus

    kinds = {kind.model_fields["type"].default: kind for kind in get_args(get_args(Corpus)[0])}
    return [
        f"data.corpora.{name}={{type: {name}}}"
        for name in names
        if name not in recipe.data.corpora and name in kinds and not any(field.is_required() for field in kinds[name].model_fields.values())
    ]


def source_flags(kinds: Sequence[str], names: Sequence[str], recipe: Config) -> list[str]:
    """Overrides that allow kinds of sources besides files, in the named corpora or all of the recipe, beside those that it allows itself.

    Raises:
        ConfigError: If none of these corpora can have such sources.
    """
    from smoe_cli.corpus_settings import OutsideCorpus
    from smoe_cli.errors import ConfigError

    corpora = {name: corpus for name, corpus in recipe.data.corpora.items() if not names or name in names}
    found = {name: corpus for name, corpus in corpora.items() if isinstance(corpus, OutsideCorpus)}
    if kinds and not found:
        raise ConfigError(
            f"--allow-sources {kinds[0]}: no corpus of {', '.join(f'`{name}`' for name in corpora)} can name anything but files",
            "leave it out: manifests of Lhotse (`lhotse`, `lhotse_recipe`) and data folders of Kaldi (`kaldi`) can",
        )
    allowed = {name: dict.fromkeys([*corpus.allow_sources, *kinds]) for name, corpus in found.items() if kinds}
    return [f"data.corpora.{name}.allow_sources=[{', '.join(all_kinds)}]" for name, all_kinds in allowed.items()]
