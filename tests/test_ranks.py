"""Laws of many processes, over gloo: N of them are one with `accumulate: N`, nothing hangs, and to resume is exact."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from smoe_cli.config import Config
from smoe_cli.errors import CheckpointError, ConfigError
from smoe_cli.layout import Layout
from smoe_cli.training import ranks
from smoe_cli.training.ranks import Ranks
from tests.ranks_worker import CALM
from tests.test_stops import told
from tests.test_training import assert_bit_identical, prepared, trainer, weights

__all__ = ["prepared"]
ROOT = Path(__file__).parents[1]
LIMIT_S = 300
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def free_port() -> int:
    """A port that is free, and that nobody is given who asks for any: those of Linux begin at 32768."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    pytest.fail("of a hundred ports none is free")


def start(config: Config, folder: Path, processes: int, *scenarios: str) -> list[subprocess.Popen[str]]:
    """Processes that know each other as torchrun would let them."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config.model_dump_json())
    port = free_port()
    common = os.environ | {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.ranks_worker", ",".join(scenarios), str(folder / "config.json"), str(folder)]
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"errors-{rank}.txt").open("w"),
        )
        for rank in range(processes)
    ]


def finish(started: list[subprocess.Popen[str]], folder: Path) -> list[int]:
    """Exit codes; no process outlives the limit."""
    deadline = time.monotonic() + LIMIT_S
    try:
        return [process.wait(max(1.0, deadline - time.monotonic())) for process in started]
    except subprocess.TimeoutExpired:
        pytest.fail("a process hangs: " + "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("errors-*.txt"))))
    finally:
        for process in started:
            process.kill()


def together(config: Config, folder: Path, processes: int, *scenarios: str) -> list[dict[str, Any]]:
    """What the processes say after these scenarios, one after the other."""
    codes = finish(start(config, folder, processes, *scenarios), folder)
    assert codes == [0] * processes, "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("errors-*.txt")))
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def two(prepared, tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """Two processes, and all that happens to them."""
    folder = tmp_path_factory.mktemp("two")
    return folder, together(prepared, folder, 2, "whole", "stopped", "reviewed", "memory", "starts", "nan", "gradients", "uneven", "other")


def learned(name: str, value: torch.Tensor) -> torch.Tensor:
    """A weight without the bias of attention's keys: that changes no attention, so its gradient is rounding, which AdamW makes large."""
    if name.endswith("in_proj.bias"):
        query, _, values = value.chunk(3)
        return torch.cat([query, values])
    return value.chunk(2)[1] if name.endswith("kv_proj.bias") else value


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        found, wanted = learned(name, value), learned(name, other[name])
        torch.testing.assert_close(found, wanted, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def test_two_processes_are_one_that_accumulates_two_batches_expert_by_expert(prepared, tmp_path, two):
    folder, said = two
    report = trainer(prepared, tmp_path, accumulate=2, threads=1).run()
    assert_bit_identical(weights(folder / "whole"), weights(tmp_path))
    for one in said:
        assert one["whole"]["validation"] == pytest.approx(report.validation, rel=1e-5)
        assert one["whole"]["experts"] == str(report.experts)
    assert said[0]["whole"] == said[1]["whole"], "every process has the same weights and results, to the last bit"


def test_idle_experts_of_many_processes_are_bit_identical_after_a_step(prepared, two):
    _, said = two
    assert [one["whole"]["exact"] for one in said] == [[True] * prepared.train.max_steps] * 2


def test_a_signal_to_one_process_stops_all_and_to_resume_is_exact(two):
    folder, said = two
    for one in said:
        assert "after step 3 of 8" in one["stopped"]["said"]
        assert one["stopped"]["resumed_from"] == 3
        assert one["stopped"]["validation"] == one["whole"]["validation"]
    assert_bit_identical(weights(folder / "whole"), weights(folder / "parts"))


@pytest.mark.parametrize("shard", ["False", "True"])
def test_a_signal_to_one_process_in_a_review_stops_all_and_to_resume_is_exact(two, shard):
    folder, said = two
    for rank, one in enumerate(said):
        found = one["reviewed"][shard]
        assert all("stopped after step 4 of 4" in found["said"][number] for number in (1, 2))
        assert found["said"][3] == found["said"][0]
        of_all, in_validation, _, again = found["batches"]
        assert 2 <= in_validation <= of_all / 2 and again == of_all
        if rank == 0:
            of_all, in_validation, in_samples, again = found["decoded"]
            # The answer of the process that is told may be under way already: one batch more at most.
            assert in_validation == 0 and in_samples <= 2 < of_all == again
    whole, parts = (folder / f"reviewed-{shard}" / name for name in ("whole", "parts"))
    assert_bit_identical(weights(whole), weights(parts))
    assert told(whole) == told(parts)


def test_one_process_out_of_memory_takes_its_batch_in_parts_and_the_step_is_the_same(prepared, tmp_path, two):
    folder, said = two
    calm = prepared.model_copy(update={"model": prepared.model.model_copy(update={"dropout": 0.0})})
    trainer(calm, tmp_path, accumulate=2, max_steps=4, **CALM).run()
    assert_close(weights(folder / "memory"), weights(tmp_path))
    assert said[0]["memory"] == said[1]["memory"]


def test_processes_stop_together_in_the_search_of_a_batch_and_start_again_with_what_they_had_found(two):
    _, said = two
    for one in said:
        assert "nothing has been trained yet" in one["starts"]["said"]
        assert one["starts"]["first"] == one["starts"]["second"]
    assert said[0]["starts"] == said[1]["starts"]


def test_a_loss_that_is_no_number_on_one_process_stops_all_and_names_its_cuts(two):
    folder, said = two
    assert all("the loss became nan at step 1" in one["nan"]["said"] for one in said)
    assert (folder / "nan" / "failed-batch.txt").read_text().split() == said[1]["nan"]["cuts"]


@pytest.mark.parametrize("shard", ["False", "True"])
def test_a_gradient_that_is_no_number_on_one_process_stops_all_before_it_reaches_any_weight(two, shard):
    folder, said = two
    for one in said:
        found = one["gradients"][shard]
        assert "the gradients became nan under a loss of" in found["said"] and "at step 1" in found["said"]
        assert found["untouched"] and not found["own"], "all say the same, so that one is enough"
    # In shards nobody can tell whose it was: the cuts of all are named.
    guilty = said if shard == "True" else said[1:]
    wanted = [cut for one in guilty for cut in one["gradients"][shard]["cuts"]]
    assert (folder / f"gradients-{shard}" / "failed-batch.txt").read_text().split() == wanted


def test_a_route_with_fewer_cuts_than_processes_hangs_none(prepared, two):
    folder, said = two
    assert said[0]["uneven"] == said[1]["uneven"]
    assert said[0]["uneven"]["steps"] == prepared.train.max_steps
    assert len((folder / "uneven" / "metrics.jsonl").read_text().splitlines()) == 3, "one process writes"


def test_processes_of_different_recipes_are_refused(two):
    assert all(one["other"] == "process 1 of 2 has a recipe other than process 0" for one in two[1])


def test_another_number_of_processes_goes_on_only_with_the_same_batches(prepared, tmp_path, two):
    folder, _ = two
    with pytest.raises(CheckpointError, match=r"(?s)by 2 process.*set `train.accumulate` to 2, or start as many"):
        trainer(prepared, folder / "parts").run()
    assert trainer(prepared, folder / "parts", accumulate=2, max_steps=9).run().resumed_from == 8


def test_four_processes_are_one_that_accumulates_four_batches(prepared, tmp_path):
    said = together(prepared, tmp_path, 4, "whole")
    trainer(prepared, tmp_path / "one", accumulate=4).run()
    assert_close(weights(tmp_path / "whole"), weights(tmp_path / "one"))
    assert all(one == said[0] for one in said)


def test_a_process_that_dies_ends_the_others_with_a_message(prepared, tmp_path):
    started = start(prepared, tmp_path, 2, "death")
    codes = finish(started, tmp_path)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, -signal.SIGKILL)
    assert "process 0 of 2 lost another one" in (tmp_path / "errors-0.txt").read_text()


