"""Laws of batching: one route a batch, everything seen, order a function of seed and step."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.dataset import DynamicBucketingSampler

from smoe_cli.batching import Limits, RouteBatches, by_route, chunk
from smoe_cli.cuts import Tags, route_of
from smoe_cli.errors import DataError, RouteError
from smoe_cli.loss import Weights, combined_loss
from smoe_cli.routing import RoutingPlan, StackPlan
from tests.conftest import as_given

PLAN = RoutingPlan(
    encoder=StackPlan(by="bandwidth", experts=("nb", "wb")),
    decoder=StackPlan(by="task", experts=("transcribe", "translate")),
    routes=("transcribe/en/nb", "transcribe/en/wb", "translate/de/nb"),
)


def cut(name: str, route: str, duration: float) -> MonoCut:
    task, lang, band = route.split("/")
    tags = Tags(
        utterance=name,
        corpus="c",
        task=task,
        bandwidth=band,
        source_lang="en",
        transcript="a",
        references=["a"],
        subset="",
        synthetic=False,
    )
    segment = SupervisionSegment(name, "r", 0, duration, text="a", language=lang, custom=tags.model_dump())
    return MonoCut(name, 0, duration, 0, supervisions=[segment])


@pytest.fixture
def cuts() -> CutSet:
    sizes = {"transcribe/en/nb": 300, "transcribe/en/wb": 60, "translate/de/nb": 40}
    return CutSet.from_cuts(cut(f"{route}-{i}", route, 1 + (i * 7 % 40) / 10) for route, count in sizes.items() for i in range(count))


def batches(cuts: CutSet, seed: int = 0, **options: float) -> RouteBatches:
    return RouteBatches(by_route(cuts, PLAN), batch_s=20.0, max_utterances=8, seed=seed, **options)


def ids(stream, count):
    return [[item.id for item in batch] for batch in islice(stream, count)]


def test_every_batch_has_one_route_and_keeps_its_limits(cuts):
    for batch in islice(batches(cuts).stream(), 200):
        assert len({route_of(item) for item in batch}) == 1
        assert len(batch) <= 8
        assert len(batch) * max(item.duration for item in batch) <= 20.0 + 1e-6


def test_one_epoch_of_a_route_sees_every_cut_once(cuts):
    stream, seen = batches(cuts)._batches(next(iter(by_route(cuts, PLAN)))), Counter()
    while sum(seen.values()) < 300:
        seen.update(item.id for item in next(stream))
    assert set(seen.values()) == {1}
    assert len(seen) == 300


@pytest.mark.parametrize(
    ("count", "batch_s", "frames", "letters"),
    [(30, 120.0, 0.0, 0.0), (300, 120.0, 0.9, 0.75), (2000, 30.0, 0.97, 0.85), (5000, 120.0, 0.95, 0.8)],
)
def test_batches_are_of_similar_duration_and_text_and_as_many_as_foretold(count, batch_s, frames, letters):
    """Durations and speaking rates spread as in speech that is read: from one second to twelve, and by a factor of two."""
    generator = np.random.default_rng(0)
    some = [cut(str(number), "transcribe/en/nb", float(seconds)) for number, seconds in enumerate(generator.uniform(1, 12, count))]
    for item in some:
        item.supervisions[0].text = "x" * round(item.duration * generator.uniform(8, 16))
    stream, epoch = RouteBatches(by_route(CutSet.from_cuts(some), PLAN), batch_s, 64, 0).stream(), []
    while sum(map(len, epoch)) < count:
        epoch.append(next(stream))
    assert Counter(item.id for batch in epoch for item in batch) == {item.id: 1 for item in some}
    assert len(epoch) == pytest.approx(Limits.of(some, batch_s, 64).batches, rel=0.02, abs=1)
    small = [batch for batch in epoch if len(batch) < 32 and sum(item.duration for item in batch) < batch_s / 2]
    assert len(small) <= 1, "what is left of buckets does not become many small batches"

    def filled(length) -> float:
        return sum(map(length, some)) / sum(len(batch) * max(map(length, batch)) for batch in epoch)

    assert filled(lambda item: item.duration) >= frames
    assert filled(lambda item: len(item.supervisions[0].text)) >= letters


def test_the_stream_from_a_step_on_is_the_rest_of_the_stream(cuts):
    whole = ids(batches(cuts).stream(), 120)
    assert ids(batches(cuts).stream(77), 43) == whole[77:]


def test_seeds_and_epochs_differ_in_order(cuts):
    assert ids(batches(cuts).stream(), 20) == ids(batches(cuts).stream(), 20)
    assert ids(batches(cuts).stream(), 20) != ids(batches(cuts, seed=1).stream(), 20)
    wb = ids((batch for batch in batches(cuts).stream() if route_of(batch[0]).bandwidth == "wb"), 40)
    first = wb[: next(i for i in range(1, 40) if sum(map(len, wb[:i])) == 60)]
    assert wb[len(first) : 2 * len(first)] != first


def test_routes_take_turns_by_their_share_and_temperature_evens_them_out(cuts):
    turns = Counter(str(route) for route in islice(batches(cuts).turns(), 400))
    assert turns == {
        "transcribe/en/nb": pytest.approx(300, abs=3),
        "transcribe/en/wb": pytest.approx(60, abs=3),
        "translate/de/nb": pytest.approx(40, abs=3),
    }
    even = Counter(str(route) for route in islice(batches(cuts, temperature=1e6).turns(), 300))
    assert set(even.values()) == {100}


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"translate": 4.0}, (1 / 6, 1 / 6, 4 / 6)),
        ({"wb": 4.0}, (1 / 6, 4 / 6, 1 / 6)),
        ({"translate/de": 2.0, "nb": 2.0}, (2 / 7, 1 / 7, 4 / 7)),
        ({"transcribe/en/nb": 2.0, "bandwidth=wb": 3.0}, (2 / 6, 3 / 6, 1 / 6)),
    ],
)
def test_routes_are_drawn_by_the_weights_of_their_tags(cuts, weights, shares):
    turns = Counter(str(route) for route in islice(batches(cuts, temperature=1e9, route_weights=weights).turns(), 420))
    assert [turns[route] for route in PLAN.routes] == pytest.approx([420 * share for share in shares], abs=1)


@pytest.mark.parametrize(
    ("options", "start", "per_step", "digest"),
    [
        ({}, 0, 1, "86a53b06b81a830a"),
        ({}, 140, 1, "94c843e0d39e3ed0"),
        ({"temperature": 3.0, "route_weights": {"translate": 4.0}}, 0, 1, "6999d1c43bd60d8b"),
        ({"turns_per_batch": 2, "temperature": 2.0}, 60, 3, "9556b699cea5a69a"),
        ({"corpus_weights": {"c": 2.0}}, 50, 2, "e534a734b0b04ddf"),
    ],
)
def test_the_batches_of_the_same_settings_stay_what_they_were(cuts, options, start, per_step, digest):
    """A training that goes on would get other batches than it began with; a release of Lhotse may draw otherwise."""
    found = ids(batches(cuts, **options).stream(start, per_step), 300)
    assert hashlib.sha256(repr(found).encode()).hexdigest()[:16] == digest


def test_weights_and_temperature_move_on_a_line_and_then_stay(cuts):
    moving = batches(cuts, temperature="1 to 5 over 100 steps", route_weights={"translate": "1 to 0.5 over 40 steps"})
    for step, temperature, weight in ((0, 1.0, 1.0), (20, 1.8, 0.75), (40, 2.6, 0.5), (100, 5.0, 0.5), (10_000, 5.0, 0.5)):
        still = batches(cuts, temperature=temperature, route_weights={"translate": weight}).shares_at(0)
        assert moving.shares_at(step) == pytest.approx(still), step
    rising = batches(cuts, temperature=1e9, route_weights={"translate": "0.02 to 4 over 200 steps"})
    turns, weights = list(islice(rising.turns(), 600)), [0.02 + 3.98 * min(1.0, step / 200) for step in range(600)]
    for part in (slice(0, 40), slice(40, 200), slice(200, 600)):
        wanted = sum(weight / (2 + weight) for weight in weights[part])
        assert sum(route.task == "translate" for route in turns[part]) == pytest.approx(wanted, abs=1)


MOVING = {"temperature": "1 to 5 over 50 steps", "route_weights": {"translate": "0.1 to 3 over 90 steps", "nb": 0.5}}


@pytest.mark.parametrize("options", [{}, MOVING, MOVING | {"turns_per_batch": 2}, {"corpus_weights": {"c": 2.0}}])
@pytest.mark.parametrize("per_step", [1, 3])
def test_a_stream_goes_on_where_it_was_without_sampling_the_epochs_before(cuts, options, per_step, monkeypatch):
    first = batches(cuts, **options)
    whole = ids(first.stream(0, per_step), 160 * per_step)
    sampled: list[int] = []
    real = DynamicBucketingSampler.set_epoch
    monkeypatch.setattr(DynamicBucketingSampler, "set_epoch", lambda self, epoch: (sampled.append(epoch), real(self, epoch)))

    def sampled_by(known: dict[str, list[int]]) -> list[int]:
        sampled.clear()
        again = batches(cuts, **options)
        again.epochs = known
        assert ids(again.stream(120, per_step), 40 * per_step) == whole[120 * per_step :]
        return list(sampled)

    without, knowing = sampled_by({}), sampled_by(json.loads(json.dumps(first.epochs)))
    assert without.count(0) == len(first.epochs), "who knows nothing samples every stream from its first epoch on"
    assert knowing.count(0) < without.count(0) and len(knowing) < len(without)


def test_a_cut_of_a_route_that_the_plan_lacks_is_refused():
    with pytest.raises(RouteError, match="translate/de/wb"):
        by_route(CutSet.from_cuts([cut("x", "translate/de/wb", 1.0)]), PLAN)


def test_of_cuts_longer_than_a_batch_the_longest_is_named_with_what_it_needs(cuts):
    groups = by_route(cuts, PLAN)
    longest = max(cuts, key=lambda cut: cut.duration)
    assert longest.id != next(cut.id for cut in cuts if cut.duration > 2.0), "which is not the first"
    for turns in range(1, 9):
        with pytest.raises(DataError, match=rf"cut `{longest.id}` lasts {longest.duration:.1f} s, longer than .* of 2 s") as refused:
            RouteBatches(groups, batch_s=2.0, max_utterances=8, seed=0, turns_per_batch=turns)
        needed_s = float(re.search(r"raise `train.batch_s` to ([\d.]+) or more", refused.value.hint)[1])
        assert RouteBatches(groups, needed_s, 8, 0, turns_per_batch=turns).batch_s >= longest.duration > needed_s / turns - 0.15


def test_chunks_keep_order_and_limits(cuts):
    parts = list(chunk(list(cuts), 15.0, 5))
    assert [item.id for part in parts for item in part] == [item.id for item in cuts]
    assert all(len(part) * max(item.duration for item in part) <= 15.0 + 1e-6 and len(part) <= 5 for part in parts)


def test_loss_equals_torchs_own_on_hand_made_batches():
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[-100, 1, 2], [-100, 3, -100]])
    ctc, ctc_targets, lengths = torch.randn(2, 9, 5), torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])
    heard = (ctc.flatten(0, 1), as_given(5), torch.tensor([9, 9]), ctc_targets, lengths)
    found = combined_loss(logits, as_given(5), targets, *heard, Weights(0.0, 0.3, -100, 0))
    rows = torch.log_softmax(logits, -1)
    attention = -(rows[0, 1, 1] + rows[0, 2, 2] + rows[1, 1, 3]) / 3
    wanted = (
        torch.nn.functional.ctc_loss(ctc.log_softmax(-1).transpose(0, 1), ctc_targets, torch.tensor([9, 9]), lengths, reduction="sum") / 3
    )
    torch.testing.assert_close(found.total, 0.7 * attention + 0.3 * wanted)
    assert (found.tokens, found.too_short) == (3, 0)


def test_a_transcript_that_does_not_fit_its_frames_is_counted_and_skipped():
    ctc, targets = torch.randn(1, 3, 5, requires_grad=True), torch.tensor([[1, 1, 2]])
    heard = (ctc[0], as_given(5), torch.tensor([3]), targets, torch.tensor([3]))
    found = combined_loss(torch.randn(1, 1, 5), as_given(5), torch.tensor([[1]]), *heard, Weights(0.0, 1.0, -100, 0))
    assert found.too_short == 1
    assert torch.isfinite(found.total)
