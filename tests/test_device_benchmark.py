"""The benchmark of exported models compares what it says it compares."""

from __future__ import annotations

import json
import subprocess
import sys

from smoe_cli.layout import Layout
from tests.test_house import ROOT
from tests.test_training import prepared, trainer

__all__ = ["prepared"]


def test_float32_graphs_write_what_torch_writes(prepared, tmp_path):
    trainer(prepared, tmp_path, max_steps=2).run()
    words = ["--task", "transcribe", "--lang", "en", "--bandwidth", "wb", "--utterances", "3", "--json"]
    command = [sys.executable, ROOT / "benchmarks" / "device.py", tmp_path / "final", Layout.of(prepared).cuts("test"), *words]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert (found["utterances"], found["route"], found["metric"]) == (3, "transcribe/en/wb", "WER")
    torch, float32, int8 = found["rows"]
    assert [torch["equal"], float32["equal"]] == [3, 3] and torch["score"] == float32["score"]
    assert int8["mb"] < float32["mb"]
