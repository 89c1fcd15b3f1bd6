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
from smoe_cli.recipe import load_config
from tests.test_training import recipe, write_corpus

ROOT = Path(__file__).parents[1]
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
REFUSED = "exp/refused.tones.txt"
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
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


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


def spoil(corpus: Path) -> None:
    """Damage nine of its utterances, each in another way; a Windows editor then saved the table."""
    samples = soundfile.info(corpus / "a5.flac").frames
    (corpus / "a0.flac").unlink()
    cut_off(corpus / "a1.flac")
    (corpus / "a2.flac").write_bytes(b"")
    frames = soundfile.info(corpus / "a3.flac").frames
    soundfile.write(corpus / "a3.flac", np.ones((6 * frames, 2)) / 9, 96000)
    (corpus / "a4.flac").write_bytes(b"RIFF" + (corpus / "a4.flac").read_bytes())
    soundfile.write(corpus / "a5.flac", np.full(samples, np.nan), 16000, format="WAV", subtype="FLOAT")
    table = corpus / "table.tsv"
    lines = table.read_bytes().rstrip(b"\n").split(b"\n")
    assert [line.split(b"\t")[0] for line in lines[1:11]] == [b"a%d" % number for number in range(10)]
    lines[8] = lines[8].replace(b"eins", b"f\xfcnf")
    lines[9] = lines[9].replace(b"a8\t", b"a6\t", 1)
    lines[10] = lines[10].replace(b"one", b"o\tne")
    table.write_bytes(b"\r\n".join(lines) + b"\r\n")


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
        "bring back the whole file, or remove it; no manifest was written",
    ),
    "zero-length audio": Damage(
        lambda at: (at / "corpus" / "a1.flac").write_bytes(b""),
        "prepare",
        r"cannot open audio `corpus/a1.flac`",
        "convert it to FLAC or WAV",
    ),
    "every kind of damage at once": Damage(
        lambda at: spoil(at / "corpus"),
        "prepare",
        r"""corpus `tones`: 9 of 30 utterances are not fit for use:
`corpus/table.tsv` line 2: no audio file `corpus/a0.flac` \(utterance `a0`\)
`corpus/table.tsv` line 4: cannot open audio `corpus/a2.flac` \(utterance `a2`\): [^\n]*
`corpus/table.tsv` line 5: audio `corpus/a3.flac` \(utterance `a3`\) has 2 channels; one is expected
`corpus/table.tsv` line 6: cannot open audio `corpus/a4.flac` \(utterance `a4`\): [^\n]*
`corpus/table.tsv` line 9 is not UTF-8: byte 0xfc at \d+
`corpus/table.tsv` line 11 has 9 fields, 8 are expected
`corpus/table.tsv` line 3: audio `[^\n]*/a1.flac` \(recording `a1`\) (breaks off|cannot be read to its end)[^\n]*
`corpus/table.tsv` line 7: audio `[^\n]*/a5.flac` \(recording `a5`\) holds values that are not numbers
`corpus/table.tsv` line 10: utterance `a6` of corpus `tones` occurs twice in split `train`""",
        "no manifest was written",
    ),
    "a file that may not be read": Damage(
        lambda at: (at / "corpus" / "a1.flac").chmod(0),
        "prepare",
        r"corpus `tones`: 1 of 30 utterances.*line 3: no right to read audio `corpus/a1.flac`",
        r"`chmod -R u\+rX`, .*; no manifest was written",
    ),
    "no manifest to validate": Damage(
        lambda at: shutil.rmtree(at / "exp" / "cuts"), "validate", "no manifests in `exp/cuts`", "run `smoe prepare` first"
    ),
    "packed manifest that was cut off": Damage(
        lambda at: (at / TRAIN).write_bytes((at / TRAIN).read_bytes()[:-100]),
        "validate",
        f"cannot read manifest `{TRAIN}`",
        "bring back the whole file",
    ),
    "manifest that would run a program": Damage(
        lambda at: replace_in_manifest(
            at / TRAIN, '"type": "file", "channels": [0], "source": "', '"type": "command", "channels": [0], "source": "touch ran;'
        ),
        "tokenize",
        f"`{TRAIN}` line 1: cut `tones-a1-transcribe-en-wb` takes audio from a source of type `command`",
        "save the audio as a file",
    ),
    "unknown task in the recipe": Damage(
        lambda at: None,
        "prepare --set tasks.summarise.languages=[en]",
        r"task `summarise` is of unknown kind `summarise`; known kinds: transcribe, translate, .*; in `smoe.yaml --set [^`]*`",
        "docs/reference/config.md",
    ),
    "unknown task in a manifest": Damage(
        lambda at: replace_in_manifest(at / TEST, '"task": "translate"', '"task": "summarise"'),
        "decode",
        "cut `tones-a5-translate-de-wb`: the model has no route `summarise/de/wb`; it has: .*transcribe/en/nb",
        "choose one of these with --task, .*; or correct the cut's tags, if they are wrong",
    ),
    "unknown task on the command line": Damage(
        lambda at: None,
        "decode --task summarise",
        r"no route `summarise/\*/\*`: of task it has `transcribe`, `translate`",
        "name one of these",
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
        r"cannot write `locked/exp/heard.jsonl`: Permission denied",
        "check the folder's rights",
    ),
    "narrowband audio called wideband": Damage(
        lambda at: soundfile.write(at / "call.wav", np.sin(np.arange(8000)) / 9, 8000),
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
    """Every folder and every file with what it holds, but for the memory of what was read of the audio."""
    found = (path for path in sorted(folder.rglob("*")) if path.name != "heard.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


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
    # Nothing but a list of what is wrong, which the hint names.
    after = {name: content for name, content in contents(folder).items() if name != REFUSED or f"`{REFUSED}`" not in done.stderr}
    assert after == before
