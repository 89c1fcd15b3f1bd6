"""The benchmark beside peers trains what it times, and its tables follow from the times."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from types import SimpleNamespace

import pytest

from tests.test_house import ROOT

SCRIPT, OURS = ROOT / "benchmarks" / "peers.py", ["S-MoE", "S-MoE, no CTC head"]


def run_script(*words):
    environment = {name: value for name, value in os.environ.items() if name != "SMOE_DATA"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, SCRIPT, "--scale", "tiny", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    table = tmp_path_factory.mktemp("table") / "lengths.tsv"
    table.write_text("id\tduration\n" + "".join(f"{number}\t{number / 4}\n" for number in range(4, 20)))
    return json.loads(run_script("--rounds", 2, "--durations", table, "--json"))


def rows_of(result, part):
    return [row for row in result["rows"] if row["part"] == part]


def test_every_system_that_is_installed_is_in_every_part(result):
    peers = [
        name for name in ("transformers", "speechbrain", "speechbrain-lean", "espnet", "espnet-lean") if name not in result["left_out"]
    ]
    assert [row["label"] for row in rows_of(result, "equal")] == [*OURS, *peers, "S-MoE, no CTC head, layers recomputed"]
    assert [row["label"] for row in rows_of(result, "ragged")] == OURS + peers
    assert [row["label"] for row in rows_of(result, "defaults")] == [*OURS, "S-MoE, loss_chunk 1024", *peers]
    assert all("pip install" in why for why in result["left_out"].values())
    assert all(0.3 < row["parameters"] / rows_of(result, "equal")[1]["parameters"] < 3.0 for row in rows_of(result, "equal"))


def test_every_step_has_a_finite_loss_and_moves_the_weights(result):
    for row in result["rows"]:
        assert len(row["losses"]) == len(row["cpu"]) == len(row["wall"]) == 2
        assert all(map(math.isfinite, row["losses"]))
        assert row["losses"][0] != row["losses"][1]
        assert row["moved"] > 0.9
        assert row["memory_mb"] > 1.0
        assert (row["kept_mb"] is None) == ("recomputed" in row["label"])


def test_speeds_follow_from_the_times(result):
    for part in ("equal", "defaults"):
        frames = 2 * 8 * 1000
        assert all(row["frames_per_s"] == pytest.approx(frames / sum(row["cpu"])) for row in rows_of(result, part))
    assert 0.0 < result["fill"] < 1.0
    of_parts = {row["label"]: row["gemm_share"] is not None for row in rows_of(result, "equal")}
    assert {label for label, given in of_parts.items() if given} == set(OURS)


# --- beside peers, installed or not ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def peers():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        yield import_module("peers")
    finally:
        sys.path.remove(str(SCRIPT.parent))


def answering(peers, system, label, cpu, memory_mb, **options):
    """A worker that has answered: wall seconds are twice the CPU's, and a fixed rate of matrix products."""
    answers = [
        {"cpu": seconds, "wall": 2 * seconds, "memory_mb": memory_mb + number, "kept_mb": 1.0, "loss": 3.0, "moved": 0.95, "rate": 1e9}
        for number, seconds in enumerate(cpu)
    ]
    return SimpleNamespace(variant=peers.Variant(system, label, "fp32", "highest", **options), ready={"parameters": 7}, answers=answers)


def compared(peers, *workers):
    shapes = [peers.Shape([100, 60], [4, 3], 0), peers.Shape([80, 80], [4, 4], 1)]
    return {row.label: row for row in peers.compare("equal", workers, shapes, "tiny")}


def test_ratios_are_of_the_best_peer_round_by_round(peers):
    rows = compared(
        peers,
        answering(peers, "ours", "S-MoE", [1.0, 2.0], 50.0),
        # The best by CPU time: sqrt(2 * 8) = 4, where the other one's is sqrt(5 * 5).
        answering(peers, "transformers", "transformers", [2.0, 8.0], 99.0),
        answering(peers, "espnet", "espnet", [5.0, 5.0], 79.0),
    )
    assert rows["S-MoE"].ratio == pytest.approx(math.sqrt(2.0 * 4.0)) == pytest.approx(rows["S-MoE"].wall_ratio)
    assert rows["transformers"].ratio == pytest.approx(1.0)
    assert rows["espnet"].ratio == pytest.approx(math.sqrt(0.4 * 1.6))
    assert 2.0 <= rows["S-MoE"].lowest <= rows["S-MoE"].ratio <= rows["S-MoE"].highest <= 4.0
    # Most of both rounds, beside the leanest peer's, which is not the fastest.
    assert [rows[name].memory_ratio for name in ("S-MoE", "transformers", "espnet")] == pytest.approx([51 / 80, 100 / 80, 1.0])
    assert (rows["S-MoE"].frames_per_s, rows["S-MoE"].wall_frames_per_s) == (pytest.approx(320 / 3), pytest.approx(320 / 6))
    assert rows["S-MoE"].gemm_share is None


def test_without_a_peer_there_is_no_ratio_and_with_matrix_products_a_share_of_their_rate(peers):
    rows = compared(
        peers,
        answering(peers, "ours", "S-MoE", [1.0, 4.0], 50.0),
        answering(peers, "ours", peers.RECOMPUTED, [1.0, 4.0], 50.0, ctc=False, recompute=True),
        answering(peers, peers.GEMM, peers.GEMM, [1.0, 1.0], 50.0),
    )
    assert rows.keys() == {"S-MoE", peers.RECOMPUTED}
    assert all((row.ratio, row.lowest, row.highest, row.wall_ratio, row.memory_ratio) == (None,) * 5 for row in rows.values())
    flops = peers.training_flops(peers.Dimensions(**peers.SCALES["tiny"], ctc=True))
    assert rows["S-MoE"].gemm_share == pytest.approx(flops / 2.0 / 1e9)
    assert rows[peers.RECOMPUTED].gemm_share is None


def test_what_is_aimed_at_is_judged_by_ratio_and_memory(peers):
    rows = compared(
        peers,
        answering(peers, "ours", peers.ALONE, [1.0, 1.0], 50.0, ctc=False),
        answering(peers, "transformers", "transformers", [1.2, 1.2], 69.0),
    )
    said = peers.verdicts({"rows": [asdict(row) for row in rows.values()], "dtype": "bf16"})
    assert any("speed / best peer's: 1.20; aim: at least 1.15: reached" in line for line in said)
    assert any("leanest peer's: 0.73; aim: at most 0.7: MISSED" in line for line in said)


def test_what_cannot_be_measured_is_named_and_left_out():
    said = run_script("--peers", "--parts", "ragged")
    assert "- ragged is left out: no table with durations: name one with --durations, or set SMOE_DATA" in said.splitlines()


def test_the_profile_of_a_step_accounts_for_all_of_it():
    script = SCRIPT.with_name("step_profile.py")
    command = [sys.executable, script, "--scale", "tiny", "--json"]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    assert {"matrix products", "attention", "convolutions", "loss over the vocabulary", "AdamW and clipping"} <= found["shares"].keys()
    assert all(share > 0 for share in found["shares"].values())
