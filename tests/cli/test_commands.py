"""Each command hands its options to its twin in the pipeline, prints the result on stdout and nothing else there."""

import json
import re
from pathlib import Path

import pytest

from smoe_cli.band_check import BandwidthRow
from smoe_cli.errors import Interrupted
from smoe_cli.pipeline import DecodeReport
from smoe_cli.records import Hypothesis
from smoe_cli.tags import Choice
from smoe_cli.training.shares import ExpertShare
from smoe_cli.validation.report import Reject
from tests.cli.reports import FINDING, HYPOTHESIS, PARAMETERS, PREPARED, SCORED, TOKENIZED, TRAINED, audited, ran, validated

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
        "encoder.nb": ExpertShare(updates=0, share=0.0, frames=360_000, tokens=9, frozen=True),
    }
    shown = {"experts": given, "starved": ["decoder.translate"], "stopped_early": True, "averaged": [400, 600]}
    replace("train", TRAINED.model_copy(update=shown))
    result = smoe("train")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["decoder.transcribe", "1,980", "99.0%", "100.00", "1,000,000"] in lines
    assert ["encoder.nb", "(frozen)", "0", "0.0%", "1.00", "9"] in lines
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
    assert shown.endswith("FAILED: 12 errors, 1 note in 1,200 cuts, 600 recordings read\n")


def test_findings_and_tables_do_nothing_to_a_terminal_and_json_has_what_was_written(smoe, replace):
    forged = "\x1b]0;owned\x07\nerror: more"
    report = validated(errors=1)
    findings = [finding.model_copy(update={"where": forged, "message": "has an id \x9b2J"}) for finding in report.findings]
    rows = [row.model_copy(update={"subset": forged}) for row in report.rows]
    replace("validate", report.model_copy(update={"findings": findings, "rows": rows}))
    shown = smoe("validate").stdout
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
    assert r"error: text: \x1b]0;owned\x07\nerror: more: has an id \x9b2J" + "\n" in shown
    assert shown.count(r"\x1b]0;owned\x07\nerror: more") == 1 + len(rows)
    assert json.loads(smoe("validate", "--json").stdout)["findings"][0]["where"] == forged


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
