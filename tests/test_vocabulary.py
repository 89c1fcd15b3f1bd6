"""What `smoe tokenize` says of a tokenizer: each number beside one that another library, or a hand, counts."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
import soundfile
import tokenizers

from smoe_cli import pipeline
from smoe_cli.config import Config
from smoe_cli.layout import Layout
from smoe_cli.records import Coverage, TokenizerReport
from smoe_cli.tokenizer import ByteBPE, FairseqTokenizer, WhisperTokenizer, open_tokenizer
from smoe_cli.vocabulary import _Covered, _Text
from tests.conftest import tiny_config
from tests.test_conversion import converted, speech2text_folder, whisper_folder

ROWS = [
    ("a1", "train", "the red house stands by the sea", "das rote Haus steht am Meer"),
    ("a2", "train", "the red car stands by the house", "das rote Auto steht am Haus"),
    ("a3", "train", "the sea is blue", "das Meer ist blau"),
    ("b1", "dev", "the café is by the sea", "das Café ist schön, ja schön"),
    ("b2", "dev", "the house is naïve", "東京 das 東 Haus"),
]


def corpus(folder: Path, rows: list[tuple[str, str, str, str]] = ROWS) -> Path:
    folder.mkdir()
    for name, *_ in rows:
        soundfile.write(folder / f"{name}.wav", 0.3 * np.sin(np.arange(32000) / 5), 16000)
    lines = ["id\tpath\tsplit\ttranscript\tgerman", *(f"{i}\t{i}.wav\t{split}\t{en}\t{de}" for i, split, en, de in rows)]
    (folder / "table.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def recipe(folder: Path, **changes: object) -> Config:
    table = {"type": "tsv", "path": "table.tsv", "translations": {"de": "german"}, "language": "en"}
    return tiny_config(folder.parent / "exp", data={"root": str(folder), "corpora": {"calls": table}, "nb_downsample": True}, **changes)


def texts(lang: str, split: str) -> list[str]:
    return [row[2 if lang == "en" else 3] for row in ROWS if row[1] == split]


def words(lang: str, split: str) -> int:
    return sum(len(text.split()) for text in texts(lang, split))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Config, TokenizerReport]:
    """A tokenizer of 290 pieces, and what is said of it; a narrowband twin of each cut must not count twice."""
    config = recipe(corpus(tmp_path_factory.mktemp("words") / "corpus"), tokenizer={"vocab_size": 290})
    pipeline.prepare(config)
    return config, pipeline.tokenize(config)


def of(report: TokenizerReport, lang: str) -> Coverage:
    return next(one for one in report.coverage if one.lang == lang)


def counted_by_sentencepiece(config: Config, sentences: list[str]) -> int:
    """Tokens, by its own library, of bytes that are written as that library's model knows them."""
    model = spm.SentencePieceProcessor(model_file=str(Layout.of(config).tokenizer / "bpe.model"))
    written = ["".join(chr(b) if 0x20 <= b < 0x7F else chr(0x100 + b) for b in text.encode()) for text in sentences]
    return sum(map(len, model.encode(written)))


@pytest.mark.parametrize("lang", ["de", "en"])
def test_tokens_per_word_are_those_that_sentencepiece_counts(made, lang):
    config, report = made
    assert report.fertility[lang] == pytest.approx(counted_by_sentencepiece(config, texts(lang, "train")) / words(lang, "train"), abs=6e-4)
    held_out = counted_by_sentencepiece(config, texts(lang, "dev")) / words(lang, "dev")
    assert of(report, lang).tokens_per_word == pytest.approx(held_out, abs=6e-4)
    assert report.measured_on == "dev"


def test_characters_of_the_dev_split_that_training_lacks_are_listed_the_most_frequent_first(made):
    _, report = made
    assert of(report, "de").unseen == ["ö", "東", ",", "C", "f", "j", "é", "京"]
    assert of(report, "de").unseen_characters == 8
    # `f` and `é` of the English `café`, `v` and `ï` of `naïve`
    assert of(report, "en").unseen == ["f", "v", "é", "ï"]


def test_characters_that_become_bytes_are_counted_and_named(made):
    """No training text has them, so no piece can."""
    _, report = made
    german = "".join("".join(texts("de", "dev")).split())
    broken = Counter(character for character in german if not character.isascii())
    assert broken == {"é": 1, "ö": 2, "東": 2, "京": 1}
    assert of(report, "de").broken == ["ö", "東", "é", "京"]
    assert of(report, "de").characters == len(german)
    assert of(report, "de").whole_characters == round(100 * (1 - 6 / len(german)), 2)


def test_a_tokenizer_that_learned_a_script_has_its_characters_whole(tmp_path):
    tokenizer = ByteBPE.train(["東 京 は"] * 3 + ["straße"] * 2, 275, [], tmp_path)
    assert tokenizer.broken("東 は 京 straße") == []
    assert tokenizer.broken("京 и 京🙂") == ["и", "🙂"]


def test_unused_pieces_are_those_that_no_training_text_has(made):
    config, report = made
    tokenizer = open_tokenizer(Layout.of(config).tokenizer)
    # 256 bytes, three special pieces and four guiding tokens are no merges
    assert report.merged_pieces == 290 - 256 - 3 - 4 == len(tokenizer.merged_ids)
    used = {i for lang in ("en", "de") for text in texts(lang, "train") for i in tokenizer.encode(text)}
    assert report.merged_pieces_used == len(used & tokenizer.merged_ids) < report.merged_pieces


