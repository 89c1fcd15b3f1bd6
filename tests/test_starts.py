"""Laws of how a training starts: what it measures is measured once, and whoever stops it then is told the truth."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut

from smoe_cli import pipeline
from smoe_cli.audio import describe, read_samples
from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts, write_cuts
from smoe_cli.errors import CheckpointError, DataError, Interrupted, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.tokenizer import ByteBPE
from smoe_cli.training import averaging
from smoe_cli.training import memory as memories
from smoe_cli.training import trainer as training
from smoe_cli.training.measured import dependence
from smoe_cli.training.precision import Precision
from tests.test_shares import Listener
from tests.test_stops import poison, say_stop
from tests.test_training import assert_bit_identical, prepared, trainer, weights

__all__ = ["prepared"]
AUTO = {"batch_s": "auto", "precision": "auto"}


# --- what is measured ------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for SIGKILL."""


def killed(run: training.Trainer, step: int = 2, resume: str = "auto") -> None:
    """Let a run end without a word before it has saved anything."""
    train_step = run.train_step

    def dying(*batches):
        if run.step == step:
            raise Killed
        return train_step(*batches)

    run.train_step = dying
    with pytest.raises(Killed):
        run.run(resume)


def measuring(monkeypatch, reason: str, utterances: int) -> list[str]:
    """A machine on which measuring comes to this; gives what was measured."""
    done: list[str] = []
    monkeypatch.setattr(training, "choose_precision", lambda *_: done.append("precision") or Precision("fp32", "highest", reason))
    monkeypatch.setattr(memories, "most_utterances", lambda *_: done.append("batch") or utterances)
    return done


def test_a_run_killed_before_its_first_checkpoint_goes_on_as_it_had_measured(prepared, tmp_path, monkeypatch):
    assert measuring(monkeypatch, "at first", 4) == []
    trainer(prepared, tmp_path / "whole", **AUTO).run()
    killed(trainer(prepared, tmp_path / "parts", **AUTO))
    done = measuring(monkeypatch, "on a busy machine", 3)
    again = trainer(prepared, tmp_path / "parts", **AUTO, workers=1)
    again.run()
    assert not done and again.precision.reason == "at first" and again.batch_s == 4 * longest_s(again)
    assert_bit_identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def longest_s(run: training.Trainer) -> float:
    return max(cut.duration for cuts in run.groups.values() for cut in cuts)


@pytest.mark.parametrize("changes", [{"memory_share": 0.5}, {"precision": "fp32"}, {"loss_chunk": 64}, {"turns_per_batch": 2}])
def test_what_depends_on_other_settings_is_measured_anew(prepared, tmp_path, monkeypatch, changes):
    measuring(monkeypatch, "at first", 4)
    killed(trainer(prepared, tmp_path, **AUTO))
    done = measuring(monkeypatch, "again", 3)
    again = trainer(prepared, tmp_path, **AUTO | changes, max_steps=1)
    again.run()
    assert done == ["precision", "batch"] and again.precision.reason == "again" and again.batch_s == 3 * longest_s(again)


def test_memory_depends_on_the_tokenizers_size(prepared):
    one, other = (dependence(prepared, size, {}, 1, torch.device("cpu")) for size in (300, 301))
    assert one != other


def test_a_run_that_starts_anew_measures_anew_and_what_is_damaged_is_not_believed(prepared, tmp_path, monkeypatch):
    measuring(monkeypatch, "at first", 4)
    killed(trainer(prepared, tmp_path, **AUTO))
    measuring(monkeypatch, "anew", 3)
    trainer(prepared, tmp_path, **AUTO).run("never")
    kept = json.loads((tmp_path / "measured.json").read_text())
    assert kept["precision"]["reason"] == "anew"
    (tmp_path / "checkpoints").rename(tmp_path / "away")
    (tmp_path / "measured.json").write_text("{")
    done = measuring(monkeypatch, "third", 3)
    killed(trainer(prepared, tmp_path, **AUTO))
    assert done == ["precision", "batch"]
    trainer(prepared, tmp_path).checkpoints.forget()
    assert not (tmp_path / "measured.json").exists()


