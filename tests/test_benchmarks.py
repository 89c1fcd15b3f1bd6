"""The benchmark scripts run, and say what their pages quote."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import soundfile

from smoe_cli.audio import listen
from tests.test_bandwidth import speech
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
        (2, "mixed", 2),
        (2, "single-route", 1),
        (9, "mixed", 8),
        (9, "single-route", 1),
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


def script(name: str, *words: str, **env: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *words, "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_benchmark_of_scale_measures_every_step_it_is_asked_for():
    rows = script("scale.py", "--cuts", "40", "--recordings", "300", "--steps", "prepare", "validate")
    assert [(row["cuts"], row["recordings"], row["step"]) for row in rows] == [(40, 40, "prepare"), (40, 40, "validate")]
    assert all(row["seconds"] > 0 and row["memory_mib"] > 0 for row in rows)


@pytest.fixture
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks" / "scale.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_table_of_the_benchmark_of_scale_names_flags_and_units(scale):
    row = {"cuts": 40, "recordings": 40, "seconds": 1.0, "memory_mib": 1234}
    header, _, first, second = scale.markdown([row | {"step": "validate"}, row | {"step": "first batch"}]).splitlines()
    assert header.endswith("| memory, MiB |")
    assert first == "| validate --no-audio | 40 | 1.0 | 25,000 | 1,234 |"
    assert second.startswith("| first batch | 40 |")


def test_the_recordings_of_the_benchmark_of_scale_are_as_many_as_asked_for_and_sound(scale, tmp_path):
    scale.RECORDINGS = 3
    some = scale.recordings(tmp_path, 7)
    assert len({one.sources[0].source for one in some}) == 7
    assert len({Path(one.sources[0].source).stat().st_ino for one in some}) == 3
    assert all(listen(one).problem is None for one in some)
    assert len({cut.recording_id for cut in scale.cuts(some, 7, "train")}) == 7


def test_the_benchmark_of_data_compares_the_same_work_and_measures_every_way(tmp_path):
    for number in range(2):
        path = tmp_path / "real-read" / "audio" / "a" / "b" / f"{number}.opus"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech(1.0, seed=number), 16000, format="OGG", subtype="OPUS")
    rows = script("data.py", "--files", "2", "--rounds", "1", SMOE_DATA=str(tmp_path))
    assert len({row["work"] for row in rows}) == 7
    assert all(row["speed"] > 0 and row["ratio"] > 0 for row in rows)
    assert len(rows) >= 17


def test_the_benchmark_of_waiting_trains_with_each_number_of_workers(tmp_path):
    lines = ["id\tpath\tsplit\tspeaker\ttranscript"]
    for number in range(12):
        split, name = ("dev" if number % 4 == 0 else "train"), f"{number}.flac"
        folder = tmp_path / "real-read"
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / name, speech(1.5, seed=number), 16000)
        lines.append(f"u{number}\t{name}\t{split}\t{split}{number % 2}\tthe call number {number} was put through")
    (tmp_path / "real-read" / "real-read.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = script("waiting.py", "--preset", "tiny", "--workers", "0", "1", "--steps", "2", SMOE_DATA=str(tmp_path))
    assert [row["workers"] for row in rows] == [0, 1]
    assert all(0 <= row["waiting_share"] < 1 and row["frames_per_s"] > 0 for row in rows)


def test_a_bound_that_one_variant_surely_misses_is_missed_whatever_the_others_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    routing = importlib.import_module("routing")

    def verdict(*rows: tuple[float, float, float]) -> str:
        of = {"work": "training step", "batch": "mixed"}
        said = routing.verdicts([of | dict(zip(("lowest", "ratio", "highest"), row, strict=True)) for row in rows])
        return str(said[0].rpartition(": ")[2])

    unsure, missed, kept = (1.04, 1.06, 1.08), (1.4, 1.6, 1.9), (1.0, 1.01, 1.02)
    assert verdict(unsure, missed) == "MISSED"
    assert verdict(kept, kept) == "kept"
    assert verdict(kept, unsure) == "MISSED in the mean, but the rounds are too unlike each other to tell"