def test_without_a_dev_split_the_train_split_is_measured(tmp_path):
    config = recipe(corpus(tmp_path / "corpus", ROWS[:3]), tokenizer={"vocab_size": 290})
    pipeline.prepare(config)
    report = pipeline.tokenize(config)
    assert report.measured_on == "train"
    assert {one.lang: one.tokens_per_word for one in report.coverage} == report.fertility
    assert [(one.unseen, one.broken, one.whole_characters) for one in report.coverage] == [([], [], 100.0)] * 2


def test_labels_are_of_no_language(tmp_path):
    table = {"type": "tsv", "path": "table.tsv", "translations": {"de": "german"}, "language": "en", "labels": {"intent": "çay"}}
    tasks = {"transcribe": {"languages": ["en"]}, "intent": {"kind": "classify", "label": "intent"}}
    folder = corpus(tmp_path / "corpus")
    config = tiny_config(
        tmp_path / "exp", data={"root": str(folder), "corpora": {"calls": table}}, tasks=tasks, tokenizer={"vocab_size": 280}
    )
    pipeline.prepare(config)
    assert [one.lang for one in pipeline.tokenize(config).coverage] == ["en"]


# --- against other libraries -----------------------------------------------------------------------------

TEXTS = ["Straße, ça va? 日本語 🙂 naïve", "plain words", "  два  слова ", "👩‍👩‍👧 é é", ""]


def by_pieces(pieces: list[str], text: str) -> Counter[str]:
    """Characters of a text that none of its pieces, each decoded alone, holds whole."""
    whole = Counter("".join(pieces).replace("\ufffd", ""))
    return Counter(character for character in text if not character.isspace()) - whole


def test_broken_characters_are_those_that_the_pieces_do_not_decode_to_one_by_one(made):
    tokenizer = open_tokenizer(Layout.of(made[0]).tokenizer)
    for text in [*TEXTS, *texts("de", "dev")]:
        pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
        assert Counter(tokenizer.broken(text)) == by_pieces(pieces, text)


def test_broken_characters_of_whisper_are_those_that_several_tokens_share(tmp_path):
    """By the offsets that the library `tokenizers` gives."""
    folder, _ = whisper_folder(tmp_path / "theirs")
    tokenizer = converted(folder, tmp_path / "ours").tokenizer
    assert isinstance(tokenizer, WhisperTokenizer)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    for text in TEXTS:
        given = theirs.encode(f" {text}", add_special_tokens=False)
        starts = Counter(start for start, end in given.offsets if end - start == 1)
        shared = [f" {text}"[start] for start, tokens in starts.items() if tokens > 1]
        assert Counter(tokenizer.broken(text)) == Counter(shared)
    pieces = theirs.get_vocab(with_added_tokens=False)
    assert len(tokenizer.merged_ids) == len(pieces) - 256


def test_broken_characters_of_speech2text_are_those_that_it_does_not_know(tmp_path):
    folder, _ = speech2text_folder(tmp_path / "theirs")
    tokenizer = converted(folder, tmp_path / "ours", langs=["en"]).tokenizer
    assert isinstance(tokenizer, FairseqTokenizer)
    model = spm.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    known = {character for i in range(model.get_piece_size()) for character in model.id_to_piece(i)}
    for text in ("the dog jumps over 日本", "Çà va", "dogs"):
        expected = [character for character in text.lower() if not character.isspace() and character not in known]
        assert tokenizer.broken(text) == expected


@pytest.mark.parametrize("family", ["whisper", "speech2text"])
def test_a_tokenizer_taken_from_elsewhere_is_measured_too(tmp_path, family):
    heard = {"max_source_positions": 100} if family == "whisper" else {}
    folder, _ = (whisper_folder if family == "whisper" else speech2text_folder)(tmp_path / "theirs", **heard)
    tokenizer = converted(folder, tmp_path / "start", **({} if family == "whisper" else {"langs": ["en"]})).tokenizer
    config = recipe(corpus(tmp_path / "corpus"), train={"init_from": str(tmp_path / "start")}, model={}, features={}, tokenizer={})
    config = config.model_copy(update={"model": config.model.model_copy(update={"max_tokens": None})})
    pipeline.prepare(config)
    report = pipeline.tokenize(config)
    held_out = texts("de", "dev")
    assert of(report, "de").tokens_per_word == pytest.approx(sum(map(len, map(tokenizer.encode, held_out))) / words("de", "dev"), abs=6e-4)
    assert of(report, "de").whole_characters < 100
    assert {"東", "京"} <= set(of(report, "de").broken)
    assert 0 < report.merged_pieces_used < report.merged_pieces == len(tokenizer.merged_ids)


def test_memory_grows_with_the_alphabet_and_not_with_the_texts(made):
    covered = _Covered(open_tokenizer(Layout.of(made[0]).tokenizer))

    def grown(sentences: int) -> int:
        tracemalloc.start()
        for number in range(sentences):
            covered.add(_Text(f"u{number}", "de", f"Straße {number % 100} 東京"))
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    grown(200)
    assert grown(5000) < 20_000
