"""`smoe convert`: options, output, refusals."""

import json
from pathlib import Path

import pytest

from smoe_cli.records import ConvertReport


def test_convert_hands_on_the_wish_and_says_what_came_out(smoe, replace, tmp_path):
    report = ConvertReport(
        checkpoint=Path("model"),
        model="0123456789ab",
        family="whisper",
        routes=["translate/en/nb", "translate/en/wb"],
        parameters=37_188_864,
        window_s=30.0,
    )
    (tmp_path / "whisper").mkdir()
    convert = replace("convert", report)
    words = ("convert", "whisper", "--task", "translate", "--lang", "en", "--source-lang", "de", "--out", "model")
    result = smoe(*words)
    assert result.stdout.splitlines() == [
        "whisper, 37,188,864 parameters, routes translate/en/nb, translate/en/wb, audio of up to 30 s",
        "model",
    ]
    assert convert.call_args.args == (Path("whisper"),)
    assert convert.call_args.kwargs == {"out": Path("model"), "task": "translate", "langs": ["en"], "source_lang": "de"}
    assert json.loads(smoe(*words, "--json").stdout) == json.loads(report.model_dump_json())


@pytest.mark.parametrize(
    "words",
    [("convert", "nowhere", "--out", "model"), ("convert", ".", "--out", "model"), ("convert", "."), ("convert", ".", "--task", "x")],
)
def test_convert_of_nothing_or_to_nowhere_exits_with_2(smoe, words):
    assert smoe(*words).exit_code == 2
