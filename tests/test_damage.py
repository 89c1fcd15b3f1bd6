"""Bad input on the real command line: exit code 2, what and where and the cure on stderr, and nothing half-written."""

from __future__ import annotations

import ctypes
import gzip
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from smoe_cli import pipeline
from smoe_cli.config import load_config
from tests.test_training import recipe, write_corpus

ROOT = Path(__file__).parents[1]
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
TRAIN, TEST = Path("exp/cuts/cuts.train.jsonl.gz"), Path("exp/cuts/cuts.test.jsonl.gz")
WEIGHTS = Path("exp/model/final/model.safetensors")


@dataclass(frozen=True)
class Damage:
    """What is done to a recipe folder, the command that meets it, and what it must say (patterns)."""

    harm: Callable[[Path], object]
    words: str
    said: str
    cure: str


def obey_permissions() -> None:
    """In a child: give up root's right to ignore them. Anyone else has no such right and cannot give it up."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def lock(folder: Path) -> None:
    """Add a folder that nobody may write to."""
    (folder / "locked").mkdir(mode=0o555)
    if subprocess.run(["touch", folder / "locked" / "file"], preexec_fn=obey_permissions, capture_output=True).returncode == 0:
        pytest.skip("this user may write to every folder and cannot give up that right")


def replace_in_manifest(path: Path, old: str, new: str) -> None:
    text = gzip.decompress(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new, 1).encode()))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def untranslate(table: Path) -> None:
    """Empty the column of translations, which is the last one."""
    header, *rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([header, *(row.rpartition("\t")[0] + "\t" for row in rows)]), encoding="utf-8")


def put_aside(folder: Path) -> None:
    """A folder with weights of something else."""
    (folder / "other").mkdir()
    (folder / "other" / "model.safetensors").write_bytes(b"something else")


DAMAGES = {
    "missing audio": Damage(
        lambda at: (at / "corpus" / "a1.flac").unlink(), "prepare", r"no audio file `corpus/a1.flac` \(utterance `a1`\)", "correct the path"
    ),
    "truncated FLAC": Damage(
        lambda at: cut_off(at / "corpus" / "a1.flac"),
        "prepare",
        r"corpus `tones`: 1 of 30 utterances.*/a1.flac` \(recording `a1`\) (breaks off|cannot be read to its end)",
        "bring back the whole file, or remove it; nothing was written",
    ),
    "zero-length audio": Damage(
        lambda at: (at / "corpus" / "a1.flac").write_bytes(b""),
        "prepare",
        r"cannot open audio `corpus/a1.flac`",
        "convert it to FLAC or WAV",
    ),
    "unknown task in the recipe": Damage(
        lambda at: None,
        "prepare --set tasks.summarise.languages=[en]",
        "`smoe.yaml`: task `summarise` is of unknown kind `summarise`; known kinds: transcribe, translate",
        "docs/reference/config.md",
    ),
    "unknown task in a manifest": Damage(
        lambda at: replace_in_manifest(at / TEST, '"task": "translate"', '"task": "summarise"'),
        "decode",
        "cut `tones-a5-translate-de-wb`: the model has no route `summarise/de/wb`; it has: .*transcribe/en/nb",
        "correct its tags in the manifest",
    ),
    "unknown task on the command line": Damage(
        lambda at: None,
        "decode --task summarise",
        r"no route `summarise/\*/\*`; it has: .*transcribe/en/nb",
        "choose one of these with --task",
    ),
    "empty manifest": Damage(
        lambda at: (at / TRAIN).write_bytes(gzip.compress(b"")), "tokenize", f"manifest `{TRAIN}` is empty", "prepare it again"
    ),
    "manifest without translations": Damage(
        lambda at: untranslate(at / "corpus" / "table.tsv"),
        "prepare",
        "no utterance of `tones` has a text for task `translate`, language `de`",
        r"name the column or field under `data\.corpora\.\*\.translations`",
    ),
    "checkpoint of something else": Damage(
        put_aside,
        "decode --checkpoint other --out h.jsonl",
        "`other` is no checkpoint or an incomplete one",
        "name a folder that `smoe train` wrote",
    ),
    "damaged checkpoint": Damage(
        lambda at: cut_off(at / WEIGHTS),
        "decode",
        "checkpoint `exp/model/final` is damaged: `model.safetensors`",
        "use another checkpoint, or train again",
    ),
    "read-only folder": Damage(
        lock,
        "prepare --set exp_dir=locked/exp",
        r"cannot write `locked/exp/cuts/cuts.train.jsonl.gz`: Permission denied",
        "check the folder's rights",
    ),
    "narrowband audio called wideband": Damage(
        lambda at: soundfile.write(at / "call.wav", np.full(8000, 0.1), 8000),
        "decode call.wav --task transcribe --bandwidth wb",
        "audio `.*call.wav` is called wideband, but is sampled at 8000 Hz",
        "`--bandwidth nb`",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A recipe folder in which every step up to training is done."""
    folder = tmp_path_factory.mktemp("sound")
    write_corpus(folder / "corpus", per_word=10)
    tree = recipe(Path("corpus"), Path("exp"), train={"max_steps": 2}).model_dump(mode="json")
    (folder / "smoe.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = load_config(folder / "smoe.yaml")
    pipeline.prepare(config)
    pipeline.tokenize(config)
    pipeline.train(config)
    # The account of a step is no output: a step that begins anew takes it back.
    shutil.rmtree(folder / "exp" / ".done")
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every folder and every file with what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", DAMAGES)
def test_bad_input_is_named_with_its_cure_and_leaves_nothing_behind(sound, tmp_path, name):
    damage, folder = DAMAGES[name], tmp_path / "recipe"
    shutil.copytree(sound, folder)
    damage.harm(folder)
    before = contents(folder)
    done = subprocess.run(
        [sys.executable, "-m", "smoe_cli", *damage.words.split()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=obey_permissions,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(rf"error: .*{damage.said}.*\n\nhint: .*{damage.cure}", done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr
    assert contents(folder) == before