# --- the tokenizer of another recipe ---------------------------------------------------------------------


@pytest.fixture
def own(prepared, tmp_path) -> Config:
    """A copy of the recipe, which may be spoilt."""
    shutil.copytree(Layout.of(prepared).root, tmp_path / "exp")
    return prepared.model_copy(update={"exp_dir": tmp_path / "exp", "train": prepared.train.model_copy(update={"max_steps": 2})})


def said_by(config: Config, **how: str) -> list[str]:
    """What the start of a training says of the tokenizer; it is the same without training."""
    dry, real = Listener(), Listener()
    pipeline.check_train(config, watcher=dry, **how)
    pipeline.train(config, watcher=real, **how)
    found = [[line for line in heard.lines if "tokenizer" in line] for heard in (dry, real)]
    assert found[0] == found[1]
    return found[0]


def replace_tokenizer(config: Config) -> None:
    """By one of the same size and with the same guiding tokens."""
    folder = Layout.of(config).tokenizer
    shutil.rmtree(folder)
    texts = ["entirely different sentences", "that nobody has ever spoken", "neither here nor there"] * 9
    ByteBPE.train(texts, config.tokenizer.vocab_size, ["<transcribe>", "<translate>", "<en>", "<de>"], folder)


def test_a_tokenizer_that_took_the_place_of_the_recipes_is_refused(own):
    assert said_by(own) == []
    replace_tokenizer(own)
    for attempt in (pipeline.check_train, pipeline.train):
        with pytest.raises(CheckpointError, match=r"bpe\.model` is not as `smoe tokenize` left it") as no:
            attempt(own, resume="never")
    with pytest.raises(CheckpointError, match="was trained with another tokenizer"):
        pipeline.train(own)
    stamp = Layout.of(own).stamp("tokenize")
    assert f"remove `{stamp}`" in no.value.hint
    stamp.unlink()
    assert said_by(own, resume="never") == [], "that of a user who put it there"


def test_a_run_goes_on_with_its_own_tokenizer_whatever_the_account_says(own):
    replace_tokenizer(own)
    stamp = Layout.of(own).stamp("tokenize")
    account = stamp.read_text()
    stamp.unlink()
    pipeline.train(own)
    stamp.write_text(account)
    (warning,) = said_by(own)
    assert "bpe.model` is not as this step left it; to have one that is: `smoe tokenize`, then `smoe train --resume never`" in warning


def test_a_tokenizer_of_texts_that_have_changed_since_is_told_and_taken(own):
    layout = Layout.of(own)
    cuts = list(read_cuts(layout.cuts("train")))
    cuts[0].supervisions[0].text = "  "
    write_cuts(layout.cuts("train"), cuts)
    pipeline.validate(own, fix=True)
    (warning,) = said_by(own)
    assert (
        warning.startswith("warning: the tokenizer may not be of this recipe's texts and settings: `")
        and "train.jsonl.gz` changed" in warning
    )


# --- a stop before and after the steps -------------------------------------------------------------------


def test_a_stop_in_the_search_of_a_batch_ends_it_and_nothing_is_said_to_be_saved(prepared, tmp_path, monkeypatch):
    run = trainer(prepared, tmp_path, batch_s="auto")
    tries = say_stop(monkeypatch, memories, "longest_batch", 1)
    with pytest.raises(Interrupted, match="stopped before the first step; nothing has been trained yet") as stopped:
        run.run()
    assert tries == [1] and "saved" not in str(stopped.value)
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "measured.json").exists()
    assert trainer(prepared, tmp_path, batch_s="auto").run().steps == 8


