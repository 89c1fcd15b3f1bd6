"""Scores against values that nobody here wrote: the libraries' documentation, hand counts, a second Levenshtein."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu

from smoe_cli.errors import ConfigError, DataError, SmoeError
from smoe_cli.records import Hypothesis, ScoreReport, read_hypotheses, write_jsonl
from smoe_cli.scoring import slices
from smoe_cli.scoring.align import EditKind, Unit, align, confusions
from smoe_cli.scoring.metrics import METRICS, bleu, cer, chrf, find_metric, wer
from smoe_cli.scoring.table import score_rows, signatures
from smoe_cli.tags import TASK_KINDS

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "log", "and", "then", "stopped", "again", "quite", "suddenly"]


def hypothesis(text: str, *references: str, number: int = 0, **fields: object) -> Hypothesis:
    base = {
        "id": f"u{number:04d}-transcribe-en-nb",
        "utterance": f"u{number:04d}",
        "task": "transcribe",
        "lang": "en",
        "bandwidth": "nb",
        "text": text,
        "references": list(references),
        "duration_s": 2.0,
        "score": -0.5,
        "stopped": "end",
    }
    return Hypothesis.model_validate(base | fields)


def corpus(texts: list[str], references: list[list[str]], **fields: object) -> list[Hypothesis]:
    return [hypothesis(text, *right, number=n, **fields) for n, (text, right) in enumerate(zip(texts, references, strict=True))]


def metrics_of(task: str) -> tuple[str, ...]:
    return TASK_KINDS[task].metrics


def random_corpus(seed: int, size: int = 60) -> list[Hypothesis]:
    """Random sentences of 4 to 12 words, one to three references each, hypotheses with random edits."""
    rng = random.Random(seed)
    texts, references = [], []
    for _ in range(size):
        right = [rng.choices(WORDS, k=rng.randint(4, 12)) for _ in range(rng.randint(1, 3))]
        written = [word for word in rng.choice(right) if rng.random() > 0.1]
        written = [rng.choice(WORDS) if rng.random() < 0.15 else word for word in written]
        texts.append(" ".join(written))
        references.append([" ".join(words) for words in right])
    return corpus(texts, references)


def edit_distance(left: list[str], right: list[str]) -> int:
    """Levenshtein's distance by its textbook table."""
    previous = list(range(len(right) + 1))
    for row, a in enumerate(left, start=1):
        current = [row]
        for column, b in enumerate(right, start=1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (a != b)))
        previous = current
    return previous[-1]


# --- values from elsewhere ---------------------------------------------------------------------------------


def test_wer_equals_the_examples_of_jiwers_documentation():
    assert wer([hypothesis("hello duck", "hello world")]).value == 50.0
    two = corpus(["hello duck", "i like python"], [["hello world"], ["i like monthy python"]])
    assert wer(two).value == pytest.approx(100 * 2 / 6)
    # The alignment example: substitutions=2 deletions=2 insertions=4 hits=5, wer=88.89%.
    longer = corpus(
        ["shoe order one", "quite bit of an even longest sentence here"], [["short one here"], ["quite a bit of longer sentence"]]
    )
    score = wer(longer)
    assert (score.errors, score.total) == (8, 9)
    assert f"{score.value:.2f}" == "88.89"


def test_cer_equals_the_example_of_jiwers_documentation_counted_by_hand():
    # "i kan cpell" has two wrong letters, "i hop" lacks one; the references have 11 and 6 characters.
    score = cer(corpus(["i kan cpell", "i hop"], [["i can spell"], ["i hope"]]))
    assert (score.errors, score.total) == (3, 17)


