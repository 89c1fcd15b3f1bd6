"""Hypotheses outlive their process, and say which model wrote them."""

from __future__ import annotations

import gzip
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smoe_cli import checkpoint, pipeline
from smoe_cli.config import Config, DecodeSettings
from smoe_cli.decoding.inputs import cuts_of
from smoe_cli.decoding.part import Header, open_part
from smoe_cli.errors import ConfigError, DataError, Interrupted, RouteError
from smoe_cli.layout import Layout, model_digest
from smoe_cli.records import Hypothesis, read_hypotheses
from smoe_cli.routing import make_plan
from smoe_cli.tags import Choice
from smoe_cli.tokenizer import open_tokenizer
from smoe_cli.watch import Silent
from tests.test_training import recipe, write_corpus

ROOT = Path(__file__).parents[1]
UTTERANCES = 24
"""Two spoken tests of each of three words, in two bands, for two tasks."""
SETTINGS = {"beam": 2, "batch_s": 2.0, "max_tokens_per_s": 5.0, "min_max_tokens": 3}


class Listener(Silent):
    """Remembers what was said; may be told to interrupt once some batches are done."""

    def __init__(self, batches: int | None = None) -> None:
        self.lines: list[str] = []
        self.done: list[float] = []
        self._batches = batches

    def log(self, message: str) -> None:
        self.lines.append(message)

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        del what, total, detail
        self.done.append(done)
        if len(self.done) == self._batches:
            raise KeyboardInterrupt


def save_model(config: Config, seed: int) -> None:
    """A model of random weights in the place of the trained one."""
    torch.manual_seed(seed)
    layout, plan = Layout.of(config), make_plan(config)
    tokenizer = open_tokenizer(layout.tokenizer)
    model = checkpoint.build_model(config.model, config.features, plan, tokenizer.vocab_size)
    checkpoint.save(layout.final, checkpoint.System(model, config, plan, tokenizer))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Config:
    """A prepared and tokenized recipe."""
    folder = tmp_path_factory.mktemp("tones")
    config = recipe(write_corpus(folder / "corpus", per_word=16), folder / "exp", decode=SETTINGS)
    pipeline.prepare(config)
    pipeline.tokenize(config)
    return config


@pytest.fixture
def config(prepared, monkeypatch) -> Config:
    """The same with an untrained model and without hypotheses; arithmetic is fixed, as no two measurements agree for sure."""
    compute(monkeypatch, "highest")
    layout = Layout.of(prepared)
    for path in layout.hypotheses_dir("test").glob("*"):
        path.unlink()
    save_model(prepared, seed=0)
    return prepared


def compute(monkeypatch, matmul: str) -> None:
    """What the process measures to be fastest."""
    monkeypatch.setattr("smoe_cli.training.precision.choose_precision", lambda *_: torch.set_float32_matmul_precision(matmul))


def written(config: Config) -> dict[str, bytes]:
    """Everything in the folder of hypotheses."""
    return {path.name: path.read_bytes() for path in Layout.of(config).hypotheses_dir("test").iterdir()}


def stop_after(config: Config, batches: int) -> Path:
    """Interrupt a decoding; returns its part file."""
    with pytest.raises(Interrupted):
        pipeline.decode(config, watcher=Listener(batches))
    return Layout.of(config).unfinished("test", None, None, None)


# --- going on ----------------------------------------------------------------------------------------------


def test_an_interrupted_decoding_goes_on_to_the_same_bytes(config):
    whole = Listener()
    pipeline.decode(config, watcher=whole)
    expected = written(config)
    assert set(expected) == {"transcribe-en.jsonl", "translate-de.jsonl"} and len(whole.done) > 4
    for path in Layout.of(config).hypotheses_dir("test").iterdir():
        path.unlink()
    with pytest.raises(Interrupted, match=rf"stopped after {whole.done[1]:.0f} of {UTTERANCES} utterances") as caught:
        pipeline.decode(config, watcher=Listener(2))
    assert "run the same command again" in caught.value.hint
    assert set(written(config)) == {".all-all-all.part"}
    again = Listener()
    pipeline.decode(config, watcher=again)
    assert f"continuing: {whole.done[1]:.0f} of {UTTERANCES} already decoded" in again.lines
    assert again.done == whole.done[2:]
    assert written(config) == expected


