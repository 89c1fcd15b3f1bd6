"""Shar, in and out: what was packed comes back the same, and archives of others are data."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.shar import SharWriter

from smoe_cli import packing, pipeline
from smoe_cli.config import Config
from smoe_cli.corpora import archive
from smoe_cli.cuts import read_cuts, route_of, tags_of
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.layout import Layout
from smoe_cli.packing import CARD
from smoe_cli.steps import plan_step
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


@pytest.mark.parametrize("name", ["../c", "/c", "a//c", "a/../c"])
def test_an_id_that_no_archive_could_hold_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"line 1: cut `.*` cannot name a file in an archive"):
        pipeline.pack(None, cuts=[one_cut(tmp_path, id=name)], out=tmp_path / "pack")
    assert not (tmp_path / "pack" / "train").exists()


def test_audio_that_cannot_be_read_is_named_and_nothing_is_left(tmp_path):
    manifest = one_cut(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match="line 1: cannot pack cut `c`") as caught:
        pipeline.pack(None, cuts=[manifest], out=tmp_path / "pack")
    assert "smoe validate" in caught.value.hint
    assert not list((tmp_path / "pack").iterdir())


# --- the door --------------------------------------------------------------------------------------------


def shar(root: Path, count: int = 3) -> Path:
    """A Shar folder of somebody else, written by Lhotse alone."""
    folder = root / "shar" / "train"
    folder.mkdir(parents=True)
    with SharWriter(str(folder), {"recording": "flac"}, shard_size=2) as writer:
        for number in range(count):
            path = root / f"{number}.wav"
            soundfile.write(path, 0.3 * np.sin(np.arange(16000 + 800 * number) / (5 + number)), 16000)
            sound = Recording.from_file(path, recording_id=f"r{number}")
            segment = SupervisionSegment(
                "s", f"r{number}", 0, sound.duration, text="one", language="en", speaker="x", custom={"german": "eins"}
            )
            writer.write(MonoCut(f"part/c{number}", 0, sound.duration, 0, supervisions=[segment], recording=sound))
            path.unlink()
    return folder


def theirs(root: Path, **corpus: object) -> Config:
    door = {"type": "shar", "path": "shar", "folders": {"train": "train"}, "translations": {"de": "german"}} | corpus
    return tiny_config(root.parent / "exp", data={"root": str(root), "corpora": {"theirs": door}})


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "corpus").mkdir()
    return tmp_path / "corpus"


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return [(item, tar.extractfile(item).read()) for item in tar]


def pack_again(path: Path, parts: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for item, content in parts:
            tar.addfile(item, io.BytesIO(content))


def extracted(root: Path) -> list[Path]:
    return sorted(path for path in (root.parent / "exp" / "audio").rglob("*") if path.is_file())


def test_a_shar_of_others_is_read_with_its_translations_and_its_audio_is_taken_out_once(root):
    shar(root)
    config = theirs(root, untrusted=True)
    assert pipeline.prepare(config).utterances == {"train": 3}
    cuts = read_cuts(Layout.of(config).cuts("train"))
    assert {(tags_of(cut).utterance, route_of(cut).lang, cut.supervisions[0].text) for cut in cuts} == {
        (f"theirs/part/c{number}", lang, text) for number in range(3) for lang, text in (("en", "one"), ("de", "eins"))
    }
    assert all(cut.load_audio().any() for cut in cuts)
    files = extracted(root)
    assert len(files) == 3 and all(path.parent.parent == root.parent / "exp" / "audio" / "theirs" for path in files)
    times = [path.stat().st_mtime_ns for path in files]
    pipeline.prepare(config)
    assert extracted(root) == files and [path.stat().st_mtime_ns for path in files] == times


def test_a_half_written_file_is_never_believed_and_extraction_goes_on(root, monkeypatch):
    shar(root)
    config = theirs(root)
    taken = []
    whole = archive.whole_file

    def stop(path):
        taken.append(path)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return whole(path)

    monkeypatch.setattr(archive, "whole_file", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config)
    (first,) = extracted(root)
    monkeypatch.undo()
    before = first.stat().st_mtime_ns
    taken[1].parent.mkdir(exist_ok=True)
    taken[1].write_bytes(b"half")  # what a copy without `whole_file` might leave
    pipeline.prepare(config)
    assert first.stat().st_mtime_ns == before and taken[1].stat().st_size > 4


def test_a_full_disk_ends_it_at_once_and_is_called_what_it_is(root, monkeypatch):
    shar(root)
    tried = []

    def full(path):
        tried.append(path)
        raise DataError(f"cannot write `{path}`: No space left on device", "free some") from OSError(
            errno.ENOSPC, "No space left on device"
        )

    monkeypatch.setattr(archive, "whole_file", full)
    with pytest.raises(DataError, match=r"^cannot write `.*`: No space left on device\n"):
        pipeline.prepare(theirs(root))
    assert len(tried) == 1


def test_an_archive_that_was_written_anew_is_taken_out_anew(root):
    folder = shar(root)
    config = theirs(root)
    pipeline.prepare(config)
    first = extracted(root)
    path = folder / "recording.000000.tar"
    os.utime(path, ns=(1, 1))
    pipeline.prepare(config)
    assert len(extracted(root)) == len(first) + 2


def test_a_split_that_is_left_out_is_not_taken_out_of_its_archives(root):
    shutil.copytree(shar(root), root / "shar" / "test")
    pipeline.prepare(theirs(root, folders={"train": "train", "test": "test"}, splits={"test": None}))
    assert len(extracted(root)) == 3


def test_new_and_lost_shards_make_prepare_run_again(root):
    folder = shar(root)
    config = theirs(root)
    pipeline.prepare(config)
    assert plan_step(config, "prepare").state == "up to date"
    (folder / "cuts.000001.jsonl.gz").rename(folder / "x")
    step = plan_step(config, "prepare")
    assert step.state == "would run" and "cuts.000001.jsonl.gz` does not exist" in step.reason
    (folder / "x").rename(folder / "cuts.000002.jsonl.gz")
    assert plan_step(config, "prepare").state == "would run"


def info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    item = tarfile.TarInfo(name)
    item.size, item.type, item.linkname = size, kind, link
    return item


ATTACKS = {
    "a member above the folder": (info("../../evil.flac", 4), "leads out of the archive's folder"),
    "a member with a root": (info("/tmp/evil.flac", 4), "leads out of the archive's folder"),
    "a symbolic link": (info("part/c0.flac", kind=tarfile.SYMTYPE, link="/etc/passwd"), "is no plain file, but a link"),
    "a hard link": (info("part/c9.flac", kind=tarfile.LNKTYPE, link="part/c0.flac"), "is no plain file, but a link"),
    "a device": (info("part/c9.flac", kind=tarfile.CHRTYPE), "is no plain file"),
    "a pipe": (info("part/c9.flac", kind=tarfile.FIFOTYPE), "is no plain file"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_member_that_could_do_harm_is_refused_and_nothing_is_written_outside(root, attack):
    path = shar(root) / "recording.000000.tar"
    item, message = ATTACKS[attack]
    pack_again(path, [(item, b"evil"), *members(path)])
    before = {one for one in root.parent.rglob("*") if "exp" not in one.parts}
    with pytest.raises(DataError, match=rf"(?s)recording.000000.tar`: member `{item.name}` {message}") as caught:
        pipeline.prepare(theirs(root, untrusted=True))
    assert caught.value.hint
    assert {one for one in root.parent.rglob("*") if "exp" not in one.parts} == before
    assert not list((root.parent / "exp").rglob("*evil*")) and not Layout.of(theirs(root)).cuts("train").exists()


def test_a_member_that_claims_more_than_there_is_is_refused_unread(root):
    path = shar(root) / "recording.000000.tar"
    (item, content), *rest = members(path)
    pack_again(path, [(item, content), *rest])
    raw = bytearray(path.read_bytes())
    huge = info(item.name, 2**50)
    raw[:512] = huge.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"member `part/c0.flac` claims 1,125,899,906,842,624 bytes, and the archive ends before"):
        pipeline.prepare(theirs(root))
    assert all(one.stat().st_size < 10**6 for one in extracted(root))


def test_a_member_larger_than_any_recording_is_refused_unread(root, monkeypatch):
    shar(root)
    monkeypatch.setattr(archive, "LARGEST_AUDIO", 1000)
    with pytest.raises(DataError, match=r"bytes; at most 1,000 are read"):
        pipeline.prepare(theirs(root))
    assert extracted(root) == []


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_fill_the_memory_is_refused_unread(root, kind):
    """The archive's own headers say how long they are; a sparse file makes it as long without taking the space."""
    path = shar(root) / "recording.000000.tar"
    with path.open("wb") as file:
        file.write(info("x", 2**33, kind).tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**33 + 1024)
    with pytest.raises(DataError, match=r"cannot read archive `.*recording.000000.tar`: a header claims 8,589,934,592 bytes"):
        pipeline.prepare(theirs(root))


