"""The benchmark beside peers trains what it times, and its tables follow from the times."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from statistics import geometric_mean

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
    assert all(0.3 < row["parameters"] / rows_of(result, "equal")[1]["parameters"] < 3.0 for row in rows_of(result, "equal") if peers)


def test_every_step_has_a_finite_loss_and_moves_the_weights(result):
    for row in result["rows"]:
        assert len(row["losses"]) == len(row["cpu"]) == len(row["wall"]) == 2
        assert all(map(math.isfinite, row["losses"]))
        assert row["losses"][0] != row["losses"][1]
        assert row["moved"] > 0.9
        assert row["memory_mb"] > 1.0
        assert (row["kept_mb"] is None) == ("recomputed" in row["label"])


def test_ratios_follow_from_the_times(result):
    for part in ("equal", "ragged", "defaults"):
        rows = rows_of(result, part)
        peers = [row for row in rows if row["system"] != "ours"]
        if not peers:
            assert all(row["ratio"] is None for row in rows)
            continue
        best = min(peers, key=lambda row: geometric_mean(row["cpu"]))
        leanest_mb = min(row["memory_mb"] for row in peers)
        for row in rows:
            for ratio, times in (("ratio", "cpu"), ("wall_ratio", "wall")):
                wanted = geometric_mean(theirs / own for theirs, own in zip(best[times], row[times], strict=True))
                assert row[ratio] == pytest.approx(wanted)
            assert row["lowest"] <= row["ratio"] <= row["highest"]
            assert row["memory_ratio"] == pytest.approx(row["memory_mb"] / leanest_mb)
        assert best["ratio"] == pytest.approx(1.0)
        frames = 2 * 8 * 1000
        if part != "ragged":
            assert all(row["frames_per_s"] == pytest.approx(frames / sum(row["cpu"])) for row in rows)
    assert 0.0 < result["fill"] < 1.0
    assert [row["gemm_share"] is not None for row in rows_of(result, "equal")][:3] == [True, True, False][: len(rows_of(result, "equal"))]


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
