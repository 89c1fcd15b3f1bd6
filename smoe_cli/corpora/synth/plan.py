"""Who says what: sentences dealt to the splits, and voices to the sentences, before any audio is made."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

from smoe_cli.config import SPLITS
from smoe_cli.corpora.synth.grammar import Sentence, draw
from smoe_cli.corpora.synth.speak import Saying
from smoe_cli.corpora.synth.voices import VOICES, Voice
from smoe_cli.corpus_settings import SynthCorpus
from smoe_cli.errors import DataError

SEEN = "seen-voices"
UNSEEN = "unseen-voice"
"""Subsets of the test split: the same sentences, spoken by a voice of the training and by one kept from it."""


@dataclass(frozen=True)
class Planned:
    """One utterance to be.

    Attributes:
        id: Unique in the corpus: split, number of the sentence, number of the rendition.
        split: One of `SPLITS`.
        subset: `SEEN` or `UNSEEN` in the test split, else empty.
        sentence: Text and translations.
        saying: The audio to be made.
    """

    id: str
    split: str
    subset: str
    sentence: Sentence
    saying: Saying


def plan(settings: SynthCorpus, audio_dir: Path) -> list[Planned]:
    """Choose every utterance's sentence, voice and seed.

    Raises:
        DataError: For an unknown split, or more sentences or renditions than there can be.
    """
    seen, unseen = _voices(settings)
    planned = []
    for split, sentences in _sentences(settings).items():
        for number, sentence in enumerate(sentences):
            stem = f"{split}-{number:05d}"
            # Its own generator for every sentence: one more sentence elsewhere changes no voice here.
            rng = Random(f"{settings.seed}/{stem}")
            cast = rng.sample(seen, settings.renditions if split == "train" else 1)
            if split == "test" and unseen:
                cast.append(rng.choice(unseen))
            for rendition, voice in enumerate(cast, 1):
                name = f"{stem}-{rendition}"
                subset = "" if split != "test" else UNSEEN if voice.unseen else SEEN
                seed = int.from_bytes(sha256(f"{settings.seed}/{name}".encode()).digest()[:8], "big")
                planned.append(Planned(name, split, subset, sentence, Saying(sentence.en, voice, seed, audio_dir / split / f"{name}.flac")))
    return planned


def _sentences(settings: SynthCorpus) -> dict[str, list[Sentence]]:
    """Deal one draw of distinct sentences to the splits, so that none is shared."""
    for split, count in settings.sentences.items():
        if split not in SPLITS:
            raise DataError(f"`sentences` of the synth corpus names split `{split}`; known splits: {', '.join(SPLITS)}", "correct the name")
        if count < 0:
            raise DataError(f"`sentences` of the synth corpus asks for {count} in split `{split}`", "give 0 or more")
    counts = {split: settings.sentences.get(split, 0) for split in SPLITS}
    drawn = iter(draw(sum(counts.values()), settings.seed))
    return {split: [next(drawn) for _ in range(count)] for split, count in counts.items()}


def _voices(settings: SynthCorpus) -> tuple[list[Voice], list[Voice]]:
    """The chosen engines' voices: those that training hears, and those kept for the test."""
    voices = [voice for voice in VOICES if voice.engine in settings.engines]
    seen = [voice for voice in voices if not voice.unseen]
    if settings.renditions > len(seen):
        raise DataError(
            f"the synth corpus asks for {settings.renditions} renditions, each by another voice; its engines "
            f"({', '.join(settings.engines) or 'none'}) have {len(seen)} training voices",
            "lower `renditions`, or add an engine to `engines`",
        )
    return seen, [voice for voice in voices if voice.unseen]
