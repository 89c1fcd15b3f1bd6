"""Reports such as the functions of the pipeline return."""

from pathlib import Path

from smoe_cli.pipeline import ParameterReport, RunReport, TokenizerReport
from smoe_cli.preparation import PrepareReport
from smoe_cli.records import AuditReport, Coverage, Finding, Hypothesis, Score, ScoreReport, SliceScores
from smoe_cli.steps import Step
from smoe_cli.training import TrainReport
from smoe_cli.validation.report import Lasting, Row, ValidationReport

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