DOGS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
DOG_REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def test_bleu_and_chrf_equal_the_examples_of_sacrebleus_documentation():
    dogs = corpus(DOGS, DOG_REFERENCES)
    assert f"{bleu(dogs).value:.2f}" == "48.53"
    assert f"{chrf(dogs).value:.2f}" == "59.73"
    assert bleu(dogs).signature == f"nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_bleu_with_fewer_references_for_one_utterance_equals_sacrebleus_documentation(order):
    # Documented with a hole in the first stream; here the utterance's only reference comes first.
    ragged = corpus(DOGS, [DOG_REFERENCES[0][1:], *DOG_REFERENCES[1:]])
    score = bleu([ragged[n] for n in order])
    assert f"{score.value:.2f}" == "29.44"
    assert "nrefs:var" in score.signature


def test_bleu_and_chrf_equal_sacrebleu_called_directly_on_single_references():
    found = [item.model_copy(update={"references": item.references[:1]}) for item in random_corpus(1)]
    texts, streams = [item.text for item in found], [[item.references[0] for item in found]]
    assert bleu(found).value == sacrebleu.corpus_bleu(texts, streams).score
    assert chrf(found).value == sacrebleu.corpus_chrf(texts, streams).score


def test_bleu_equals_sacrebleus_command_line(tmp_path: Path):
    found = [item.model_copy(update={"references": item.references[:1]}) for item in random_corpus(2)]
    (tmp_path / "hyp").write_text("".join(item.text + "\n" for item in found))
    (tmp_path / "ref").write_text("".join(item.references[0] + "\n" for item in found))
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-m", "bleu", "-b", "-w", "6"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"{bleu(found).value:.6f}" == printed.strip()


@pytest.mark.parametrize("seed", range(5))
def test_wer_and_cer_equal_a_second_levenshtein_over_the_nearest_reference(seed):
    found = random_corpus(seed)
    assert {len(item.references) for item in found} == {1, 2, 3}
    for measure, split in ((wer, str.split), (cer, list)):
        best = [
            min(((edit_distance(split(right), split(item.text)), n, len(split(right))) for n, right in enumerate(item.references)))
            for item in found
        ]
        score = measure(found)
        assert (score.errors, score.total) == (sum(errors for errors, _, _ in best), sum(total for _, _, total in best))
        assert "nrefs:var|pick:fewest-errors" in score.signature


# --- laws --------------------------------------------------------------------------------------------------


def test_every_metric_of_every_kind_of_task_is_in_the_table():
    assert {name for kind in TASK_KINDS.values() for name in kind.metrics} == set(METRICS)
    assert len(METRICS) == 5
    with pytest.raises(ConfigError, match="unknown metric `ter`; known: wer, cer, bleu, chrf, accuracy"):
        find_metric("ter")


@pytest.mark.parametrize("name", METRICS)
def test_right_hypotheses_score_perfectly_whichever_reference_they_equal(name):
    found = [item.model_copy(update={"text": item.references[-1]}) for item in random_corpus(3)]
    score = METRICS[name](found)
    assert score.metric == name
    assert score.value == pytest.approx(0.0 if METRICS[name].lower_is_better else 100.0)


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_utterances_does_not_matter(name):
    found = random_corpus(4)
    shuffled = random.Random(0).sample(found, len(found))
    assert METRICS[name](shuffled) == METRICS[name](found)


@pytest.mark.parametrize("name", METRICS)
def test_a_worse_text_scores_worse_and_an_empty_one_worst(name):
    found = random_corpus(5)
    empty = METRICS[name]([item.model_copy(update={"text": ""}) for item in found])
    some = METRICS[name](found)
    assert empty.value == (100.0 if METRICS[name].lower_is_better else 0.0)
    assert (some.value < empty.value) == METRICS[name].lower_is_better


def test_words_made_up_can_push_wer_above_100():
    assert wer([hypothesis("no no no no", "yes")]).value == 400.0


def test_case_and_punctuation_count_because_nothing_is_normalised():
    assert wer([hypothesis("Hello world!", "hello world")]).value == 100.0