def test_a_sparse_member_is_refused(root):
    path = shar(root) / "recording.000000.tar"
    pack_again(path, [(info("part/c0.flac", 512, tarfile.GNUTYPE_SPARSE), bytes(512)), *members(path)[2:]])
    with pytest.raises(DataError, match=r"member `part/c0.flac` is no plain file"):
        pipeline.prepare(theirs(root))


def harm_json(folder: Path, change) -> None:
    path = folder / "cuts.000000.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(lines)
    path.write_bytes(gzip.compress("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()))


def cut_off(folder: Path) -> None:
    path = folder / "recording.000000.tar"
    path.write_bytes(path.read_bytes()[:3000])


def without(folder: Path, name: str) -> None:
    path = folder / "recording.000000.tar"
    pack_again(path, [part for part in members(path) if part[0].name != name])


DAMAGE = {
    "an archive that breaks off": (cut_off, r"cannot read archive|breaks off|the archive ends before"),
    "a lost archive": (lambda f: (f / "recording.000001.tar").unlink(), r"no archive `.*recording.000001.tar`"),
    "lost cuts": (lambda f: (f / "cuts.000001.jsonl.gz").unlink(), r"no cuts belong to `.*recording.000001.tar`"),
    "a packed archive": (
        lambda f: (f / "recording.000000.tar").write_bytes(gzip.compress((f / "recording.000000.tar").read_bytes())),
        r"cannot read archive `.*recording.000000.tar`",
    ),
    "lost audio": (lambda f: without(f, "part/c1.flac"), r"line 2: cut `part/c1` has no audio in `.*000000.tar`"),
    "a lost description": (lambda f: without(f, "part/c1.json"), r"line 2: `.*tar` has no description `part/c1.json`"),
    "a lost cut": (lambda f: harm_json(f, lambda lines: lines.pop(0)), r"no cut of `.*` has the id `part/c0`, whose audio is in"),
    "no JSON": (lambda f: harm_json(f, lambda lines: lines.__setitem__(1, "{")), r"cuts.000000.jsonl.gz` line 2 is not JSON"),
    "no supervision": (lambda f: harm_json(f, lambda lines: lines[1].update(supervisions=[])), r"line 2: cut `part/c1` has 0 supervisions"),
    "a wrong shape": (lambda f: harm_json(f, lambda lines: lines[1].update(duration="x")), r"line 2: cut `part/c1` is no sound cut"),
    "a program": (
        lambda f: harm_json(
            f,
            lambda lines: lines[1]["supervisions"][0].update(custom={"x": {"sources": [{"type": "command", "source": "touch it-ran"}]}}),
        ),
        r"line 2: cut `part/c1` takes audio from a source of type `command`",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_with_a_shar_is_said_with_its_place(root, damage):
    harm, message = DAMAGE[damage]
    harm(shar(root))
    with pytest.raises(DataError, match=rf"(?s)({message})") as caught:
        pipeline.prepare(theirs(root))
    assert caught.value.hint and not Layout.of(theirs(root)).cuts("train").exists()


def test_what_was_lost_as_a_whole_is_never_counted_as_one_utterance(root):
    """`max_unfit` leaves out utterances; a shard is many."""
    folder = shar(root)
    without(folder, "part/c1.flac")
    assert pipeline.prepare(theirs(root, max_unfit=2)).utterances == {"train": 2}
    (folder / "recording.000001.tar").rename(root / "away.tar")
    with pytest.raises(DataError, match="no archive"):
        pipeline.prepare(theirs(root, max_unfit=100))
    (root / "away.tar").rename(folder / "recording.000001.tar")
    (folder / "cuts.000001.jsonl.gz").unlink()
    with pytest.raises(DataError, match="no cuts belong to"):
        pipeline.prepare(theirs(root, max_unfit=100))


def test_audio_that_is_none_is_named(root):
    path = shar(root) / "recording.000000.tar"
    (item, content), *rest = members(path)
    pack_again(path, [(item, bytes(len(content))), *rest])
    with pytest.raises(DataError, match=r"cuts.000000.jsonl.gz` line 1: cannot open audio"):
        pipeline.prepare(theirs(root))


@pytest.mark.parametrize("what", ["the folder", "an archive", "cuts"])
def test_an_untrusted_shar_may_not_leave_its_folder(root, what):
    folder = shar(root)
    path = {"the folder": folder, "an archive": folder / "recording.000000.tar", "cuts": folder / "cuts.000000.jsonl.gz"}[what]
    path.rename(root.parent / path.name)
    path.symlink_to(root.parent / path.name)
    with pytest.raises(DataError, match="leads out of"):
        pipeline.prepare(theirs(root, untrusted=True))
    pipeline.prepare(theirs(root))


def test_an_empty_folder_is_no_shar(root):
    (root / "shar" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no shards `cuts.\*.jsonl.gz` in"):
        pipeline.prepare(theirs(root))


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
