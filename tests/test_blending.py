"""Laws of blending: corpora are drawn as their weights say, exactly resumable, and by default nothing changes."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice, repeat
from pathlib import Path

import pytest
from lhotse import CutSet

from smoe_cli.batching import RouteBatches, by_corpus, by_route, deal
from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts, route_of, tags_of
from smoe_cli.errors import CheckpointError, DataError
from smoe_cli.layout import Layout
from smoe_cli.recipe import load_config
from smoe_cli.steps import plan_step
from smoe_cli.tokenizer import open_tokenizer
from smoe_cli.training import Trainer
from tests.test_batching import PLAN, cut, ids
from tests.test_training import assert_bit_identical, prepared, weights  # noqa: F401

SIZES = {"large": 600, "small": 150, "tiny": 30}


@pytest.fixture
def cuts() -> CutSet:
    """Three corpora over two routes; they come mixed, and those of `small` are short."""
    made = []
    for name, count in SIZES.items():
        for number in range(count):
            route = "transcribe/en/nb" if number % 3 else "translate/de/nb"
            one = cut(f"{name}-{number}", route, (0.4 if name == "small" else 1.0) + (number * 7 % 40) / 20)
            one.supervisions[0].custom["corpus"] = name
            made.append(one)
    return CutSet.from_cuts(sorted(made, key=lambda one: one.id[::-1]))


def batches(cuts: CutSet, seed: int = 0, **options: object) -> RouteBatches:
    return RouteBatches(by_route(cuts, PLAN), batch_s=20.0, max_utterances=8, seed=seed, **options)


def drawn(stream, count: int) -> Counter[str]:
    return Counter(tags_of(one).corpus for batch in islice(stream, count) for one in batch)


@pytest.mark.parametrize("options", [{"corpus_weights": {}}, {"corpus_weights": {"large": 1.0}, "corpus_temperature": 1.0}])
def test_without_weights_a_routes_corpora_are_shuffled_together(cuts, options):
    stream = batches(cuts, **options)
    assert stream.corpora == {}
    assert ids(stream.stream(), 300) == ids(batches(cuts).stream(), 300)
    mixed = sum(len({tags_of(one).corpus for one in batch}) > 1 for batch in islice(stream.stream(), 100))
    assert mixed > 50, "without blending, corpora share batches"


def test_a_blended_batch_has_one_route_and_one_corpus_and_keeps_its_limits(cuts):
    for batch in islice(batches(cuts, corpus_weights={"tiny": 5.0}).stream(), 300):
        assert len({(route_of(one), tags_of(one).corpus) for one in batch}) == 1
        assert len(batch) <= 8 and len(batch) * max(one.duration for one in batch) <= 20.0 + 1e-6


def test_a_weight_is_a_factor_on_how_often_each_cut_is_drawn(cuts):
    seen = drawn(batches(cuts, corpus_weights={"small": 3.0, "tiny": 10.0}).stream(), 3000)
    often = {name: seen[name] / count for name, count in SIZES.items()}
    assert often["small"] / often["large"] == pytest.approx(3.0, rel=0.1)
    assert often["tiny"] / often["large"] == pytest.approx(10.0, rel=0.15)


def test_weights_that_are_all_alike_keep_the_proportions_of_the_data(cuts):
    seen = drawn(batches(cuts, corpus_weights=dict.fromkeys(SIZES, 2.0)).stream(), 3000)
    often = {name: seen[name] / count for name, count in SIZES.items()}
    assert often["small"] == pytest.approx(often["large"], rel=0.1)
    assert often["tiny"] == pytest.approx(often["large"], rel=0.15)


def test_temperature_evens_corpora_out_in_batches(cuts):
    def share(temperature: float) -> dict[str, float]:
        stream = islice(batches(cuts, corpus_temperature=temperature).stream(), 3000)
        turns = Counter(tags_of(batch[0]).corpus for batch in stream)
        return {name: turns[name] / 3000 for name in SIZES}

    assert list(share(1e9).values()) == pytest.approx([1 / 3] * 3, abs=0.01)
    warm = share(2.0)
    assert 1 / 3 < warm["large"] < 0.75 and 0.05 < warm["tiny"] < 1 / 3


def test_an_epoch_of_a_corpus_sees_each_of_its_cuts_once(cuts):
    stream = batches(cuts, corpus_weights={"tiny": 5.0})
    route = next(iter(stream.groups))
    whole = by_corpus(stream.groups[route])["large"]
    seen: Counter[str] = Counter()
    for batch in stream._batches(route):
        if tags_of(batch[0]).corpus == "large":
            seen.update(one.id for one in batch)
        if sum(seen.values()) >= len(whole):
            break
    assert set(seen) == {one.id for one in whole} and set(seen.values()) == {1}


@pytest.mark.parametrize("start", [1, 7, 77, 250])
def test_a_blended_stream_from_a_step_on_is_the_rest_of_the_stream(cuts, start):
    options = {"corpus_weights": {"tiny": 4.0}, "corpus_temperature": 1.5}
    whole = ids(batches(cuts, **options).stream(), 300)
    assert ids(batches(cuts, **options).stream(start), 300 - start) == whole[start:]
    assert ids(batches(cuts, seed=1, **options).stream(), 300) != whole


def test_the_order_of_the_manifest_does_not_decide_which_corpus_comes_first(cuts):
    backward = CutSet.from_cuts(list(cuts)[::-1])
    options = {"corpus_weights": {"tiny": 4.0}}
    first, second = ([tags_of(b[0]).corpus for b in islice(batches(c, **options).stream(), 50)] for c in (cuts, backward))
    assert first == second


def test_a_weight_that_no_cut_has_is_refused_instead_of_doing_nothing(cuts):
    with pytest.raises(DataError, match=r"`data.corpora.big.weight` is 2, .*; there are: large, small, tiny"):
        batches(cuts, corpus_weights={"big": 2.0})


def test_the_example_of_the_guide_is_a_recipe_with_a_weight(tmp_path):
    guide = (Path(__file__).parents[1] / "docs" / "how-to" / "blend-corpora.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if "name: blend" in block)
    (tmp_path / "smoe.yaml").write_text(example, encoding="utf-8")
    config = load_config(tmp_path / "smoe.yaml")
    assert config.corpus_weights() == {"rare": 3.0}
    assert {name: corpus.sentences["train"] for name, corpus in config.data.corpora.items()} == {"common": 200, "rare": 20}


def test_turns_are_dealt_evenly_not_drawn():
    assert list(islice(deal(repeat({"a": 0.5, "b": 0.25, "c": 0.25})), 8)) == list("abca") * 2


# --- in training -----------------------------------------------------------------------------------------


def trainer(config: Config, folder, weight: float = 1.0, **changes: object) -> Trainer:
    """A trainer over the tones, every other utterance of which is called a corpus of its own."""
    layout = Layout.of(config)
    tones = config.data.corpora["tones"]
    corpora = {"tones": tones, "odd": tones.model_copy(update={"weight": weight})}
    data = config.data.model_copy(update={"corpora": corpora})
    config = config.model_copy(update={"data": data, "train": config.train.model_copy(update=changes)})
    train = read_cuts(layout.cuts("train"))
    for one in train:
        if int(tags_of(one).utterance[-1]) % 2:
            one.supervisions[0].custom["corpus"] = "odd"
    return Trainer(config, folder, train, read_cuts(layout.cuts("dev")), open_tokenizer(layout.tokenizer))


def test_resuming_a_blended_training_equals_never_having_stopped(prepared, tmp_path):  # noqa: F811
    trainer(prepared, tmp_path / "whole", weight=3.0).run()
    stopped = trainer(prepared, tmp_path / "parts", weight=3.0)
    step = stopped.train_step

    def die_at_six(batch):
        if stopped.step == 6:
            raise MemoryError
        return step(batch)

    stopped.train_step = die_at_six
    with pytest.raises(MemoryError):
        stopped.run()
    with pytest.raises(CheckpointError, match="or with other weights of the corpora"):
        trainer(prepared, tmp_path / "parts", weight=2.0).run()
    with pytest.raises(CheckpointError, match=r"train\.corpus_temperature"):
        trainer(prepared, tmp_path / "parts", weight=3.0, corpus_temperature=2.0).run()
    assert trainer(prepared, tmp_path / "parts", weight=3.0).run().resumed_from == 4
    assert_bit_identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_weight_makes_train_run_again_and_leaves_prepare_alone(prepared):  # noqa: F811
    from smoe_cli.steps import STEPS

    heavier = prepared.data.corpora["tones"].model_copy(update={"weight": 2.0})
    changed = prepared.model_copy(update={"data": prepared.data.model_copy(update={"corpora": {"tones": heavier}})})
    assert plan_step(changed, "prepare").state == plan_step(prepared, "prepare").state == "up to date"
    assert STEPS["train"].settings(changed) != STEPS["train"].settings(prepared)
    assert "corpus_temperature" not in STEPS["train"].settings(prepared)["train"]
