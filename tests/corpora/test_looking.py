"""What a corpus starts from is looked for before it is read, and where all its audio is missing, the place is named."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from smoe_cli import corpora, pipeline, preparation
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import CorpusSettings, KaldiCorpus, TsvCorpus
from smoe_cli.errors import ConfigError, DataError
from tests.corpora.test_damaged_trees import edit, lose
from tests.corpora.trees import TREES
from tests.corpora.trees import recipe as published
from tests.corpora.writing import text
from tests.test_doors import FOLDER, lhotse_cut, recipe, tone, write

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".sph")

# --- dry runs --------------------------------------------------------------------------------------------


def said_by(check: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        check()
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize("name", TREES)
def test_a_dry_run_refuses_a_corpus_that_is_not_there_in_the_words_of_the_command(name, tmp_path):
    config = published(name, tmp_path / "nowhere")
    said = said_by(lambda: preparation.check(config, None))
    assert str(tmp_path / "nowhere") in said[0]
    assert not (tmp_path / "nowhere").exists()
    assert said == said_by(lambda: pipeline.prepare(config))


@pytest.mark.parametrize("name", TREES)
def test_a_dry_run_opens_no_audio_and_writes_nothing(name, tmp_path):
    TREES[name](tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.suffix in AUDIO]:
        path.write_bytes(b"no audio")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    preparation.check(published(name, tmp_path), None)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


ONE_IS_MISSING = {
    "table": lose("mine/mine.tsv"),
    "nemo": lose("nemo/dev_manifest.json"),
    "lhotse": lose("manifests/cuts.test.jsonl.gz"),
    "audiofolder": lambda root: (root / "clips/train/metadata.csv").rename(root / "clips/train/metadata.jsonl"),
    "kaldi": lose("data/dev/wav.scp"),
    "kaldi, a text": lose("data/dev/text.tc.en"),
    "kaldi, a translation": lose("data/dev/text.tc.de"),
    "shar": lose("shar/dev"),
    "shar, an archive": lose("shar/dev/recording.000001.tar"),
    "shar, cuts": lose("shar/dev/cuts.000001.jsonl.gz"),
    "voxpopuli": lose("voxpopuli/transcribed_data/de/asr_dev.tsv"),
    "librispeech": lose("LibriSpeech/train-other-500"),
    "covost": lambda root: next(root.rglob("validated.tsv")).unlink(),
    "covost, a column": edit("covost2/covost_v2.en_de.tsv", "translation\tsplit", "text\tsplit"),
    "table, a column": edit("mine/mine.tsv", "\tgerman", "\tdeutsch"),
    "audiofolder, a column": edit("clips/test/metadata.csv", "speaker", "anna"),
    "voxpopuli, a column": edit("voxpopuli/transcribed_data/de/asr_test.tsv", "\tspeaker_id", "\twho"),
    "fleurs": lose("fleurs/en_us/dev.tsv"),
    "fleurs, a translation": lose("fleurs/fr_fr/test.tsv"),
    "fleurs, a folder": lose("fleurs/de_de"),
    "mustc, a text": lose("must-c/en-de/data/train/txt/train.de"),
    "mtedx, a list": lose("mtedx/es-en/data/train/txt/train.yaml"),
    "europarl-st, speeches": lose("europarl-st/v1.1/en/de/dev/speeches.lst"),
    "fisher-callhome, calls": lose("LDC2010S01/fisher_spa_d1/docs/fsp06_call.tbl"),
    "switchboard": lambda root: shutil.rmtree(next(root.rglob("swb_ms98_transcriptions"))),
    "fisher-callhome": lambda root: shutil.rmtree(next(root.rglob("LDC96S35"))),
    "fisher-callhome, a mapping": lambda root: next(root.rglob("mapping/fisher_dev2")).unlink(),
}


@pytest.mark.parametrize("what", ONE_IS_MISSING)
def test_a_dry_run_refuses_one_missing_file_or_folder_in_the_words_of_the_command(what, tmp_path):
    name = what.partition(",")[0]
    TREES[name](tmp_path)
    ONE_IS_MISSING[what](tmp_path)
    config = published(name, tmp_path)
    assert said_by(lambda: preparation.check(config, None)) == said_by(lambda: pipeline.prepare(config))


def test_a_dry_run_names_all_corpora_that_are_missing_and_no_others(tmp_path):
    text(tmp_path / "there.tsv", "id\tpath\tsplit\ttranscript", "a\tgone.wav\ttrain\tone")
    tables = {name: {"type": "tsv", "path": f"{name}.tsv"} for name in ("lost", "there", "gone")}
    config = recipe(tmp_path, {"type": "synth"})
    config = config.model_copy(
        update={"data": recipe(tmp_path, {"type": "synth"}).data.model_validate({"root": tmp_path, "corpora": tables})}
    )
    message, _ = said_by(lambda: preparation.check(config, None))
    assert message.splitlines() == [f"no table `{tmp_path}/lost.tsv`", f"no table `{tmp_path}/gone.tsv`"]
    preparation.check(config, ["there"])
    with pytest.raises(ConfigError, match="no corpus `other`"):
        preparation.check(config, ["other"])


@pytest.mark.parametrize("kind", [TsvCorpus, KaldiCorpus])
def test_a_corpus_that_knows_nothing_of_dry_runs_is_read_to_its_first_utterance(kind, tmp_path, monkeypatch):
    """A kind that somebody adds needs a reader, and nothing else."""
    made = []

    def read(settings: CorpusSettings, work: Work) -> Iterator[Utterance]:
        for number in range(2):
            made.append(number)
            yield Utterance(str(number), None, "train", "", "en", "one")  # type: ignore[arg-type]  # nobody asks for the audio

    monkeypatch.setitem(sys.modules, "theirs", SimpleNamespace(read=read))
    monkeypatch.setattr(kind, "reader", "theirs")
    corpora.look_for(kind(path=Path("x")), Work("theirs", tmp_path, tmp_path, dry_run=True))
    assert made == [0]


# --- all audio is elsewhere ------------------------------------------------------------------------------


def kaldi_elsewhere(root: Path) -> dict[str, object]:
    write(root / "data" / "train" / "wav.scp", "a wav/a.wav\nb wav/b.wav\n")
    write(root / "data" / "train" / "text", "a one\nb two\n")
    return {"type": "kaldi", "path": "data", "folders": {"train": "train"}}


def table_elsewhere(root: Path) -> dict[str, object]:
    write(root / "t.tsv", "id\tpath\tsplit\ttranscript\na\twav/a.wav\ttrain\tone\nb\twav/b.wav\ttrain\ttwo\n")
    return {"type": "tsv", "path": "t.tsv"}


def nemo_elsewhere(root: Path) -> dict[str, object]:
    write(root / "m.json", "".join(json.dumps({"audio_filepath": f"wav/{n}.wav", "text": "one"}) + "\n" for n in "ab"))
    return {"type": "nemo", "manifests": {"train": "m.json"}}


def folder_elsewhere(root: Path) -> dict[str, object]:
    write(root / "train" / "metadata.csv", "file_name,transcription\nwav/a.wav,one\nwav/b.wav,two\n")
    return FOLDER


def lhotse_elsewhere(root: Path) -> dict[str, object]:
    tone(root / "a.wav")
    cuts = [lhotse_cut(root / "a.wav", name) for name in "ab"]
    write(root / "cuts.jsonl", "".join(json.dumps(cut) + "\n" for cut in cuts).replace("a.wav", "gone.wav"))
    return {"type": "lhotse", "cuts": {"train": "cuts.jsonl"}}


ROOTS = {
    "kaldi": (kaldi_elsewhere, {}, r"relative paths start from the folder .* unless `data\.corpora\.theirs\.audio_root` names another"),
    "kaldi, a wrong folder": (
        kaldi_elsewhere,
        {"audio_root": "data"},
        r"`data\.corpora\.theirs\.audio_root` says that relative paths start from `[^`]*/corpus/data`: correct it",
    ),
    "kaldi, no folder": (
        kaldi_elsewhere,
        {"audio_root": "nowhere"},
        r"`data\.corpora\.theirs\.audio_root` says that .* `[^`]*/corpus/nowhere`, which is no folder: correct it",
    ),
    "a table": (table_elsewhere, {}, r"relative paths start from the folder of the table"),
    "nemo": (nemo_elsewhere, {}, r"relative paths start from the folder of the table"),
    "an audio folder": (folder_elsewhere, {}, r"relative paths start from the folder of the table"),
    "lhotse": (lhotse_elsewhere, {}, r"relative paths start from `[^`]*/corpus`, as `data\.root` says: correct it"),
}
"""Kind -> what writes tables about audio that is not there, settings, and the cure."""


@pytest.mark.parametrize("what", ROOTS)
def test_where_no_audio_is_there_at_all_the_place_is_named_that_is_wrong(tmp_path, what):
    write_tables, settings, cure = ROOTS[what]
    with pytest.raises(DataError, match=r"2 of 2 utterances are not fit for use, as not one audio file was found:\n") as caught:
        pipeline.prepare(recipe(tmp_path / "corpus", write_tables(tmp_path / "corpus") | settings))
    assert re.match(cure, caught.value.hint) and "max_unfit" not in caught.value.hint
    assert "; no setting moves paths that begin with `/`: correct these in the table" in caught.value.hint


def test_where_one_audio_file_of_two_is_there_the_other_is_what_is_wrong(tmp_path):
    corpus = table_elsewhere(tmp_path / "corpus")
    tone(tmp_path / "corpus" / "wav" / "a.wav")
    with pytest.raises(DataError, match=r"1 of 2 utterances are not fit for use:\n") as caught:
        pipeline.prepare(recipe(tmp_path / "corpus", corpus))
    assert caught.value.hint.startswith("correct the path, or bring the file back;") and "max_unfit: 1" in caught.value.hint
