"""Each command hands its options to its twin in the pipeline, prints the result on stdout and nothing else there."""

import json
import re
from pathlib import Path

import pytest

from smoe_cli import pipeline
from smoe_cli.band_check import BandwidthRow
from smoe_cli.errors import Interrupted
from smoe_cli.pipeline import DecodeReport, ParameterReport, RunReport, TokenizerReport
from smoe_cli.preparation import PrepareReport
from smoe_cli.records import AuditReport, Coverage, Finding, Hypothesis, Score, ScoreReport, SliceScores
from smoe_cli.steps import STEPS, Step
from smoe_cli.tags import Choice
from smoe_cli.training import TrainReport
from smoe_cli.training.shares import ExpertShare
from smoe_cli.validation.report import Lasting, Reject, Row, ValidationReport

PREPARED = PrepareReport(
    cuts_dir=Path("exp/cuts"),
    rows=[Row(split="train", task="translate", lang="de", bandwidth="nb", subset="", cuts=1200, hours=1.5)],
    utterances={"train": 1200},
    synthetic=True,
    notes=["3 cuts sound narrower than their tag says"],
)
TOKENIZED = TokenizerReport(
    path=Path("exp/tokenizer"),
    kind="byte-level BPE",
    vocab_size=1000,
    sentences=9,
    guiding_tokens=["<translate>", "<de>"],
    fertility={"de": 1.75},
    measured_on="dev",
    coverage=[
        Coverage(
            lang="de",
            tokens_per_word=1.875,
            characters=90,
            whole_characters=98.5,
            broken=["ß", "\u0301", "\x1b"],
            unseen=["ß", "7"],
            unseen_characters=12,
        )
    ],
    merged_pieces=700,
    merged_pieces_used=650,
)
TRAINED = TrainReport(
    checkpoint=Path("exp/model/final"),
    steps=1000,
    minutes=2.5,
    resumed_from=400,
    parameters={"total": 668_416},
    precision="bf16",
    validation={"translate/de/nb": 1.25},
    steps_by_route={"translate/de/nb": 1000},
    ctc_skipped=0,
)
HYPOTHESIS = Hypothesis(
    id="u1-translate-de-nb",
    utterance="u1",
    task="translate",
    lang="de",
    bandwidth="nb",
    text="Grüße",
    duration_s=1.0,
    score=-0.5,
    stopped="end",
)
SCORED = ScoreReport(
    system="tiny",
    hypotheses=["a.jsonl"],
    slices=[
        SliceScores(
            task="transcribe",
            lang="en",
            bandwidth="nb",
            subset="",
            utterances=150,
            hours=0.2,
            truncated=0,
            scores=[Score(metric="wer", value=12.34, errors=1, total=8, signature="jiwer")],
        )
    ],
    versions={"jiwer": "4"},
)
FINDING = Finding(check="execution", where="encoder layer 3", message="`u1` was served by `wb`, its tag says `nb`", hint="report it")
PARAMETERS = ParameterReport(
    preset="base",
    vocab_size=1000,
    total=660_032,
    active=660_032,
    ctc_head=33_000,
    experts={"encoder.dense": 4192},
    macs_per_second=7_000_000,
)


def audited(*findings: Finding) -> AuditReport:
    served = {"stack": "encoder", "layer": 0, "route": "transcribe/en/nb", "expert": "nb", "utterances": 30, "planned": True}
    swap = {"stack": "encoder", "route": "transcribe/en/nb", "right": "nb", "used": "wb", "metric": "wer"}
    return AuditReport(
        system="tiny",
        checkpoint="exp/model/final",
        manifest="cuts.test.jsonl.gz",
        cuts=30,
        routes={"transcribe/en/nb": 30},
        layers=2,
        observations=60,
        served=[served, served | {"layer": 1}],
        parameters={"total": 660_032, "active": 440_021},
        swaps=[swap | {"value": 80.0, "right_value": 12.5, "unit": "%", "utterances": 30}],
        findings=list(findings),
    )