def test_a_stop_while_checkpoints_are_averaged_loses_nothing(prepared, tmp_path, monkeypatch):
    settings = {"average": "last 2"}
    trainer(prepared, tmp_path / "whole", **settings).run()
    with monkeypatch.context() as patch:
        loaded = say_stop(patch, averaging.checkpoint, "load", 1)
        with pytest.raises(Interrupted, match="stopped after step 8 of 8; the state is saved"):
            trainer(prepared, tmp_path / "parts", **settings).run()
    assert loaded == [1] and not (tmp_path / "parts" / "final").exists()
    trainer(prepared, tmp_path / "parts", **settings).run()
    assert_bit_identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (2, "stopped at once, after step 2 of 8; no checkpoint is saved yet"),
        (6, "stopped at once, after step 6 of 8; the last checkpoint is `step-00000004`"),
    ],
)
def test_a_second_ctrl_c_says_what_is_saved(prepared, tmp_path, step, said):
    run = trainer(prepared, tmp_path)
    train_step = run.train_step

    def twice(*batches):
        if run.step == step:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        return train_step(*batches)

    run.train_step = twice
    with pytest.raises(Interrupted) as stopped:
        run.run()
    assert stopped.value.message == said
    assert stopped.value.hint == ("`smoe train` goes on from there" if step > 4 else "`smoe train` begins anew")
    assert trainer(prepared, tmp_path).run().resumed_from == (4 if step > 4 else None)


# --- what is left of an earlier run ----------------------------------------------------------------------


def test_a_run_that_starts_anew_leaves_nothing_of_the_one_before_beside_it(prepared, tmp_path):
    for name in ("report.json", "failed-batch.txt"):
        (tmp_path / name).write_text("old")
    run = trainer(prepared, tmp_path)
    killed(run, step=0, resume="never")
    assert not [name for name in ("report.json", "failed-batch.txt") if (tmp_path / name).exists()]


def test_the_cuts_of_a_batch_that_failed_are_listed_until_training_has_passed_it(prepared, tmp_path):
    run = trainer(prepared, tmp_path)
    poison(run, 2)
    with pytest.raises(SmoeError, match="the loss became nan"):
        run.run()
    again, listed = trainer(prepared, tmp_path), []
    train_step = again.train_step

    def looking(*batches):
        listed.append((tmp_path / "failed-batch.txt").exists())
        return train_step(*batches)

    again.train_step = looking
    again.run()
    assert listed == [True] * 4 + [False] * 4, "the first validation is after step 4"


@pytest.mark.parametrize("there", ["nothing", "a file", "a folder"])
def test_a_start_that_is_no_checkpoint_is_named_by_its_setting(prepared, tmp_path, there):
    start = tmp_path / "start"
    if there != "nothing":
        start.touch() if there == "a file" else start.mkdir()
    for act in ("check", "run"):
        with pytest.raises(CheckpointError, match=r"`train.init_from`") as no:
            getattr(trainer(prepared, tmp_path / "run", init_from=start), act)()
        assert "run `smoe train` first" not in no.value.hint


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_noise_without_a_new_expert_is_told_to_do_nothing(prepared, tmp_path, noise):
    trainer(prepared, tmp_path / "start", max_steps=1).run()
    run = trainer(prepared, tmp_path / "run", init_from=tmp_path / "start" / "final", init_noise=noise)
    run.watcher = Listener()
    run.check()
    assert sum("`train.init_noise` does nothing: no expert is new" in line for line in run.watcher.lines) == (noise > 0)


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_audio_that_is_gone_is_named_by_its_path_with_the_cure(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, np.zeros(16000), 16000)
    recording = describe(path, "a")
    cut = MonoCut("a", 0, 1.0, 0, recording=recording)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=rf"cannot read the audio of cut `a`: Error opening '.*a.{kind}': "):
        read_samples(cut, "the audio of cut `a`")
    path.unlink()
    for audio in (cut, recording):
        with pytest.raises(DataError, match=rf"cannot read the audio of cut `a`: there is no file `{path}`") as no:
            read_samples(audio, "the audio of cut `a`")
        assert "bring back the file" in no.value.hint