@pytest.mark.parametrize("name", METRICS)
def test_what_cannot_be_measured_is_refused_by_name(name):
    with pytest.raises(DataError, match="no hypotheses"):
        METRICS[name]([])
    with pytest.raises(DataError, match="`u0007-transcribe-en-nb` has no references: bare audio"):
        METRICS[name]([hypothesis("yes", number=7)])
    with pytest.raises(DataError, match="`u0007-transcribe-en-nb` has an empty reference") as caught:
        METRICS[name]([hypothesis("yes", "yes", " ", number=7)])
    assert "utterance `u0007`" in caught.value.hint


def test_bleu_tokenizes_chinese_by_characters_and_refuses_a_mixture_of_languages():
    chinese = hypothesis("我喜欢这本书", "我喜欢这本书", lang="zh-tw")
    score = bleu([chinese])
    assert score.value == pytest.approx(100.0)
    assert "tok:zh" in score.signature
    with pytest.raises(DataError, match="several languages at once: en, zh-tw"):
        bleu([chinese, hypothesis("a", "a", number=1)])


def test_bleu_says_which_package_a_language_needs(monkeypatch):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    with pytest.raises(SmoeError, match="BLEU on `ja` needs a tokenizer") as caught:
        bleu([hypothesis("本", "本", lang="ja")])
    assert "pip install sacrebleu[ja]" in caught.value.hint


# --- alignment ---------------------------------------------------------------------------------------------


def test_alignment_names_every_edit():
    (found,) = align([hypothesis("the fat cat sit mat", "the cat sat on mat")])
    assert [(edit.kind.value, edit.reference, edit.hypothesis) for edit in found.edits] == [
        ("equal", ("the",), ("the",)),
        ("insert", (), ("fat",)),
        ("equal", ("cat",), ("cat",)),
        ("substitute", ("sat",), ("sit",)),
        ("delete", ("on",), ()),
        ("equal", ("mat",), ("mat",)),
    ]
    assert (found.errors, found.total, found.error_rate) == (3, 5, 0.6)


@pytest.mark.parametrize("unit", Unit)
def test_alignment_spells_both_texts_again(unit):
    for item, found in zip(random_corpus(6), align(random_corpus(6), unit), strict=True):
        glue = " " if unit is Unit.WORD else ""
        assert glue.join(word for edit in found.edits for word in edit.reference) == found.reference
        assert glue.join(word for edit in found.edits for word in edit.hypothesis) == item.text
        assert all(edit.reference == edit.hypothesis for edit in found.edits if edit.kind is EditKind.EQUAL)


def test_alignment_takes_the_first_of_equally_near_references():
    (found,) = align([hypothesis("a b", "a c", "d b e", "a d")])
    assert found.reference == "a c"


def test_confusions_count_pairs_and_missing_sides():
    found = align(corpus(["the cost here is", "a cost"], [["the coast here"], ["a coast now"]]))
    assert confusions(found) == {("coast", "cost"): 2, ("", "is"): 1, ("now", ""): 1}


# --- slices ------------------------------------------------------------------------------------------------


def four_slices() -> dict[str, list[Hypothesis]]:
    first = [
        hypothesis("the cat", "the cat", number=1, subset="seen"),
        hypothesis("the dog", "the log", number=2, subset="seen", stopped="length"),
        hypothesis("a mat", "the mat", number=3, subset="unseen"),
        hypothesis("on a mat", "on a mat", number=4, bandwidth="wb", id="u0004-transcribe-en-wb"),
    ]
    second = [hypothesis("die Katze saß da", "die Katze saß da", number=1, task="translate", lang="de", id="u0001-translate-de-nb")]
    return {"first.jsonl": first, "second.jsonl": second}


