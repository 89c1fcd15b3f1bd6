"""`smoe pack`: what was packed comes back the same, and nothing else is replaced."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.shar import SharWriter

from smoe_cli import packing, pipeline
from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts, route_of, tags_of
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.layout import Layout
from smoe_cli.pack_part import Part
from smoe_cli.packing import CARD
from tests.conftest import tiny_config
from tests.test_training import recipe, write_corpus

DOOR = {"type": "shar", "path": "pack"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Config:
    """A prepared recipe with narrowband twins."""
    folder = tmp_path_factory.mktemp("tones")
    config = recipe(write_corpus(folder / "corpus", per_word=6), folder / "exp")
    pipeline.prepare(config)
    return config


def behind(config: Config, folder: Path, **corpus: object) -> Config:
    """The same recipe, with a pack in a folder as its only corpus."""
    door = DOOR | {"path": str(folder / "pack")} | corpus
    return tiny_config(folder / "again", data={"root": str(folder), "corpora": {"packed": door}})


def told(cut: MonoCut) -> dict:
    """All that a cut says, but where its audio lies."""
    segment = cut.supervisions[0].to_dict()
    return {"id": cut.id, "duration": cut.duration, "segment": segment, "tags": tags_of(cut), "route": route_of(cut)}


def by_id(path: Path) -> dict[str, MonoCut]:
    return {cut.id: cut for cut in read_cuts(path)}


def test_a_pack_gives_the_same_cuts_tags_and_samples(prepared, tmp_path):
    """16-bit audio at the rate of the recipe comes back bit for bit; what was resampled, to the 16 bits that FLAC has."""
    report = pipeline.pack(prepared, out=tmp_path / "pack", shard_size=7)
    assert [(part.split, part.kept) for part in report.splits] == [("train", False), ("dev", False), ("test", False)]
    again = behind(prepared, tmp_path)
    assert pipeline.prepare(again).utterances == {"train": 12, "dev": 3, "test": 3}
    exact = 0
    for split in ("train", "dev", "test"):
        before, after = by_id(Layout.of(prepared).cuts(split)), by_id(Layout.of(again).cuts(split))
        assert list(before) == list(after)
        for name, cut in before.items():
            assert told(cut) == told(after[name])
            one, other = cut.load_audio(), after[name].load_audio()
            if tags_of(cut).bandwidth == "wb":
                np.testing.assert_array_equal(one, other)
                exact += 1
            else:
                np.testing.assert_allclose(one, other, atol=0.51 / 32768, rtol=0)
    assert exact == 36


def test_a_pack_of_a_pack_is_bit_identical_in_every_band(prepared, tmp_path):
    pipeline.pack(prepared, out=tmp_path / "pack")
    again = behind(prepared, tmp_path)
    pipeline.prepare(again)
    (tmp_path / "two").mkdir()
    pipeline.pack(again, out=tmp_path / "two" / "pack")
    third = behind(prepared, tmp_path / "two")
    pipeline.prepare(third)
    for name, cut in by_id(Layout.of(again).cuts("train")).items():
        np.testing.assert_array_equal(cut.load_audio(), by_id(Layout.of(third).cuts("train"))[name].load_audio())


def test_lhotse_itself_reads_what_was_packed(prepared, tmp_path):
    pipeline.pack(prepared, out=tmp_path / "pack", shard_size=7)
    folder = tmp_path / "pack" / "train"
    fields = {"cuts": sorted(folder.glob("cuts.*")), "recording": sorted(folder.glob("recording.*"))}
    theirs = {cut.id: cut for cut in CutSet.from_shar(fields={name: list(map(str, paths)) for name, paths in fields.items()})}
    ours = by_id(Layout.of(prepared).cuts("train"))
    assert theirs.keys() == ours.keys() and len(fields["cuts"]) == -(-len(ours) // 7)
    for name, cut in ours.items():
        np.testing.assert_allclose(cut.load_audio(), theirs[name].load_audio(), atol=0.51 / 32768, rtol=0)
        assert theirs[name].supervisions[0].custom == cut.supervisions[0].custom


def test_opus_is_smaller_and_comes_back_as_long(prepared, tmp_path):
    flac = pipeline.pack(prepared, out=tmp_path / "flac", shard_size=1000)
    opus = pipeline.pack(prepared, out=tmp_path / "pack", audio="opus")
    assert opus.splits[0].bytes < flac.splits[0].bytes
    again = behind(prepared, tmp_path)
    pipeline.prepare(again)
    before, after = by_id(Layout.of(prepared).cuts("train")), by_id(Layout.of(again).cuts("train"))
    assert {name: told(cut) for name, cut in before.items()} == {name: told(cut) for name, cut in after.items()}
    assert all(abs(cut.load_audio().shape[1] - after[name].load_audio().shape[1]) <= 1 for name, cut in before.items())


def test_shards_that_are_written_at_once_are_those_that_are_written_one_by_one(prepared, tmp_path):
    for jobs in (1, 3):
        pipeline.pack(prepared, out=tmp_path / str(jobs), shard_size=7, jobs=jobs)
    one, three = ({path.name: path for path in (tmp_path / jobs / "train").iterdir()} for jobs in "13")
    assert one.keys() == three.keys() and len(one) == 2 * -(-48 // 7) + 1
    for name, path in one.items():
        unpack = gzip.decompress if name.endswith(".gz") else bytes  # a packed file has the time in its head
        if name != CARD:
            assert unpack(path.read_bytes()) == unpack(three[name].read_bytes())


def test_packing_again_keeps_what_is_whole_and_does_anew_what_is_not(prepared, tmp_path):
    out = tmp_path / "pack"
    pipeline.pack(prepared, out=out)
    (out / "dev" / "recording.000000.tar").unlink()
    dead = out / ".test.999999999.tmp"
    dead.mkdir()
    shutil.rmtree(out / "test")
    assert [part.kept for part in pipeline.pack(prepared, out=out).splits] == [True, False, False]
    assert not dead.exists() and (out / "dev" / "recording.000000.tar").is_file()
    assert [part.kept for part in pipeline.pack(prepared, out=out, shard_size=3).splits] == [False] * 3
    manifest = tmp_path / "cuts.train.jsonl"
    manifest.write_bytes(gzip.decompress(Layout.of(prepared).cuts("train").read_bytes()).splitlines(keepends=True)[0])
    (part,) = pipeline.pack(None, cuts=[manifest], out=out, shard_size=3).splits
    assert (part.cuts, part.kept) == (1, False), "another manifest"


def test_a_stopped_pack_leaves_no_half_written_split_and_goes_on(prepared, tmp_path, monkeypatch):
    out, written = tmp_path / "pack", []
    write = SharWriter.write

    def stop(self, cut):
        written.append(cut.id)
        if len(written) == 50:
            raise KeyboardInterrupt
        write(self, cut)

    monkeypatch.setattr(SharWriter, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.pack(prepared, out=out)
    monkeypatch.undo()
    done = [path.name for path in out.iterdir()]
    assert all((out / name / CARD).is_file() for name in done) and done == ["train"]
    assert [part.kept for part in pipeline.pack(prepared, out=out).splits] == [True, False, False]


def killed_after(config: Config, out: Path, shards: int) -> None:
    """Pack in a process of its own that the system kills when so many shards are finished, with half of another on disk."""
    script = f"""
