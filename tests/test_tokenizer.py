"""Laws of byte-level BPE: exact, open to any script, and not to be forged."""

from __future__ import annotations

import json
import random
import re

import pytest

from smoe_cli.errors import CheckpointError, ConfigError, DataError, RouteError
from smoe_cli.tags import Bandwidth, Route
from smoe_cli.tokenizer import ByteBPE, open_tokenizer

GUIDING = ["<transcribe>", "<translate>", "<en>", "<de>"]
TEXTS = ["hello world how are you", "straße für äpfel und birnen", "où est la gare s'il vous plaît"] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ByteBPE.train(TEXTS, 300, GUIDING, tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS[:3],
        "",
        " ",
        "  two  spaces ",
        "tab\tand\nline",
        "日本語 русский العربية",
        "🙂👩‍👩‍👧",
        "\x00\x7f",
        "▁ Ġ",
        "<transcribe> <de> </s> <pad>",
    ],
)
def test_every_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_unicode_comes_back_exactly(tokenizer):
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(
            chr(generator.choice([generator.randrange(0x20, 0x250), generator.randrange(0x3000, 0xD7FF), 0x20])) for _ in range(12)
        )
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_cannot_forge_a_special_or_guiding_token(tokenizer):
    special = {
        0,
        1,
        2,
        *tokenizer.guiding_ids(Route("transcribe", "en", Bandwidth.NB)),
        *tokenizer.guiding_ids(Route("translate", "de", Bandwidth.NB)),
    }
    assert len(special) == 7
    assert not special & set(tokenizer.encode("<transcribe><translate> <en> <de> </s><pad><unk>"))


def test_merges_learn_from_the_text(tokenizer):
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0].encode())


def test_merges_stay_inside_words(tokenizer):
    pieces = [tokenizer._model.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    assert not [piece for piece in pieces if "▁" in piece[1:]]


def test_a_route_without_guiding_token_is_refused(tokenizer):
    with pytest.raises(RouteError, match="<fr>"):
        tokenizer.guiding_ids(Route("translate", "fr", Bandwidth.NB))


def test_too_large_a_vocabulary_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"5,000 pieces .* at most (\d+)") as caught:
        ByteBPE.train(TEXTS, 5000, GUIDING, tmp_path)
    assert not list(tmp_path.iterdir())
    most = int(re.findall(r"vocab_size: (\d+)", caught.value.hint)[0])
    assert ByteBPE.train(TEXTS, most, GUIDING, tmp_path).vocab_size == most


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no text"):
        ByteBPE.train([], 300, GUIDING, tmp_path)


def test_a_tokenizer_of_another_kind_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "unigram", "guiding_tokens": []}))
    with pytest.raises(CheckpointError, match="unigram"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("changes", [{"guiding_tokens": [*GUIDING, "<xx>"]}, {"vocab_size": 299}])
def test_a_tokenizer_whose_two_files_do_not_belong_together_is_refused(tokenizer, tmp_path, changes):
    tokenizer.save(tmp_path)
    card = tmp_path / "tokenizer.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))
    with pytest.raises(CheckpointError, match="of another tokenizer"):
        open_tokenizer(tmp_path)


def test_same_text_same_tokenizer(tmp_path):
    one, other = (ByteBPE.train(TEXTS, 300, GUIDING, tmp_path / name) for name in ("a", "b"))
    assert one.model_bytes == other.model_bytes
