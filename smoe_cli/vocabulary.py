"""The texts of the prepared manifests -> the tokenizer of a recipe (`smoe tokenize`)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Set
from typing import NamedTuple

from smoe_cli.batching import check_tokens
from smoe_cli.checkpoint import read_start
from smoe_cli.config import Config
from smoe_cli.cuts import route_of, stream_manifest, tags_of
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.layout import Layout
from smoe_cli.records import Coverage, TokenizerReport, name_digest
from smoe_cli.tags import ANY
from smoe_cli.tokenizer import ByteBPE, Tokenizer
from smoe_cli.watch import Watcher

LISTED = 10
"""Characters that a report names of each kind."""


def make_tokenizer(config: Config, watcher: Watcher) -> TokenizerReport:
    """Learn the tokenizer from the train split: transcripts and translations, each text once per utterance, and each label once.

    A recipe that starts from a checkpoint (`train.init_from`) takes the checkpoint's, with the guiding tokens that it lacks.

    Raises:
        DataError: If the train manifest is missing.
        ConfigError: If the texts cannot give so large a vocabulary.
        DataError: If a text has more tokens than the model takes.
        CheckpointError: If `train.init_from` is no checkpoint.
    """
    layout = Layout.of(config)
    guiding = [f"<{name}>" for name in config.tasks]
    guiding += [f"<{lang}>" for lang in dict.fromkeys(lang for _, lang in config.targets())]
    if len(set(guiding)) != len(guiding):
        raise ConfigError(
            f"a task and a language share a name, so they would share a guiding token: {', '.join(guiding)}", "rename the task"
        )
    source = config.train.init_from
    if source is not None:
        given = read_start(source).tokenizer
        needed = {token for route in config.routes() for token in given.tokens_of(route)}
        tokenizer = given.extend([token for token in guiding if token in needed], layout.tokenizer)
    else:
        tokenizer = ByteBPE.train((text.text for text in _texts(layout, "train")), config.tokenizer.vocab_size, guiding, layout.tokenizer)
    found = _Fertility(config, tokenizer)
    for text in _texts(layout, "train"):
        found.add(text)
    held_out = "dev" if layout.cuts("dev").exists() else "train"
    measured = _Covered(tokenizer)
    for text in _texts(layout, held_out):
        measured.add(text)
    if found.changed:
        watcher.log(
            f"{found.changed:,} of {found.texts:,} texts do not come back as they were, and the model cannot learn to write them so: "
            f"{found.example!r} becomes {tokenizer.decode(tokenizer.encode(found.example))!r}; `data.lowercase` may be what is missing"
        )
    how = f"learned {tokenizer.vocab_size:,} pieces from {found.sentences:,} sentences"
    watcher.log(how if source is None else f"took the {tokenizer.vocab_size:,} pieces of `{source}`")
    return TokenizerReport(
        path=layout.tokenizer,
        kind=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        sentences=found.sentences,
        guiding_tokens=list(tokenizer.guiding_tokens),
        fertility={lang: round(found.tokens[lang] / max(1, found.words[lang]), 3) for lang in sorted(found.words)},
        measured_on=held_out,
        coverage=[measured.of(lang, found.characters) for lang in sorted(measured.words)],
        merged_pieces=len(tokenizer.merged_ids),
        merged_pieces_used=len(tokenizer.merged_ids & found.used),
    )


class _Text(NamedTuple):
    """A text of a split, and whose it is."""

    key: str
    lang: str
    text: str


def _texts(layout: Layout, split: str) -> Iterator[_Text]:
    """The texts of a split, each once per utterance, and each label once."""
    seen: set[bytes] = set()
    for cut in stream_manifest(layout.cuts(split)):
        tags, route, text = tags_of(cut), route_of(cut), str(cut.supervisions[0].text)
        # A label is one name, however many utterances have it: once, it does not outweigh the sentences.
        found = [_Text(f"{route.task} {text}" if route.lang == ANY else tags.utterance, route.lang, text)]
        if tags.transcript:
            found.insert(0, _Text(tags.utterance, tags.source_lang, tags.transcript))
        for one in found:
            key = name_digest(repr(one))
            if key not in seen:
                seen.add(key)
                yield one


class _Fertility:
    """How many tokens the words of each language take, which pieces and characters there are, and whether texts come back as they were."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._max_tokens = tokenizer, config.model.max_tokens
        self._guiding = max(len(tokenizer.guiding_ids(route)) for route in config.routes())
        self.words: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.used: set[int] = set()
        self.characters: set[str] = set()
        self.texts = self.sentences = self.changed = 0
        self.example = ""

    def add(self, one: _Text) -> None:
        """Count a text.

        Raises:
            DataError: If it has more tokens than the model takes, or a tokenizer that must be exact changes it.
        """
        ids = self._tokenizer.encode(one.text)
        self.texts += 1
        self.used.update(ids)
        self.characters.update(one.text)
        # A label is a name, of no language.
        if one.lang != ANY:
            self.sentences += 1
            self.words[one.lang] += len(one.text.split())
            self.tokens[one.lang] += len(ids)
        if self._tokenizer.decode(ids) != one.text:
            if self._tokenizer.exact:
                raise DataError(f"text does not survive the tokenizer: {one.text!r}", "report this: byte-level BPE must be exact")
            self.changed += 1
            self.example = self.example or one.text
        check_tokens(f"an utterance of `{one.key}`", self._guiding + len(ids), self._max_tokens)


class _Covered:
    """How well the pieces cover the texts of each language; labels, which are names of no language, left out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.words: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._characters: dict[str, Counter[str]] = defaultdict(Counter)
        self._broken: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, one: _Text) -> None:
        """Count a text."""
        if one.lang == ANY:
            return
        self.words[one.lang] += len(one.text.split())
        self._tokens[one.lang] += len(self._tokenizer.encode(one.text))
        self._characters[one.lang].update(character for character in one.text if not character.isspace())
        self._broken[one.lang].update(self._tokenizer.broken(one.text))

    def of(self, lang: str, learned: Set[str]) -> Coverage:
        """What was counted of a language.

        Args:
            learned: Characters that training texts have.
        """
        characters, broken = self._characters[lang], self._broken[lang]
        unseen = [character for character in _frequent(characters) if character not in learned]
        total = characters.total()
        return Coverage(
            lang=lang,
            tokens_per_word=round(self._tokens[lang] / max(1, self.words[lang]), 3),
            characters=total,
            whole_characters=round(100 * (1 - broken.total() / max(1, total)), 2),
            broken=_frequent(broken)[:LISTED],
            unseen=unseen[:LISTED],
            unseen_characters=len(unseen),
        )


def _frequent(characters: Counter[str]) -> list[str]:
    """The most frequent first, and always in the same order."""
    return sorted(characters, key=lambda character: (-characters[character], character))
