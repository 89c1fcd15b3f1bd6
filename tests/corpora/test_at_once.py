"""Audio that a corpus must make is made by several threads: the same comes of it however many there are, and whoever stops them."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO
from unittest.mock import Mock

import pytest
import yaml
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.shar import SharWriter

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.corpora import archive, tsv
from smoe_cli.corpora.archive import Unwritable
from smoe_cli.corpora.lines import AHEAD, made_at_once
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.errors import DataError
from smoe_cli.layout import Layout
from smoe_cli.records import whole_file
from tests.conftest import tiny_config
from tests.corpora.writing import text, tone

UTTERANCES = 12
ROOT = Path(__file__).parents[2]


def joined(root: Path) -> dict[str, object]:
    """A table whose utterances are joined from two recordings each."""
    tone(root / "a.wav", 0.5)
    tone(root / "b.wav", 0.7, levels=(0.2,))
    rows = [f"u{n}\ttrain\tone\teins\t{'a.wav b.wav' if n % 2 else 'b.wav a.wav'}\t{n} 10 {n}" for n in range(UTTERANCES)]
    text(root / "t.tsv", "id\tsplit\ttranscript\tde\tsegments\tgaps_ms", *rows)
    return {"type": "tsv", "path": "t.tsv", "translations": {"de": "de"}, "segments_column": "segments"}


def shards(root: Path) -> dict[str, object]:
    """A Shar of two shards."""
    folder = root / "shar" / "train"
    folder.mkdir(parents=True)
    with SharWriter(str(folder), {"recording": "flac"}, shard_size=6) as writer:
        for number in range(UTTERANCES):
            path = root / f"{number}.wav"
            tone(path, 0.5 + number / 20)
            sound = Recording.from_file(path, recording_id=f"r{number}")
            segment = SupervisionSegment("s", sound.id, 0, sound.duration, text="one", language="en", custom={"de": "eins"})
            writer.write(MonoCut(f"c{number}", 0, sound.duration, 0, supervisions=[segment], recording=sound))
            path.unlink()
    return {"type": "shar", "path": "shar", "folders": {"train": "train"}, "translations": {"de": "de"}}


KINDS = {"joined": joined, "shar": shards}
MAKES = {"joined": (tsv, "write_flac"), "shar": (archive, "whole_file")}
"""Kind -> what writes one of its files."""


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return str(request.param)


def over(root: Path, kind: str, exp: str = "exp", **corpus: object) -> Config:
    made = KINDS[kind](root) if not root.exists() else json.loads((root / "corpus.json").read_text())
    (root / "corpus.json").write_text(json.dumps(made))
    return tiny_config(root.parent / exp, data={"root": str(root), "corpora": {"theirs": made | corpus}})


def made_by(config: Config) -> dict[str, bytes]:
    """Every file of audio that was made, however it lies there."""
    folder = Layout.of(config).audio
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written_by(config: Config) -> dict[str, bytes]:
    """The manifests, and what goes with them, with the folder's name taken out."""
    cuts = {path.name: path for path in Layout.of(config).cuts_dir.iterdir()}
    return {name: b"".join(_unpacked(path)).replace(os.fsencode(config.exp_dir.name), b"EXP") for name, path in cuts.items()}


def _unpacked(path: Path) -> list[bytes]:
    return (gzip.open if path.suffix == ".gz" else open)(path, "rb").readlines()


def drop_a_line(root: Path) -> None:
    """Three lines are wrong: of the table, or two in the first shard and one in the second."""
    if (root / "t.tsv").exists():
        lines = (root / "t.tsv").read_text().splitlines()
        lines[3] += "\ttoo many"
        lines[4] = lines[4].replace("a.wav", "lost.wav")
        lines[-1] += "\ttoo many"
        text(root / "t.tsv", *lines)
        return
    for number, place in ((0, 1), (0, 3), (1, 3)):
        path = root / f"shar/train/cuts.{number:06d}.jsonl.gz"
        lines = gzip.decompress(path.read_bytes()).splitlines()
        lines[place] = lines[place].replace(b'"duration"', b'"lasts"')
        path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))


