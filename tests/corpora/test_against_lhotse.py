"""Lhotse's own recipes and readers over the same trees: durations, times, channels, speakers and texts are what our readers say.

Where Lhotse and we mean to differ, a test says in what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lhotse import CutSet, MonoCut, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.kaldi import load_kaldi_data_dir
from lhotse.recipes import (
    prepare_commonvoice,
    prepare_fisher_spanish,
    prepare_fleurs,
    prepare_librispeech,
    prepare_mtedx,
    prepare_switchboard,
    prepare_tedlium,
)
from lhotse.recipes.must_c import prepare_must_c

from smoe_cli.corpora import read_corpus
from smoe_cli.corpora import switchboard as swb
from smoe_cli.corpora.fisher_callhome import _plain as plain_fisher
from smoe_cli.corpora.utterance import Utterance, Work
from tests.corpora.trees import TREES, recipe, text

Row = tuple[Any, ...]
# recording, its duration, start, duration, channel, speaker, text


def ours(name: str, root: Path, corpus: str | None = None) -> list[Utterance]:
    """What the recipe's reader yields."""
    corpora = recipe(name, root).data.corpora
    work = Work("x", root, root / "exp" / "audio")
    found = list(read_corpus(corpora[corpus or next(iter(corpora))], work))
    assert found and not work.problems and not work.losses
    return found


def row(utterance: Utterance, said: str) -> Row:
    recording = utterance.recording
    lasts_s = recording.duration - utterance.start_s if utterance.duration_s is None else utterance.duration_s
    name = Path(recording.sources[0].source).stem
    return (name, recording.duration, round(utterance.start_s, 6), round(lasts_s, 6), utterance.channel, utterance.speaker, said)


def rows(
    recordings: RecordingSet, segments: SupervisionSet, said: Callable[[SupervisionSegment], str] = lambda one: str(one.text)
) -> list[Row]:
    """The same of Lhotse's manifests."""
    lasts_s = {recording.id: recording.duration for recording in recordings}
    return [
        (one.recording_id, lasts_s[one.recording_id], round(one.start, 6), round(one.duration, 6), one.channel, one.speaker, said(one))
        for one in segments
    ]


def librispeech(root: Path, name: str = "librispeech") -> tuple[list[Row], list[Row]]:
    theirs = prepare_librispeech(root / "LibriSpeech")
    return [row(one, one.transcript) for one in ours(name, root)], [one for part in theirs.values() for one in rows(**named(part))]


def named(part: dict[str, Any]) -> dict[str, Any]:
    return {"recordings": part["recordings"], "segments": part["supervisions"]}


def mustc(root: Path) -> tuple[list[Row], list[Row]]:
    """Lhotse keeps the translation, and no transcript; and it keeps what has no word, which we leave out."""
    mine, theirs = ours("mustc", root), []
    for target in ("de", "fr"):
        prepare_must_c(root / "must-c", root / "theirs", target)
        for part in ("train", "dev", "tst-COMMON", "tst-HE"):
            both = (kind.from_file(root / "theirs" / f"must_c_{what}_en-{target}_{part}.jsonl.gz")
                    for kind, what in ((RecordingSet, "recordings"), (SupervisionSet, "supervisions")))  # fmt: skip
            theirs += [(target, *one) for one in rows(*both) if one[-1] != "♫"]
    return [(target, *row(one, said)) for one in mine for target, (said,) in one.translations.items()], theirs


def mtedx(root: Path) -> tuple[list[Row], list[Row]]:
    """Lhotse reads the subtitles, in small letters and without punctuation, and no translations; a talk is its speaker."""
    for part, talk in {"train": "0123e5", "valid": "-ab_9", "test": "xYz"}.items():
        spans = ["00:00:00.500 --> 00:00:01.500\nBuenos días.\n", "00:00:01.750 --> 00:00:02.750\nMuchas gracias.\n"]
        text(root / "mtedx" / "es-es" / "data" / part / "vtt" / f"{talk}.es.vtt", "WEBVTT\n", "Kind: captions\n", *spans)
    theirs = prepare_mtedx(root / "mtedx", root / "theirs", ["es"])["es"]
    mine = [row(one, one.transcript.lower().replace(".", "")) for one in ours("mtedx", root)]
    return mine, [one for part in theirs.values() for one in rows(**named(part))]


def covost(root: Path) -> tuple[list[Row], list[Row]]:
    """Lhotse has a recipe for Common Voice alone, for later versions, whose tables have more columns."""
    folder = root / "cv-corpus-4-2019-12-10"
    table = (folder / "en" / "validated.tsv").read_text(encoding="utf-8").splitlines()
    text(folder / "en" / "theirs.tsv", f"{table[0]}s\tvariant", *(f"{line}\t" for line in table[1:]))
    theirs = prepare_commonvoice(folder, root / "theirs", "en", ["theirs"])["en"]["theirs"]
    mine = [row(one, one.transcript) for one in ours("covost", root)]
    clips = {one[0] for one in mine}
    return mine, [one for one in rows(**named(theirs)) if one[0] in clips]


def fleurs(root: Path) -> tuple[list[Row], list[Row]]:
    """Lhotse numbers the readers of a sentence, and knows as little as we do who they are."""
    for code in ("en_us", "de_de", "fr_fr"):
        folder, metadata = root / "fleurs" / code, root / "fleurs" / "metadata" / code
        metadata.mkdir(parents=True)
        for split in ("train", "dev", "test"):
            (folder / f"{split}.tsv").rename(metadata / f"{split}.tsv")
            (folder / "audio" / split).rename(folder / split)
    theirs = prepare_fleurs(root / "fleurs", root / "theirs", "en_us")["en_us"]
    found = [one for part in theirs.values() for one in rows(**named(part), said=lambda one: one.custom["raw_text"])]
    return [row(one, one.transcript) for one in ours("fleurs", root)], [(*one[:5], "", one[6]) for one in found]


