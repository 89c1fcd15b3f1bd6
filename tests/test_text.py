"""The text policy: what it does, that doing it twice changes nothing, and where it is done."""

import json
import random
import sys
import unicodedata

import pytest

from smoe_cli import pipeline
from smoe_cli.errors import ConfigError
from smoe_cli.layout import Layout
from smoe_cli.manifests import read_lines
from smoe_cli.recipe import parse_config
from smoe_cli.text import TextPolicy

POLICIES = [TextPolicy(lowercase, strip) for lowercase in (False, True) for strip in (False, True)]


@pytest.mark.parametrize(
    ("policy", "text", "clean"),
    [
        (TextPolicy(), " Cafe\u0301\u00a0\tau lait ", "Caf\u00e9 au lait"),
        (TextPolicy(lowercase=True), "STRASSE \u0130", "strasse i\u0307"),
        (TextPolicy(strip_punctuation=True), "It\u2019s \u201crendez-vous\u201d \u2013 5\u202f\u20ac, no?", "It's rendez-vous 5 no"),
        (TextPolicy(strip_punctuation=True), "'tis rock-'n'-roll-", "tis rock 'n' roll".replace("'n'", "n")),
        (TextPolicy(True, True), "?!", ""),
    ],
)
def test_case_and_punctuation(policy, text, clean):
    assert policy.clean(text) == clean


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_what_is_clean_stays_as_it_is(policy):
    generator = random.Random(0)
    letters = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Co")]
    for _ in range(3000):
        text = "".join(generator.choices(letters, k=5) + generator.choices("aI\u0130'-. \u0301", k=5))
        clean = policy.clean(text)
        assert policy.clean(clean) == clean
        assert unicodedata.is_normalized("NFC", clean)


def recipe(tmp_path, **tasks):
    return parse_config(
        {
            "exp_dir": str(tmp_path / "exp"),
            "data": {
                "lowercase": True,
                "strip_punctuation": True,
                "corpora": {"synth": {"type": "synth", "sentences": {"test": 2}, "engines": ["hibari"]}},
            },
            "tasks": tasks,
        },
        "recipe",
    )


def test_each_task_has_its_own_policy_in_training_and_scoring(tmp_path):
    german = {"languages": ["de"], "lowercase": False, "strip_punctuation": False}
    config = recipe(tmp_path, transcribe={"languages": ["en"]}, translate=german)
    assert (str(config.text_policy("transcribe")), config.text_policy("translate").signature) == (
        "NFC, single spaces, lower case, no punctuation",
        "nfc",
    )
    # What both learn to hear is the transcript as the task that transcribes writes it.
    assert config.transcript_policy("translate") == config.transcript_policy("transcribe") == TextPolicy(True, True)
    pipeline.prepare(config)
    cuts = [json.loads(line) for _, line in read_lines(Layout.of(config).cuts("test"))]
    texts = {task: [] for task in config.tasks}
    for cut in cuts:
        (supervision,) = cut["supervisions"]
        texts[supervision["custom"]["task"]].append(supervision["text"])
        assert supervision["custom"]["transcript"] == TextPolicy(True, True).clean(supervision["custom"]["transcript"])
    assert all(text == text.lower() for text in texts["transcribe"])
    lines = [
        {"id": "a", "task": "transcribe", "lang": "en", "bandwidth": "nb", "text": "Hello, World!", "references": ["hello world"]},
        {"id": "b", "task": "translate", "lang": "de", "bandwidth": "nb", "text": "hallo welt", "references": ["Hallo Welt"]},
    ]
    file = tmp_path / "h.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report = pipeline.score(config, hypotheses=[file])
    heard, translated = report.slices
    assert heard.scores[0].value == 0.0 and heard.scores[0].signature.endswith("|norm:nfc+lower+nopunct")
    assert translated.scores[1].value < 100.0 and translated.scores[1].signature.endswith("|norm:nfc")
    assert report.text == "transcribe: NFC, single spaces, lower case, no punctuation; translate: NFC, single spaces"


def test_without_a_recipe_nothing_is_done_and_that_is_said(tmp_path, capsys):
    line = {"id": "a", "task": "transcribe", "lang": "en", "bandwidth": "nb", "text": "Hello!", "references": ["hello"]}
    (tmp_path / "h.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    report = pipeline.score(None, hypotheses=[tmp_path / "h.jsonl"])
    assert report.slices[0].scores[0].value == 100.0
    assert report.slices[0].scores[0].signature.endswith("|norm:none") and report.text == ""


def test_a_label_has_no_case_to_change(tmp_path):
    with pytest.raises(ConfigError, match="task `intent` answers with a label, which stays as it is written"):
        recipe(tmp_path, intent={"kind": "classify", "lowercase": True})