def slowest_first(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What is begun first is finished last."""
    module, name = MAKES[kind]
    real, began = getattr(module, name), itertools.count()

    def slow(*words: object) -> object:
        time.sleep((0.06, 0.03, 0.0)[next(began) % 3])  # the first of three is finished last
        return real(*words)

    monkeypatch.setattr(module, name, slow)


def test_audio_is_made_by_all_jobs_at_once(kind, tmp_path, monkeypatch):
    """Three must have begun before the first may go on."""
    module, name = MAKES[kind]
    real, together = getattr(module, name), threading.Barrier(3, timeout=30)

    def wait(*words: object) -> object:
        together.wait()
        return real(*words)

    monkeypatch.setattr(module, name, wait)
    assert pipeline.prepare(over(tmp_path / "corpus", kind), jobs=3).utterances == {"train": UTTERANCES}


def test_one_and_three_jobs_make_the_same_audio_and_manifests(kind, tmp_path, monkeypatch):
    one, three = (over(tmp_path / "corpus", kind, exp) for exp in ("exp1", "exp3"))
    pipeline.prepare(one, jobs=1)
    slowest_first(monkeypatch, kind)
    pipeline.prepare(three, jobs=3)
    assert made_by(one) == made_by(three) and len(made_by(one)) == UTTERANCES
    assert written_by(one) == written_by(three) and "cuts.train.jsonl.gz" in written_by(one)


def test_one_and_three_jobs_find_the_same_wrong_in_the_same_order(kind, tmp_path, monkeypatch):
    one, three = (over(tmp_path / "corpus", kind, exp, max_unfit=3) for exp in ("exp1", "exp3"))
    drop_a_line(tmp_path / "corpus")
    pipeline.prepare(one, jobs=1)
    slowest_first(monkeypatch, kind)
    pipeline.prepare(three, jobs=3)
    lines = written_by(three)["unfit.theirs.txt"].splitlines()
    assert len(lines) == 3 and written_by(one) == written_by(three)
    refused = [over(tmp_path / "corpus", kind, exp, max_unfit=2) for exp in ("exp1", "exp3")]
    said = []
    for config, jobs in zip(refused, (1, 3), strict=True):
        with pytest.raises(DataError) as caught:
            pipeline.prepare(config, jobs=jobs)
        said.append((caught.value.message, caught.value.hint.replace(config.exp_dir.name, "EXP")))
    assert said[0] == said[1] and said[0][0].splitlines()[1:] == [line.decode() for line in lines]


@pytest.mark.parametrize("jobs", [1, 3])
def test_where_rows_break_off_those_before_are_made(tmp_path, jobs):
    def rows() -> Iterator[tuple[str, int]]:
        yield from ((f"line {number}", number) for number in range(7))
        raise DataError("it breaks off")

    def make(where: str, number: int) -> Utterance:
        if number == 2:
            raise DataError("this one is wrong", "mend it")
        return Utterance(str(number), Recording("r", [], 16000, 16000, 1.0), "train", "", "en", "one")

    work, found = Work("theirs", tmp_path, tmp_path, jobs), list[str]()
    with pytest.raises(DataError, match=r"^it breaks off$"):
        found.extend(utterance.id if utterance else "none" for utterance in made_at_once(rows(), make, work))
    assert found == ["0", "1", "none", "3", "4", "5", "6"]
    assert [problem.message for problem in work.problems] == ["line 2: this one is wrong"]


def test_an_error_that_stops_all_is_told_though_a_row_before_it_was_not_begun(tmp_path, monkeypatch):
    """The thread of an earlier row may come to it only after a later row has failed."""

    class LastFirst(ThreadPoolExecutor):
        def submit(self, work, *given):
            later.append((future := Future(), work, given))
            if len(later) == 4:
                for future_of_one, one, its in reversed(later):
                    try:
                        future_of_one.set_result(one(*its))
                    except BaseException as error:
                        future_of_one.set_exception(error)
            return future

    later: list = []
    monkeypatch.setattr("smoe_cli.corpora.lines.ThreadPoolExecutor", LastFirst)

    def make(where: str, number: int) -> Utterance:
        raise Unwritable("cannot write: No space left", "make room")

    with pytest.raises(Unwritable, match="No space left"):
        list(made_at_once(((f"line {number}", number) for number in range(4)), make, Work("theirs", tmp_path, tmp_path, 1)))


def test_a_disk_that_is_full_ends_it_and_no_more_is_tried(tmp_path):
    tried: list[int] = []
    waiting = threading.Event()

    def rows() -> Iterator[tuple[str, int]]:
        for number in range(50):
            if number == AHEAD - 1:
                waiting.set()  # those before are there to be begun
            yield str(number), number

    def make(where: str, number: int) -> Utterance:
        tried.append(number)
        waiting.wait(30)
        raise Unwritable("no space left", "free some")

    with pytest.raises(Unwritable):
        list(made_at_once(rows(), make, Work("theirs", tmp_path, tmp_path, 1)))
    assert tried == [0]


def test_who_is_stopped_keeps_whole_files_and_makes_none_of_them_again(kind, tmp_path):
    whole = over(tmp_path / "corpus", kind, "whole")
    pipeline.prepare(whole, jobs=2)
    config, before = over(tmp_path / "corpus", kind), readers()

    def press_ctrl_c(what: str, done: float, total: float, detail: str = "") -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config, jobs=3, watcher=Mock(progress=press_ctrl_c))
    assert readers() <= before
    kept = made_by(config)
    assert 5 <= len(kept) <= UTTERANCES
    assert kept.items() <= made_by(whole).items()  # so none is half written, and none has another name
    times = {name: (Layout.of(config).audio / name).stat().st_mtime_ns for name in kept}
    pipeline.prepare(config, jobs=3)
    assert made_by(config) == made_by(whole) and written_by(config).keys() == written_by(whole).keys()
    assert times == {name: (Layout.of(config).audio / name).stat().st_mtime_ns for name in kept}


def test_who_is_stopped_while_recordings_are_heard_leaves_no_thread_at_work(kind, tmp_path, monkeypatch):
    config, before = over(tmp_path / "corpus", kind), readers()
    monkeypatch.setattr("smoe_cli.gathering.CHUNK", 2)
    monkeypatch.setattr("smoe_cli.listening.listen", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt) as caught:
        pipeline.prepare(config, jobs=1)
    assert readers() <= before
    assert caught.tb is not None  # what the command shows holds the readers; only who closes them ends their threads


def readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_makes_audio_in_order(tmp_path, number):
    config = over(tmp_path / "corpus", "shar")
    (tmp_path / "smoe.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    # Each file is begun, half a second passes, and it is finished.
    slowly = (
        "import time; from contextlib import contextmanager; from smoe_cli.corpora import archive; whole = archive.whole_file\n"
        "@contextmanager\ndef slow(path):\n    with whole(path) as file:\n        yield file\n        time.sleep(0.5)\n"
        "archive.whole_file = slow\n"
    )
    code = f"import sys\n{slowly}from smoe_cli.cli.app import main\nsys.argv[1:] = ['prepare', '--jobs', '2']\nmain()"
    started = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    audio = Layout.of(config).audio
    for _ in range(1200):
        if len([path for path in audio.rglob("*.flac") if not path.name.startswith(".")]) >= 2 and list(audio.rglob("*.tmp")):
            break
        time.sleep(0.05)  # until it is in the midst of it
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert (started.returncode, "interrupted" in said) == (130, True)
    kept = made_by(config)
    assert 2 <= len(kept) < UTTERANCES
    whole = over(tmp_path / "corpus", "shar", "whole")
    pipeline.prepare(whole)
    assert kept.items() <= made_by(whole).items()


def test_two_threads_that_write_the_same_file_both_leave_it_whole(tmp_path):
    together, wrong = threading.Barrier(2, timeout=30), list[BaseException]()

    def write(content: bytes) -> None:
        try:
            with whole_file(tmp_path / "one") as file:
                file.write(content)
                file.flush()
                together.wait()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in (b"same", b"same")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and (tmp_path / "one").read_bytes() == b"same" and list(tmp_path.iterdir()) == [tmp_path / "one"]


def test_an_archive_gives_each_of_many_threads_its_own_bytes(tmp_path, monkeypatch):
    """A file has one position: who sets it for one member would read another's bytes."""

    class Shared:
        def __init__(self, file: IO[bytes]) -> None:
            self.read, self.fileno, self._seek = file.read, file.fileno, file.seek

        def seek(self, place: int) -> None:
            self._seek(place)
            time.sleep(0.002)  # others may move it

    over(tmp_path / "corpus", "shar")
    path = tmp_path / "corpus/shar/train/recording.000000.tar"
    with tarfile.open(path) as tar:
        content = {item.name.removesuffix(".flac"): tar.extractfile(item).read() for item in tar if item.name.endswith(".flac")}
    monkeypatch.setattr(archive, "CHUNK", 64)
    with archive.open_archive(path) as opened:
        monkeypatch.setattr(opened, "_file", Shared(opened._file))
        taken: dict[str, bytes] = {}
        threads = [
            threading.Thread(target=lambda name=name: taken.update({name: opened.take_out(name, tmp_path / "out").read_bytes()}))
            for name in content
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert taken == content