def test_slices_are_subset_task_language_and_bandwidth():
    report = slices.score("toy", four_slices(), metrics_of)
    found = [(part.subset, part.task, part.lang, part.bandwidth, part.utterances, part.truncated) for part in report.slices]
    assert found == [
        ("", "transcribe", "en", "wb", 1, 0),
        ("", "translate", "de", "nb", 1, 0),
        ("seen", "transcribe", "en", "nb", 2, 1),
        ("unseen", "transcribe", "en", "nb", 1, 0),
    ]
    assert [[score.metric for score in part.scores] for part in report.slices] == [
        ["wer", "cer"],
        ["bleu", "chrf"],
        ["wer", "cer"],
        ["wer", "cer"],
    ]
    assert report.slices[2].scores[0].value == 25.0
    assert report.slices[2].hours == pytest.approx(4 / 3600)
    assert list(report.versions) == ["smoe", "jiwer", "sacrebleu", "python"]
    assert report.hypotheses == ["first.jsonl", "second.jsonl"]


def test_the_report_does_not_depend_on_the_order_within_files():
    sources = four_slices()
    turned = {file: found[::-1] for file, found in sources.items()}
    assert slices.score("toy", turned, metrics_of) == slices.score("toy", sources, metrics_of)


def test_a_cut_decoded_twice_is_refused_with_its_files():
    sources = four_slices()
    again = sources["first.jsonl"][0]
    with pytest.raises(DataError, match=r"cut `u0001-transcribe-en-nb` is decoded in `first.jsonl` and again in `third.jsonl`"):
        slices.score("toy", sources | {"third.jsonl": [again]}, metrics_of)
    with pytest.raises(DataError, match=r"twice in `one.jsonl`"):
        slices.score("toy", {"one.jsonl": [again, again]}, metrics_of)


def by(model: str, sources: dict[str, list[Hypothesis]]) -> dict[str, list[Hypothesis]]:
    return {file: [item.model_copy(update={"model": model}) for item in found] for file, found in sources.items()}


def test_hypotheses_of_two_models_are_refused_with_their_files():
    sources = by("3f2a91c04d7e", four_slices())
    assert slices.score("toy", sources, metrics_of).model == "3f2a91c04d7e"
    for model, name in (("0b1c2d3e4f5a", "model 0b1c2d3e4f5a"), ("", "a model without name")):
        mixed = sources | by(model, {"second.jsonl": four_slices()["second.jsonl"]})
        with pytest.raises(DataError, match=f"2 models .*: model 3f2a91c04d7e in `first.jsonl`; {name} in `second.jsonl`") as caught:
            slices.score("toy", mixed, metrics_of)
        assert "`smoe decode`" in caught.value.hint
    # Also inside one file, and before a cut that both decoded is called a mistake.
    joined = {"one.jsonl": [*sources["first.jsonl"], *four_slices()["first.jsonl"]]}
    with pytest.raises(DataError, match=r"model 3f2a91c04d7e in `one.jsonl`; a model without name in `one.jsonl`"):
        slices.score("toy", joined, metrics_of)


def test_the_report_says_with_which_settings_it_was_decoded():
    first, second = four_slices().values()
    sources = {"a": first, "b": [item.model_copy(update={"decoding": "beam:5"}) for item in second]}
    assert slices.score("toy", sources, metrics_of).decoding == ["beam:5"]


def test_synthetic_speech_is_counted_per_slice_and_stands_in_the_title():
    def spoken(number_of_real: int) -> ScoreReport:
        first = four_slices()["first.jsonl"]
        return slices.score(
            "toy", {"a": [item.model_copy(update={"synthetic": n >= number_of_real}) for n, item in enumerate(first)]}, metrics_of
        )

    assert spoken(4).title == "toy"
    assert spoken(0).title == "toy, synthetic speech"
    assert "synthetic" not in score_rows(spoken(0))[0]
    mixed = spoken(1)
    assert mixed.title == "toy, synthetic speech in 3 of 4 utterances"
    assert [(part.subset, part.synthetic, part.utterances) for part in mixed.slices] == [("", 1, 1), ("seen", 1, 2), ("unseen", 1, 1)]
    header, rows = score_rows(mixed)
    assert [row[header.index("synthetic")] for row in rows] == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": []}, "`one.jsonl`, cut `u0000-transcribe-en-nb`: .* no references: bare audio cannot be scored"),
        ({"bandwidth": "swb"}, "`one.jsonl`, cut `u0000-transcribe-en-nb`: unknown bandwidth `swb`; known: nb, wb"),
    ],
)
def test_tags_and_references_that_would_falsify_a_score_are_refused(change, message):
    with pytest.raises(DataError, match=message) as caught:
        slices.score("toy", {"one.jsonl": [hypothesis("a", "a").model_copy(update=change)]}, metrics_of)
    assert caught.value.hint


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match=r"no hypotheses in `empty\.jsonl`"):
        slices.score("toy", {"empty.jsonl": []}, metrics_of)


