"""Lhotse Shar: shards of cuts, with their audio in tar archives beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lhotse import MonoCut

from smoe_cli.audio import TOLERANCE_S
from smoe_cli.corpora.archive import Archive, Unwritable, archive_file, open_archive
from smoe_cli.corpora.files import entries, is_dir, recording_of, refuse
from smoe_cli.corpora.lhotse_cuts import utterance_of
from smoe_cli.corpora.lines import each_split, made_at_once
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import SharCorpus
from smoe_cli.errors import DataError
from smoe_cli.manifests import check_within, make_cut, read_lines, read_object
from smoe_cli.tags import Bandwidth

KEPT = ("type", "id", "start", "duration", "supervisions")
"""What is read of a cut. Its audio comes from the archive; features and further recordings are not used."""
PREPARED = frozenset({"utterance", "corpus", "task", "bandwidth"})
"""Tags that only cuts have which `smoe prepare` wrote."""


def read(settings: SharCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per cut, shard by shard; its audio is taken out of the archive once, to `work.audio_dir`, by `work.jobs` threads.

    Cuts that `smoe pack` wrote come as they were prepared.

    Raises:
        Unwritable: If audio cannot be written. A folder that holds no shards, and a manifest or an archive that is missing or cannot be
            read to its end, go to `work.lost`; a cut that is damaged or lacks its audio, audio that no cut names, and members of an
            archive that could do harm, to `work.unfit`.
    """

    def folder(split: str, name: str) -> Iterator[Utterance]:
        shards = _shards(work.root / settings.path / name, split, settings, work)
        if work.dry_run:
            for _, archive in shards:
                archive_file(archive).close()
            return
        total = sum(1 for cuts, _ in shards for _ in read_lines(cuts))
        done = 0
        for cuts, archive in shards:
            try:
                with open_archive(archive) as opened:
                    for utterance in _read(cuts, opened, split, settings, work):
                        done += 1
                        work.progress(done, total, f"{work.name}: {split} cuts")
                        if utterance is not None:
                            yield utterance
            except Unwritable:
                raise
            except DataError as error:
                work.lost(error)

    yield from each_split(settings, settings.folders, work, "path", folder)


def _shards(folder: Path, split: str, settings: SharCorpus, work: Work) -> list[tuple[Path, Path]]:
    """(manifest of cuts, archive) of each shard."""
    key = f"`data.corpora.{work.name}.folders.{split}`"
    if settings.untrusted:
        check_within(folder, work.root, key)
    files = entries(folder, refuse) if is_dir(folder) else []
    manifests = [path for path in files if path.match("cuts.*jsonl*")]
    if not manifests:
        raise DataError(
            f"no shards `cuts.*.jsonl.gz` in `{folder}`",
            f"correct {key} or `data.root`; if there is no such split, leave it out: `data.corpora.{work.name}.splits: {{{split}: null}}`",
        )
    shards = [(path, folder / f"recording{path.name.removeprefix('cuts').partition('.jsonl')[0]}.tar") for path in manifests]
    for stray in sorted({path for path in files if path.match("recording*.tar")} - {archive for _, archive in shards}):
        raise DataError(f"no cuts belong to `{stray}`", "bring back the manifest of cuts of the same number, or remove the archive")
    if settings.untrusted:
        for path in (path for shard in shards for path in shard):
            check_within(path, work.root, key)
    return shards


def _read(cuts: Path, archive: Archive, split: str, settings: SharCorpus, work: Work) -> Iterator[Utterance | None]:
    """The utterance of every line; None where there is a problem, which is in `work.problems`."""
    if archive.broken is not None:
        work.lost(archive.broken)
    for problem in archive.problems:
        work.unfit(problem)
    unnamed = set(archive.audio)

    def make(where: str, raw: bytes) -> Utterance:
        tree = read_object(raw, where)
        unnamed.discard(str(tree.get("id")))
        return _utterance(tree, archive, split, settings, work, where)

    yield from made_at_once(((f"`{cuts}` line {number}", raw) for number, raw in read_lines(cuts)), make, work)
    for name in sorted(unnamed):
        work.unfit(
            DataError(f"no cut of `{cuts}` has the id `{name}`, whose audio is in `{archive.path}`", "bring back the cut, or pack again")
        )


def _utterance(tree: dict[str, Any], archive: Archive, split: str, settings: SharCorpus, work: Work, where: str) -> Utterance:
    cut_id, named = str(tree.get("id")), tree.get("recording")
    recording = recording_of(archive.take_out(cut_id, work.audio_dir), str(named.get("id")) if isinstance(named, dict) else cut_id)
    promised = archive.description(cut_id).get("duration")
    least, most = recording.duration - TOLERANCE_S, recording.duration + TOLERANCE_S
    if not isinstance(promised, int | float) or not least <= promised <= most:
        raise DataError(
            f"the audio of cut `{cut_id}` in `{archive.path}` lasts {recording.duration:g} s, its description says `{promised}`",
            "pack it again",
        )
    tree = {key: tree[key] for key in KEPT if key in tree} | {"channel": 0, "recording": recording.to_dict()}
    for segment in tree["supervisions"] if isinstance(tree.get("supervisions"), list) else []:
        if isinstance(segment, dict):
            segment["channel"] = 0  # an archive holds the cut's own channel only
    cut = make_cut(tree, where, None, archives=not settings.untrusted)
    custom = cut.supervisions[0].custom or {} if len(cut.supervisions) == 1 else {}
    if custom.keys() >= PREPARED:
        return _as_prepared(cut, custom, split, settings, work, where)
    return utterance_of(cut, split, settings, work, where)


def _as_prepared(cut: MonoCut, custom: dict[str, Any], split: str, settings: SharCorpus, work: Work, where: str) -> Utterance:
    for tag, said in (("bandwidth", settings.bandwidth), ("subset", settings.subset)):
        if said and said != "auto" and said != custom.get(tag):
            raise DataError(
                f"cut `{cut.id}` was prepared with {tag} `{custom.get(tag)}`, and `data.corpora.{work.name}.{tag}` says `{said}`",
                "take that setting away: packed cuts keep their tags",
            )
    return Utterance(
        id=cut.id,
        recording=cut.recording,
        split=split,
        speaker=cut.supervisions[0].speaker or "",
        language=str(custom.get("source_lang") or ""),
        transcript="",
        synthetic=bool(custom.get("synthetic")),
        start_s=cut.start,
        duration_s=cut.duration,
        bandwidth=Bandwidth(custom["bandwidth"]) if custom["bandwidth"] in list(Bandwidth) else None,
        source=where,
        prepared=cut,
    )
