"""Laws of batches with several routes: the parts of one give the same step, every route has its turn, and to resume is exact."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from pydantic import ValidationError

from smoe_cli.batching import RouteBatches
from smoe_cli.errors import DataError
from smoe_cli.tags import Route
from smoe_cli.train_settings import TrainSettings
from smoe_cli.training.loading import From
from tests.test_training import prepared, trainer
from tests.test_training_steps import STILL, assert_resumes_exactly, first_cuts, gradients, undisturbed

__all__ = ["prepared"]


def test_the_step_of_a_mixed_batch_is_that_of_its_parts(prepared, tmp_path):
    config = undisturbed(prepared)
    whole, parts = (trainer(config, tmp_path / name, **STILL) for name in ("whole", "parts"))
    each = [first_cuts(whole, "transcribe", 3), first_cuts(whole, "translate", 2)]
    mixed = whole.collator([cut for pair in zip(each[0], [*each[1], None], strict=True) for cut in pair if cut is not None])
    assert [route.task for route in mixed.routes] == ["transcribe", "translate", "transcribe", "translate", "transcribe"]
    one, several = whole.train_step(mixed), parts.train_step(*map(parts.collator, each))
    torch.testing.assert_close(one.total, several.total, rtol=1e-5, atol=1e-6)
    found, wanted = gradients(whole), gradients(parts)
    assert found.keys() == wanted.keys(), "both experts moved, and those of the other band did not"
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_of_mixed_batches_resumes_exactly(prepared, tmp_path, workers):
    assert_resumes_exactly(prepared, tmp_path, turns_per_batch=2, workers=workers)


def test_every_batch_of_a_run_has_the_routes_of_consecutive_turns_and_is_counted_for_each(prepared, tmp_path):
    run = trainer(prepared, tmp_path, turns_per_batch=2, max_steps=6)
    step, seen = run.train_step, []

    def watch(*batches):
        seen.extend(batches)
        return step(*batches)

    run.train_step = watch
    report = run.run()
    turns = list(map(str, islice(run.batches.turns(), 12)))
    assert [set(batch.routes_served) for batch in seen] == [set(turns[at : at + 2]) for at in range(0, 12, 2)]
    assert report.steps_by_route == {
        route: sum(route in turns[at : at + 2] for at in range(0, 12, 2)) for route in map(str, run.plan.routes)
    }
    assert sum(share.frames for name, share in report.experts.items() if name.startswith("decoder")) == sum(
        int(batch.feature_lengths.sum()) for batch in seen
    )


def test_the_processes_of_a_step_have_the_same_routes_and_together_every_batch(prepared, tmp_path):
    batches = trainer(prepared, tmp_path, turns_per_batch=3).batches
    alone = [cuts for _, cuts in islice(From(batches, 0, 2), 8)]
    shared = [[cuts for _, cuts in islice(From(batches, 0, 1, rank, 2), 4)] for rank in (0, 1)]
    assert [cuts for pair in zip(*shared, strict=True) for cuts in pair] == alone


def test_a_part_of_a_batch_has_its_part_of_the_limits(prepared, tmp_path):
    groups = {Route.parse(str(route)): cuts for route, cuts in trainer(prepared, tmp_path).groups.items()}
    longest_s = max(cut.duration for cuts in groups.values() for cut in cuts)
    for cuts in islice(RouteBatches(groups, 4 * longest_s, 9, 0, turns_per_batch=2).stream(), 20):
        assert len(cuts) <= 8
        assert sum(cut.duration for cut in cuts) <= 4 * longest_s
    with pytest.raises(DataError, match=r"longer than one of 2 parts of a batch of"):
        RouteBatches(groups, 1.5 * longest_s, 9, 0, turns_per_batch=2)
    with pytest.raises(ValidationError, match=r"turns_per_batch \(9\) is more than max_utterances \(8\)"):
        TrainSettings(turns_per_batch=9, max_utterances=8)
