"""Shar of others: read as it is, and archives are data, which say neither what is run nor where anything is written."""

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
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.shar import SharWriter

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.corpora import archive
from smoe_cli.cuts import read_cuts, route_of, tags_of
from smoe_cli.errors import DataError
from smoe_cli.layout import Layout
from smoe_cli.steps import plan_step
from tests.conftest import tiny_config


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
        pipeline.prepare(config, jobs=1)
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
        pipeline.prepare(theirs(root), jobs=1)
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


def describe(folder: Path, cut: str, **said: object) -> None:
    """Change what an archive says of a cut's audio."""
    path, parts = folder / "recording.000000.tar", []
    for item, content in members(folder / "recording.000000.tar"):
        if item.name == f"{cut}.json":
            content = json.dumps(json.loads(content) | said).encode()
            item.size = len(content)
        parts.append((item, content))
    pack_again(path, parts)


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
    "a number too large to count with": (
        lambda f: describe(f, "part/c1", duration=10**400),
        r"line 2: the audio of cut `part/c1` in `.*tar` lasts 1.05 s, its description says `10+`",
    ),
    "no number": (lambda f: describe(f, "part/c1", duration=float("nan")), r"line 2: the audio .* its description says `nan`"),
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