def validated(errors: int = 0, notes: int = 0) -> ValidationReport:
    """A report with a few errors and notes of one check each."""
    found = [Finding(check="text", where=f"line {n}", message="has an empty text", hint="correct it") for n in range(errors)]
    found += [Finding(check="ratio", where=f"line {n}", message="is far off", hint="listen", severity="note") for n in range(notes)]
    return ValidationReport(
        manifests=[Path("cuts.train.jsonl.gz")],
        cuts=1200,
        recordings_read=600,
        rows=PREPARED.rows,
        durations=[Lasting(from_s=1.0, to_s=2.0, cuts=800), Lasting(from_s=2.0, to_s=3.0, cuts=400)],
        errors=errors,
        notes=notes,
        findings=found,
    )


def ran(findings: int) -> RunReport:
    steps = [Step(name="prepare", state="skipped", reason="up to date"), Step(name="train", state="done", seconds=151.5)]
    return RunReport(steps=steps, findings=findings, report=Path("exp/scores/report.html"), audit=Path("exp/audit/audit.html"))


REPORTS = {
    "prepare": ("prepare", PREPARED),
    "validate": ("validate", validated()),
    "tokenize": ("tokenize", TOKENIZED),
    "train": ("train", TRAINED),
    "score": ("score", SCORED),
    "route-audit": ("route_audit", audited()),
    "run": ("run", ran(findings=0)),
    "params": ("params", PARAMETERS),
}


@pytest.mark.parametrize("command", REPORTS)
def test_json_is_the_whole_report_and_alone_on_stdout(smoe, replace, command):
    function, report = REPORTS[command]

    def talk(*args, watcher=None, **kwargs):
        if watcher:
            watcher.log("a log line")
            watcher.progress(command, 1, 1)
        return report

    replace(function, talk)
    result = smoe(command, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(report.model_dump_json())
    assert ("a log line" in result.stderr) == (command != "params")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("prepare", ["translate", "1,200", "1.50", "note: 3 cuts sound narrower", "exp/cuts"]),
        ("tokenize", ["byte-level BPE, 1,000 pieces", "<translate> <de>", "1.75", "exp/tokenizer"]),
        ("train", ["finished: 1,000 steps in 2.5 min, resumed from step 400", "668,416", "translate/de/nb", "exp/model/final"]),
        ("score", ["tiny", "WER", "12.3", "WER: jiwer", "exp/scores/report.html"]),
        ("route-audit", ["60 observations", "660,032", "440,021", "transcribe/en/nb", "80.00", "passed", "exp/audit/audit.html"]),
        ("run", ["up to date", "151.5", "report: exp/scores/report.html", "0 findings"]),
        ("params", ["base, vocabulary 1,000", "660,032", "encoder.dense", "audio: 7 million"]),
    ],
)
def test_people_get_tables_without_escape_codes_and_the_path_last(smoe, replace, command, shown):
    function, report = REPORTS[command]
    replace(function, report)
    result = smoe(command)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [text for text in shown if text not in result.stdout] == []
    assert "\x1b" not in result.stdout


def test_findings_exit_with_1_in_words_and_in_json(smoe, replace):
    replace("route_audit", audited(FINDING))
    for words in (("route-audit",), ("route-audit", "--json")):
        result = smoe(*words)
        assert result.exit_code == 1
        assert FINDING.message in result.stdout


def test_a_run_whose_audit_has_findings_exits_with_1(smoe, replace):
    replace("run", ran(findings=2))
    assert [smoe("run", *words).exit_code for words in ((), ("--json",))] == [1, 1]


def test_run_hands_on_its_options(smoe, replace):
    run = replace("run", ran(findings=0))
    smoe("run")
    result = smoe("run", "--force", "--dry-run")
    assert [(call.kwargs["force"], call.kwargs["dry_run"]) for call in run.call_args_list] == [(False, False), (True, True)]
    assert "report:" not in result.stdout


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
    assert smoe("train", "--dry-run").stdout.startswith("train: would run (its results are up to date: `smoe run` would skip it)")


