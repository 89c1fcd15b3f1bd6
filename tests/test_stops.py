"""Laws of a run that is stopped, or that stops itself: nothing is lost, nothing bad is kept, and what it says can be followed."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from smoe_cli import checkpoint, pipeline, records
from smoe_cli.config import Config
from smoe_cli.decoding.decode import Decoder
from smoe_cli.errors import CheckpointError, Interrupted, SmoeError
from smoe_cli.layout import Layout
from smoe_cli.loss import Losses
from smoe_cli.train_settings import LENGTH, MEANS, WATCHING, TrainSettings
from smoe_cli.training import Trainer
from smoe_cli.training import validate as validations
from smoe_cli.training.checkpoints import FREE
from smoe_cli.training.guard import leave_locks, locked
from smoe_cli.training.loading import feed
from tests.test_diary import Listener, lines
from tests.test_training import assert_bit_identical, dense, prepared, trainer, weights
from tests.test_training_steps import stop_after

__all__ = ["prepared"]
ROOT = Path(__file__).parents[1]
LIMIT_S = 300


def damage(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-10] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def poison(run: Trainer, from_step: int, factor: float = float("nan")) -> None:
    """Let the loss be another one from a step on."""
    step = run.train_step

    def poisoned(*batches):
        losses = step(*batches)
        losses.total = losses.total * (factor if run.step >= from_step else 1.0)
        return losses

    run.train_step = poisoned


def poison_gradients(run: Trainer, from_step: int) -> None:
    """Let a gradient be no number from a step on, under a loss that is one."""

    def hook(module: object, inputs: object, output: torch.Tensor) -> None:
        if output.requires_grad and run.step >= from_step:
            output.register_hook(lambda gradient: gradient * float("nan"))

    run.system.model.decoder.norm.register_forward_hook(hook)


# --- signals to all processes ----------------------------------------------------------------------------


def lasting(config: Config) -> Config:
    """A recipe that learns for long, with loader processes, at a rate that does not depend on when it ends."""
    changes = {"max_steps": 4000, "validate_every": 4000, "workers": 2, "schedule": "inverse-sqrt"}
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def start(config: Config, folder: Path) -> subprocess.Popen[str]:
    """A training process with a group of its own, which says every step."""
    folder.mkdir()
    (folder / "config.json").write_text(lasting(config).model_dump_json())
    code = (
        "import sys\nfrom pathlib import Path\nfrom smoe_cli.config import Config\nfrom smoe_cli.errors import Interrupted\n"
        "from tests.test_training import trainer\n"
        "run = trainer(Config.model_validate_json(Path(sys.argv[1], 'config.json').read_text()), Path(sys.argv[1], 'run'))\n"
        "step = run.train_step\n"
        "def say(*batches):\n    print(run.step, flush=True)\n    return step(*batches)\n"
        "run.train_step = say\n"
        "try:\n    run.run()\nexcept Interrupted as error:\n    print(error.message, flush=True)\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=(folder / "errors.txt").open("w"),
        text=True,
        start_new_session=True,
    )
    assert started.stdout is not None
    while started.stdout.readline().strip() != "2":
        assert started.poll() is None, (folder / "errors.txt").read_text()
    return started


def children_of(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_run_loses_nothing(prepared, tmp_path, number):
    """As torchrun, `timeout` and Ctrl-C send it: the loaders get it too."""
    started = start(prepared, tmp_path / "parts")
    loaders = children_of(started.pid)
    assert len(loaders) >= 2
    # First, and with time enough to obey: whether the trainer is faster must not matter.
    for loader in loaders:
        os.kill(loader, number)
    time.sleep(1)
    assert children_of(started.pid) == loaders
    os.killpg(started.pid, number)
    said, _ = started.communicate(timeout=LIMIT_S)
    assert started.returncode == 0, (tmp_path / "parts" / "errors.txt").read_text()
    step = int(re.search(r"stopped after step (\d+) of 4000", said)[1])
    assert steps_in(tmp_path / "parts" / "run") == [step]
    resumed = trainer(lasting(prepared), tmp_path / "parts" / "run", max_steps=step + 2, workers=0).run()
    assert resumed.resumed_from == step
    trainer(lasting(prepared), tmp_path / "whole", max_steps=step + 2, workers=0).run()
    assert_bit_identical(weights(tmp_path / "whole"), weights(tmp_path / "parts" / "run"))


def test_loaders_end_when_the_process_that_trains_is_killed(prepared, tmp_path):
    started = start(prepared, tmp_path / "run")
    loaders = children_of(started.pid)
    assert len(loaders) >= 2
    started.kill()
    started.communicate(timeout=LIMIT_S)
    deadline = time.monotonic() + 60
    while left := [pid for pid in loaders if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.2)


def loaders() -> list[multiprocessing.process.BaseProcess]:
    return [child for child in multiprocessing.active_children() if child.daemon]


@pytest.mark.parametrize("stopping", [False, True])
def test_a_loader_that_is_gone_is_told_with_the_cure_unless_training_is_to_stop_anyway(prepared, tmp_path, stopping):
    run, stop = trainer(prepared, tmp_path), threading.Event()
    stream = feed(run.collator, run.batches, 0, 1, 1, stop=stop)
    next(stream)
    (loader,) = loaders()
    os.kill(loader.pid, signal.SIGTERM)  # by the trainer, which it obeys
    loader.join(10)
    assert loader.exitcode == 0
    if stopping:
        stop.set()
        assert len(list(stream)) <= 2, "but for what it had sent before"
        return
    with pytest.raises(SmoeError, match=r"(?s)a process that loads data has ended: DataLoader worker.*lower `train.workers`"):
        list(stream)


def test_a_loader_that_the_system_kills_is_told_with_the_cure(prepared, tmp_path):
    """In a process of its own: torch raises its error at whatever the process does at that moment."""
    started = start(prepared, tmp_path / "run")
    os.kill(children_of(started.pid)[0], signal.SIGKILL)
    started.communicate(timeout=LIMIT_S)
    said = (tmp_path / "run" / "errors.txt").read_text()
    assert started.returncode == 1
    assert re.search(r"(?s)SmoeError: a process that loads data has ended: .*hint: most often memory is used up", said), said


# --- a stop while it is seen how things are going ---------------------------------------------------------


def say_stop(monkeypatch, where: object, name: str, number: int) -> list[int]:
    """Let a signal come in the so-manieth call of something; gives the calls."""
    real, calls = getattr(where, name), []

    def called(*args, **kwargs):
        calls.append(len(calls) + 1)
        if calls[-1] == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    monkeypatch.setattr(where, name, called)
    return calls


def told(folder: Path) -> dict[str, list[dict]]:
    """What a run wrote of itself, but for the time that it took."""
    timed = {"frames_per_s", "waiting_share", "left_s"}
    found = {name: lines(folder / name) for name in ("metrics.jsonl", "samples.jsonl")}
    return {name: [{key: value for key, value in line.items() if key not in timed} for line in every] for name, every in found.items()}


REVIEWED = {"sample_utterances": 4, "ema_decay": 0.5, "patience": 2}


@pytest.fixture(scope="module")
def reviewed(prepared, tmp_path_factory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("reviewed")
    trainer(prepared, folder, **REVIEWED).run()
    return folder


@pytest.mark.parametrize(("where", "name"), [(validations, "losses_of"), (Decoder, "decode_batch")])
def test_a_stop_in_the_middle_of_a_review_ends_it_and_it_is_done_anew(prepared, tmp_path, monkeypatch, reviewed, where, name):
    """Also when it is stopped once more while it is done anew."""
    for _ in range(2):
        run = trainer(prepared, tmp_path, **REVIEWED)
        with monkeypatch.context() as patch:
            calls = say_stop(patch, where, name, 2)
            with pytest.raises(Interrupted, match="stopped after step 4 of 8; the state is saved"):
                run.run()
        assert calls == [1, 2], "no batch is begun after the signal"
        assert steps_in(tmp_path) == [4] and not run.history and not (tmp_path / "metrics.jsonl").exists()
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n')  # as a kill between the diary and the save leaves it
    calls = say_stop(monkeypatch, where, name, 0)
    assert trainer(prepared, tmp_path, **REVIEWED).run().resumed_from == 4
    assert len(calls) >= 8, "there was more to do in each of two reviews"
    assert_bit_identical(weights(reviewed), weights(tmp_path))
    assert told(reviewed) == told(tmp_path)


def test_a_stop_while_the_average_is_validated_loses_nothing(prepared, tmp_path, monkeypatch):
    settings = {"average": "best 2"}
    with monkeypatch.context() as patch:
        calls = say_stop(patch, validations, "losses_of", 0)
        trainer(prepared, tmp_path / "whole", **settings).run()
    for number in (2 * len(calls) // 3 + 2, 2):
        with monkeypatch.context() as patch:
            calls = say_stop(patch, validations, "losses_of", number)
            with pytest.raises(Interrupted, match="stopped after step 8 of 8"):
                trainer(prepared, tmp_path / "parts", **settings).run()
        assert len(calls) == number and not (tmp_path / "parts" / "final").exists()
        assert len(lines(tmp_path / "parts" / "metrics.jsonl")) == 2, "both reviews are done"
    trainer(prepared, tmp_path / "parts", **settings).run()
    assert_bit_identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [line["validation_loss"] for line in lines(tmp_path / "parts" / "metrics.jsonl")] == [
        line["validation_loss"] for line in lines(tmp_path / "whole" / "metrics.jsonl")
    ]


# --- steps that must not be taken ------------------------------------------------------------------------


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(prepared, tmp_path):
    run = trainer(prepared, tmp_path, ema_decay=0.5)
    poison_gradients(run, 5)
    step, seen = run.train_step, {}

    def watch(*batches):
        seen["cuts"] = [cut.id for batch in batches for cut in batch.cuts]
        seen["weights"] = {name: value.clone() for name, value in run.system.model.state_dict().items()}
        return step(*batches)

    run.train_step = watch
    with pytest.raises(SmoeError, match=r"the gradients became nan under a loss of \d.* at step 5 on route ") as stopped:
        run.run()
    assert_bit_identical(seen["weights"], run.system.model.state_dict())
    assert (tmp_path / "failed-batch.txt").read_text().split() == seen["cuts"]
    assert steps_in(tmp_path) == [4] and "step-00000004" in stopped.value.hint


def test_a_loss_that_is_no_number_is_told_as_that_before_it_reaches_the_weights(prepared, tmp_path):
    run = trainer(prepared, tmp_path)
    run.system.model.decoder.norm.register_forward_hook(lambda module, inputs, output: output * (float("nan") if run.step == 2 else 1.0))
    with pytest.raises(SmoeError, match="the loss became nan at step 2"):
        run.run()
    assert all(value.isfinite().all() for value in run.system.model.state_dict().values())


def test_a_model_whose_validation_loss_is_no_number_is_not_kept(prepared, tmp_path):
    run = trainer(prepared, tmp_path)
    run.system.model.decoder.norm.register_forward_hook(
        lambda module, inputs, output: output * (float("nan") if run.step == 8 and not run.system.model.training else 1.0)
    )
    with pytest.raises(SmoeError, match="after step 8 the validation loss is nan on `transcribe/en/") as stopped:
        run.run()
    assert steps_in(tmp_path) == [4] and not (tmp_path / "final").exists()
    assert "step-00000004" in stopped.value.hint
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [4]


def test_the_hint_at_a_stop_can_be_followed(prepared, tmp_path):
    exp = tmp_path / "exp"
    exp.mkdir()
    for name in ("cuts", "tokenizer"):
        (exp / name).symlink_to(Layout.of(prepared).root / name)
    trainer(dense(prepared), tmp_path / "dense", max_steps=1).run()
    # What the recipe says of another start must not be in the way.
    own = prepared.train.model_copy(update={"init_from": tmp_path / "dense" / "final", "init_experts": {"translate": "dense"}})
    config = prepared.model_copy(update={"exp_dir": exp, "train": own})
    run = trainer(config, exp / "model")
    poison(run, 5)
    with pytest.raises(SmoeError) as stopped:
        run.run()
    with pytest.raises(CheckpointError, match="another configuration"):
        trainer(config, exp / "model", learning_rate=0.0005).run()
    aside, train = re.findall(r"`((?:mv|smoe) [^`]*)`", stopped.value.hint)
    (tmp_path / "smoe.yaml").write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    subprocess.run(shlex.split(aside), check=True)
    command = [sys.executable, "-m", "smoe_cli", *shlex.split(train)[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step-00000004" in train and "finished: 8 steps" in done.stdout
    learned = json.loads((exp / "model" / "final" / "config.json").read_text())
    assert learned["train"]["learning_rate"] == prepared.train.learning_rate / 2


def test_the_hint_where_there_is_no_checkpoint_yet_can_be_followed(prepared, tmp_path):
    run = trainer(prepared, tmp_path)
    poison(run, 1)
    with pytest.raises(SmoeError, match=r"from the beginning: `smoe train --resume never --set train.learning_rate=0.0005`"):
        run.run()
    assert trainer(prepared, tmp_path, learning_rate=0.0005).run("never").steps == 8


# --- losses that explode ---------------------------------------------------------------------------------


def judged(run: Trainer, found: list[float], first: int = 100) -> None:
    """Account for steps on one batch with these losses."""
    batch = run.collator(next(run.batches.stream()))
    for step, loss in enumerate(found, start=first):
        none = torch.zeros(())
        run.accounts.note(step, [batch], Losses(torch.tensor(loss), none, none, 1, 0), run.watcher)


def test_a_loss_that_explodes_ten_times_in_a_row_stops_and_what_is_good_is_named(prepared, tmp_path):
    run = trainer(prepared, tmp_path)
    for step in (98, 103, 104, 108):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    judged(run, [2.0] * 5 + [100.0] * 9 + [2.0] + [100.0] * 9)
    assert run.accounts.exploded == 18
    with pytest.raises(SmoeError, match="the loss has exploded: 10 times in a row, it was 100 at step 110 on route") as stopped:
        judged(trainer(prepared, tmp_path), [2.0] * 5 + [100.0] * 10, first=96)
    # The step after 101 is the first that exploded: the weights of then were bad already.
    assert "step-00000098" in stopped.value.hint
    assert len((tmp_path / "failed-batch.txt").read_text().split()) == len(run.collator(next(run.batches.stream())).cuts)


def test_explosions_are_only_told_if_the_setting_says_so_and_what_is_known_by_heart_does_not_explode(prepared, tmp_path):
    run = trainer(prepared, tmp_path, explosions=0)
    judged(run, [2.0] * 5 + [1000.0] * 20)
    assert run.accounts.exploded == 20
    quiet = trainer(prepared, tmp_path)
    judged(quiet, [0.001] * 100 + [0.9] * 20)
    assert quiet.accounts.exploded == 0


def test_a_run_that_goes_on_judges_losses_as_one_that_never_stopped(prepared, tmp_path):
    def explode(run: Trainer) -> Trainer:
        run.watcher = Listener()
        poison(run, 5, 100.0)
        return run

    changes = {"explosions": 2, "max_steps": 16}
    with pytest.raises(SmoeError, match="the loss has exploded: 2 times in a row") as whole:
        explode(trainer(prepared, tmp_path / "whole", **changes)).run()
    last = int(re.search(r"at step (\d+)", whole.value.message)[1])
    first = explode(trainer(prepared, tmp_path / "parts", **changes))
    stop_after(first, last)
    with pytest.raises(Interrupted):
        first.run()
    with pytest.raises(SmoeError) as parts:
        explode(trainer(prepared, tmp_path / "parts", **changes)).run()
    assert parts.value.message.replace("parts", "whole") == whole.value.message


@pytest.mark.parametrize("steps", [3, 4, 5])
def test_counts_of_a_run_that_goes_on_are_those_of_one_that_never_stopped(prepared, tmp_path, steps):
    """Stopped on the step of a line, on that of a validation, and between two."""
    trainer(prepared, tmp_path / "whole", log_every=3).run()
    first = trainer(prepared, tmp_path / "parts", log_every=3)
    stop_after(first, steps)
    with pytest.raises(Interrupted):
        first.run()
    trainer(prepared, tmp_path / "parts", log_every=3).run()
    timed = {"frames_per_s", "waiting_share", "left_s"}
    one, other = (
        [{name: value for name, value in line.items() if name not in timed} for line in lines(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts")
    )
    assert one == other and one[0]["train_loss"] and [line["step"] for line in one] == [3, 4, 6, 8]


# --- checkpoints that are damaged ------------------------------------------------------------------------


def test_checkpoints_of_which_none_is_whole_are_not_trained_over(prepared, tmp_path):
    trainer(prepared, tmp_path).run()
    for step in (4, 8):
        damage(tmp_path / "checkpoints" / f"step-{step:08d}")
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint in .*step-00000008.*step-00000004.*hint: .*--resume never"):
        trainer(prepared, tmp_path).run()
    assert steps_in(tmp_path) == [4, 8]
    assert trainer(prepared, tmp_path).run("never").resumed_from is None


def test_a_damaged_checkpoint_is_not_one_of_those_that_are_kept(prepared, tmp_path):
    trainer(prepared, tmp_path).run()
    damage(tmp_path / "checkpoints" / "step-00000008")
    again = trainer(prepared, tmp_path)
    stop_after(again, 5)
    with pytest.raises(Interrupted):
        again.run()
    assert steps_in(tmp_path) == [4, 5, 8]
    assert trainer(prepared, tmp_path).run().resumed_from == 5
    assert steps_in(tmp_path) == [5, 8]
    checkpoint.load(tmp_path / "checkpoints" / "step-00000008")


def test_the_average_leaves_out_a_checkpoint_that_is_damaged_and_says_so(prepared, tmp_path):
    settings = {"average": "last 3", "validate_every": 2}
    trainer(prepared, tmp_path, **settings).run()
    damage(tmp_path / "checkpoints" / "step-00000004")
    run = trainer(prepared, tmp_path, **settings)
    run.watcher = Listener()
    report = run.run()
    assert (report.averaged, report.left_out) == ([6, 8], [4])
    assert any("left out of the average" in line and "step-00000004" in line for line in run.watcher.lines)
    parts = [checkpoint.load(run.checkpoints.at(step)).model.state_dict() for step in (6, 8)]
    for name, found in weights(tmp_path).items():
        torch.testing.assert_close(found, sum(part[name].double() for part in parts).div(2).float(), rtol=0, atol=0)


def test_without_any_checkpoint_to_average_the_model_has_the_last_weights(prepared, tmp_path):
    settings = {"average": "best 1", "validate_every": 1}

    def scripted() -> Trainer:
        run = trainer(prepared, tmp_path, **settings)
        run.watcher = Listener()
        run.validate = lambda: run.validation.update({"all": abs(run.step - 3)}) or run.validation
        return run

    assert scripted().run().averaged == [3]
    damage(tmp_path / "checkpoints" / "step-00000003")
    run = scripted()
    report = run.run()
    assert (report.averaged, report.left_out) == ([], [3])
    assert any("the model has the last weights" in line for line in run.watcher.lines)
    assert_bit_identical(weights(tmp_path), checkpoint.load(run.checkpoints.at(8)).model.state_dict())


# --- kills in the middle of a save -----------------------------------------------------------------------


def killed_at(number: int, act) -> bool:
    """Do something in a process that ends without a word at its so-manieth change of the disk; whether it came to that."""
    pid = os.fork()
    if pid == 0:
        left = number

        def dying(function):
            def call(*args, **kwargs):
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return function(*args, **kwargs)

            return call

        Path.rename, Path.replace, Path.mkdir = dying(Path.rename), dying(Path.replace), dying(Path.mkdir)
        os.unlink, os.rmdir, os.fsync = dying(os.unlink), dying(os.rmdir), dying(os.fsync)
        checkpoint.save_file = dying(checkpoint.save_file)
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.fixture(scope="module")
def ended(prepared, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ended")
    trainer(prepared, folder).run()
    return folder, weights(folder)


def gaps(ended: tuple[Path, object], folder: Path, act) -> Iterator[int]:
    """Every moment between two changes of the disk, with what a kill there leaves in a folder."""
    number = 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ended[0], folder)
        if not killed_at(number, act):
            return
        yield number
        number += 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_moment_of_a_save_loses_no_checkpoint(prepared, tmp_path, ended):
    """The last checkpoint is written once more, over itself: both are whole, and one of them must be found."""
    run = trainer(prepared, ended[0])
    found = run.checkpoints.newest(run.system, run.watcher)
    again = trainer(prepared, tmp_path / "run").checkpoints
    seen = set()
    for _ in gaps(ended, tmp_path / "run", lambda: again.save(8, found.system, found.position)):
        left = {path.name.rpartition(".")[2] for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.startswith(".")}
        seen.add((frozenset(left), (tmp_path / "run" / "checkpoints" / "step-00000008").exists()))
        again.clean_up()
        assert sorted(path.name for path in again.folder.iterdir()) == ["step-00000004", "step-00000008"]
        for folder in again.all():
            checkpoint.load(folder)
    # Between the two renames: the old one is aside, the new one not yet there.
    assert (frozenset({"tmp", "old"}), False) in seen and len(seen) >= 4


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_run_killed_between_the_renames_of_a_save_goes_on_to_the_same_weights(prepared, tmp_path, ended):
    run = trainer(prepared, ended[0])
    found = run.checkpoints.newest(run.system, run.watcher)
    # The only one that there is.
    for name in ("checkpoints/step-00000004", "final"):
        shutil.rmtree(ended[0] / name)
    again = trainer(prepared, tmp_path / "run").checkpoints
    newest = tmp_path / "run" / "checkpoints" / "step-00000008"
    assert any(not newest.exists() for _ in gaps(ended, tmp_path / "run", lambda: again.save(8, found.system, found.position)))
    assert trainer(prepared, tmp_path / "run").run().resumed_from == 8
    assert_bit_identical(weights(tmp_path / "run"), ended[1])


def test_a_folder_that_cannot_take_its_place_leaves_the_one_before(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").touch()
    rename = Path.rename

    def fails(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, "made up")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="made up"), records.whole_folder(tmp_path / "there") as temporary:
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and (tmp_path / "there" / "old").exists()


# --- starting anew ---------------------------------------------------------------------------------------


def test_to_start_anew_discards_nothing_before_it_can_start(prepared, tmp_path):
    trainer(prepared, tmp_path / "run").run()
    trainer(prepared, tmp_path / "other", max_steps=1).run()
    damage(tmp_path / "other" / "final")
    before = weights(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is damaged"):
        trainer(prepared, tmp_path / "run", init_from=tmp_path / "other" / "final").run("never")
    assert steps_in(tmp_path / "run") == [4, 8] and len(lines(tmp_path / "run" / "metrics.jsonl")) == 2
    assert_bit_identical(before, weights(tmp_path / "run"))


def test_a_whole_recipe_is_not_begun_anew_from_a_checkpoint_that_does_not_fit(prepared, tmp_path):
    narrow = prepared.model_copy(update={"model": prepared.model.model_copy(update={"d_model": 16})})
    trainer(narrow, tmp_path / "narrow", max_steps=1).run()
    layout, changes = Layout.of(prepared), {"init_from": tmp_path / "narrow" / "final"}
    before = layout.cuts("train").stat().st_mtime_ns
    with pytest.raises(CheckpointError, match=r"model\.d_model: 16 there, 32 here"):
        pipeline.run(prepared.model_copy(update={"train": prepared.train.model_copy(update=changes)}), force=True)
    assert layout.cuts("train").stat().st_mtime_ns == before


# --- files beside the checkpoints ------------------------------------------------------------------------


def test_a_file_system_without_locks_is_not_taken_for_another_process(prepared, tmp_path, monkeypatch):
    def no_locks(*_args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(SmoeError, match=r"training.lock` cannot be locked, .*No locks available") as refused:
        trainer(prepared, tmp_path).run()
    assert "file system that has locks" in refused.value.hint


def test_metrics_have_every_step_once_and_no_torn_line(prepared, tmp_path):
    settings = {"average": "last 2", "sample_utterances": 1}
    trainer(prepared, tmp_path, **settings).run()
    whole = {name: lines(tmp_path / name) for name in ("metrics.jsonl", "samples.jsonl")}
    for name in whole:
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 8, "train_lo')  # as a kill leaves it
    damage(tmp_path / "checkpoints" / "step-00000008")
    trainer(prepared, tmp_path, **settings).run()
    for name, before in whole.items():
        assert [line["step"] for line in lines(tmp_path / name)] == [line["step"] for line in before], name
    trainer(prepared, tmp_path, **settings).run()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [4, 8, 8], "the average at the end is not told twice"


def test_a_loader_that_outlives_a_killed_trainer_does_not_hold_its_lock(tmp_path):
    (asked, told), (heard, ready) = os.pipe(), os.pipe()
    with locked(tmp_path / "training.lock"):
        child = os.fork()
        if child == 0:
            os.close(told)
            leave_locks()
            os.write(ready, b".")
            os.read(asked, 1)
            os._exit(0)
        os.read(heard, 1)
        with pytest.raises(SmoeError, match="another process is training"), locked(tmp_path / "training.lock"):
            pass
    with locked(tmp_path / "training.lock"):
        os.close(told)
    assert os.waitpid(child, 0)[1] == 0


def test_the_docs_name_every_setting_that_may_change_when_a_run_goes_on():
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "resume-and-interrupt.md").read_text(encoding="utf-8")
    free = page.partition("### What may change in between")[2].partition("Not free:")[0]
    assert [name for group, names in FREE.items() for name in sorted(names) if f"`{group}.{name}`" not in free] == []


def test_what_may_change_is_a_setting_and_said_once():
    groups = [*WATCHING, *LENGTH, *MEANS]
    assert len(set(groups)) == len(groups) and set(groups) <= set(TrainSettings.model_fields)
