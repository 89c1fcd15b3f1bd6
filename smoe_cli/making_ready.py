"""The part of the front door about data: prepared, checked, packed, tokenized, as features. `pipeline` has it too."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from smoe_cli.config import SPLITS, Config
from smoe_cli.errors import DataError
from smoe_cli.layout import VALIDATION, Layout
from smoe_cli.records import TokenizerReport, write_json
from smoe_cli.steps import mark, plan_step
from smoe_cli.watch import Silent, Watcher

if TYPE_CHECKING:
    from smoe_cli.feature_store import FeaturesReport
    from smoe_cli.packing import Codec, PackReport
    from smoe_cli.preparation import PrepareReport
    from smoe_cli.validation.report import ValidationReport


def prepare(
    config: Config,
    *,
    corpora: Sequence[str] | None = None,
    jobs: int = 0,
    cluster: str | None = None,
    watcher: Watcher | None = None,
) -> PrepareReport:
    """Corpora -> checked, tagged cut manifests. See `smoe_cli.preparation.prepare`.

    Args:
        cluster: Address of a Dask scheduler whose workers read the recordings; None: threads of this process do.
    """
    from smoe_cli import preparation
    from smoe_cli.cluster import connect

    chosen = preparation.chosen_corpora(config, corpora)
    with connect(cluster) if cluster else nullcontext() as there:
        mark(config, "prepare", whole=False)
        report = preparation.prepare(config, chosen, jobs, watcher or Silent(), there)
    mark(config, "prepare", whole=set(chosen) == set(config.data.corpora))
    return report


def check_prepare(config: Config, *, corpora: Sequence[str] | None = None) -> None:
    """Refuse what `prepare` refuses at once, a corpus that is not there above all, and write nothing."""
    from smoe_cli import preparation

    preparation.check(config, corpora)


def validate(
    config: Config | None,
    *,
    cuts: Sequence[Path] = (),
    fix: bool = False,
    audio: bool = True,
    within: Path | None = None,
    jobs: int = 0,
    out: Path | None = None,
    watcher: Watcher | None = None,
) -> ValidationReport:
    """Are manifests fit to train on? See `smoe_cli.validation.validate`.

    Args:
        config: The recipe, whose tasks and limits hold; None: manifests are named.
        cuts: Manifests; empty: those that the recipe has.
        fix: Move cuts with errors to a manifest of rejects.
        audio: Read every recording to its end.
        within: Folder that all audio must lie in.
        jobs: Recordings read at once; 0: one per core.
        out: Folder for `validation.json`; None: the recipe's when its own manifests are checked, else it is not written.

    Raises:
        DataError: If a manifest is missing, unreadable or empty, or nothing in it is fit for use and `fix` is set.
    """
    from smoe_cli.preparation import usable_cores
    from smoe_cli.validation import validate as validation
    from smoe_cli.validation.mend import mend

    paths = _manifests(config, cuts)
    layout = Layout.of(config) if config is not None and not cuts else None
    ears = validation.Ears(jobs or usable_cores() if audio else 0, within=within)
    report, findings = validation.validate(paths, config, ears, watcher or Silent())
    if fix and findings.unfit:
        # Whoever takes cuts out wants them to stay out: `smoe run` would prepare again what is not as it left it.
        as_left = layout is not None and config is not None and plan_step(config, "prepare").state == "up to date"
        report = mend(report, findings, config, watcher or Silent())
        if as_left and config is not None:
            mark(config, "prepare")
    target = out / VALIDATION if out is not None else layout.validation if layout is not None else None
    if target is not None:
        write_json(target, report)
    return report


def pack(
    config: Config | None,
    *,
    cuts: Sequence[Path] = (),
    out: Path,
    shard_size: int = 1000,
    audio: Codec = "flac",
    jobs: int = 0,
    watcher: Watcher | None = None,
) -> PackReport:
    """Write manifests as Lhotse Shar. See `smoe_cli.packing.pack`.

    Args:
        config: The recipe; None: manifests are named.
        cuts: Manifests; empty: those that the recipe has.
        jobs: Shards that are written at once; 0: one per core.
    """
    from smoe_cli import packing

    return packing.pack(_manifests(config, cuts), out, shard_size, audio, jobs, watcher or Silent())


def check_pack(config: Config | None, *, cuts: Sequence[Path] = (), out: Path) -> list[Path]:
    """The manifests that `pack` would read; arguments and errors as of `pack`, but nothing is written."""
    from smoe_cli import packing

    return list(packing.check(_manifests(config, cuts), out).values())


def _manifests(config: Config | None, cuts: Sequence[Path]) -> list[Path]:
    """The named manifests, each once, or those that the recipe has.

    Raises:
        DataError: If there is none.
    """
    layout = Layout.of(config) if config is not None else None
    paths = list(dict.fromkeys(cuts)) or [path for split in SPLITS if layout and (path := layout.cuts(split)).exists()]
    if not paths:
        raise DataError(f"no manifests in `{layout.cuts_dir if layout else '.'}`", "run `smoe prepare` first, or name manifests")
    return paths


def tokenize(config: Config, *, watcher: Watcher | None = None) -> TokenizerReport:
    """The tokenizer of the recipe, learned or taken from a checkpoint. See `smoe_cli.vocabulary.make_tokenizer`."""
    from smoe_cli import vocabulary

    report = vocabulary.make_tokenizer(config, watcher or Silent())
    mark(config, "tokenize")
    return report


def features(config: Config, *, splits: Sequence[str] = ("train", "dev"), jobs: int = 0, watcher: Watcher | None = None) -> FeaturesReport:
    """Features of prepared cuts, into the store that training reads with `features.stored`. See `smoe_cli.feature_store.fill`."""
    from smoe_cli.feature_store import fill
    from smoe_cli.preparation import usable_cores

    return fill(config, splits, jobs or usable_cores(), watcher or Silent())
