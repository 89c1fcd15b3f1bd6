"""Commands and addresses instead of audio files: refused; where they are allowed, brought in once, whole, and within limits."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from lhotse import MonoCut, Recording, SupervisionSegment

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.corpora import archive, outside
from smoe_cli.corpora.outside import COMMAND, URL, Named, Outside
from smoe_cli.corpora.utterance import Work
from smoe_cli.cuts import read_cuts, tags_of
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.layout import Layout
from smoe_cli.steps import plan_step
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[1]
TASKS = {"transcribe": {"languages": ["en"]}}
KALDI = {"type": "kaldi", "path": "data", "splits": {"dev": None, "test": None}, "language": "en"}
LHOTSE = {"type": "lhotse", "cuts": {"train": "cuts.jsonl"}}


class Served(BaseHTTPRequestHandler):
    """Gives the files of a folder, and a few misbehaviours."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "file:" + "///etc/passwd")
            self.end_headers()
            return
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/a.flac")
            self.end_headers()
            return
        path = self.folder / self.path.removeprefix("/cut-off").removeprefix("/slow").strip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path.startswith("/slow"):
            for byte in content:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            return
        self.wfile.write(content[: len(content) // 2] if self.path.startswith("/cut-off") else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path) -> Path:
    """A corpus folder with one second of noise in 16 bits."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    soundfile.write(folder / "a.flac", np.random.default_rng(0).integers(-9000, 9000, 16000).astype(np.int16), 16000)
    return folder


@pytest.fixture
def server(folder) -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Served,), {"folder": folder, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def address(server: ThreadingHTTPServer, name: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


def recipe(folder: Path, corpus: dict[str, object], **changes: object) -> Config:
    return tiny_config(folder.parent / "exp", data={"root": str(folder), "corpora": {"calls": corpus | changes}}, tasks=TASKS)


def kaldi(folder: Path, **wavs: str) -> None:
    """A data folder with one utterance a recording."""
    data = folder / "data" / "train"
    data.mkdir(parents=True, exist_ok=True)
    (data / "wav.scp").write_text("".join(f"{name} {value}\n" for name, value in wavs.items()))
    (data / "text").write_text("".join(f"{name} words of {name}\n" for name in wavs))


def lhotse(folder: Path, *sources: tuple[str, str], **recording: object) -> None:
    """A manifest of one cut a source, each of which promises what `a.flac` holds."""
    lines = []
    for number, (kind, named) in enumerate(sources):
        sound = Recording.from_file(folder / "a.flac", recording_id=f"r{number}")
        segment = SupervisionSegment(f"c{number}", sound.id, 0, sound.duration, text=f"text {number}", language="en")
        tree = MonoCut(f"c{number}", 0, sound.duration, 0, supervisions=[segment], recording=sound).to_dict()
        tree["recording"]["sources"] = [{"type": kind, "channels": [0], "source": named}]
        tree["recording"] |= recording
        lines.append(json.dumps(tree) + "\n")
    (folder / "cuts.jsonl").write_text("".join(lines))


def heard(config: Config) -> dict[str, np.ndarray]:
    """Utterance -> samples, of the prepared manifest; every source in it is a file inside the experiment or the corpus."""
    cuts = read_cuts(Layout.of(config).cuts("train"))
    assert all(source.type == "file" for cut in cuts for source in cut.recording.sources)
    return {tags_of(cut).utterance.removeprefix("calls/"): cut.load_audio()[0] for cut in cuts}


def whole(folder: Path) -> np.ndarray:
    return soundfile.read(folder / "a.flac", dtype="float32")[0]


# --- refused, unless allowed -----------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [[], ["url"]])
def test_a_command_is_not_run_unless_commands_are_allowed(folder, tmp_path, allowed):
    ran = tmp_path / "it-ran"
    kaldi(folder, a=f"touch {ran}; cat ../../a.flac |")
    with pytest.raises(DataError, match=r"wav.scp` line 1 is a command, and commands .* are not run unless you allow it") as caught:
        pipeline.prepare(recipe(folder, KALDI, allow_sources=allowed))
    assert "smoe prepare --allow-sources command" in caught.value.hint
    lhotse(folder, ("command", f"touch {ran}; cat a.flac"))
    with pytest.raises(DataError, match=r"line 1: cut `c0` takes audio from a source of type `command`") as caught:
        pipeline.prepare(recipe(folder, LHOTSE, allow_sources=allowed))
    assert "smoe prepare --allow-sources command" in caught.value.hint
    assert not ran.exists()


@pytest.mark.parametrize("allowed", [[], ["command"]])
def test_an_address_is_not_fetched_unless_addresses_are_allowed(folder, server, allowed):
    kaldi(folder, a=address(server, "a.flac"))
    with pytest.raises(DataError, match=r"wav.scp` line 1 is an address, and nothing is fetched unless you allow it") as caught:
        pipeline.prepare(recipe(folder, KALDI, allow_sources=allowed))
    assert "smoe prepare --allow-sources url" in caught.value.hint
    lhotse(folder, ("url", address(server, "a.flac")))
    with pytest.raises(DataError, match=r"line 1: cut `c0` takes audio from a source of type `url`") as caught:
        pipeline.prepare(recipe(folder, LHOTSE, allow_sources=allowed))
    assert "smoe prepare --allow-sources url" in caught.value.hint
    assert server.RequestHandlerClass.asked == []


@pytest.mark.parametrize("corpus", [KALDI, LHOTSE])
def test_what_is_untrusted_can_be_allowed_nothing(folder, corpus):
    with pytest.raises(ConfigError, match=r"`untrusted` and `allow_sources: \[command\]` contradict each other"):
        recipe(folder, corpus, allow_sources=["command"], untrusted=True)


@pytest.mark.parametrize("kind", ["memory", "shar", "file"])
def test_no_other_kind_of_source_can_be_allowed(folder, kind):
    with pytest.raises(ConfigError, match="'command' or 'url'"):
        recipe(folder, LHOTSE, allow_sources=[kind])


ELSEWHERE = {
    "in a transform": {
        "transforms": [
            {
                "name": "ReverbWithImpulseResponse",
                "kwargs": {"rir": {"id": "i", "sources": [{"type": "command", "channels": [0], "source": "touch it-ran"}]}},
            }
        ],
        "sources": [{"type": "file", "channels": [0], "source": "a.flac"}],
    },
    "that calls itself a file": {"sources": [{"type": "file", "channels": [0], "source": "pipe:touch it-ran"}]},
    "inside the manifest": {"sources": [{"type": "memory", "channels": [0], "source": "fLaC"}]},
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_only_the_audio_of_the_cut_itself_is_allowed(folder, where):
    lhotse(folder, ("file", "a.flac"), **ELSEWHERE[where])
    with pytest.raises(DataError, match="could run a program or reach the network"):
        pipeline.prepare(recipe(folder, LHOTSE, allow_sources=["command", "url"]))
    assert not (folder / "it-ran").exists()


def test_output_pipes_of_kaldi_are_never_run(folder, tmp_path):
    kaldi(folder, a=f"| touch {tmp_path / 'it-ran'}")
    with pytest.raises(DataError, match=r"wav.scp` line 1 is a command"):
        pipeline.prepare(recipe(folder, KALDI, allow_sources=["command", "url"]))
    assert not (tmp_path / "it-ran").exists()


def test_the_prepared_manifest_allows_nothing_so_a_foreign_one_stays_refused_by_all_later_commands(folder, tmp_path):
    ran = tmp_path / "it-ran"
    kaldi(folder, a="cat ../../a.flac |")
    config = recipe(folder, KALDI, allow_sources=["command"])
    pipeline.prepare(config)
    manifest = Layout.of(config).cuts("train")
    assert "command" not in gzip.decompress(manifest.read_bytes()).decode()
    lhotse(folder, ("command", f"touch {ran}; cat a.flac"))
    manifest.write_bytes(gzip.compress((folder / "cuts.jsonl").read_bytes()))
    for command in (pipeline.tokenize, pipeline.train, pipeline.features):
        with pytest.raises(DataError, match="source of type `command`"):
            command(config)
    (finding,) = pipeline.validate(config).findings
    assert (finding.check, finding.severity) == ("manifest", "error")
    assert not ran.exists()


# --- allowed: the same samples as those of the file ------------------------------------------------------


def test_commands_and_addresses_give_the_samples_of_the_file(folder, server):
    kaldi(folder, a="cat ../../a.flac |", b=address(server, "a.flac"), c="../../a.flac", d=address(server, "moved"))
    config = recipe(folder, KALDI, allow_sources=["command", "url"])
    pipeline.prepare(config)
    found = heard(config)
    assert sorted(found) == ["a", "b", "c", "d"]
    assert all(np.array_equal(samples, whole(folder)) for samples in found.values())


def test_cuts_of_commands_and_addresses_give_the_samples_of_the_file(folder, server):
    lhotse(folder, ("command", "cat a.flac"), ("url", address(server, "a.flac")), ("file", "a.flac"))
    config = recipe(folder, LHOTSE, allow_sources=["url", "command"])
    pipeline.prepare(config)
    found = heard(config)
    assert sorted(found) == ["c0", "c1", "c2"]
    assert all(np.array_equal(samples, whole(folder)) for samples in found.values())


def test_what_lhotse_reads_from_the_same_command_is_the_same(folder):
    lhotse(folder, ("command", f"cat {folder / 'a.flac'}"))
    config = recipe(folder, LHOTSE, allow_sources=["command"])
    pipeline.prepare(config)
    theirs = MonoCut.from_dict(json.loads((folder / "cuts.jsonl").read_text())).load_audio()[0]
    assert np.array_equal(heard(config)["c0"], theirs)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "ULAW", "ALAW", "GSM610", "PCM_24"])
def test_samples_of_up_to_24_bits_are_kept_bit_for_bit(folder, subtype):
    rate = 8000 if subtype == "GSM610" else 16000
    soundfile.write(folder / "a.wav", 0.5 * np.sin(np.arange(rate) / 7), rate, subtype=subtype)
    kaldi(folder, a="cat ../../a.wav |", b="../../a.wav")
    config = recipe(folder, KALDI, allow_sources=["command"])
    pipeline.prepare(config)
    kept = next((folder.parent / "exp" / "audio").rglob("*.flac"))
    assert np.array_equal(soundfile.read(kept)[0], soundfile.read(folder / "a.wav")[0])


def test_samples_that_are_no_whole_numbers_are_rounded_to_24_bits(folder):
    samples = np.append(np.random.default_rng(1).uniform(-1, 1, 15999), 1.5)
    soundfile.write(folder / "a.wav", samples, 16000, subtype="DOUBLE")
    kaldi(folder, a="cat ../../a.wav |")
    pipeline.prepare(recipe(folder, KALDI, allow_sources=["command"]))
    kept = soundfile.read(next((folder.parent / "exp" / "audio").rglob("*.flac")))[0]
    assert np.abs(kept - samples.clip(-1, 1 - 2**-23)).max() <= 2**-24


def test_a_stereo_call_of_a_command_is_taken_apart_by_its_channels(folder):
    tone = 0.1 * np.sin(np.arange(16000) * np.pi / 40)
    soundfile.write(folder / "call.wav", np.stack((tone + 0.25, tone - 0.5), 1), 16000)
    kaldi(folder, call="cat ../../call.wav |")
    data = folder / "data" / "train"
    (data / "reco2file_and_channel").write_text("call-A call A\ncall-B call B\n")
    (data / "segments").write_text("u1 call-A 0 0.5\nu2 call-B 0 0.5\n")
    (data / "text").write_text("u1 one\nu2 two\n")
    config = recipe(folder, KALDI, allow_sources=["command"])
    pipeline.prepare(config)
    assert {name: round(float(samples.mean()), 3) for name, samples in heard(config).items()} == {"u1": 0.25, "u2": -0.5}


def test_a_header_that_does_not_know_its_length_is_no_damage(folder):
    """What `sox` and `ffmpeg` write into a pipe."""
    written = io.BytesIO()
    soundfile.write(written, soundfile.read(folder / "a.flac", dtype="int16")[0], 16000, format="WAV")
    content = written.getvalue()
    (folder / "a.wav").write_bytes(content[:4] + b"\xff\xff\xff\xff" + content[8:40] + b"\xff\xff\xff\xff" + content[44:])
    kaldi(folder, a="cat ../../a.wav |")
    config = recipe(folder, KALDI, allow_sources=["command"])
    pipeline.prepare(config)
    assert np.array_equal(heard(config)["a"], whole(folder))


def test_each_is_run_once_for_all_its_segments_and_all_later_calls(folder):
    kaldi(folder, r=f"echo x >> {folder / 'runs'}; cat ../../a.flac |", never=f"touch {folder / 'never'} |")
    data = folder / "data" / "train"
    (data / "segments").write_text("u1 r 0 0.5\nu2 r 0.5 1\n")
    (data / "text").write_text("u1 one\nu2 two\n")
    config = recipe(folder, KALDI, allow_sources=["command"])
    pipeline.prepare(config)
    first = Layout.of(config).cuts("train").read_bytes()
    pipeline.prepare(config)
    assert Layout.of(config).cuts("train").read_bytes() == first
    assert (folder / "runs").read_text() == "x\n"
    assert not (folder / "never").exists()


def test_what_was_brought_in_is_brought_in_again_where_it_is_not_as_promised_now(folder):
    lhotse(folder, ("command", "cat b.flac"))
    soundfile.write(folder / "b.flac", np.full(8000, 0.5), 16000)
    config = recipe(folder, LHOTSE, allow_sources=["command"])
    with pytest.raises(
        DataError, match=r"line 1: command `cat b.flac` gives 8000 samples at 16000 Hz where 16000 at 16000 Hz are promised"
    ):
        pipeline.prepare(config)
    (folder / "b.flac").write_bytes((folder / "a.flac").read_bytes())
    pipeline.prepare(config)
    lhotse(folder, ("command", "cat b.flac"), num_samples=8000, duration=0.5)
    with pytest.raises(DataError, match="gives 16000 samples at 16000 Hz where 8000"):
        pipeline.prepare(config)


def test_a_permission_is_no_setting_that_a_step_depends_on(folder):
    kaldi(folder, a="cat ../../a.flac |")
    pipeline.prepare(recipe(folder, KALDI, allow_sources=["command"]))
    assert plan_step(recipe(folder, KALDI), "prepare").state == "up to date"


def test_a_command_gets_no_input(folder):
    kaldi(folder, a="cat - ../../a.flac |")
    config = recipe(folder, KALDI, allow_sources=["command"])
    pipeline.prepare(config)
    assert np.array_equal(heard(config)["a"], whole(folder))


# --- damaged: one clear line each ------------------------------------------------------------------------


def test_every_damage_is_one_line_and_nothing_is_left_behind(folder, server, monkeypatch):
    monkeypatch.setattr(outside, "TIME_LIMIT_S", 1.0)
    soundfile.write(folder / "nan.wav", np.full(800, np.nan), 16000, subtype="FLOAT")
    soundfile.write(folder / "zeros.wav", np.zeros(800), 16000)
    soundfile.write(folder / "nine.wav", np.full((800, 9), 0.1), 16000)
    soundfile.write(folder / "long.wav", np.full(16000, 0.1), 16000)
    (folder / "broken.wav").write_bytes((folder / "long.wav").read_bytes()[:9000])
    (folder / "broken.flac").write_bytes((folder / "a.flac").read_bytes()[:9000])
    wavs = {
        "b-exit": "cat ../../a.flac; echo cannot open >&2; exit 3 |",
        "c-killed": "kill -9 $$ |",
        "d-missing": "sph2pipe-that-is-not-there -f wav x.sph |",
        "e-nothing": "true |",
        "f-text": "echo hello |",
        "g-slow": f"sleep 30 & echo $! > {folder / 'pid'}; wait |",
        "h-nan": "cat ../../nan.wav |",
        "i-zeros": "cat ../../zeros.wav |",
        "j-nine": "cat ../../nine.wav |",
        "k-broken": "cat ../../broken.wav |",
        "l-broken": "cat ../../broken.flac |",
        "m-gone": address(server, "gone.flac"),
        "n-nobody": "http://127.0.0.1:9/a.flac",
        "o-ftp": "ftp://127.0.0.1/a.flac",
        "p-cut-off": address(server, "cut-off/a.flac"),
        "q-away": address(server, "away"),
        "r-slow": address(server, "slow/a.flac"),
        "s-file": "file:" + "///etc/passwd",
    }
    kaldi(folder, **{"a": "cat ../../a.flac |", **wavs})
    config = recipe(folder, KALDI, allow_sources=["command", "url"], max_unfit=len(wavs))
    report = pipeline.prepare(config)
    assert report.utterances == {"train": 1}
    lines = Layout.of(config).unfit("calls").read_text().splitlines()
    expected = [
        "command `cat ../../a.flac; echo cannot open >&2; exit 3` ended with exit code 3: cannot open",
        "command `kill -9 $$` ended with signal 9",
        "command `sph2pipe-that-is-not-there -f wav x.sph` ended with exit code 127: ",
        "command `true` gives nothing",
        "command `echo hello` gives 6 bytes that are no sound audio: ",
        "command `sleep 30 & echo",
        "command `cat ../../nan.wav` gives values that are not numbers",
        "command `cat ../../zeros.wav` gives nothing but silence (all zeros)",
        "command `cat ../../nine.wav` gives 9 channels; at most 8 are kept",
        "command `cat ../../broken.wav` breaks off: 9,000 bytes where its header promises 32,044",
        "command `cat ../../broken.flac` ",
        f"address `{wavs['m-gone']}` answers 404 Not Found",
        "address `http://127.0.0.1:9/a.flac` cannot be fetched: ",
        "address `ftp://127.0.0.1/a.flac` is neither http nor https",
        f"address `{wavs['p-cut-off']}` breaks off: ",
        f"address `{wavs['q-away']}` ",
        f"address `{wavs['r-slow']}` takes longer than 1 s",
        "address `file:" + "///etc/passwd` is neither http nor https",
    ]
    assert len(lines) == len(expected)
    for number, (line, said) in enumerate(zip(lines, expected, strict=True), start=2):
        assert line.startswith(f"`{folder}/data/train/wav.scp` line {number}: {said}")
    assert lines[5].endswith("takes longer than 1 s")
    kept = [path for path in (folder.parent / "exp" / "audio").rglob("*") if path.is_file()]
    assert len(kept) == 1
    assert is_gone(int((folder / "pid").read_text()))


def is_gone(process: int) -> bool:
    """Whether a process ended within a second; one that nobody has waited for yet counts."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_damage_of_cuts_names_their_lines(folder):
    lhotse(folder, ("command", "exit 4"), ("url", "s3://bucket/a.flac"), ("command", "cat a.flac"))
    (folder / "cuts.jsonl").write_text((folder / "cuts.jsonl").read_text() + "no json\n")
    config = recipe(folder, LHOTSE, allow_sources=["command", "url"], max_unfit=3)
    pipeline.prepare(config)
    manifest = folder / "cuts.jsonl"
    first, second, third = Layout.of(config).unfit("calls").read_text().splitlines()
    assert first == f"`{manifest}` line 1: command `exit 4` ended with exit code 4"
    assert second == f"`{manifest}` line 2: address `s3://bucket/a.flac` is neither http nor https"
    assert third.startswith(f"`{manifest}` line 4 is not JSON")


def test_endless_output_is_cut_off_at_a_limit(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(outside, "LARGEST_AUDIO", 2**20)
    brought = Outside(["command"], Work("calls", folder, tmp_path / "audio"), folder)
    with pytest.raises(DataError, match="command `yes` gives more than 1,048,576 bytes"):
        brought.file_of(Named(COMMAND, "yes"))
    assert not [path for path in (tmp_path / "audio").rglob("*") if path.is_file()]


def test_more_hours_than_any_speech_are_refused_however_small_the_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(outside, "LONGEST_S", 0.5)
    brought = Outside(["command"], Work("calls", folder, tmp_path / "audio"), folder)
    with pytest.raises(DataError, match=r"command `cat a.flac` gives more than 0.000138889 hours"):
        brought.file_of(Named(COMMAND, "cat a.flac"))
    assert not [path for path in (tmp_path / "audio").rglob("*") if path.is_file()]


def test_a_server_that_says_nothing_is_not_waited_for(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(outside, "SILENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        named = Named(URL, f"http://127.0.0.1:{silent.getsockname()[1]}/a.flac")
        with pytest.raises(DataError, match="cannot be fetched: timed out"):
            Outside(["url"], Work("calls", folder, tmp_path / "audio"), folder).file_of(named)


def test_where_nothing_can_be_written_no_other_is_tried(folder, tmp_path):
    (tmp_path / "audio").write_text("a file, no folder")
    kaldi(folder, a="cat ../../a.flac |", b="cat ../../a.flac; true |")
    brought = Outside(["command"], Work("calls", folder, tmp_path / "audio"), folder)
    with pytest.raises(archive.Unwritable, match="cannot write"):
        brought.bring([Named(COMMAND, "cat a.flac"), Named(COMMAND, "cat a.flac; true")])


def test_a_full_disk_is_said_to_be_full(folder, tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    @contextmanager
    def whole_file(path: Path) -> Iterator[io.BytesIO]:
        try:
            yield Full()
        except OSError as error:
            raise DataError(f"cannot write `{path}`: {error.strerror}", "free some space") from error

    monkeypatch.setattr(outside, "whole_file", whole_file)
    with pytest.raises(archive.Unwritable, match="No space left on device"):
        Outside(["command"], Work("calls", folder, tmp_path / "audio"), folder).file_of(Named(COMMAND, "cat a.flac"))


# --- on the command line ---------------------------------------------------------------------------------


def smoe(folder: Path, *words: str, wait: bool = True):
    started = subprocess.Popen(
        [sys.executable, "-m", "smoe_cli", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not wait:
        return started
    out, said = started.communicate()
    return started.returncode, out, said


def write_recipe(folder: Path, corpus: dict[str, object]) -> Path:
    config = recipe(folder, corpus).model_dump(mode="json")
    (folder.parent / "smoe.yaml").write_text(yaml.safe_dump(config))
    return folder.parent


def test_the_flag_allows_for_one_call_what_the_recipe_does_not(folder):
    kaldi(folder, a=f"echo x >> {folder / 'runs'}; cat ../../a.flac |")
    at = write_recipe(folder, KALDI)
    code, _, said = smoe(at, "prepare")
    assert (code, "hint: look at the command; if it is sound, let `smoe prepare --allow-sources command`" in said) == (2, True)
    assert not (folder / "runs").exists()
    assert smoe(at, "prepare", "--allow-sources", "command")[0] == 0
    assert (folder / "runs").exists()


def test_the_flag_beside_an_untrusted_corpus_is_refused(folder, tmp_path):
    kaldi(folder, a=f"touch {tmp_path / 'it-ran'} |")
    code, _, said = smoe(write_recipe(folder, KALDI | {"untrusted": True}), "prepare", "--allow-sources", "command")
    assert code == 2
    assert "`untrusted` and `allow_sources: [command]` contradict each other" in said
    assert not (tmp_path / "it-ran").exists()


def test_the_flag_is_refused_where_no_corpus_can_use_it(folder):
    at = write_recipe(folder, {"type": "tsv", "path": "t.tsv"})
    code, _, said = smoe(at, "prepare", "--allow-sources", "url")
    assert (code, "--allow-sources url: no corpus of `calls` can name anything but files" in said) == (2, True)


def test_a_stopped_preparation_ends_its_commands_and_goes_on_later(folder):
    kaldi(folder, a="cat ../../a.flac |", b=f"cat {folder / 'gate'} & echo $! > {folder / 'pid'}; wait; cat ../../a.flac |")
    os.mkfifo(folder / "gate")
    at = write_recipe(folder, KALDI)
    started = smoe(at, "prepare", "--allow-sources", "command", "--jobs", "1", wait=False)
    for _ in range(1200):
        if list(at.rglob("*.flac"))[1:]:  # the first is brought in
            break
        time.sleep(0.05)
    time.sleep(0.3)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert (started.returncode, "interrupted" in said) == (130, True)
    assert len(list((at / "exp" / "audio").rglob("*.flac"))) == 1
    assert is_gone(int((folder / "pid").read_text()))
    (folder / "gate").unlink()
    (folder / "gate").write_bytes(b"")
    assert smoe(at, "prepare", "--allow-sources", "command")[0] == 0
    assert len(list((at / "exp" / "audio").rglob("*.flac"))) == 2
