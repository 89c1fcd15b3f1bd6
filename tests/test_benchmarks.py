"""The benchmark scripts run, and say what their pages quote."""

import json
import os
import subprocess
import sys

from tests.test_house import ROOT


def test_the_routing_benchmark_measures_every_variant():
    words = ["--scale", "tiny", "--experts", "2", "9", "--rounds", "1", "--json"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "routing.py", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert {"machine", "precision", "scale", "rounds", "load_before", "load_after", "peak_memory_gb", "rows"} == result.keys()
    works = ["decoding, beam 1", "decoding, beam 5", "training step", "training step"]
    assert [row["work"] for row in result["rows"]] == works * 2
    assert [(row["experts"], row["batch"], row["routes"]) for row in result["rows"] if row["work"] == "training step"] == [
        (2, "single-route", 1),
        (2, "mixed", 2),
        (9, "single-route", 1),
        (9, "mixed", 8),
    ]
    assert all(row["ratio"] > 0 and row["lowest"] <= row["ratio"] <= row["highest"] for row in result["rows"])


def test_the_benchmark_of_the_loss_finds_the_same_loss_in_chunks():
    words = ["--rows", "0", "64", "--utterances", "2", "--pieces", "500", "--width", "16", "--rounds", "1", "--json"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "softmax.py", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
    )
    whole, chunks = json.loads(done.stdout)["variants"]
    assert (whole["rows"], chunks["rows"]) == (0, 64)
    assert abs(whole["loss"] - chunks["loss"]) < 1e-5
