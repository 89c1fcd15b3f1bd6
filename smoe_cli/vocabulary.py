"""The texts of the prepared manifests -> the tokenizer of a recipe (`smoe tokenize`)."""

from __future__ import annotations

from smoe_cli.checkpoint import read_parts
from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts, route_of, tags_of
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.layout import Layout
from smoe_cli.records import TokenizerReport
from smoe_cli.tags import ANY
from smoe_cli.tokenizer import ByteBPE
from smoe_cli.watch import Watcher


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
    texts: dict[tuple[str, str], str] = {}
    for cut in read_cuts(layout.cuts("train")):
        tags, route, text = tags_of(cut), route_of(cut), str(cut.supervisions[0].text)
        if tags.transcript:
            texts[tags.utterance, tags.source_lang] = tags.transcript
        # A label is one name, however many utterances have it: once, it does not outweigh the sentences.
        texts[f"{route.task} {text}" if route.lang == ANY else tags.utterance, route.lang] = text
    guiding = [f"<{name}>" for name in config.tasks]
    guiding += [f"<{lang}>" for lang in dict.fromkeys(lang for _, lang in config.targets())]
    if len(set(guiding)) != len(guiding):
        raise ConfigError(
            f"a task and a language share a name, so they would share a guiding token: {', '.join(guiding)}", "rename the task"
        )
    source = config.train.init_from
    if source is not None:
        given = read_parts(source).tokenizer
        needed = {token for route in config.routes() for token in given.tokens_of(route)}
        tokenizer = given.extend([token for token in guiding if token in needed], layout.tokenizer)
    else:
        tokenizer = ByteBPE.train(texts.values(), config.tokenizer.vocab_size, guiding, layout.tokenizer)
    words: dict[str, int] = {}
    tokens: dict[str, int] = {}
    changed: list[str] = []
    longest = max(len(tokenizer.guiding_ids(route)) for route in config.routes())
    for (key, lang), text in texts.items():
        ids = tokenizer.encode(text)
        # A label is a name, of no language.
        if lang != ANY:
            words[lang] = words.get(lang, 0) + len(text.split())
            tokens[lang] = tokens.get(lang, 0) + len(ids)
        if tokenizer.decode(ids) != text:
            if tokenizer.exact:
                raise DataError(f"text does not survive the tokenizer: {text!r}", "report this: byte-level BPE must be exact")
            changed.append(text)
        if config.model.max_tokens is not None and longest + len(ids) > config.model.max_tokens:
            raise DataError(
                f"a text of `{key}` has {len(ids)} tokens; the model takes {config.model.max_tokens - longest} after its guiding tokens",
                "split the utterance, or leave it out",
            )
    if changed:
        watcher.log(
            f"{len(changed):,} of {len(texts):,} texts do not come back as they were, and the model cannot learn to write them so: "
            f"{changed[0]!r} becomes {tokenizer.decode(tokenizer.encode(changed[0]))!r}; `data.lowercase` may be what is missing"
        )
    sentences = sum(lang != ANY for _, lang in texts)
    how = f"learned {tokenizer.vocab_size:,} pieces from {sentences:,} sentences"
    watcher.log(how if source is None else f"took the {tokenizer.vocab_size:,} pieces of `{source}`")
    return TokenizerReport(
        path=layout.tokenizer,
        kind=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        sentences=sentences,
        guiding_tokens=list(tokenizer.guiding_tokens),
        fertility={lang: round(tokens[lang] / max(1, words[lang]), 3) for lang in sorted(words)},
    )
