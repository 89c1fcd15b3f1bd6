"""Laws of weights in shards, over gloo: the training is that of whole weights, a process holds its part, and nothing hangs."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from smoe_cli.checkpoint import load
from smoe_cli.cuts import read_cuts
from smoe_cli.errors import ConfigError
from smoe_cli.layout import Layout
from smoe_cli.recipe import parse_config
from smoe_cli.tokenizer import open_tokenizer
from smoe_cli.training import Trainer
from smoe_cli.watch import Silent
from tests.conftest import tiny_config
from tests.ranks_worker import KINDS
from tests.test_ranks import assert_close, finish, learned, start, together
from tests.test_training import assert_bit_identical, prepared, trainer, weights

__all__ = ["prepared"]


@pytest.fixture(scope="module")
def two(prepared, tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """Two processes with weights in shards, and all that happens to them."""
    folder = tmp_path_factory.mktemp("two")
    return folder, together(prepared, folder, 2, "sharded", "kinds")


def test_two_processes_in_shards_are_one_that_accumulates_two_batches_expert_by_expert(prepared, tmp_path, two):
    folder, said = two
    report = trainer(prepared, tmp_path, accumulate=2).run()
    assert_close(weights(folder / "sharded"), weights(tmp_path))
    for one in said:
        assert one["sharded"]["validation"] == pytest.approx(report.validation, rel=1e-5)
        assert one["sharded"]["parameters"] == report.parameters
        assert one["sharded"]["digest"] == said[0]["sharded"]["digest"]


def test_three_processes_that_divide_no_weight_evenly_are_one_that_accumulates_three(prepared, tmp_path):
    said = together(prepared, tmp_path, 3, "sharded")
    trainer(prepared, tmp_path / "one", accumulate=3).run()
    assert_close(weights(tmp_path / "sharded"), weights(tmp_path / "one"))
    assert sum(one["sharded"]["share"] for one in said) == pytest.approx(1, abs=0.01)


def test_idle_experts_in_shards_keep_weights_and_optimiser_state_bit_for_bit(prepared, two):
    assert [one["sharded"]["exact"] for one in two[1]] == [[True] * prepared.train.max_steps] * 2


def test_each_of_two_processes_holds_half_of_the_weights_and_of_the_optimiser_state(two):
    assert [one["sharded"]["share"] for one in two[1]] == pytest.approx([0.5, 0.5], abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_mean_the_same_in_shards(two, kind):
    folder, said = two
    one, other = weights(folder / f"{kind}-True"), weights(folder / f"{kind}-False")
    if kind == "bf16":
        for name, value in one.items():
            torch.testing.assert_close(learned(name, value), learned(name, other[name]), rtol=0.05, atol=0.01)
    else:
        assert_close(one, other)
    for process in said:
        found, wanted = process["kinds"][f"{kind} True"], process["kinds"][f"{kind} False"]
        assert found["validation"] == pytest.approx(wanted["validation"], rel=1e-2 if kind == "bf16" else 1e-5)
        assert found["precision"].split(",")[0] == wanted["precision"].split(",")[0] == f"precision {'bf16' if kind == 'bf16' else 'fp32'}"


def test_what_is_frozen_stays_and_samples_are_those_of_whole_weights(two):
    folder, _ = two
    samples = [
        [json.loads(line) for line in (folder / f"much-{shard}" / "samples.jsonl").read_text().splitlines()] for shard in (False, True)
    ]
    assert samples[0] == samples[1] != []


def test_to_resume_in_shards_is_exact_and_shards_may_come_and_go(prepared, tmp_path, two):
    said = together(prepared, tmp_path, 2, "sharded_parts")
    assert [one["sharded_parts"] for one in said] == [[3, 0.5, None, None, None, 6]] * 2
    assert_bit_identical(weights(tmp_path / "sharded-whole"), weights(tmp_path / "sharded-parts"))
    assert_close(weights(tmp_path / "mixed"), weights(two[0] / "sharded"))


def test_a_checkpoint_in_shards_is_a_checkpoint_like_any_other(prepared, tmp_path, two):
    folder, _ = two
    newest = max((folder / "sharded" / "checkpoints").iterdir())
    trainer(prepared, tmp_path, accumulate=2).run()
    files = sorted(path.name for path in newest.iterdir())
    assert files == sorted(path.name for path in max((tmp_path / "checkpoints").iterdir()).iterdir())
    assert_bit_identical(load(newest).model.state_dict(), weights(folder / "sharded"))


def test_who_leaves_in_shards_ends_the_threads_that_talk_to_the_others_first(two):
    folder, _ = two
    for rank in range(2):
        left = (folder / f"threads-{rank}.txt").read_text().split()
        assert left and not [name for name in left if "gloo" in name or "store" in name], left


def test_memory_that_is_used_up_in_shards_ends_all_with_the_cure(prepared, tmp_path):
    codes = finish(start(prepared, tmp_path, 2, "sharded_memory"), tmp_path)
    assert 0 not in codes
    errors = [(tmp_path / f"errors-{rank}.txt").read_text() for rank in range(2)]
    assert "with `train.shard` no process can take its batch in parts" in errors[1]
    assert "process 0 of 2 lost another one" in errors[0]


def test_a_process_that_dies_while_weights_are_gathered_ends_the_others_with_a_message(prepared, tmp_path):
    codes = finish(start(prepared, tmp_path, 2, "sharded_death"), tmp_path)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, -signal.SIGKILL)
    assert "process 0 of 2 lost another one" in (tmp_path / "errors-0.txt").read_text()


def test_one_process_holds_everything_and_says_so(prepared, tmp_path):
    said: list[str] = []
    watcher = Silent()
    watcher.log = said.append  # type: ignore[method-assign]
    layout = Layout.of(prepared)
    config = prepared.model_copy(update={"train": prepared.train.model_copy(update={"shard": True, "max_steps": 2})})
    cuts = read_cuts(layout.cuts("train")), read_cuts(layout.cuts("dev"))
    Trainer(config, tmp_path / "one", *cuts, open_tokenizer(layout.tokenizer), watcher).run()
    assert "`train.shard`: a single process has nobody to share the weights with, and holds all of them" in said
    trainer(prepared, tmp_path / "other", max_steps=2).run()
    assert_bit_identical(weights(tmp_path / "one"), weights(tmp_path / "other"))


@pytest.mark.parametrize("other", [{"batch_s": "auto"}, {"compile": True}])
def test_what_does_not_go_with_shards_is_refused_by_name(tmp_path, other):
    tree = json.loads(tiny_config(tmp_path).model_dump_json())
    tree["train"] |= {"shard": True, **other}
    with pytest.raises(ConfigError, match=rf"train.*shard goes with no .*{next(iter(other))}"):
        parse_config(tree, "smoe.yaml")