def test_a_dry_run_says_what_is_forced(smoe, monkeypatch):
    monkeypatch.setattr(pipeline, "plan_step", lambda _, name: Step(name=name, state="up to date"))
    plan = RunReport.model_validate_json(smoe("run", "--force", "--dry-run", "--json").stdout)
    assert [(step.state, step.reason) for step in plan.steps] == [("would run", "forced")] * len(STEPS)


def test_only_what_is_given_replaces_a_checkpoints_own_settings(smoe, replace, recipe, tmp_path):
    for name in ("call.wav", "model"):
        (tmp_path / name).touch()
    decode = replace("decode", DecodeReport(checkpoint=Path("model"), paths=[], hypotheses=[]))
    audit = replace("route_audit", audited())
    for _ in range(2):  # with a recipe, and without
        assert smoe("decode", "call.wav", "--checkpoint", "model", "--beam", "1", "--set", "decode.batch_s=9").exit_code == 0
        assert smoe("route-audit", "--checkpoint", "model", "--cuts", "call.wav", "--out", "a", "--set", "decode.beam=2").exit_code == 0
        assert decode.call_args.kwargs["search"].model_dump(exclude_unset=True) == {"beam": 1, "batch_s": 9.0}
        assert audit.call_args.kwargs["search"].model_dump(exclude_unset=True) == {"beam": 2}
        recipe.unlink(missing_ok=True)
    result = smoe("decode", "call.wav", "--checkpoint", "model", "--set", "decode.beam=0")
    assert result.exit_code == 2 and "`decode.beam`" in result.stderr


def test_a_dry_run_checks_the_configuration(smoe):
    assert smoe("train", "--dry-run", "--set", "train.max_steps=0").exit_code == 2


def test_prepare_hands_on_its_options(smoe, replace):
    prepare = replace("prepare", PREPARED)
    assert smoe("prepare", "--nb-downsample", "--jobs", "3", "--set", "data.max_duration_s=9").exit_code == 0
    recipe = prepare.call_args.args[0]
    assert (recipe.data.nb_downsample, recipe.data.max_duration_s, recipe.data.bandwidth) == (True, 9.0, "rate")
    assert (prepare.call_args.kwargs["jobs"], prepare.call_args.kwargs["corpora"]) == (3, None)
    assert smoe("prepare", "--bandwidth", "auto", "--set", "data.nb_simulation.codecs=[gsm, alaw]").exit_code == 0
    assert (prepare.call_args.args[0].data.bandwidth, prepare.call_args.args[0].data.nb_simulation.codecs) == ("auto", ["gsm", "alaw"])
    assert smoe("prepare", "--bandwidth", "nb").exit_code == 2


def test_prepare_prints_simulated_lines_and_what_was_estimated(smoe, replace):
    row = BandwidthRow(corpus="calls", known_by="16000 Hz", known="wb", estimated="nb", tagged="nb", utterances=7, example="a")
    replace("prepare", PREPARED.model_copy(update={"lines": {"gsm, 300-3400 Hz": 41}, "bandwidths": [row]}))
    shown = smoe("prepare").stdout
    assert all(word in shown for word in ("gsm, 300-3400 Hz", "41", "16000 Hz", "spectrum"))


def test_a_corpus_that_needs_no_settings_can_be_named_without_being_in_the_recipe(smoe, replace, recipe):
    recipe.write_text(recipe.read_text() + "data: {corpora: {mine: {type: tsv, path: mine.tsv}}}\n")
    prepare = replace("prepare", PREPARED)
    assert smoe("prepare", "--corpus", "synth").exit_code == 0
    assert list(prepare.call_args.args[0].data.corpora) == ["mine", "synth"]
    assert prepare.call_args.kwargs["corpora"] == ["synth"]
    assert smoe("prepare", "--corpus", "mine").exit_code == 0
    assert list(prepare.call_args.args[0].data.corpora) == ["mine"]


def test_a_corpus_that_nobody_knows_exits_with_2(smoe):
    result = smoe("prepare", "--corpus", "tsv")
    assert result.exit_code == 2
    assert "no corpus `tsv`" in result.stderr


