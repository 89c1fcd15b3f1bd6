"""`--dry-run` names the files of each command, writes none, and refuses what the command refuses."""

import pytest

from smoe_cli import pipeline
from smoe_cli.pipeline import RunReport
from smoe_cli.steps import STEPS, Step


@pytest.mark.parametrize("step", STEPS)
def test_a_dry_run_names_files_and_writes_none(smoe, step, tmp_path):
    result = smoe(step, "--dry-run")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{step}: would run (`")
    assert "writes" in result.stdout
    plan = Step.model_validate_json(smoe(step, "--dry-run", "--json").stdout)
    assert (plan.name, plan.state) == (step, "would run")
    assert [str(path) for path in plan.writes if str(path) not in result.stdout] == []
    assert [path.name for path in tmp_path.iterdir()] == ["smoe.yaml"]


def test_a_dry_run_of_everything_names_every_step(smoe, tmp_path):
    result = smoe("run", "--dry-run")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines() if "would run" in line] == list(STEPS)
    assert [path.name for path in tmp_path.iterdir()] == ["smoe.yaml"]


@pytest.mark.parametrize(
    ("words", "reads", "writes"),
    [
        (("decode", "call.wav", "--checkpoint", "model"), ["call.wav", "model"], []),
        (
            ("decode", "--bandwidth", "nb", "--task", "translate"),
            ["exp/cuts/cuts.test.jsonl.gz", "exp/model/final"],
            ["exp/hypotheses/test/translate-de.jsonl", "exp/hypotheses/test/translate-fr.jsonl"],
        ),
        (
            ("decode", "--split", "dev", "--lang", "fr"),
            ["exp/cuts/cuts.dev.jsonl.gz", "exp/model/final"],
            ["exp/hypotheses/dev/translate-fr.jsonl"],
        ),
        (("decode", "call.wav", "--task", "transcribe", "--out", "a.jsonl"), ["call.wav", "exp/model/final"], ["a.jsonl"]),
        (("score", "call.wav", "--out", "there"), ["call.wav"], ["there/scores.json", "there/report.html"]),
        (("score", "call.wav"), ["call.wav"], []),
        (("route-audit", "--cuts", "call.wav", "--out", "a"), ["call.wav", "exp/model/final"], ["a/audit.json", "a/audit.html"]),
    ],
)
def test_a_dry_run_heeds_the_files_that_are_named(smoe, tmp_path, words, reads, writes):
    for name in ("call.wav", "model"):
        (tmp_path / name).touch()
    plan = Step.model_validate_json(smoe(*words, "--dry-run", "--json").stdout)
    assert ([str(path) for path in plan.reads], [str(path) for path in plan.writes]) == (reads, writes)


@pytest.mark.parametrize(
    ("words", "writes"),
    [
        (("decode", "call.wav", "--checkpoint", "model"), []),
        (("score", "call.wav", "--out", "there"), ["there/scores.json", "there/report.html"]),
        (("route-audit", "--checkpoint", "model", "--cuts", "call.wav"), []),
    ],
)
def test_a_dry_run_needs_no_recipe_where_the_command_needs_none(smoe, recipe, tmp_path, words, writes):
    recipe.unlink()
    for name in ("call.wav", "model"):
        (tmp_path / name).touch()
    plan = Step.model_validate_json(smoe(*words, "--dry-run", "--json").stdout)
    assert (plan.state, [str(path) for path in plan.writes]) == ("would run", writes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("decode", "--split", "nosuch"), "unknown split `nosuch`"),
        (("decode", "--checkpoint", "model"), "would replace those of the recipe's own model"),
        (("decode", "--out", "."), "`.` is a folder"),
        (("decode", "--out", "model"), "`model` is a folder"),
        (("decode", "--set", "decode.nosuch=1"), "nosuch"),
        (("route-audit", "--checkpoint", "model"), "would replace the recipe's own"),
        (("route-audit", "--cuts", "call.wav"), "would replace the recipe's own"),
        (("route-audit", "--out", "call.wav"), "'call.wav' is a file"),
        (("prepare", "--corpus", "nosuch"), "no corpus `nosuch`"),
    ],
)
def test_a_dry_run_refuses_what_the_command_refuses(smoe, tmp_path, words, message):
    (tmp_path / "call.wav").touch()
    (tmp_path / "model").mkdir()
    for more in ((), ("--dry-run",)):
        result = smoe(*words, *more)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr and "hint: " in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["call.wav", "model", "smoe.yaml"]


@pytest.mark.parametrize("words", ["prepare", "prepare --dry-run", "prepare --dry-run --json", "run --dry-run", "run --dry-run --json"])
def test_a_dry_run_refuses_a_corpus_that_is_not_there(smoe, recipe, tmp_path, words):
    recipe.write_text(recipe.read_text() + "data: {corpora: {calls: {type: tsv, path: calls.tsv}}}\n", encoding="utf-8")
    result = smoe(*words.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no table `calls.tsv`" in result.stderr and "or correct `data.corpora.calls.path`" in result.stderr
    (tmp_path / "calls.tsv").write_text("id\tpath\tsplit\n", encoding="utf-8")
    assert "table `calls.tsv` has no column `transcript`" in smoe(*words.split()).stderr
    (tmp_path / "calls.tsv").write_text("id\tpath\tsplit\ttranscript\n", encoding="utf-8")
    assert smoe(words.split()[0], "--dry-run").exit_code == 0


def test_a_dry_run_of_everything_does_not_look_for_corpora_that_are_prepared(smoe, recipe, monkeypatch):
    recipe.write_text(recipe.read_text() + "data: {corpora: {calls: {type: tsv, path: calls.tsv}}}\n", encoding="utf-8")
    state = {"prepare": "up to date"}
    monkeypatch.setattr(pipeline, "plan_step", lambda _, name: Step(name=name, state=state.get(name, "would run")))
    assert smoe("run", "--dry-run").exit_code == 0
    assert "no table `calls.tsv`" in smoe("run", "--dry-run", "--force").stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "nosuch"), "the recipe has no route `nosuch/*/*`"),
        (("--lang", "de", "--task", "transcribe"), "the recipe has no route `transcribe/de/*`"),
        (("call.wav",), "several tasks: transcribe, translate"),
        (("call.wav", "--task", "translate"), "several languages: de, fr"),
    ],
)
def test_a_dry_run_of_decode_refuses_what_no_model_of_the_recipe_could_do(smoe, tmp_path, words, message):
    (tmp_path / "call.wav").touch()
    result = smoe("decode", *words, "--dry-run")
    assert result.exit_code == 2
    assert message in result.stderr and "hint: " in result.stderr


def test_a_single_step_that_is_up_to_date_would_run_all_the_same(smoe, monkeypatch):
    monkeypatch.setattr("smoe_cli.steps.plan_step", lambda _, name: Step(name=name, state="up to date"))
    assert smoe("train", "--dry-run").stdout.startswith("train: would run (nothing that it reads has changed since it last ran)")


def test_a_dry_run_says_what_is_forced(smoe, monkeypatch):
    monkeypatch.setattr(pipeline, "plan_step", lambda _, name: Step(name=name, state="up to date"))
    plan = RunReport.model_validate_json(smoe("run", "--force", "--dry-run", "--json").stdout)
    assert [(step.state, step.reason) for step in plan.steps] == [("would run", "forced")] * len(STEPS)


def test_a_dry_run_checks_the_configuration(smoe):
    assert smoe("train", "--dry-run", "--set", "train.max_steps=0").exit_code == 2
