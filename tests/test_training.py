"""Laws of training on a tiny spoken set: exact resume, idle experts, damaged checkpoints, refusals."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from smoe_cli import checkpoint, pipeline
from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts, tags_of
from smoe_cli.errors import CheckpointError, ConfigError, DataError, Interrupted, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.steps import plan_step
from smoe_cli.tokenizer import ByteBPE, open_tokenizer
from smoe_cli.training import Trainer
from smoe_cli.watch import Silent
from tests.conftest import tiny_config

WORDS = {"a": ("one", "eins", 300.0), "b": ("two", "zwei", 700.0), "c": ("three", "drei", 1300.0)}


def write_corpus(folder: Path, per_word: int = 12) -> Path:
    """Tones that stand for words, with noise; four of five in train."""
    generator = np.random.default_rng(0)
    rows = ["id\tpath\tsplit\tspeaker\tsample_rate\tduration\ttranscript\tde"]
    folder.mkdir(parents=True, exist_ok=True)
    for key, (english, german, pitch_hz) in WORDS.items():
        for number in range(per_word):
            seconds = 0.5 + 0.03 * number
            t = np.arange(int(16000 * seconds)) / 16000
            soundfile.write(
                folder / f"{key}{number}.flac", 0.3 * np.sin(2 * np.pi * pitch_hz * t) + 0.01 * generator.standard_normal(len(t)), 16000
            )
            split = ("dev", "test")[number % 2] if number % 5 == 0 else "train"
            rows.append(f"{key}{number}\t{key}{number}.flac\t{split}\ts{number}\t16000\t{seconds:.3f}\t{english}\t{german}")
    (folder / "table.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def recipe(corpus: Path, exp_dir: Path, **changes: object) -> Config:
    data = {
        "root": str(corpus),
        "nb_downsample": True,
        "corpora": {"tones": {"type": "tsv", "path": "table.tsv", "translations": {"de": "de"}}},
    }
    return tiny_config(exp_dir, data=data, **changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Config:
    """A prepared and tokenized recipe."""
    folder = tmp_path_factory.mktemp("tones")
    config = recipe(write_corpus(folder / "corpus"), folder / "exp")
    pipeline.prepare(config)
    pipeline.tokenize(config)
    return config


def trainer(config: Config, folder: Path, **changes: object) -> Trainer:
    layout = Layout.of(config)
    config = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    return Trainer(config, folder, read_cuts(layout.cuts("train")), read_cuts(layout.cuts("dev")), open_tokenizer(layout.tokenizer))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "final").model.state_dict()


def assert_bit_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_equals_never_having_stopped(prepared, tmp_path, workers):
    trainer(prepared, tmp_path / "whole").run()
    stopped = trainer(prepared, tmp_path / "parts", workers=workers)
    step = stopped.train_step

    def stop_after_three(batch):
        if stopped.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    stopped.train_step = stop_after_three
    with pytest.raises(Interrupted, match="after step 3 of 8"):
        stopped.run()
    assert trainer(prepared, tmp_path / "parts").run().resumed_from == 3
    assert_bit_identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_run_of_another_plan_or_tokenizer_is_not_continued(prepared, tmp_path):
    trainer(prepared, tmp_path / "parts", max_steps=1).run()
    layout = Layout.of(prepared)
    english = read_cuts(layout.cuts("train")).filter(lambda cut: tags_of(cut).bandwidth == "wb").to_eager()
    asks_for_one = prepared.model_copy(update={"data": prepared.data.model_copy(update={"nb_downsample": False})})
    one_band = Trainer(asks_for_one, tmp_path / "parts", english, read_cuts(layout.cuts("dev")), open_tokenizer(layout.tokenizer))
    with pytest.raises(CheckpointError, match=r"has another routing plan: .*encoder experts: nb, wb -> wb"):
        one_band.run()
    guiding = list(open_tokenizer(layout.tokenizer).guiding_tokens)
    texts = [f"{number} {chr(97 + number % 26) * 3}" for number in range(200)]
    other = ByteBPE.train(texts, prepared.tokenizer.vocab_size, guiding, tmp_path / "other")
    again = Trainer(prepared, tmp_path / "parts", read_cuts(layout.cuts("train")), read_cuts(layout.cuts("dev")), other)
    with pytest.raises(CheckpointError, match="was trained with another tokenizer: its pieces, learned from other text"):
        again.run()


def test_a_killed_run_continues_from_its_last_checkpoint(prepared, tmp_path):
    """`kill -9` between saves loses the steps since the last one, and nothing else."""
    trainer(prepared, tmp_path / "whole").run()
    interrupted = trainer(prepared, tmp_path / "parts")
    step = interrupted.train_step

    def die_at_six(batch):
        if interrupted.step == 6:
            raise MemoryError
        return step(batch)

    interrupted.train_step = die_at_six
    with pytest.raises(MemoryError):
        interrupted.run()
    assert trainer(prepared, tmp_path / "parts").run().resumed_from == 4
    assert_bit_identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(prepared, tmp_path):
    lines = []

    class Listener:
        def log(self, message):
            lines.append(message)

        def progress(self, what, done, total, detail=""):
            pass

    trainer(prepared, tmp_path).run()
    newest = tmp_path / "checkpoints" / "step-00000008"
    damaged = bytearray((newest / "model.safetensors").read_bytes())
    damaged[-10] ^= 1
    (newest / "model.safetensors").write_bytes(damaged)
    again = trainer(prepared, tmp_path)
    again.watcher = Listener()
    assert again.run().resumed_from == 4
    assert any("damaged" in line and "step-00000008" in line for line in lines)


def test_an_idle_expert_is_bit_identical_after_a_step(prepared, tmp_path):
    idle = trainer(prepared, tmp_path)
    stream = idle.batches.stream()
    for _ in range(6):  # momentum and weight decay are under way
        idle.train_step(idle.collator(next(stream)))
        idle.step += 1
    batch = idle.collator(next(stream))
    route = batch.routes[0]
    before = {name: value.clone() for name, value in idle.system.model.state_dict().items()}
    idle.train_step(batch)
    after = idle.system.model.state_dict()
    used = {f".experts.{idle.plan.encoder.expert(route)}.", f".experts.{idle.plan.decoder.expert(route)}."}
    for name, value in before.items():
        if ".experts." in name:
            assert torch.equal(value, after[name]) != any(part in name for part in used), name


def test_a_second_process_in_the_same_folder_is_refused(prepared, tmp_path):
    first, second = trainer(prepared, tmp_path), trainer(prepared, tmp_path)
    step = first.train_step

    def meanwhile(batch):
        with pytest.raises(SmoeError, match="another process is training"):
            second.run()
        return step(batch)

    first.train_step = meanwhile
    first.run()


def test_another_configuration_is_not_continued(prepared, tmp_path):
    trainer(prepared, tmp_path).run()
    with pytest.raises(CheckpointError, match=r"train.learning_rate: 0.001 -> 0.5"):
        trainer(prepared, tmp_path, learning_rate=0.5).run()
    assert trainer(prepared, tmp_path, learning_rate=0.5).run(resume="never").resumed_from is None


def test_a_route_without_training_data_is_refused(prepared, tmp_path):
    layout = Layout.of(prepared)
    cuts = read_cuts(layout.cuts("train")).filter(lambda cut: cut.supervisions[0].language == "en").to_eager()
    with pytest.raises(DataError, match="task `translate`, language `de`"):
        Trainer(prepared, tmp_path, cuts, read_cuts(layout.cuts("dev")), open_tokenizer(layout.tokenizer))


def test_a_loss_that_is_no_number_names_the_cuts(prepared, tmp_path):
    broken = trainer(prepared, tmp_path)
    step = broken.train_step

    def poison(batch):
        losses = step(batch)
        losses.total = losses.total * float("nan")
        return losses

    broken.train_step = poison
    with pytest.raises(SmoeError, match="loss became nan at step 0"):
        broken.run()
    assert "tones-" in (tmp_path / "failed-batch.txt").read_text()


@pytest.mark.parametrize("victim", ["model.safetensors", "plan.json", "config.json", "bpe.model"])
def test_a_checkpoint_with_a_changed_byte_is_refused(prepared, tmp_path, victim):
    trainer(prepared, tmp_path).run()
    path = tmp_path / "final" / victim
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=victim):
        checkpoint.load(tmp_path / "final")


def test_a_full_disk_leaves_the_checkpoint_before(prepared, tmp_path, monkeypatch):
    run = trainer(prepared, tmp_path)
    run.run()
    before = weights(tmp_path)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DataError, match="No space left"):
        checkpoint.save(tmp_path / "final", run.system)
    assert_bit_identical(before, weights(tmp_path))
    assert not list(tmp_path.glob(".final*"))


def dense(config: Config) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"encoder_experts_by": None, "decoder_experts_by": None})})


def test_training_starts_from_another_model_once_and_resumes_without_it(prepared, tmp_path):
    trainer(dense(prepared), tmp_path / "dense", max_steps=2).run()
    given = weights(tmp_path / "dense")
    first, stopped = (trainer(prepared, tmp_path / name, init_from=tmp_path / "dense" / "final") for name in ("whole", "parts"))
    step = stopped.train_step

    def compare_and_stop(batch):
        if stopped.step == 0:
            for name, value in stopped.system.model.state_dict().items():
                layer, experts, inside = name.partition(".experts.")
                assert torch.equal(value, given[f"{layer}{experts}dense.{inside.partition('.')[2]}" if experts else name]), name
        if stopped.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    stopped.train_step = compare_and_stop
    with pytest.raises(Interrupted):
        stopped.run()
    report = first.run()
    assert report.started_from == checkpoint.load(tmp_path / "dense" / "final").digest
    shutil.rmtree(tmp_path / "dense")
    resumed = trainer(prepared, tmp_path / "parts", init_from=tmp_path / "dense" / "final").run()
    assert (resumed.resumed_from, resumed.started_from) == (3, report.started_from)
    assert_bit_identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert not torch.equal(weights(tmp_path / "whole")["decoder.embedding.weight"], given["decoder.embedding.weight"])
    assert str(tmp_path) not in (tmp_path / "whole" / "final" / "config.json").read_text()


def test_a_run_with_another_start_is_not_continued(prepared, tmp_path):
    for name, seed in (("one", 1), ("other", 2)):
        trainer(dense(prepared), tmp_path / name, max_steps=1, seed=seed).run()
    digest = checkpoint.load(tmp_path / "one" / "final").digest
    trainer(prepared, tmp_path / "run", max_steps=1, init_from=tmp_path / "one" / "final").run()
    for changes, message in (
        ({}, f"train.init_from: model {digest} -> null"),
        ({"init_from": tmp_path / "other" / "final"}, f"train.init_from: model {digest} -> `.*`, which is model"),
        ({"init_from": tmp_path / "one" / "final", "init_noise": 0.5}, "train.init_noise: 0.0 -> 0.5"),
    ):
        with pytest.raises(CheckpointError, match=message):
            trainer(prepared, tmp_path / "run", max_steps=1, **changes).run()
    with pytest.raises(CheckpointError, match=r"train.init_from: null -> "):
        trainer(dense(prepared), tmp_path / "one", max_steps=1, seed=1, init_from=tmp_path / "other" / "final").run()
    with pytest.raises(ConfigError, match="lies where this run writes"):
        trainer(prepared, tmp_path / "one", init_from=tmp_path / "one" / "final").run(resume="never")
    assert checkpoint.load(tmp_path / "one" / "final").digest == digest


def test_the_tokenizer_of_a_recipe_that_starts_from_a_checkpoint_is_the_checkpoints(prepared, tmp_path):
    trainer(dense(prepared), tmp_path / "dense", max_steps=1).run()
    final = tmp_path / "dense" / "final"
    layout = Layout.of(prepared)
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "cuts").symlink_to(layout.cuts_dir)
    started = prepared.model_copy(
        update={
            "exp_dir": tmp_path / "exp",
            "tokenizer": prepared.tokenizer.model_copy(update={"vocab_size": 270}),
            "train": prepared.train.model_copy(update={"init_from": final, "max_steps": 1}),
        }
    )
    report = pipeline.tokenize(started)
    assert report.vocab_size == prepared.tokenizer.vocab_size
    assert open_tokenizer(report.path).model_bytes == open_tokenizer(final).model_bytes
    assert pipeline.train(started).started_from == checkpoint.load(final).digest
    states = [plan_step(started, name).state for name in ("tokenize", "train")]
    assert states == ["up to date", "up to date"]
    gone = started.model_copy(update={"train": started.train.model_copy(update={"init_from": None})})
    changed = "its settings changed: train.init_from: 'a checkpoint' -> None"
    assert [plan_step(gone, name).reason for name in ("tokenize", "train")] == [changed] * 2


def test_a_process_that_is_killed_outright_continues(prepared, tmp_path):
    """The real thing: a process of its own, `kill -9`, and a second run to the end."""
    target = tmp_path / "exp"
    target.mkdir()
    layout = Layout.of(prepared)
    for name in ("cuts", "tokenizer"):
        (target / name).symlink_to(layout.root / name)
    settings = prepared.model_copy(update={"exp_dir": target, "train": prepared.train.model_copy(update={"max_steps": 4000})})
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom smoe_cli import pipeline\nfrom smoe_cli.config import Config\n"
        "pipeline.train(Config.model_validate_json(open(sys.argv[1]).read()))\n"
    )
    (tmp_path / "config.json").write_text(settings.model_dump_json())
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "config.json")])
    deadline = time.monotonic() + 120
    while not list(target.glob("model/checkpoints/step-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    saved = sorted(target.glob("model/checkpoints/step-*"))
    assert saved, "no checkpoint was written before the deadline"
    step = int(saved[-1].name.removeprefix("step-"))
    shorter = settings.model_copy(update={"train": settings.train.model_copy(update={"max_steps": step + 2})})
    assert pipeline.train(shorter).resumed_from == step


def test_utterances_too_short_for_ctc_are_counted_and_named_once(prepared, tmp_path):
    said: list[str] = []

    class Listener(Silent):
        def log(self, message: str) -> None:
            said.append(message)

    layout, config = Layout.of(prepared), prepared.model_copy(update={"model": prepared.model.model_copy(update={"subsampling": 8})})
    dev = read_cuts(layout.cuts("dev"))
    long = list(read_cuts(layout.cuts("train")))
    for cut in long:
        cut.supervisions[0].custom["transcript"] = "a transcript that is far too long for so short a tone, as every one can see"
    report = Trainer(config, tmp_path, CutSet.from_cuts(long), dev, open_tokenizer(layout.tokenizer), Listener()).run()
    assert report.ctc_skipped > config.train.max_steps
    assert sum("CTC skips them" in message for message in said) == 1
    assert trainer(prepared, tmp_path / "sound").run().ctc_skipped == 0
    parts = [Trainer(config, tmp_path / "parts", CutSet.from_cuts(long), dev, open_tokenizer(layout.tokenizer)) for _ in range(2)]
    step = parts[0].train_step
    parts[0].train_step = lambda *batches: (parts[0].stop.flag.set() if parts[0].step == 3 else None, step(*batches))[1]
    with pytest.raises(Interrupted):
        parts[0].run()
    assert parts[1].run().ctc_skipped == report.ctc_skipped, "of all steps, also where it was stopped between"


def test_a_model_with_more_steps_than_asked_for_is_not_taken_for_the_answer(prepared, tmp_path):
    trainer(prepared, tmp_path, max_steps=8).run()
    with pytest.raises(CheckpointError, match=r"has had 8 steps, more than `train.max_steps` \(4\)"):
        trainer(prepared, tmp_path, max_steps=4).run()


def test_others_may_read_a_model_as_far_as_the_umask_lets_them(prepared, tmp_path):
    trainer(prepared, tmp_path, max_steps=4).run()
    assert len({path.stat().st_mode for path in (tmp_path / "final").iterdir()}) == 1


def test_a_model_that_training_has_gone_beyond_is_told(prepared, tmp_path):
    layout = Layout(tmp_path)
    trainer(prepared, layout.model, max_steps=4).run()
    assert layout.ahead_of_final() is None
    longer = trainer(prepared, layout.model, max_steps=8)
    # As one that is killed before its end leaves it.
    longer._save_final = lambda: None  # type: ignore[method-assign]
    longer.run()
    assert layout.ahead_of_final() == layout.model / "checkpoints" / "step-00000008"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc, nothing to keep")
def test_what_a_step_frees_is_not_cleared_again_for_the_next():
    """Sixteen megabytes are 4,096 pages; mapped anew, the system would hand out each of them again."""
    code = (
        "import resource, torch\n"
        "from smoe_cli.training.allocator import keep_memory\n"
        "assert keep_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def step(): return sum(float(torch.ones(4_000_000)[0]) for _ in range(5))\n"
        "for _ in range(4): step()\nbefore = faults(); step(); print(faults() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert int(done.stdout) < 1000