def test_train_hands_on_whether_to_resume(smoe, replace):
    train = replace("train", TRAINED)
    smoe("train")
    smoe("train", "--resume", "never")
    assert [call.kwargs["resume"] for call in train.call_args_list] == ["auto", "never"]


@pytest.mark.parametrize(("rank", "lines"), [("0", ["exp/model/final"]), ("1", [])])
def test_of_many_processes_the_first_one_prints_and_the_others_end_alike(smoe, replace, monkeypatch, rank, lines):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    train = replace("train", lambda *args, **kwargs: TRAINED)
    assert smoe("train").stdout.splitlines()[-1:] == lines
    train.side_effect = Interrupted("stopped after step 3")
    stopped = smoe("train")
    assert (stopped.exit_code, "stopped after step 3" in stopped.stderr) == (130, rank == "0")


def test_run_is_one_process(smoe, replace, monkeypatch):
    run = replace("run", ran(findings=0))
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = smoe("run")
    assert (result.exit_code, run.called) == (2, False)
    assert "start `smoe train` alone with torchrun" in " ".join(result.stderr.split())


def test_decode_hands_on_its_options_and_prints_where_it_wrote(smoe, replace):
    paths = [Path("exp/hypotheses/test/translate-de.jsonl"), Path("exp/hypotheses/test/translate-fr.jsonl")]
    decode = replace("decode", DecodeReport(checkpoint=Path("exp/model/final"), paths=paths, hypotheses=[HYPOTHESIS]))
    result = smoe("decode", "--task", "translate", "--lang", "de", "--bandwidth", "nb", "--split", "dev", "--beam", "2")
    assert result.stdout.splitlines() == [str(path) for path in paths]
    asked = decode.call_args.kwargs
    assert (asked["choice"], asked["split"]) == (Choice("translate", "de", "nb"), "dev")
    assert decode.call_args.args[0].decode.beam == 2


def test_tags_of_the_recipes_own_axes_are_handed_on_and_must_be_axis_and_value(smoe, replace):
    decode = replace("decode", DecodeReport(checkpoint=Path("exp/model/final"), paths=[Path("a.jsonl")], hypotheses=[HYPOTHESIS]))
    assert smoe("decode", "--tag", "accent=us", "--tag", "channel=2").exit_code == 0
    assert decode.call_args.kwargs["choice"] == Choice(tags=(("accent", "us"), ("channel", "2")))
    for words in (("--tag", "accent"), ("--tag", "accent=us", "--tag", "accent=uk"), ("--tag", "task=translate"), ("--tag", "accent=U/S")):
        result = smoe("decode", *words)
        assert result.exit_code == 2 and f"tag `{words[-1]}`" in result.stderr
    assert "`accent` is no axis of the recipe" in smoe("decode", "--tag", "accent=us", "--dry-run").stderr


def test_decode_prints_hypotheses_of_bare_audio_and_on_request(smoe, replace, tmp_path):
    (tmp_path / "call.wav").touch()
    decode = replace("decode", DecodeReport(checkpoint=Path("final"), paths=[], hypotheses=[HYPOTHESIS, HYPOTHESIS]))
    result = smoe("decode", "call.wav")
    assert [Hypothesis.model_validate_json(line) for line in result.stdout.splitlines()] == [HYPOTHESIS, HYPOTHESIS]
    assert decode.call_args.kwargs["inputs"] == [Path("call.wav")]
    decode.return_value = DecodeReport(checkpoint=Path("final"), paths=[Path("a.jsonl")], hypotheses=[HYPOTHESIS])
    assert Hypothesis.model_validate_json(smoe("decode", "--json").stdout) == HYPOTHESIS


