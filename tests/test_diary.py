"""Laws of what a run writes about itself: metrics, samples, scalars, the environment, losses that explode."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from smoe_cli import checkpoint
from smoe_cli.decoding.decode import Decoder
from smoe_cli.errors import ConfigError, DataError, Interrupted
from smoe_cli.recipe import load_config
from smoe_cli.scoring.metrics import find_metric
from smoe_cli.training import diary, environment, meter, optimiser
from smoe_cli.training.environment import git_state, note_environment
from tests.test_shares import Listener
from tests.test_training import assert_bit_identical, prepared, trainer, weights
from tests.test_training_steps import stop_after

__all__ = ["prepared"]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_metrics_have_the_losses_of_every_task_the_speed_and_what_is_left(prepared, tmp_path):
    trainer(prepared, tmp_path).run()
    first, last = lines(tmp_path / "metrics.jsonl")
    assert (first["step"], last["step"]) == (4, 8)
    assert last["validation_loss_by_task"].keys() == {"transcribe", "translate"}
    of_task = [loss for route, loss in last["validation_loss"].items() if route.startswith("translate/")]
    assert last["validation_loss_by_task"]["translate"] == pytest.approx(sum(of_task) / len(of_task))
    assert first["frames_per_s"] > 0 and 0 <= first["waiting_share"] <= 1
    assert first["left_s"] > 0 and last["left_s"] == 0


def test_lines_between_validations_have_losses_rate_norm_and_speed_and_change_nothing(prepared, tmp_path):
    run = trainer(prepared, tmp_path / "logged", log_every=3)
    norms, step = [], run.train_step

    def watched(*batches):
        # Before the step, which scales them down as it reads them.
        hook = run.optimiser.register_step_pre_hook(lambda *_: norms.append(optimiser.gradient_norm(run.system.model).item()))
        losses = step(*batches)
        hook.remove()
        return losses

    run.train_step = watched
    run.run()
    found = {line["step"]: line for line in lines(tmp_path / "logged" / "metrics.jsonl")}
    assert list(found) == [3, 4, 6, 8]
    assert [line["gradient_norm"] for line in found.values()] == pytest.approx([norms[step - 1] for step in found])
    assert [line["learning_rate"] for line in found.values()] == [optimiser.learning_rate(step - 1, run.settings) for step in found]
    assert "validation_loss" in found[4] and "validation_loss" not in found[3]
    assert found[6]["train_loss_by_task"].keys() == {"transcribe", "translate"}
    assert all(line["frames_per_s"] > 0 and 0 <= line["waiting_share"] <= 1 for line in found.values())
    trainer(prepared, tmp_path / "plain", log_every=0).run()
    assert [line["step"] for line in lines(tmp_path / "plain" / "metrics.jsonl")] == [4, 8]
    assert_bit_identical(weights(tmp_path / "plain"), weights(tmp_path / "logged"))


def test_a_validation_on_the_step_of_a_line_is_one_line(prepared, tmp_path):
    trainer(prepared, tmp_path, log_every=2).run()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [2, 4, 6, 8]


def test_a_validation_says_how_much_of_all_batches_was_no_padding(prepared, tmp_path):
    run = trainer(prepared, tmp_path, turns_per_batch=3)
    batches = [run.collator(cuts) for cuts in islice(run.batches.stream(), 8)]
    run.run()
    texts = [
        [len(run.tokenizer.guiding_ids(route)) + len(run.tokenizer.encode(str(cut.supervisions[0].text))) for route, cut in pairs]
        for pairs in (list(zip(batch.routes, batch.cuts, strict=True)) for batch in batches)
    ]
    found = lines(tmp_path / "metrics.jsonl")[-1]["filled"]
    frames = [batch.feature_lengths.tolist() for batch in batches]
    assert found["frames"] == pytest.approx(sum(map(sum, frames)) / sum(len(some) * max(some) for some in frames))
    assert found["positions"] == pytest.approx(sum(map(sum, texts)) / sum(len(some) * max(some) for some in texts))
    assert 0.5 < found["frames"] < 1.0


def test_the_speed_of_a_line_is_that_since_the_one_before(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    watch = meter.Meter()

    def coming():
        for waited in (1.0, 1.0, 3.0):
            now[0] += waited
            yield waited

    laps = []
    for _ in watch.waiting_for(coming()):
        now[0] += 1.0
        watch.done(200)
        laps.append(watch.lap())
    assert laps == [{"frames_per_s": 100.0, "waiting_share": 0.5}] * 2 + [{"frames_per_s": 50.0, "waiting_share": 0.75}]
    assert watch.frames_per_s == pytest.approx(75.0), "laps change nothing of the whole"


def test_the_progress_line_shows_tasks_speed_and_waiting(prepared, tmp_path):
    shown = []
    run = trainer(prepared, tmp_path, max_steps=4)
    run.watcher = Listener()
    run.watcher.progress = lambda what, done, total, detail="": shown.append(detail) if what == "train" else None
    run.run()
    assert "translate " in shown[-1] and "frames/s" in shown[-1] and "waiting " in shown[-1]


def test_waiting_is_for_batches_and_nothing_else(monkeypatch):
    """A second passes before each batch, three while it is computed on, and five while other processes are waited for."""
    now = [0.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    def coming():
        for number in range(4):
            pass_by(1.0)
            yield number

    watch = meter.Meter()
    for batch in watch.waiting_for(coming()):
        pass_by(3.0)
        watch.done(300)
        pass_by(5.0)
        if batch == 0:
            assert watch.waiting_share == pytest.approx(1 / 9)
            watch.reset()
    assert watch.waiting_share == pytest.approx(1 / 9) and watch.step_s == pytest.approx(9.0)


# --- samples ---------------------------------------------------------------------------------------------


def test_samples_are_what_decode_writes_and_score_counts_and_change_nothing(prepared, tmp_path):
    plain = trainer(prepared, tmp_path / "plain")
    plain.run()
    run = trainer(prepared, tmp_path / "shown", sample_utterances=2)
    run.watcher = Listener()
    run.run()
    assert_bit_identical(weights(tmp_path / "plain"), weights(tmp_path / "shown"))
    found = lines(tmp_path / "shown" / "samples.jsonl")
    assert {line["step"] for line in found} == {4, 8}
    decode = prepared.decode.model_copy(update={"beam": 1, "ctc_weight": 0.0})
    decoder = Decoder(checkpoint.load(tmp_path / "shown" / "final"), decode)
    scored = lines(tmp_path / "shown" / "metrics.jsonl")[-1]["samples"]
    assert len(scored) == len(run.dev_groups) == 4
    for route, cuts in run.dev_groups.items():
        clean = prepared.text_policy(route.task).clean
        hypotheses = [one.model_copy(update={"text": clean(one.text)}) for one in decoder.decode(list(cuts)[:2])]
        last = [line for line in found if line["step"] == 8 and line["route"] == str(route)]
        assert [line["hypothesis"] for line in last] == [one.text for one in hypotheses]
        assert [line["reference"] for line in last] == [one.references[0] for one in hypotheses]
        name = "wer" if route.task == "transcribe" else "bleu"
        assert scored[str(route)] == {name: pytest.approx(find_metric(name)(hypotheses).value)}
    assert any("wanted: " in line and "written: " in line for line in run.watcher.lines)


# --- TensorBoard -----------------------------------------------------------------------------------------


def test_scalars_for_tensorboard_are_those_of_the_metrics(prepared, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = trainer(prepared, tmp_path, tensorboard=True, log_every=3)
    stop_after(first, 5)
    with pytest.raises(Interrupted):
        first.run()
    trainer(prepared, tmp_path, tensorboard=True, log_every=3).run()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    metrics = lines(tmp_path / "metrics.jsonl")
    for name, read in (
        ("validation_loss/translate/de/wb", lambda line: line["validation_loss"]["translate/de/wb"]),
        ("experts/decoder.translate/updates", lambda line: line["experts"]["decoder.translate"]["updates"]),
    ):
        events = board.Scalars(name)
        assert [event.step for event in events] == [4, 8]
        assert [event.value for event in events] == pytest.approx([read(line) for line in metrics if "validation_loss" in line])
    for name in ("learning_rate", "gradient_norm", "frames_per_s", "waiting_share", "train_loss_by_task/translate"):
        events = board.Scalars(name)
        assert [event.step for event in events] == [line["step"] for line in metrics] == [3, 4, 6, 8]
        group, _, own = name.partition("/")
        assert [event.value for event in events] == pytest.approx([line[group][own] if own else line[group] for line in metrics])


def test_scalars_without_the_package_are_refused_with_how_to_get_it(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(diary, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package `tensorboard`") as refused:
        trainer(prepared, tmp_path, tensorboard=True)
    assert refused.value.hint == "pip install 'smoe[tensorboard]'"
    assert trainer(prepared, tmp_path).run().steps == 8


def test_training_loads_tensorboard_only_when_asked():
    code = "import sys, smoe_cli.training; print('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# --- the environment -------------------------------------------------------------------------------------


def test_the_environment_is_noted_at_the_start_and_when_a_run_goes_on(prepared, tmp_path):
    run = trainer(prepared, tmp_path, seed=7)
    stop_after(run, 3)
    with pytest.raises(Interrupted):
        run.run()
    trainer(prepared, tmp_path, seed=7).run()
    first, second = json.loads((tmp_path / "environment.json").read_text())
    assert (first["step"], second["step"], first["seed"]) == (0, 3, 7)
    assert first["config"]["train"]["max_steps"] == 8
    assert first["libraries"].keys() >= {"torch", "lhotse"} and first["command"] == sys.argv
    trainer(prepared, tmp_path, seed=7).run(resume="never")
    assert len(json.loads((tmp_path / "environment.json").read_text())) == 1


def test_the_state_of_the_sources_is_that_of_git(tmp_path):
    assert git_state(tmp_path) is None
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "new").touch()
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and state["changed"] == ["?? new"]


def test_the_sources_are_those_of_the_recipe_wherever_the_command_was_called(prepared, tmp_path, monkeypatch):
    for name in ("recipe", "elsewhere"):
        (tmp_path / name).mkdir()
        for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", name]):
            subprocess.run(["git", *words], cwd=tmp_path / name, check=True)
    (tmp_path / "recipe" / "smoe.yaml").write_text(prepared.model_dump_json(exclude_none=True), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(Path("..") / "recipe" / "smoe.yaml")
    for settings, name in ((config, "recipe"), (prepared, "elsewhere")):
        note_environment(tmp_path / f"{name}.json", settings, torch.device("cpu"), 0)
        (account,) = json.loads((tmp_path / f"{name}.json").read_text())
        assert account["git"]["commit"] == git_state(tmp_path / name)["commit"]
    assert git_state(tmp_path / "recipe")["commit"] != git_state(tmp_path / "elsewhere")["commit"]


def test_the_state_of_smoes_own_sources_is_noted_where_they_are_a_checkout(prepared, tmp_path, monkeypatch):
    def noted() -> dict | None:
        note_environment(tmp_path / "environment.json", prepared, torch.device("cpu"), 0)
        return json.loads((tmp_path / "environment.json").read_text())[-1]["smoe_git"]

    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(environment, "OWN_SOURCES", tmp_path)
    assert noted()["commit"] == git_state(tmp_path)["commit"]
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(environment, "OWN_SOURCES", tmp_path / "site-packages")
    assert noted() is None, "a repository that packages are installed in is not theirs"


def test_an_environment_that_is_no_list_is_not_overwritten(prepared, tmp_path):
    (tmp_path / "environment.json").write_text("mine")
    with pytest.raises(DataError, match=r"cannot read .*environment.json"):
        trainer(prepared, tmp_path).run()
    assert (tmp_path / "environment.json").read_text() == "mine"


# --- losses that explode ---------------------------------------------------------------------------------


def test_a_loss_far_above_its_recent_mean_is_told_after_the_warm_up_and_training_goes_on(prepared, tmp_path):
    run = trainer(prepared, tmp_path, warmup_steps=4)
    run.watcher = Listener()
    step = run.train_step

    def burst(*batches):
        losses = step(*batches)
        # During the warm-up it is expected.
        losses.total = losses.total * (100.0 if run.step in (3, 6) else 1.0)
        return losses

    run.train_step = burst
    assert run.run().steps == 8
    told = [line for line in run.watcher.lines if "recent mean" in line]
    assert len(told) == 1 and "warning: at step 6 " in told[0] and "`tones-" in told[0]
    assert lines(tmp_path / "metrics.jsonl")[-1]["exploded"] == 1