def test_a_killed_decoding_goes_on_to_the_same_bytes(config, tmp_path):
    out = tmp_path / "hypotheses.jsonl"
    code = f"""
import os, signal, torch
from pathlib import Path
from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.training import precision
from smoe_cli.watch import Silent

class Killer(Silent):
    def progress(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads({torch.get_num_threads()})
precision.choose_precision = lambda *_: torch.set_float32_matmul_precision("highest")
pipeline.decode(Config.model_validate_json({config.model_dump_json()!r}), out=Path({str(out)!r}), watcher=Killer())
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".hypotheses.jsonl.part"]
    listener = Listener()
    pipeline.decode(config, out=out, watcher=listener)
    assert listener.lines[0].startswith("continuing: ")
    pipeline.decode(config, out=tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hypotheses.jsonl", "whole.jsonl"]


@pytest.mark.parametrize("rest", [b"", b"[", b'[{"id": "tones-a5', b'[]"\n[{"id": 1}]\n'])
def test_what_was_cut_off_while_it_was_written_is_decoded_again(config, rest):
    pipeline.decode(config)
    expected = written(config)
    part = stop_after(config, 3)
    lines = part.read_bytes().split(b"\n")
    part.write_bytes(b"\n".join(lines[:3]) + b"\n" + rest)
    again = Listener()
    stopped = Listener(1)
    with pytest.raises(Interrupted):
        pipeline.decode(config, watcher=stopped)
    # What was appended after the cut is read by the call after it.
    assert part.read_bytes() == b"\n".join(lines[:4]) + b"\n"
    pipeline.decode(config, watcher=again)
    assert again.lines[0] == f"continuing: {stopped.done[0]:.0f} of {UTTERANCES} already decoded"
    assert written(config) == expected


@pytest.mark.parametrize("change", ["model", "settings", "cuts", "torn header"])
def test_what_was_decoded_otherwise_is_discarded(config, change):
    part, asked, manifest = stop_after(config, 2), config, Layout.of(config).cuts("test")
    if change == "model":
        save_model(config, seed=1)
    elif change == "settings":
        asked = config.model_copy(update={"decode": config.decode.model_copy(update={"beam": 1})})
    elif change == "torn header":
        part.write_bytes(part.read_bytes()[:40])
    elif change == "cuts":
        before = manifest.read_bytes()
        text = gzip.decompress(before).decode().replace('"three"', '"tree"')
        manifest.write_bytes(gzip.compress(text.encode()))
    listener = Listener()
    try:
        pipeline.decode(asked, watcher=listener)
    finally:
        if change == "cuts":
            manifest.write_bytes(before)
    assert listener.done[-1] == UTTERANCES and len(listener.done) > 4
    assert [line.partition(" batches ")[0] for line in listener.lines] == ([] if change == "torn header" else ["discarding 2"])
    assert not part.exists()


def test_a_continued_decoding_computes_as_it_began(config, monkeypatch):
    stop_after(config, 1)
    compute(monkeypatch, "medium")
    pipeline.decode(config)
    assert torch.get_float32_matmul_precision() == "highest"


def test_what_was_begun_with_some_tags_is_left_to_them_until_all_is_done(config):
    layout = Layout.of(config)
    with pytest.raises(Interrupted):
        pipeline.decode(config, choice=Choice("translate"), watcher=Listener(1))
    assert layout.unfinished("test", "translate", None, None).is_file()
    listener = Listener()
    pipeline.decode(config, choice=Choice("transcribe"), watcher=listener)
    assert set(written(config)) == {"transcribe-en.jsonl", ".translate-all-all.part"}
    pipeline.decode(config, watcher=listener)
    assert set(written(config)) == {"transcribe-en.jsonl", "translate-de.jsonl"}
    assert listener.lines == []


def test_a_second_interruption_adds_to_the_first(config):
    with pytest.raises(Interrupted, match="stopped after"):
        pipeline.decode(config, watcher=Listener(1))
    listener = Listener(2)
    with pytest.raises(Interrupted, match=rf"of {UTTERANCES} utterances; they are saved in `.*all-all-all.part`") as caught:
        pipeline.decode(config, watcher=listener)
    assert caught.value.exit_code == 130 and f"stopped after {listener.done[1]:.0f} of" in caught.value.message
    last = Listener()
    pipeline.decode(config, watcher=last)
    assert last.done[0] > listener.done[1]


def test_bare_audio_whose_text_is_only_printed_keeps_nothing(config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    audio, asked = config.data.root / "a1.flac", {"choice": Choice("translate", "de")}
    with pytest.raises(KeyboardInterrupt):
        pipeline.decode(config, inputs=[audio], watcher=Listener(1), **asked)
    assert not list(tmp_path.iterdir()) and not written(config)
    with pytest.raises(Interrupted, match="stopped after 1 of 1"):
        pipeline.decode(config, inputs=[audio], out=Path("a.jsonl"), watcher=Listener(1), **asked)
    pipeline.decode(config, inputs=[audio], out=Path("a.jsonl"), **asked)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


HEADER = Header(smoe="0", model="a", texts="t", settings=DecodeSettings(), batches="b", utterances=9, matmul="highest")


def test_two_processes_never_write_to_one_part_file(tmp_path):
    refused = pytest.raises(DataError, match="another process is decoding the same")
    with open_part(tmp_path / "a.part", HEADER, Silent()), refused, open_part(tmp_path / "a.part", HEADER, Silent()):
        pass


def test_a_part_file_gives_back_what_it_was_given(tmp_path):
    scores = torch.randn(200, dtype=torch.float64).tolist()
    batch = [
        Hypothesis(
            id=f"{n}",
            utterance="u",
            task="t",
            lang="l",
            bandwidth="nb",
            text="\u2028\n\x00ü",
            duration_s=score**2,
            score=score,
            stopped="end",
        )
        for n, score in enumerate(scores)
    ]
    with open_part(tmp_path / "a.part", HEADER, Silent()) as part:
        part.keep(batch)
    with open_part(tmp_path / "a.part", HEADER, Silent()) as part:
        assert part.batches == [batch]


# --- what is refused ---------------------------------------------------------------------------------------


def test_a_cut_that_occurs_twice_is_refused_before_anything_is_decoded(config, tmp_path):
    manifest, listener = Layout.of(config).cuts("test"), Listener()
    with pytest.raises(DataError, match=r"cut `tones-.*` occurs twice") as caught:
        pipeline.decode(config, inputs=[manifest, manifest], out=tmp_path / "a.jsonl", watcher=listener)
    assert "apart" in caught.value.hint
    assert listener.done == [] and not list(tmp_path.iterdir())


def test_bare_audio_without_a_route_is_told_the_options(config):
    system = checkpoint.load(Layout.of(config).final)
    wideband = tuple(name for name in system.plan.routes if name.endswith("/wb"))
    system.plan = system.plan.model_copy(update={"routes": wideband})
    audio = config.data.root / "a1.flac"
    with pytest.raises(RouteError, match="the model has no route `transcribe/en/nb`; it has: transcribe/en/wb") as caught:
        cuts_of(audio, system, Choice("transcribe", "en", "nb"))
    assert str(audio) in caught.value.message and "--bandwidth" in caught.value.hint


def test_another_checkpoint_is_decoded_and_audited_with_its_own_settings(config, tmp_path):
    final, other = Layout.of(config).final, config.model_copy(update={"decode": DecodeSettings(beam=7)})

    def decoded(**asked) -> str:
        return pipeline.decode(other, choice=Choice("transcribe", bandwidth="nb"), out=tmp_path / "a.jsonl", **asked).hypotheses[0].decoding

    assert decoded(checkpoint=final).startswith("beam:2|")
    assert decoded(checkpoint=final, search=DecodeSettings(beam=1)).startswith("beam:1|")
    with pytest.raises(ConfigError, match="would replace the recipe's own"):
        pipeline.route_audit(config, checkpoint=final)


# --- which model --------------------------------------------------------------------------------------------


def test_hypotheses_name_model_and_settings_and_scores_and_audit_name_the_model(config):
    pipeline.decode(config)
    digest = model_digest(Layout.of(config).final)
    (found,) = {(item.model, item.decoding) for path in Layout.of(config).all_hypotheses(config) for item in read_hypotheses(path)}
    assert found[0] == digest and found[1].startswith("beam:2|ctc_weight:0.3|length_penalty:1.0|")
    assert pipeline.score(config).model == digest
    assert pipeline.route_audit(config, utterances=1, swap=False).model == digest


def test_a_digest_is_that_of_the_weights(config):
    final = Layout.of(config).final
    assert hashlib.sha256((final / "model.safetensors").read_bytes()).hexdigest().startswith(model_digest(final))
    assert checkpoint.load(final).digest == model_digest(final)
    before = model_digest(final)
    save_model(config, seed=1)
    assert model_digest(final) != before


def test_a_partial_decoding_keeps_rows_of_its_own_model_only(config):
    path = Layout.of(config).hypotheses("test", "transcribe", "en")
    pipeline.decode(config)
    same, other = Listener(), Listener()
    pipeline.decode(config, choice=Choice(bandwidth="nb"), watcher=same)
    assert (len(list(read_hypotheses(path))), same.lines) == (UTTERANCES // 2, [])
    save_model(config, seed=1)
    pipeline.decode(config, choice=Choice("transcribe", bandwidth="nb"), watcher=other)
    assert {item.bandwidth for item in read_hypotheses(path)} == {"nb"}
    assert other.lines == [f"`{path}`: {UTTERANCES // 4} hypotheses of another model are dropped; decode these cuts again"]


def test_a_partial_decoding_drops_rows_whose_cuts_are_gone(config):
    layout, listener = Layout.of(config), Listener()
    path, manifest = layout.hypotheses("test", "transcribe", "en"), layout.cuts("test")
    pipeline.decode(config)
    before = manifest.read_bytes()
    lines = gzip.decompress(before).splitlines(keepends=True)
    gone = next(line for line in lines if b'"task": "transcribe"' in line and b'"bandwidth": "wb"' in line)
    manifest.write_bytes(gzip.compress(b"".join(line for line in lines if line != gone)))
    try:
        pipeline.decode(config, choice=Choice("transcribe", bandwidth="nb"), watcher=listener)
    finally:
        manifest.write_bytes(before)
    assert json.loads(gone)["id"] not in {item.id for item in read_hypotheses(path)}
    assert len(list(read_hypotheses(path))) == UTTERANCES // 2 - 1
    assert listener.lines == [f"`{path}`: 1 hypotheses of cuts that are no longer in the manifest are dropped"]


def test_scoring_after_a_retraining_warns_and_a_mixture_is_refused(config):
    pipeline.decode(config)
    listener = Listener()
    pipeline.score(config, watcher=listener)
    assert listener.lines == []
    save_model(config, seed=1)
    pipeline.score(config, watcher=listener)
    assert len(listener.lines) == 1 and "is another model than the one that wrote these; `smoe decode`" in listener.lines[0]
    pipeline.decode(config, choice=Choice("translate"))
    with pytest.raises(DataError, match=r"hypotheses of 2 models .*transcribe-en.jsonl`; .*translate-de.jsonl`") as caught:
        pipeline.score(config)
    assert "`smoe decode`" in caught.value.hint and caught.value.exit_code == 2
    pipeline.decode(config)
    pipeline.score(config)


def test_scoring_what_was_decoded_with_different_settings_says_so(config):
    pipeline.decode(config)
    greedy = config.model_copy(update={"decode": config.decode.model_copy(update={"beam": 1})})
    pipeline.decode(greedy, choice=Choice("translate"))
    listener = Listener()
    assert len(pipeline.score(config, watcher=listener).decoding) == 2
    assert ["beam:1|" in line and "beam:2|" in line for line in listener.lines] == [True]


# --- synthetic speech ---------------------------------------------------------------------------------------


def test_synthetic_speech_is_labelled_from_the_cuts_to_the_pages(config, tmp_path):
    manifest, badge = tmp_path / "cuts.jsonl", '<span class="badge note">synthetic speech</span>'
    text = gzip.decompress(Layout.of(config).cuts("test").read_bytes()).decode()
    manifest.write_text(text.replace('"synthetic": false', '"synthetic": true'), encoding="utf-8")
    pipeline.decode(config, inputs=[manifest], out=tmp_path / "hypotheses.jsonl")
    scores = pipeline.score(None, hypotheses=[tmp_path / "hypotheses.jsonl"], out=tmp_path / "scores")
    assert scores.synthetic == scores.measured == UTTERANCES
    assert badge in (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    audit = pipeline.route_audit(config, cuts=manifest, utterances=1, swap=False, out=tmp_path / "audit")
    assert audit.synthetic == audit.measured > 0
    assert badge in (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert pipeline.route_audit(config, utterances=1, swap=False).notes == []