def test_files_that_stand_for_a_recipe_make_it_dispensable(smoe, replace, recipe, tmp_path):
    recipe.unlink()
    for name in ("call.wav", "model", "cuts.jsonl", "hyps.jsonl"):
        (tmp_path / name).touch()
    functions = [replace("decode", DecodeReport(checkpoint=Path("model"), paths=[], hypotheses=[])), replace("score", SCORED)]
    functions += [replace("route_audit", audited())]
    assert smoe("decode", "call.wav", "--checkpoint", "model").exit_code == 0
    assert smoe("score", "hyps.jsonl").exit_code == 0
    assert smoe("route-audit", "--checkpoint", "model", "--cuts", "cuts.jsonl").exit_code == 0
    assert [function.call_args.args[0] for function in functions] == [None, None, None]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("decode", "call.wav"), "no recipe `smoe.yaml`"),
        (("score",), "no recipe `smoe.yaml`"),
        (("route-audit", "--checkpoint", "model"), "no recipe `smoe.yaml`"),
        (("decode", "call.wav", "--checkpoint", "model", "--set", "name=x"), "`name=x` could change"),
        (("score", "call.wav", "--set", "decode.beam=1"), "`decode.beam=1` could change"),
    ],
)
def test_otherwise_a_missing_recipe_exits_with_2(smoe, recipe, tmp_path, words, message):
    recipe.unlink()
    (tmp_path / "call.wav").touch()
    (tmp_path / "model").mkdir()
    result = smoe(*words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_out_moves_the_page(smoe, replace):
    score = replace("score", SCORED)
    assert smoe("score", "--out", "elsewhere").stdout.splitlines()[-1] == "elsewhere/report.html"
    assert score.call_args.kwargs["out"] == Path("elsewhere")


def test_params_counts_another_preset_for_real(smoe):
    presets = [("params", "--set", f"model.preset={preset}", "--json") for preset in ("base", "encdec-smoe")]
    counts = [json.loads(smoe(*words).stdout) for words in presets]
    assert [count["preset"] for count in counts] == ["base", "encdec-smoe"]
    assert counts[0]["total"] < counts[1]["total"]
    assert counts[0]["active"] == counts[1]["active"]


def test_params_of_a_preset_need_no_recipe_and_heed_none(smoe, recipe):
    inside = smoe("params", "--preset", "encdec-smoe", "--json").stdout
    recipe.unlink()
    result = smoe("params", "--preset", "encdec-smoe", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, result.stdout) == (0, inside)
    assert (report["total"], report["active"]) == (144_842_752, 107_047_936)
    assert set(report["experts"]) == {"encoder.nb", "encoder.wb", "decoder.transcribe", "decoder.translate"}
    assert report["macs_per_second"] > 1e9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preset", "huge"), "unknown preset `huge`; known presets: base, "),
        (("--preset", "base", "--config", "smoe.yaml"), "--config and --preset name different models"),
        (("--checkpoint", ".", "--set", "model.heads=2"), "cannot change a trained model"),
        (("--checkpoint", "."), "is no checkpoint or an incomplete one"),
    ],
)
def test_params_of_nothing_or_of_two_things_exit_with_2(smoe, words, message):
    result = smoe("params", *words)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(("words", "seconds"), [(("--batch", "auto"), "auto"), (("--batch", "90.5"), 90.5), ((), 120.0)])
def test_the_batch_is_a_number_of_seconds_or_found(smoe, replace, words, seconds):
    train = replace("train", TRAINED)
    assert smoe("train", *words).exit_code == 0
    assert train.call_args.args[0].train.batch_s == seconds
    assert smoe("train", "--batch", "many").exit_code == 2


def test_train_shows_what_experts_had_to_learn_from_and_how_it_ended(smoe, replace):
    given = {
        "decoder.transcribe": ExpertShare(updates=1980, share=0.99, frames=36_000_000, tokens=1_000_000),
        "decoder.translate": ExpertShare(updates=20, share=0.01, frames=360_000, tokens=9),
    }
    shown = {"experts": given, "starved": ["decoder.translate"], "stopped_early": True, "averaged": [400, 600]}
    replace("train", TRAINED.model_copy(update=shown))
    result = smoe("train")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["decoder.transcribe", "1,980", "99.0%", "100.00", "1,000,000"] in lines
    assert "warning: expert `decoder.translate` starved" in result.stdout
    assert "`train.patience` ended it" in result.stdout and "steps 400, 600" in result.stdout


