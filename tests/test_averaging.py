"""Laws of averaged weights and of stopping early: by hand, idle experts still, exact resume."""

from __future__ import annotations

import json

import pytest
import torch

from smoe_cli import checkpoint
from smoe_cli.config import Config
from smoe_cli.errors import CheckpointError, ConfigError, DataError, Interrupted
from smoe_cli.recipe import parse_config
from smoe_cli.training import Trainer
from smoe_cli.training.averaging import chosen_steps, validations_without_gain
from tests.test_training import assert_bit_identical, prepared, trainer, weights
from tests.test_training_steps import assert_resumes_exactly, stop_after

__all__ = ["prepared"]


def own(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in run.system.model.named_parameters()}


# --- moving average --------------------------------------------------------------------------------------


def test_a_moving_average_is_what_a_hand_computes_and_that_of_an_idle_expert_stands_still(prepared, tmp_path):
    run = trainer(prepared, tmp_path, ema_decay=0.3)
    stream = run.batches.stream()
    wanted, updates = own(run), dict.fromkeys(own(run), 0)
    for _ in range(6):
        before = {name: average.clone() for name, average in run.moving.averages.items()}
        batch = run.collator(next(stream))
        run.train_step(batch)
        run.step += 1
        used = {f".experts.{run.plan.encoder.expert(batch.routes[0])}.", f".experts.{run.plan.decoder.expert(batch.routes[0])}."}
        for name, weight in own(run).items():
            if ".experts." in name and not any(part in name for part in used):
                assert torch.equal(run.moving.averages[name], before[name]), name
                continue
            updates[name] += 1
            decay = min(0.3, (1 + updates[name]) / (10 + updates[name]))
            wanted[name] = decay * wanted[name] + (1 - decay) * weight
            torch.testing.assert_close(run.moving.averages[name], wanted[name], rtol=1e-5, atol=1e-7)


def test_the_model_is_the_moving_average_and_training_goes_on_with_its_own_weights(prepared, tmp_path):
    plain, averaged = trainer(prepared, tmp_path / "plain"), trainer(prepared, tmp_path / "ema", ema_decay=0.5)
    plain.run()
    report = averaged.run()
    assert_bit_identical(own(plain), own(averaged))
    final = weights(tmp_path / "ema")
    assert_bit_identical({name: final[name] for name in averaged.moving.averages}, averaged.moving.averages)
    assert not torch.equal(final["decoder.embedding.weight"], averaged.system.model.state_dict()["decoder.embedding.weight"])
    # What is reported is the loss of the model that is written.
    assert report.validation != plain.validation
    again = trainer(prepared, tmp_path / "ema", ema_decay=0.5)
    again.run()
    assert again.validation == report.validation
    assert_bit_identical(final, weights(tmp_path / "ema"))


def test_a_moving_average_resumes_exactly(prepared, tmp_path):
    assert_resumes_exactly(prepared, tmp_path, ema_decay=0.9)
    with pytest.raises(CheckpointError, match=r"train.ema_decay: 0.9 -> 0.0"):
        trainer(prepared, tmp_path / "parts").run()


# --- averages of checkpoints -----------------------------------------------------------------------------


def saved_steps(folder) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