import os, signal, sys
from pathlib import Path
from smoe_cli import pipeline
from smoe_cli.pack_part import Part

finish, writing = Part.finish, []

def kill(self, number, folder, cuts, seconds):
    if len(self.done) == {shards}:
        (self.shards / next(folder.iterdir()).name).write_bytes(b"half")
        with (self.path / "state.jsonl").open("a") as file:
            file.write('{{"number": 5, "cu')
        os.kill(os.getpid(), signal.SIGKILL)
    finish(self, number, folder, cuts, seconds)

Part.finish = kill
pipeline.pack(None, cuts=[Path(sys.argv[1])], out=Path(sys.argv[2]), shard_size=7, jobs=1)
"""
    ended = subprocess.run([sys.executable, "-c", script, Layout.of(config).cuts("train"), out], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def content(path: Path) -> bytes:
    """Of a file; a packed one has the time in its head."""
    return gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()


def test_a_pack_that_was_killed_goes_on_with_the_next_shard(prepared, tmp_path):
    manifest, out = Layout.of(prepared).cuts("train"), tmp_path / "pack"
    pipeline.pack(None, cuts=[manifest], out=tmp_path / "whole", shard_size=7)
    killed_after(prepared, out, 3)
    assert not (out / "train").exists()
    finished = {path: path.stat().st_ino for path in sorted((out / ".train.part" / "shards").iterdir())[:3]}
    written: list[int] = []
    finish = Part.finish

    def count(self, number, *arguments):
        written.append(number)
        finish(self, number, *arguments)

    said = Mock()
    with patch.object(Part, "finish", count):
        (part,) = pipeline.pack(None, cuts=[manifest], out=out, shard_size=7, jobs=2, watcher=said).splits
    assert sorted(written) == [3, 4, 5, 6] and part.cuts == 48
    said.log.assert_any_call("train: 3 shards were finished before the last call was stopped, and are kept")
    assert [path.name for path in out.iterdir()] == ["train"]
    for path in (tmp_path / "whole" / "train").iterdir():
        assert path.name == CARD or content(path) == content(out / "train" / path.name)
    assert {(out / "train" / path.name).stat().st_ino for path in finished} == set(finished.values()), "they were not written again"


def test_what_was_finished_of_another_pack_or_is_not_whole_is_written_again(prepared, tmp_path):
    manifest, out = Layout.of(prepared).cuts("train"), tmp_path / "pack"
    pipeline.pack(None, cuts=[manifest], out=tmp_path / "whole", shard_size=7)
    killed_after(prepared, out, 3)
    shards = sorted((out / ".train.part" / "shards").glob("recording.*"))
    shards[1].write_bytes(shards[1].read_bytes()[:-10])
    pipeline.pack(None, cuts=[manifest], out=out, shard_size=7)
    for path in (tmp_path / "whole" / "train").iterdir():
        assert path.name == CARD or content(path) == content(out / "train" / path.name)
    shutil.rmtree(out)
    killed_after(prepared, out, 3)
    (part,) = pipeline.pack(None, cuts=[manifest], out=out, shard_size=20).splits
    assert part.shards == 3 and len(list((out / "train").iterdir())) == 7
    assert [path.name for path in out.iterdir()] == ["train"]


def test_two_calls_do_not_pack_the_same_split_at_once(prepared, tmp_path):
    part = Part(tmp_path / "train", {})
    with part.open(), pytest.raises(ConfigError, match=r"another process packs into `.*train`"):
        pipeline.pack(None, cuts=[Layout.of(prepared).cuts("train")], out=tmp_path)
    assert not part.path.exists(), "no shard was finished"
    part.path.mkdir()
    (part.path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis.txt` is there already, and `smoe pack` did not write it"):
        pipeline.pack(None, cuts=[Layout.of(prepared).cuts("train")], out=tmp_path)
    assert (part.path / "thesis.txt").is_file()


def test_nothing_but_an_earlier_pack_is_replaced(prepared, tmp_path):
    (tmp_path / "pack" / "dev").mkdir(parents=True)
    (tmp_path / "pack" / "dev" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"`.*pack/dev` is there already, and `smoe pack` did not write it"):
        pipeline.pack(prepared, out=tmp_path / "pack")
    assert [path.name for path in (tmp_path / "pack").rglob("*")] == ["dev", "thesis.txt"]
    (tmp_path / "own").mkdir()
    pipeline.pack(prepared, out=tmp_path / "own")
    (tmp_path / "own" / "dev" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"`.*own/dev` is there already"):
        pipeline.pack(prepared, out=tmp_path / "own", audio="opus")
    with pytest.raises(ConfigError, match="is a file"):
        pipeline.pack(prepared, out=tmp_path / "pack" / "dev" / "thesis.txt")
    with pytest.raises(ConfigError, match="numbers shards with `%`"):
        pipeline.pack(prepared, out=tmp_path / "100%d")
    (tmp_path / "cuts.train.jsonl").touch()
    with pytest.raises(ConfigError, match="are of the same split, `train`"):
        pipeline.pack(None, cuts=[Layout.of(prepared).cuts("train"), tmp_path / "cuts.train.jsonl"], out=tmp_path / "p")


def one_cut(folder: Path, **changes: object) -> Path:
    soundfile.write(folder / "a.wav", 0.3 * np.sin(np.arange(16000) / 5), 16000)
    sound = Recording.from_file(folder / "a.wav", recording_id="r")
    segment = SupervisionSegment("c", "r", 0, 1.0, text="one", language="en", custom={"german": "eins"})
    tree = MonoCut("c", 0, 1.0, 0, supervisions=[segment], recording=sound).to_dict() | changes
    (folder / "cuts.train.jsonl").write_text(json.dumps(tree) + "\n")
    return folder / "cuts.train.jsonl"


@pytest.mark.parametrize("name", ["../c", "/c", "a//c", "a/../c", "a\0c", "a\nc"])
def test_an_id_that_no_archive_could_hold_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"line 1: cut .* cannot name a file in an archive"):
        pipeline.pack(None, cuts=[one_cut(tmp_path, id=name)], out=tmp_path / "pack")
    assert not (tmp_path / "pack" / "train").exists()


def test_audio_that_cannot_be_read_is_named_and_nothing_is_left(tmp_path):
    manifest = one_cut(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match="line 1: cannot pack cut `c`") as caught:
        pipeline.pack(None, cuts=[manifest], out=tmp_path / "pack")
    assert "smoe validate" in caught.value.hint
    assert not list((tmp_path / "pack").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": {"bandwidth": "nb"}}, "was prepared with bandwidth `wb`, and `data.corpora.packed.bandwidth` says `nb`"),
        ({"tasks": {"transcribe": {"languages": ["en"]}}}, "was prepared for the route `translate/de/.b`, which the recipe does not have"),
        ({"strip": True}, "was prepared with another case or punctuation than the recipe's: `One!`"),
    ],
)
def test_packed_cuts_that_the_recipe_contradicts_are_refused(tmp_path, changes, message):
    folder = write_corpus(tmp_path / "corpus", per_word=6)
    (folder / "table.tsv").write_text((folder / "table.tsv").read_text().replace("\tone\t", "\tOne!\t"))
    config = recipe(folder, tmp_path / "exp")
    pipeline.prepare(config)
    pipeline.pack(config, out=tmp_path / "pack")
    again = behind(config, tmp_path, **changes.get("corpus", {}))
    if "tasks" in changes:
        again = tiny_config(tmp_path / "again", data=again.data.model_dump(), tasks=changes["tasks"])
    if "strip" in changes:
        again = again.model_copy(update={"data": again.data.model_copy(update={"strip_punctuation": True})})
    with pytest.raises(DataError, match=message):
        pipeline.prepare(again)


def test_the_band_of_packed_cuts_stays_and_their_simulated_lines_are_counted_by_utterance(tmp_path):
    folder = write_corpus(tmp_path / "corpus", per_word=6)
    config = recipe(folder, tmp_path / "exp")
    lines = config.data.nb_simulation.model_copy(update={"codecs": ["mulaw"]})
    config = config.model_copy(update={"data": config.data.model_copy(update={"nb_simulation": lines})})
    before = pipeline.prepare(config)
    pipeline.pack(config, out=tmp_path / "pack")
    again = behind(config, tmp_path, bandwidth="auto")
    report = pipeline.prepare(again)
    assert report.lines == before.lines and sum(before.lines.values()) == 18
    assert [row.bandwidth for row in report.rows] == [row.bandwidth for row in before.rows]
    assert {name: told(cut) for name, cut in by_id(Layout.of(again).cuts("train")).items()} == {
        name: told(cut) for name, cut in by_id(Layout.of(config).cuts("train")).items()
    }


def test_labels_axes_and_subsets_come_back_too(tmp_path):
    folder = write_corpus(tmp_path / "corpus", per_word=6)
    tsv = {
        "type": "tsv",
        "path": "table.tsv",
        "translations": {"de": "de"},
        "label_columns": {"word": "transcript"},
        "tags": {"accent": "us"},
        "subset": "tones",
    }
    more = {
        "axes": {"accent": ["us", "uk"]},
        "tasks": {
            "transcribe": {"languages": ["en"]},
            "translate": {"languages": ["de"]},
            "identify": {},
            "word": {"kind": "classify"},
        },
    }
    data = {"root": str(folder), "nb_downsample": True, "corpora": {"tones": tsv | {"language": "en"}}}
    config = tiny_config(tmp_path / "exp", data=data, **more)
    before = pipeline.prepare(config)
    pipeline.pack(config, out=tmp_path / "pack", shard_size=50)
    door = DOOR | {"path": str(tmp_path / "pack")}
    again = tiny_config(tmp_path / "again", data={"root": str(tmp_path), "corpora": {"packed": door}}, **more)
    report = pipeline.prepare(again)
    assert (report.rows, report.utterances, report.notes) == (before.rows, before.utterances, before.notes)
    for split in ("train", "dev", "test"):
        one, other = by_id(Layout.of(config).cuts(split)), by_id(Layout.of(again).cuts(split))
        assert [told(cut) for cut in one.values()] == [told(cut) for cut in other.values()]


def test_packs_are_counted_by_utterance(prepared, tmp_path):
    pipeline.pack(prepared, out=tmp_path / "pack")
    report = pipeline.prepare(behind(prepared, tmp_path))
    assert report.utterances == pipeline.prepare(prepared).utterances
    assert not [note for note in report.notes if "have no" in note or "taken to be" in note]
    assert packing.check([Layout.of(prepared).cuts("train")], tmp_path / "pack")