def test_a_checkpoint_to_start_from_is_named_from_the_working_folder(smoe, replace, tmp_path):
    (tmp_path / "a: model").mkdir()
    train, tokenize = replace("train", TRAINED), replace("tokenize", TOKENIZED)
    assert smoe("train", "--init-from", "a: model").exit_code == 0
    assert smoe("tokenize", "--from", "a: model").exit_code == 0
    assert [fake.call_args.args[0].train.init_from for fake in (train, tokenize)] == [tmp_path / "a: model"] * 2
    assert smoe("train", "--init-from", "nowhere").exit_code == 2


def test_tokenize_shows_what_the_dev_split_tells_and_without_one_what_the_train_split_does(smoe, replace):
    tokenize = replace("tokenize", TOKENIZED)
    out = smoe("tokenize").stdout
    assert re.search(r"lang +tokens per word +dev: tokens per word +dev: whole characters, % +dev: broken +dev: not in train", out)
    assert re.search(r"de +1\.75 +1\.88 +98\.50 +ß U\+0301 U\+001B +ß 7 and 10 more", out)
    assert "650 of 700 merged pieces occur in the training texts" in out
    seen = TOKENIZED.coverage[0].model_copy(update={"unseen": [], "unseen_characters": 0})
    tokenize.return_value = TOKENIZED.model_copy(update={"measured_on": "train", "coverage": [seen]})
    out = smoe("tokenize").stdout
    assert re.search(r"lang +tokens per word +whole characters, % +broken *\n", out) and "not in train" not in out


@pytest.mark.parametrize(
    ("errors", "notes", "words", "code"), [(0, 0, (), 0), (0, 3, (), 0), (0, 3, ("--strict",), 1), (2, 0, (), 1), (2, 0, ("--json",), 1)]
)
def test_validate_exits_with_1_for_errors_and_if_strict_for_notes(smoe, replace, errors, notes, words, code):
    replace("validate", validated(errors, notes))
    assert smoe("validate", *words).exit_code == code


def test_validate_shows_the_first_findings_of_a_check_and_counts_the_others(smoe, replace):
    replace("validate", validated(errors=12, notes=1))
    shown = smoe("validate").stdout
    assert shown.count("error: text: line ") == 10
    assert "error: text: ... and 2 more, all of them in the report" in shown
    assert shown.count("hint: text: correct it") == 1
    assert "1 to 2" in shown and "█" * 40 in shown and "█" * 41 not in shown
    assert shown.endswith("FAILED: 12 errors, 1 notes in 1,200 cuts, 600 recordings read\n")


def test_validate_hands_on_its_options_and_says_what_it_took_out(smoe, replace, recipe, tmp_path):
    recipe.unlink()
    (tmp_path / "cuts.train.jsonl.gz").touch()
    taken = validated().model_copy(
        update={
            "rejects": [Reject(manifest=Path("cuts.train.jsonl.gz"), cuts=2, rejected=Path("rejected.train.jsonl.gz"))],
            "mended": validated(errors=2).findings,
        }
    )
    fake = replace("validate", taken)
    result = smoe("validate", "cuts.train.jsonl.gz", "--fix", "--no-audio", "--within", ".", "-j", "2")
    assert result.exit_code == 0
    assert "rejected: text: line 0: has an empty text" in result.stdout
    assert "2 cuts moved from cuts.train.jsonl.gz to rejected.train.jsonl.gz" in result.stdout
    asked = fake.call_args.kwargs
    assert (asked["cuts"], asked["fix"], asked["audio"], asked["within"], asked["jobs"]) == (
        [Path("cuts.train.jsonl.gz")],
        True,
        False,
        Path(),
        2,
    )
    assert fake.call_args.args == (None,)


def test_prepare_exits_with_1_for_errors_of_its_manifests(smoe, replace):
    replace("prepare", PREPARED.model_copy(update={"findings": validated(errors=1, notes=1).findings}))
    result = smoe("prepare")
    assert result.exit_code == 1
    assert "error: text: line 0: has an empty text" in result.stdout and "note: ratio: " in result.stdout