def test_the_model_is_the_mean_of_the_last_checkpoints(prepared, tmp_path):
    run = trainer(prepared, tmp_path, average="last 3", validate_every=2)
    report = run.run()
    assert report.averaged == [4, 6, 8] == saved_steps(tmp_path)
    parts = [checkpoint.load(run.checkpoints.at(step)).model.state_dict() for step in report.averaged]
    for name, found in weights(tmp_path).items():
        torch.testing.assert_close(found, sum(part[name].double() for part in parts).div(3).float(), rtol=0, atol=0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["averaged"] == [4, 6, 8] and lines[-1]["validation_loss"] == report.validation
    assert report.validation != lines[-2]["validation_loss"]


def test_the_best_checkpoints_are_kept_until_the_end(prepared, tmp_path):
    run = trainer(prepared, tmp_path, average="best 1", validate_every=1)
    losses = iter([5.0, 1.0, 4.0, float("nan"), 4.0, 4.0, 4.0, 4.0, 9.0])
    run.validate = lambda: run.validation.update({"all": next(losses)}) or run.validation
    assert run.run().averaged == [2]
    assert saved_steps(tmp_path) == [2, 7, 8]
    assert_bit_identical(weights(tmp_path), checkpoint.load(run.checkpoints.at(2)).model.state_dict())


@pytest.mark.parametrize("steps", [3, 4])
@pytest.mark.parametrize("average", ["last 2", "best 2"])
def test_an_average_resumes_exactly_also_when_stopped_where_a_validation_was_due(prepared, tmp_path, average, steps):
    assert_resumes_exactly(prepared, tmp_path, steps=steps, average=average, validate_every=2)
    assert trainer(prepared, tmp_path / "parts", average=average, validate_every=2).run().averaged
    with pytest.raises(CheckpointError, match=r"train.validate_every: 2 -> 3"):
        trainer(prepared, tmp_path / "parts", average=average, validate_every=3).run()


def test_checkpoints_are_chosen_by_validation_loss_then_by_age():
    losses = {2: 3.0, 4: 1.0, 6: 1.0, 8: float("nan"), 10: 2.0}
    assert chosen_steps("best 2", losses) == [4, 6]
    assert chosen_steps("best 3", losses) == [4, 6, 10]
    assert chosen_steps("last 2", losses) == [8, 10]
    assert chosen_steps("last 9", losses) == [2, 4, 6, 8, 10]
    assert chosen_steps(None, losses) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"average": "5"}, "`5` names no checkpoints; write for example `last 5`"),
        ({"average": "best 0"}, "`best 0` names no checkpoints"),
        ({"average": "last 2", "ema_decay": 0.9}, "both average weights; set one of them"),
    ],
)
def test_averages_that_say_nothing_or_too_much_are_refused(prepared, changes, message):
    tree = prepared.model_dump(mode="json", exclude={"train", "data"}) | {"train": changes}
    with pytest.raises(ConfigError, match=message):
        parse_config(tree, "tiny.yaml")


# --- stopping early --------------------------------------------------------------------------------------


def scripted(config: Config, folder, losses: list[float], **changes: object) -> Trainer:
    """A run whose validations find these losses."""
    run = trainer(config, folder, validate_every=1, **changes)
    run.validate = lambda: run.validation.update({"all": losses[run.step - 1]}) or run.validation
    return run


LOSSES = [5.0, 3.0, 3.0, 3.5, 2.0, 2.1, 2.2, 2.3]


def test_training_ends_after_so_many_validations_without_gain(prepared, tmp_path):
    report = scripted(prepared, tmp_path, LOSSES, patience=2).run()
    assert (report.steps, report.stopped_early) == (4, True)
    again = scripted(prepared, tmp_path, LOSSES, patience=2).run()
    assert (again.steps, again.resumed_from, again.stopped_early) == (4, 4, True)
    # With more patience it goes on where it stood.
    more = scripted(prepared, tmp_path, LOSSES, patience=3).run()
    assert (more.steps, more.resumed_from, more.stopped_early) == (8, 4, False)


def test_stopping_early_counts_validations_across_a_stop(prepared, tmp_path):
    first = scripted(prepared, tmp_path, LOSSES, patience=2)
    stop_after(first, 3)
    with pytest.raises(Interrupted):
        first.run()
    report = scripted(prepared, tmp_path, LOSSES, patience=2).run()
    assert (report.steps, report.resumed_from) == (4, 3)


def test_validations_without_gain_are_counted_from_the_best_on():
    assert validations_without_gain({}) == 0
    assert validations_without_gain({1: 3.0, 2: 2.0}) == 0
    assert validations_without_gain({1: 2.0, 2: 2.0, 3: float("inf")}) == 2
    assert validations_without_gain({1: float("nan"), 2: 5.0, 3: 6.0}) == 1


def test_what_validations_decide_needs_a_dev_split(prepared, tmp_path):
    from smoe_cli.cuts import read_cuts
    from smoe_cli.layout import Layout
    from smoe_cli.tokenizer import open_tokenizer

    layout = Layout.of(prepared)
    config = prepared.model_copy(update={"train": prepared.train.model_copy(update={"patience": 1})})
    nothing = read_cuts(layout.cuts("dev")).filter(lambda cut: False).to_eager()
    with pytest.raises(DataError, match=r"`train.patience` compares validation losses"):
        Trainer(config, tmp_path, read_cuts(layout.cuts("train")), nothing, open_tokenizer(layout.tokenizer))
