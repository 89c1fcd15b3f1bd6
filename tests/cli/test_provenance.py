"""Scores and audits say of which model they are, and whether the speech is synthetic."""

from pathlib import Path

from smoe_cli.records import write_jsonl
from tests.cli.reports import HYPOTHESIS, audited

SPOKEN = HYPOTHESIS.model_copy(update={"references": ["Grüße"], "model": "3f2a91c04d7e", "synthetic": True})


def test_a_bare_file_of_synthetic_speech_is_scored_as_such(smoe, recipe):
    recipe.unlink()
    write_jsonl(Path("a.jsonl"), [SPOKEN])
    result = smoe("score", "a.jsonl", "--out", "scores")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].strip() == "hypotheses, model 3f2a91c04d7e, synthetic speech"
    assert "synthetic speech" in Path("scores/report.html").read_text(encoding="utf-8")


def test_an_audit_on_synthetic_speech_says_so_above_each_result(smoe, replace):
    replace("route_audit", audited().model_copy(update={"model": "3f2a91c04d7e", "synthetic": 30}))
    lines = smoe("route-audit").stdout.splitlines()
    assert lines[0].startswith("tiny, model 3f2a91c04d7e, synthetic speech: tags of")
    assert "Swapped, synthetic speech" in [line.strip() for line in lines]


def test_files_of_two_models_exit_with_2(smoe):
    write_jsonl(Path("a.jsonl"), [SPOKEN])
    write_jsonl(Path("b.jsonl"), [SPOKEN.model_copy(update={"model": "0b1c2d3e4f5a"})])
    result = smoe("score", "a.jsonl", "b.jsonl")
    assert result.exit_code == 2
    assert (
        "model 3f2a91c04d7e in `a.jsonl`; model 0b1c2d3e4f5a in `b.jsonl`" in result.stderr and "score the files of each" in result.stderr
    )
