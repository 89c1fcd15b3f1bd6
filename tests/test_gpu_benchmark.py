"""The benchmark for a GPU runs without one when told to, its numbers follow from the seconds, and it refuses what it cannot measure."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from statistics import median

import pytest
import torch

from tests.test_house import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"
PEAK_TFLOPS = 0.5


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        yield import_module("gpu")
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def result():
    words = ["--device", "cpu", "--scale", "tiny", "--utterances", 1, 2, "--rounds", 3, "--warmup", 1, "--peak-tflops", PEAK_TFLOPS]
    command = [sys.executable, SCRIPT, *map(str, words), "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_every_system_trains_on_batches_of_every_size(result, gpu):
    labels = [variant.label for variant in gpu.VARIANTS if variant.label not in result["left_out"]]
    assert [(row["utterances"], row["label"]) for row in result["rows"]] == [(size, label) for size in (1, 2) for label in labels]
    for row in result["rows"]:
        assert len(row["seconds"]) == len(row["losses"]) == 3
        assert all(map(math.isfinite, row["losses"]))
        # Of two experts in every layer the one that runs learns.
        assert row["moved"] > (0.4 if row["label"] == gpu.ROUTED else 0.9)
        assert row["moved"] < 0.9 or row["label"] != gpu.ROUTED


def test_numbers_follow_from_the_seconds(result, gpu):
    assert result["peak"] == {"tflops": PEAK_TFLOPS, "source": "given"}
    peers = {row["utterances"]: median(row["seconds"]) for row in result["rows"] if row["label"] == gpu.PEER}
    for row in result["rows"]:
        seconds = median(row["seconds"])
        assert row["frames_per_s"] == pytest.approx(1000 * row["utterances"] / seconds)
        assert row["mfu"] == pytest.approx(row["flops"] / seconds / (PEAK_TFLOPS * 1e12))
        assert (row["ratio"] is None) == (not peers)
        assert row["ratio"] is None or row["ratio"] == pytest.approx(peers[row["utterances"]] / seconds)


def test_work_is_counted_per_utterance_once_for_each_layer_and_more_with_a_ctc_head(result, gpu):
    flops = {(row["label"], row["utterances"]): row["flops"] for row in result["rows"]}
    assert flops["S-MoE", 2] == 2 * flops["S-MoE", 1] > 2 * flops[gpu.ALONE, 1]
    assert all(count == flops[gpu.ALONE, size] for (label, size), count in flops.items() if label != "S-MoE")
    # The 654 GFLOP of docs/benchmarks.md, for eight utterances.
    for variant in gpu.VARIANTS[1:]:
        assert gpu.training_flops(gpu.dims_of(variant, "paper"), 64) == pytest.approx(8 * 654e9, rel=1e-3)


def test_a_peak_that_is_not_given_is_measured(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "GEMM_SHAPES", ((8, 16, 8),))
    found = gpu.peak_of(torch.device("cpu"), None)
    assert found["source"] == "measured" and 0 < found["tflops"] < 100


def row_of(gpu, label, seconds, mfu, utterances=64):
    return gpu.Row(label, utterances, 1, seconds, 1.0, 1.0, mfu, 1.0, None, [1.0], 1.0)


def judged(gpu, *rows, name="a GPU", scale="paper"):
    return gpu.verdicts({"gpu": name, "scale": scale, "rows": [asdict(row) for row in gpu.beside_peer(rows)]})


def test_aims_are_judged_beside_transformers_on_the_same_batch(gpu):
    rows = [
        row_of(gpu, "S-MoE", [1.0], 0.45),
        row_of(gpu, gpu.ALONE, [1.0, 9.0, 1.0], 0.449),
        row_of(gpu, gpu.PEER, [2.0, 2.0, 7.0], 0.2),
        row_of(gpu, gpu.PEER, [1.9], 0.2, 128),
        row_of(gpu, gpu.ALONE, [1.0], 0.5, 128),
        row_of(gpu, gpu.ROUTED, [1.0], 0.5, 256),
    ]
    assert judged(gpu, *rows) == [
        "S-MoE, 64 utterances, MFU: 0.450; aim: at least 0.45: reached",
        f"{gpu.ALONE}, 64 utterances, MFU: 0.449; aim: at least 0.45: MISSED",
        f"{gpu.ALONE}, 64 utterances, speed / transformers': 2.000; aim: at least 2: reached",
        f"{gpu.ALONE}, 128 utterances, MFU: 0.500; aim: at least 0.45: reached",
        f"{gpu.ALONE}, 128 utterances, speed / transformers': 1.900; aim: at least 2: MISSED",
        f"{gpu.ROUTED}, 256 utterances, MFU: 0.500; aim: at least 0.45: reached",
        f"{gpu.ROUTED}, 256 utterances, speed / transformers': not measured",
    ]


@pytest.mark.parametrize("where", [{"name": None}, {"scale": "tiny"}])
def test_nothing_is_judged_elsewhere_than_on_a_gpu_at_paper_scale(gpu, where):
    (said,) = judged(gpu, row_of(gpu, "S-MoE", [1.0], 0.9), **where)
    assert said.startswith("nothing is judged")


def test_a_system_that_memory_does_not_suffice_for_is_left_out_by_name(gpu, monkeypatch):
    def measure(variant, scale, device, utterances, *rest):
        if utterances == 512 and variant.label == gpu.PEER:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return row_of(gpu, variant.label, [1.0], 0.5, utterances)

    monkeypatch.setattr(gpu, "measure", measure)
    found = gpu.run("tiny", torch.device("cpu"), [512, 64], 1, 1, False, 1.0, lambda message: None)
    assert list(found["left_out"]) == ["transformers at 512 utterances"]
    assert "transformers at 512 utterances is left out: memory does not suffice" in gpu.markdown(found)
    assert {row["utterances"]: row["ratio"] for row in found["rows"] if row["label"] == gpu.ALONE} == {512: None, 64: 1.0}


@pytest.mark.parametrize(("device", "said"), [("cuda", "finds 0 CUDA devices"), ("cuda:7", "finds 0 CUDA devices"), ("tpu", "known: cuda")])
def test_without_the_device_it_says_what_to_do(gpu, monkeypatch, capsys, device, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--device", device])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert f"`{device}`" in told.err and said in told.err and "hint: " in told.err


def test_the_gpu_is_the_default(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu --scale tiny" in capsys.readouterr().err