def test_files_are_read_as_they_were_written_and_once_only(tmp_path: Path):
    path = tmp_path / "hypotheses.jsonl"
    found = random_corpus(7, size=5)
    write_jsonl(path, found)
    assert slices.read_sources([path]) == {str(path): found}
    with pytest.raises(DataError, match="named twice"):
        slices.read_sources([path, path])


def test_accuracy_is_the_share_of_answers_that_equal_a_reference_exactly():
    found = [hypothesis("de", "de"), hypothesis("en", "de", "en"), hypothesis("De", "de"), hypothesis("de de", "de")]
    score = find_metric("accuracy")(found)
    assert (score.value, score.errors, score.total, score.unit) == (50.0, 2, 4, "%")
    assert not find_metric("accuracy").lower_is_better
    assert "match:exact" in score.signature


def test_slices_and_table_tell_the_recipes_own_tags_apart():
    found = [hypothesis("a", "a", number=n, tags={"accent": accent}) for n, accent in enumerate(("us", "us", "uk"))]
    report = slices.score("toy", {"f": found}, metrics_of)
    assert [(part.tags, part.utterances) for part in report.slices] == [({"accent": "uk"}, 1), ({"accent": "us"}, 2)]
    header, rows = score_rows(report)
    assert header[:5] == ["subset", "task", "lang", "band", "tags"]
    assert [row[4] for row in rows] == ["accent=uk", "accent=us"]


def test_table_has_one_row_per_slice_and_one_column_per_metric():
    header, rows = score_rows(slices.score("toy", four_slices(), metrics_of))
    assert header == ["subset", "task", "lang", "band", "WER %", "CER %", "BLEU", "chrF", "utterances", "hours", "cut off"]
    assert rows[2] == ["seen", "transcribe", "en", "nb", "25.0", "7.1", "", "", "2", "0.00", "1"]
    assert rows[1] == ["main", "translate", "de", "nb", "", "", "100.0", "100.0", "1", "0.00", "0"]
    assert {len(row) for row in rows} == {len(header)}


def test_each_signature_is_quoted_once():
    quoted = signatures(slices.score("toy", four_slices(), metrics_of))
    assert len(quoted) == len(set(quoted)) == 4
    assert any(line.startswith("BLEU: ") and "|version:" in line for line in quoted)


def test_scoring_imports_neither_torch_nor_lhotse():
    code = (
        "import sys, smoe_cli.scoring.table, smoe_cli.scoring.report, smoe_cli.audit.report; "
        "print([name for name in ('torch', 'lhotse', 'typer', 'rich') if name in sys.modules])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    ).stdout
    assert printed.strip() == "[]"


def test_hypotheses_of_other_programs_need_only_text_tags_and_references(tmp_path):
    path = tmp_path / "other.jsonl"
    line = {"id": "a", "task": "transcribe", "lang": "en", "bandwidth": "nb", "text": "one", "references": ["one two"]}
    path.write_text(json.dumps(line) + "\n")
    assert next(iter(read_hypotheses(path))).text == "one"
    path.write_text(json.dumps({"id": "a", "text": "one"}) + "\n")
    with pytest.raises(DataError, match=r"line 1 is not a hypothesis: `task`: Field required; `lang`: Field required") as caught:
        list(read_hypotheses(path))
    assert "at least id, task, lang" in caught.value.hint and "\n" not in caught.value.message