def test_who_leaves_ends_the_threads_that_talk_to_the_others_first(two):
    """One that is left when the interpreter ends may abort the process after all work is done."""
    folder, _ = two
    for rank in range(2):
        left = (folder / f"threads-{rank}.txt").read_text().split()
        assert left and not [name for name in left if "gloo" in name or "store" in name], left


def test_torchrun_is_stopped_by_a_signal_and_goes_on(prepared, tmp_path, two):
    layout = Layout.of(prepared)
    exp = tmp_path / "exp"
    exp.mkdir()
    for name in ("cuts", "tokenizer"):
        (exp / name).symlink_to(layout.root / name)
    tree = json.loads(prepared.model_copy(update={"exp_dir": exp}).model_dump_json())
    (tmp_path / "smoe.yaml").write_text(yaml.safe_dump(tree))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "smoe_cli",
        "train",
        "--config",
    ]
    command += [str(tmp_path / "smoe.yaml"), "--set"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [*command, "train.max_steps=4000"], env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + LIMIT_S
    while not list(exp.glob("model/checkpoints/step-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=LIMIT_S)
    assert errors.count("the state is saved") == 1, errors
    assert process.returncode == 1 and "SignalException: Process" in errors, "torchrun's own end, as `many-processes.md` has it"
    step = max(int(path.name.removeprefix("step-")) for path in exp.glob("model/checkpoints/step-*"))
    done = subprocess.run([*command, f"train.max_steps={step + 2}"], env=environment, text=True, capture_output=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"resumed from step {step}") == 1, "one process reports"


def test_one_process_says_nothing_to_anybody():
    alone = Ranks()
    assert (alone.gather(1, 2), alone.total(3), alone.collect("a"), alone.from_first(lambda: 5)) == ([[1, 2]], [3], ["a"], 5)
    alone.same("nothing", lambda: pytest.fail("nobody to compare with"), "")
    alone.wait()


def test_a_launcher_that_leaves_something_out_is_told_what(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ranks.NEEDED:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="lacks RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        ranks.join.__wrapped__()
