"""The swap test's statistics, against enumeration of every case and against sacrebleu's own test."""

import random
from itertools import product

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest

from smoe_cli.audit.swap import CHANCE, _beyond_chance, _chance, utterances_needed
from smoe_cli.records import Hypothesis, Swap
from smoe_cli.scoring.metrics import find_metric

WER, BLEU_SCORE = find_metric("wer"), find_metric("bleu")
WORDS = "the cat sat on a mat and then it ran under the old log again".split()


def written(texts: list[str], references: list[str]) -> list[Hypothesis]:
    common = {"task": "transcribe", "lang": "en", "bandwidth": "nb"}
    return [
        Hypothesis.model_validate(common | {"id": f"u{number}", "text": text, "references": [right]})
        for number, (text, right) in enumerate(zip(texts, references, strict=True))
    ]


def noisy(right: list[str], rate: float, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choice(WORDS) if generator.random() < rate else word for word in text.split()) for text in right]


def sentences(count: int) -> list[str]:
    generator = random.Random(9)
    return [" ".join(generator.choices(WORDS, k=12)) for _ in range(count)]


def test_the_chance_is_that_of_all_ways_to_change_sides():
    right = sentences(9)
    ours, theirs = written(noisy(right, 0.2, 1), right), written(noisy(right, 0.35, 2), right)
    observed = WER(theirs).value - WER(ours).value
    assert observed > 0
    reached = 0
    for sides in product((False, True), repeat=9):
        a = [their if side else our for side, our, their in zip(sides, ours, theirs, strict=True)]
        b = [our if side else their for side, our, their in zip(sides, ours, theirs, strict=True)]
        reached += WER(b).value - WER(a).value >= observed - 1e-9
    assert _chance(WER, ours, theirs, 4000) == pytest.approx(reached / 2**9, abs=0.02)


def test_sacrebleu_agrees():
    right = sentences(25)
    ours, theirs = noisy(right, 0.25, 3), noisy(right, 0.33, 4)
    test = PairedTest(
        [("theirs", theirs), ("ours", ours)], {"BLEU": BLEU(references=[right])}, references=None, test_type="ar", n_samples=3000
    )
    two_sided = test()[1]["BLEU"][1].p_value
    mine, other = written(ours, right), written(theirs, right)
    found = _chance(BLEU_SCORE, mine, other, 3000) if BLEU_SCORE(mine).value > BLEU_SCORE(other).value else None
    assert found is not None and 0.01 < found < 0.2
    assert 2 * found == pytest.approx(two_sided, abs=0.05)


def test_an_expert_that_is_no_better_is_no_finding():
    right = sentences(5)
    same = written(right, right)
    assert _chance(WER, same, same, 1000) == 1.0
    assert _chance(WER, written(noisy(right, 0.5, 1), right), same, 1000) == 1.0


def test_two_utterances_show_nothing_and_as_many_as_are_needed_do():
    swap = Swap(
        stack="encoder", route="transcribe/en/nb", right="nb", used="wb", metric="wer", value=0, right_value=50, unit="%", utterances=2
    )
    for count, found in ((2, False), (utterances_needed(4) - 1, False), (utterances_needed(4) + 1, True)):
        right = sentences(count)
        chance = _chance(WER, written(right, right), written(["wrong"] * count, right), 4000)
        swaps = [swap.model_copy(update={"p_value": value}) for value in (1.0, 0.6, chance, 1.0)]
        assert bool(_beyond_chance(swaps)) is found


def test_many_swaps_that_only_chance_moves_seldom_give_a_finding():
    """Holm's bound, for chances that are spread evenly, as they are where no expert is better."""
    generator, alarms, audits = random.Random(5), 0, 2000
    swap = Swap(
        stack="encoder", route="transcribe/en/nb", right="nb", used="wb", metric="wer", value=0, right_value=0, unit="%", utterances=30
    )
    for _ in range(audits):
        alarms += bool(_beyond_chance([swap.model_copy(update={"p_value": generator.random()}) for _ in range(12)]))
    assert 0.5 * CHANCE < alarms / audits < 1.4 * CHANCE
