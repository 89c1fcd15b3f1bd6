"""Laws of what experts are given: every step is counted once in each stack, and an expert that starves is named."""

from __future__ import annotations

import json

import pytest

from smoe_cli.errors import Interrupted
from smoe_cli.routing import RoutingPlan, StackPlan
from smoe_cli.training.shares import Shares
from smoe_cli.watch import Silent
from tests.test_training import prepared, trainer
from tests.test_training_steps import stop_after

__all__ = ["prepared"]
PLAN = RoutingPlan(
    encoder=StackPlan(by=None, experts=("dense",)),
    decoder=StackPlan(by="lang", experts=("en", "de", "fr")),
    routes=("transcribe/en/nb", "transcribe/en/wb", "translate/de/wb", "translate/fr/wb"),
)


class Listener(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def given(steps: dict[str, int]) -> Shares:
    shares = Shares(PLAN)
    for route, count in steps.items():
        for _ in range(count):
            shares.note({route: 100}, {route: 7})
    return shares


def test_an_expert_has_what_its_routes_had_and_a_stack_that_does_not_choose_is_left_out():
    found = given({"transcribe/en/nb": 3, "transcribe/en/wb": 2, "translate/de/wb": 5}).experts()
    assert {name: (share.updates, share.frames, share.tokens, share.share) for name, share in found.items()} == {
        "decoder.en": (5, 500, 35, 0.5),
        "decoder.de": (5, 500, 35, 0.5),
        "decoder.fr": (0, 0, 0, 0.0),
    }


def test_an_expert_starves_below_a_fifth_of_an_even_share_since_the_last_review():
    shares = given({"transcribe/en/nb": 55, "translate/de/wb": 30, "translate/fr/wb": 5})
    # 90 steps, three experts: 30 would be even, and a fifth of that is 6.
    assert shares.judged(shares.recent()) == {"decoder.fr": "5 updates, where an even share would be 30"}
    for _ in range(2):
        shares.note({"translate/fr/wb": 100}, {"translate/fr/wb": 1})
    assert shares.judged(shares.recent()) == {}
    shares.review()
    assert not any(map(any, shares.recent().values())) and shares.recent_steps() == 0


def test_an_expert_of_many_updates_with_little_audio_each_starves_too():
    shares = given({"transcribe/en/nb": 20, "translate/de/wb": 20})
    for _ in range(20):
        shares.note({"translate/fr/wb": 10}, {"translate/fr/wb": 7})
    assert shares.judged(shares.recent()) == {"decoder.fr": "200 frames, where an even share would be 1,400"}


def test_nobody_is_judged_by_fewer_updates_than_ten_of_an_even_share():
    shares = given({"transcribe/en/nb": 29})
    assert not shares.enough(shares.recent(), "decoder.fr") and not shares.judged(shares.recent())
    shares.note({"transcribe/en/nb": 100}, {"transcribe/en/nb": 7})
    assert shares.enough(shares.recent(), "decoder.fr") and shares.judged(shares.recent()).keys() == {"decoder.de", "decoder.fr"}
    shares.review()
    assert not shares.enough(shares.recent(), "decoder.fr") and not shares.judged(shares.recent())


def test_a_stack_that_has_had_too_little_to_be_judged_keeps_no_other_from_it():
    amounts = {"encoder.nb": (3, 300), "encoder.wb": (900, 90_000), "decoder.de": (18, 1_800), "decoder.fr": (0, 0)}
    assert Shares(PLAN).judged(amounts).keys() == {"encoder.nb"}


def test_an_expert_that_is_frozen_has_no_updates_and_neither_starves_nor_makes_others_starve():
    steps = {"transcribe/en/nb": 900, "translate/de/wb": 30, "translate/fr/wb": 5}
    shares = Shares(PLAN, {"decoder.en"})
    shares.restore(given(steps).state())
    experts = shares.experts()
    assert {name: (share.updates, share.share > 0, share.frozen) for name, share in experts.items()} == {
        "decoder.en": (0, False, True),
        "decoder.de": (30, True, False),
        "decoder.fr": (5, True, False),
    }
    assert experts["decoder.en"].frames == 90_000
    assert shares.judged(shares.recent()) == {} and given(steps).judged(given(steps).recent()).keys() == {"decoder.de", "decoder.fr"}
    alone = Shares(PLAN, {"decoder.en", "decoder.de"})
    alone.restore(given(steps).state())
    assert alone.judged(alone.recent()) == {}, "nobody to be compared with"


def test_a_step_of_several_routes_is_one_update_of_each_of_their_experts():
    shares = Shares(PLAN)
    shares.note({"transcribe/en/nb": 30, "transcribe/en/wb": 40, "translate/de/wb": 50}, {"transcribe/en/nb": 1, "translate/de/wb": 2})
    shares.note({"translate/de/wb": 5}, {"translate/de/wb": 1})
    assert shares.by_route() == {"transcribe/en/nb": 1, "transcribe/en/wb": 1, "translate/de/wb": 2, "translate/fr/wb": 0}
    assert {name: (share.updates, share.frames, share.tokens) for name, share in shares.experts().items()} == {
        "decoder.en": (1, 70, 1),
        "decoder.de": (2, 55, 3),
        "decoder.fr": (0, 0, 0),
    }
    other = Shares(PLAN)
    other.restore(json.loads(json.dumps(shares.state())))
    assert other.experts() == shares.experts()


def test_counts_survive_a_checkpoint():
    shares = given({"transcribe/en/nb": 3, "translate/de/wb": 5})
    shares.review()
    shares.note({"translate/fr/wb": 4}, {"translate/fr/wb": 2})
    other = Shares(PLAN)
    other.restore(json.loads(json.dumps(shares.state())))
    assert (other.experts(), other.recent()) == (shares.experts(), shares.recent())


def test_a_run_counts_every_step_once_in_each_stack_also_across_a_stop(prepared, tmp_path):
    whole, stopped = trainer(prepared, tmp_path / "whole").run(), trainer(prepared, tmp_path / "parts")
    stop_after(stopped, 3)
    with pytest.raises(Interrupted):
        stopped.run()
    parts = trainer(prepared, tmp_path / "parts").run()
    assert parts.experts == whole.experts
    for stack in ("encoder", "decoder"):
        assert sum(share.updates for name, share in whole.experts.items() if name.startswith(stack)) == 8
    assert all(share.frames > 0 and share.tokens > 0 for share in whole.experts.values())
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["experts"] == {name: share.model_dump() for name, share in whole.experts.items()}


def test_an_expert_that_starves_is_named_when_it_begins_and_at_the_end(prepared, tmp_path):
    run = trainer(prepared, tmp_path, route_weights={"translate": 1e-6}, max_steps=28)
    run.watcher = Listener()
    report = run.run()
    said = [line for line in run.watcher.lines if "starves" in line]
    assert (
        len(said) == 1 and "`decoder.translate` starves: in the last 20 steps it had 0 updates, where an even share would be 10;" in said[0]
    )
    assert report.starved == ["decoder.translate"]
    lines = [json.loads(line)["starving"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [[]] * 4 + [["decoder.translate"]] * 3


@pytest.mark.parametrize(
    ("freeze", "still"), [("encoder.nb", {"encoder.nb"}), ("encoder", {"encoder.nb", "encoder.wb"}), ("encoder.layers.0.*", set())]
)
def test_a_frozen_expert_counts_no_updates_in_a_run(prepared, tmp_path, freeze, still):
    run = trainer(prepared, tmp_path, freeze=[freeze], max_steps=24)
    run.watcher = Listener()
    report = run.run()
    assert {name for name, share in report.experts.items() if share.frozen} == still
    assert {name for name, share in report.experts.items() if not share.updates} == still
    assert report.starved == [] and not any("starves" in line for line in run.watcher.lines)
