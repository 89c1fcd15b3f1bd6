"""Report pages: well-formed, self-contained, escaped, and saying what the records say."""

from html.parser import HTMLParser

import pytest

from smoe_cli import html
from smoe_cli.audit.report import audit_report_html
from smoe_cli.errors import DataError
from smoe_cli.records import AuditReport, Finding, Hypothesis, ScoreReport
from smoe_cli.scoring import slices
from smoe_cli.scoring.report import EXAMPLES_PER_SLICE, score_report_html
from smoe_cli.tags import TASK_KINDS

VOID = {"meta", "input", "br"}
ATTACK = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """Checks that tags balance and collects what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def hypotheses(count: int = 3, **fields: object) -> list[Hypothesis]:
    found = []
    for task, lang, right in (("transcribe", "en", "the train to the coast"), ("translate", "de", "der Zug an die Küste")):
        for band in ("nb", "wb"):
            for subset in ("seen voice", "unseen voice"):
                for n in range(count):
                    words = right.split()
                    text = " ".join([*words[: n % 3], "made", *words[n % 3 + 1 :]]) if band == "nb" else right
                    utterance = f"{subset[0]}-{n:03d}"
                    found.append(
                        Hypothesis(
                            id=f"{utterance}-{task}-{lang}-{band}",
                            utterance=utterance,
                            task=task,
                            lang=lang,
                            bandwidth=band,
                            text=text,
                            references=[right],
                            subset=subset,
                            speaker="mara",
                            duration_s=2.5,
                            score=-0.4,
                            stopped="end",
                        ).model_copy(update=fields)
                    )
    return found


def scored(found: list[Hypothesis], system: str = "toy") -> ScoreReport:
    return slices.score(system, {"hyp.jsonl": found}, lambda task: TASK_KINDS[task].metrics)


def audit(**changes: object) -> AuditReport:
    def served(route: str, expert: str, utterances: int, planned: bool, layer: int = 0) -> dict[str, object]:
        return {"stack": "encoder", "layer": layer, "route": route, "expert": expert, "utterances": utterances, "planned": planned}

    swap = {"stack": "encoder", "metric": "wer", "unit": "%", "utterances": 30}
    fields: dict[str, object] = {
        "system": "toy",
        "checkpoint": "exp/model",
        "manifest": "exp/cuts/test.jsonl.gz",
        "cuts": 60,
        "routes": {"transcribe/en/nb": 30, "transcribe/en/wb": 30},
        "layers": 1,
        "observations": 60,
        "served": [
            served("transcribe/en/nb", "nb", 29, True),
            served("transcribe/en/nb", "wb", 1, False),
            served("transcribe/en/wb", "wb", 30, True),
        ],
        "parameters": {"total": 4000, "active": 3000, "encoder.nb": 1000, "encoder.wb": 1000},
        "swaps": [
            swap | {"route": "transcribe/en/nb", "right": "nb", "used": "wb", "value": 12.3, "right_value": 4.5},
            swap | {"route": "transcribe/en/wb", "right": "wb", "used": "nb", "value": 3.0, "right_value": 3.5},
        ],
        "findings": [],
    }
    return AuditReport.model_validate(fields | changes)


def pages() -> dict[str, str]:
    found = hypotheses(synthetic=True, model="3f2a91c04d7e", decoding="beam:5")
    finding = Finding(check="execution", where="encoder layer 0", message=ATTACK, hint=ATTACK)
    return {
        "score": score_report_html(scored(found), found),
        "audit": audit_report_html(audit(findings=[finding])),
        "empty audit": audit_report_html(audit(served=[], swaps=[], routes={}, parameters={})),
    }


@pytest.mark.parametrize("name", ["score", "audit", "empty audit"])
def test_a_page_is_balanced_and_loads_nothing(name):
    text = pages()[name]
    page = Page(text)
    assert len(page.all("html")) == len(page.all("main")) == 1
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href", "action", "data")]
    assert links and all(value and value.startswith("#") for value in links)
    assert {value for _, attributes in page.tags if (value := attributes.get("id"))} >= {str(link).removeprefix("#") for link in links}
    assert not {"link", "iframe", "img", "object", "embed"} & {tag for tag, _ in page.tags}
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme:dark" in text


def test_all_foreign_text_is_escaped():
    found = [
        item.model_copy(
            update={"text": ATTACK, "references": [f"{ATTACK} b", "c"], "subset": ATTACK, "speaker": ATTACK, "utterance": ATTACK}
            | {"model": ATTACK, "decoding": ATTACK}
        )
        for item in hypotheses(1)[:1]
    ]
    report = slices.score(ATTACK, {ATTACK: found}, lambda task: TASK_KINDS[task].metrics)
    page = Page(score_report_html(report, found))
    assert len(page.all("script")) == 1  # The page's own.
    assert page.text.count("<script>alert('x')</script>") >= 7
    finding = Finding(check=ATTACK, where=ATTACK, message=ATTACK, hint=ATTACK)
    route = {"stack": "encoder", "layer": 0, "route": ATTACK, "expert": ATTACK, "utterances": 1, "planned": True}
    texts = dict.fromkeys(("system", "model", "checkpoint", "manifest"), ATTACK)
    audited = audit(**texts, routes={ATTACK: 1}, served=[route], findings=[finding], parameters={ATTACK: 1})
    page = Page(audit_report_html(audited))
    assert page.all("script") == []
    assert page.text.count("<script>alert('x')</script>") >= 9


def test_score_page_says_what_the_report_says():
    found = hypotheses(model="3f2a91c04d7e", decoding="beam:5|smoe:0.1.0")
    report = scored(found)
    page = Page(score_report_html(report, found))
    for part in report.slices:
        assert html.value_text(part.scores[0].value, part.scores[0].unit).replace("\u202f", " ") in page.text
        assert all(score.signature in page.text for score in part.scores)
    for text in (
        "Model 3f2a91c04d7e.",
        "beam:5|smoe:0.1.0",
        "seen voice",
        "unseen voice",
        "hyp.jsonl",
        "Narrowband",
        "Wideband",
        "mara",
        "2.5 s",
    ):
        assert text in page.text
    # Two subsets times two tasks, one chart each, read out for those who cannot see it.
    assert [chart["role"] for chart in page.all("svg")] == ["img"] * 4
    assert "transcribe en, WER: NB 20.0\u202f%, WB 0.0\u202f%" in [chart["aria-label"] for chart in page.all("svg")]


def test_pages_say_how_much_of_the_speech_is_synthetic():
    def badges(text: str) -> str:
        return text.partition('<p><span class="badge note">')[2].partition("</p>")[0]

    found = hypotheses(synthetic=True)
    assert "synthetic speech<" in badges(score_report_html(scored(found), found))
    # One of three utterances of each of eight slices.
    part = [item.model_copy(update={"synthetic": item.utterance.endswith("0")}) for item in found]
    page = score_report_html(scored(part), part)
    assert "synthetic speech in 8 of 24 utterances" in badges(page) and page.count("· 1 synthetic") == 8
    none = hypotheses()
    assert "synthetic" not in score_report_html(scored(none), none)
    assert "synthetic speech<" in badges(audit_report_html(audit(synthetic=60)))
    assert "synthetic speech in 30 of 60 utterances" in badges(audit_report_html(audit(synthetic=30)))
    assert "synthetic" not in audit_report_html(audit())


def test_errors_are_marked_by_text_and_not_by_colour_alone():
    found = [item.model_copy(update={"text": "the fat train of coast"}) for item in hypotheses(1)[:1]]
    page = Page(score_report_html(scored(found), found))
    assert "the +fat train of→to −the coast" in page.text
    assert "3 wrong of 5 words (60 %)" in page.text


def test_examples_are_the_worst_first_and_limited():
    found = hypotheses(EXAMPLES_PER_SLICE + 10)
    worst = found[-1].model_copy(update={"text": "", "stopped": "length"})
    found[-1] = worst
    page = Page(score_report_html(scored(found), found))
    examples = [attributes for attributes in page.all("li") if attributes.get("class") == "example"]
    assert len(examples) == 8 * EXAMPLES_PER_SLICE
    rates = [float(attributes["data-rate"] or "") for attributes in examples]
    for start in range(0, len(rates), EXAMPLES_PER_SLICE):
        part = rates[start : start + EXAMPLES_PER_SLICE]
        assert part == sorted(part, reverse=True)
    assert worst.id in {attributes["data-id"] for attributes in examples}
    assert "wrote nothing" in page.text and "cut off by the length limit" in page.text


def test_commonest_confusions_are_counted_per_band():
    found = [item for item in hypotheses(1) if item.task == "transcribe"]
    page = Page(score_report_html(scored(found), found))
    # One utterance in each of two subsets: "made" for "the", in narrowband only.
    assert "the made 2 0 2" in " ".join(" ".join(page.words).split())


def test_labels_are_compared_whole_and_without_a_language():
    names = [("de", "de"), ("en us", "de"), ("en", "en")]
    found = [
        item.model_copy(update={"task": "identify", "lang": "any", "text": text, "references": [right], "tags": {"accent": "x"}})
        for item, (text, right) in zip([item for item in hypotheses() if item.bandwidth == "nb"][:3], names, strict=True)
    ]
    page = Page(score_report_html(scored(found), found))
    text = " ".join(" ".join(page.words).split())
    assert "66.7 % accuracy 1 of 3 wrong" in text and "longer is better" in text
    assert "de en us 1 0 1" in text and "accent=x" in text
    assert "→ any" not in text and "wrong of 1 words" not in text


def test_the_page_of_other_hypotheses_is_refused():
    found = hypotheses()
    with pytest.raises(DataError, match="not those that the scores of `toy` were computed from"):
        score_report_html(scored(found), found[:-1])


def test_a_slice_in_one_band_only_is_shown_as_such():
    found = [item for item in hypotheses() if item.bandwidth == "wb"]
    assert "not scored" in Page(score_report_html(scored(found), found)).text


def test_audit_page_gives_its_verdict_first():
    assert "Passed. 60 observations, no findings." in Page(audit_report_html(audit())).text
    finding = Finding(check="execution", where="encoder layer 0", message="1 of 30 utterances was served by `wb`", hint="train again")
    text = Page(audit_report_html(audit(findings=[finding]))).text
    assert "1 finding. Read it" in text
    assert all(part in text for part in ("execution", "encoder layer 0", "1 of 30 utterances was served by `wb`", "train again"))


def test_audit_map_marks_a_stray_utterance_by_text():
    text = Page(audit_report_html(audit())).text
    assert "transcribe/en/nb, layer 0, nb: 29 of 30 utterances, planned" in text
    assert "transcribe/en/nb, layer 0, wb: 1 of 30 utterances" in text
    assert "96.7" in text and "3.3 !" in text
    assert "98.3 % served by the planned expert" in text.replace("%served", "% served")


def test_one_stray_among_many_never_rounds_to_all():
    rows = audit().served
    rows = [rows[0].model_copy(update={"utterances": 99_999}), rows[1]]
    assert "99.9" in Page(audit_report_html(audit(served=rows))).text


def test_swaps_show_right_beside_wrong_and_who_gained():
    page = Page(audit_report_html(audit()))
    assert "encoder, transcribe/en/nb: ✓ nb 4.5\u202f%, ✗ wb 12.3\u202f%" in [chart.get("aria-label") for chart in page.all("svg")]
    assert "+7.8 worse" in page.text
    assert "-0.5 better" in page.text


def test_bar_lengths_are_proportional_and_stay_in_the_picture():
    bars = [html.Bar("a", 5, "5", "nb"), html.Bar("b", 10, "10", "wb"), html.Bar("c", 99, "99", "bad")]
    chart = Page(html.bar_chart(bars, 10, "three bars")).all("rect")
    track = float(chart[0]["width"] or "")
    assert [float(bar["width"] or "") for bar in chart[1::2]] == [track / 2, track, track]


@pytest.mark.parametrize(
    ("values", "expected"), [([], 1), ([0.0], 1), ([4.2], 5), ([23.0, 9.0], 30), ([100.0], 100), ([0.04], 0.05), ([101], 150)]
)
def test_scales_end_at_round_numbers(values, expected):
    assert html.nice_maximum(values) == pytest.approx(expected)


@pytest.mark.parametrize(("hours", "text"), [(2.345, "2.3 h"), (0.5, "30 min"), (0.01, "36 s")])
def test_durations_read_well(hours, text):
    assert html.duration_text(hours).replace("\u202f", " ") == text