def switchboard(root: Path) -> tuple[list[Row], list[Row]]:
    """Lhotse keeps all marks of the transcripts, and calls both speakers A."""
    theirs = prepare_switchboard(root / "LDC97S62", root / "swb_ms98_transcriptions", absolute_paths=True)
    found = rows(**named(theirs), said=lambda one: swb.plain(one.text))
    assert {one[5][-1] for one in found} == {"A"}, "Lhotse tells the speakers apart: so can this test"
    mine = [row(one, one.transcript) for one in ours("switchboard", root)]
    assert {(one[4], one[5][-1]) for one in mine} == {(0, "A"), (1, "B")}
    return [(*one[:5], one[6]) for one in mine], [(*one[:5], one[6]) for one in found]


def fisher(root: Path) -> tuple[list[Row], list[Row]]:
    """Lhotse has no translations, so it joins no lines as the mapping does; it has no recipe for the Spanish CALLHOME."""
    theirs = prepare_fisher_spanish(root / "LDC2010S01", root, absolute_paths=True)
    lasts_s = {one.id: one.duration for one in theirs["recordings"]}
    calls: dict[str, list[SupervisionSegment]] = {}
    for segment in theirs["supervisions"]:
        calls.setdefault(segment.recording_id, []).append(segment)
    mine, found = [], []
    for one in ours("fisher-callhome", root):
        if one.subset != "fisher":
            continue
        call, side, numbers = one.id.rsplit("-", 2)
        segments = [calls[call][int(number) - 1] for number in numbers.split("_")]
        said = " ".join(" ".join(plain_fisher(segment.text) for segment in segments).split())
        (speaker,), (channel,) = {segment.speaker for segment in segments}, {segment.channel for segment in segments}
        start_s = segments[0].start
        found.append((call, lasts_s[call], round(start_s, 6), round(segments[-1].end - start_s, 6), channel, f"fsp-{speaker}", said))
        assert "AB"[channel] == side
        mine.append(row(one, one.transcript))
    return mine, found


def kaldi(root: Path) -> tuple[list[Row], list[Row]]:
    """Lhotse takes every transcript from `text`."""
    found = []
    for folder in sorted((root / "data").iterdir()):
        (folder / "text").write_bytes((folder / "text.tc.en").read_bytes())
        recordings, segments, _ = load_kaldi_data_dir(folder, 16000)
        found += rows(recordings, segments)
    return [row(one, one.transcript) for one in ours("kaldi", root)], found


def cuts_of(name: str, root: Path, cuts: Iterable[MonoCut]) -> tuple[list[Row], list[Row]]:
    """Cuts as they are, by their ids: what is taken out of an archive has another name on disk."""
    mine = [(one.id, *row(one, one.transcript)[1:]) for one in ours(name, root)]
    found = [(cut, cut.supervisions[0]) for cut in cuts]
    return mine, [(cut.id, cut.recording.duration, cut.start, cut.duration, cut.channel, one.speaker, one.text) for cut, one in found]


def lhotse(root: Path) -> tuple[list[Row], list[Row]]:
    paths = sorted((root / "manifests").iterdir())
    return cuts_of("lhotse", root, (cut for path in paths for cut in CutSet.from_file(path)))


def tedlium(root: Path) -> tuple[list[Row], list[Row]]:
    theirs = prepare_tedlium(root / "TEDLIUM_release-3", normalize_text="kaldi")
    return [row(one, one.transcript) for one in ours("lhotse-recipe", root)], [
        one for part in theirs.values() for one in rows(**named(part))
    ]


def shar(root: Path) -> tuple[list[Row], list[Row]]:
    paths = sorted((root / "shar").iterdir())
    return cuts_of("shar", root, (cut for path in paths for cut in CutSet.from_shar(in_dir=path)))


COMPARED: dict[str, Callable[[Path], tuple[list[Row], list[Row]]]] = {
    "librispeech": librispeech,
    "mini-librispeech": lambda root: librispeech(root, "mini-librispeech"),
    "mustc": mustc,
    "mtedx": mtedx,
    "covost": covost,
    "fleurs": fleurs,
    "switchboard": switchboard,
    "fisher-callhome": fisher,
    "kaldi": kaldi,
    "lhotse": lhotse,
    "lhotse-recipe": tedlium,
    "shar": shar,
}
NOT_COMPARED = {
    "voxpopuli": "Lhotse reads whole sessions, and fetches the table of their segments from the network",
    "europarl-st": "Lhotse has no recipe for it",
    "table": "the form is our own",
    "nemo": "what reads them into Lhotse is a part of NeMo",
    "audiofolder": "Lhotse asks the library `datasets` to read them",
}


@pytest.mark.parametrize("name", TREES)
def test_lhotse_reads_the_same_from_the_same_tree(name, tmp_path, monkeypatch):
    if name in NOT_COMPARED:
        pytest.skip(NOT_COMPARED[name])
    # Processes of its own would only take longer.
    monkeypatch.setattr("lhotse.recipes.commonvoice.ProcessPoolExecutor", lambda max_workers, mp_context: ThreadPoolExecutor(max_workers))
    monkeypatch.setattr("lhotse.kaldi.ProcessPoolExecutor", lambda max_workers: ThreadPoolExecutor(max_workers))
    monkeypatch.chdir(tmp_path)  # where relative paths of Kaldi start
    TREES[name](tmp_path)
    mine, theirs = COMPARED[name](tmp_path)
    assert mine and sorted(mine) == sorted(theirs)


def test_every_corpus_is_compared_or_says_why_not():
    assert COMPARED.keys() | NOT_COMPARED.keys() == TREES.keys()
