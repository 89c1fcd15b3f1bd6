"""Laws of starting from another model, and of taking one route out: exact at step 0, nothing else touched, differences refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smoe_cli import checkpoint, pipeline, upcycling
from smoe_cli.checkpoint import System, build_model
from smoe_cli.config import Config
from smoe_cli.errors import CheckpointError, ConfigError, RouteError
from smoe_cli.model.speech_to_text import count_parameters
from smoe_cli.routing import StackPlan, make_plan
from smoe_cli.tags import Bandwidth, Choice, Route
from smoe_cli.tokenizer import ByteBPE, Tokenizer
from tests.conftest import tiny_config

WIDER = {"encoder": "conformer", "conv_kernel": 5, "encoder_shared_ffn_dim": 8, "decoder_shared_ffn_dim": 16, "decoder_layers": 2}
"""A Conformer with shared experts in both stacks, whose layers need not all be routed."""
MODELS = {
    "transformer": {},
    "conformer": {"encoder": "conformer", "conv_kernel": 5},
    "some layers": WIDER | {"encoder_routed_layers": [1], "decoder_routed_layers": "every 2"},
    "shared experts": WIDER,
}
GUIDING = ["<transcribe>", "<translate>", "<en>", "<de>"]
TASKS = {"transcribe": {"languages": ["en"]}, "translate": {"languages": ["de"]}}
ROUTES = [Route("transcribe", "en", Bandwidth.NB), Route("translate", "de", Bandwidth.NB), Route("translate", "de", Bandwidth.WB)]


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return ByteBPE.train(["one two three", "eins zwei drei"] * 3, 290, GUIDING, tmp_path_factory.mktemp("tokenizer"))


def config(folder: Path, preset: str, init: dict[str, object] | None = None, **changes: object) -> Config:
    return tiny_config(folder, model={"preset": preset, **changes}, train=init or {})


def system(config: Config, tokenizer: Tokenizer, seed: int = 0) -> System:
    """A model whose every weight is random, biases and norms too, so that no two experts are alike by accident."""
    torch.manual_seed(seed)
    plan = make_plan(config)
    model = build_model(config.model, config.features, plan, tokenizer.vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    return System(model, config, plan, tokenizer)


def saved(config: Config, tokenizer: Tokenizer, folder: Path) -> tuple[Path, System]:
    made = system(config, tokenizer, seed=1)
    checkpoint.save(folder, made)
    return folder, made


def logits(system: System, route: Route) -> tuple[Tensor, Tensor]:
    """Of the decoder on two utterances of one route, one of them padded; and of the encoder."""
    generator = torch.Generator().manual_seed(5)
    features, lengths = torch.randn(2, 33, 40, generator=generator), torch.tensor([33, 21])
    tokens = torch.tensor([[*system.tokenizer.guiding_ids(route), 40, 50, 60]] * 2)
    encoder, decoder = (torch.full((2,), stack.index(route)) for stack in (system.plan.encoder, system.plan.decoder))
    with torch.inference_mode():
        states, memory = system.model(features, lengths, tokens, encoder, decoder)
        return system.model.decoder.output(states), memory.states


def assert_equal_output(one: System, other: System, route: Route) -> None:
    for a, b in zip(logits(one, route), logits(other, route), strict=True):
        assert torch.equal(a, b)


OPTIONS = {
    "route_weights": {"translate": 0.5, "transcribe": 2.0, "nb/de": "1 to 3 over 9 steps", "lang=en": 2.0},
    "freeze": ["encoder.nb"],
    "lr_factors": {"experts": 0.5},
    "ema_decay": 0.9,
    "accumulate": 3,
    "loss_chunk": 64,
    "compile": True,
    "batch_s": "auto",
    "average": "best 2",
    "corpus_temperature": 2.0,
    "augment": {"speeds": [0.9, 1.1]},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_whatever_a_model_was_trained_with_its_slim_model_can_be_read(tokenizer, tmp_path, option):
    folder, whole = saved(config(tmp_path / "exp", "encdec-smoe", {option: OPTIONS[option]}), tokenizer, tmp_path / "whole")
    route = Route("translate", "de", Bandwidth.NB)
    for _ in range(2):  # an earlier one is replaced
        pipeline.slim(folder, out=tmp_path / "slim", choice=Choice("translate", "de", "nb"))
    slim = checkpoint.load(tmp_path / "slim")
    assert_equal_output(whole, slim, route)
    assert slim.config.train.route_weights == ({"translate": 0.5, "nb/de": "1 to 3 over 9 steps"} if option == "route_weights" else {})


@pytest.mark.parametrize("preset", ["base", "enc-smoe", "dec-smoe", "encdec-smoe"])
@pytest.mark.parametrize(("tied", "model"), [(False, "transformer"), *((True, model) for model in MODELS)])
def test_an_upcycled_model_equals_the_dense_one_bit_for_bit(tokenizer, tmp_path, preset, tied, model):
    same = {name: value for name, value in MODELS[model].items() if "routed" not in name}
    folder, dense = saved(config(tmp_path, "base", tie_embeddings=tied, **same), tokenizer, tmp_path / "dense")
    new = system(config(tmp_path, preset, {"init_from": str(folder)}, tie_embeddings=tied, **MODELS[model]), tokenizer)
    upcycling.start_from(folder, new, Lines())
    for route in ROUTES:
        assert_equal_output(dense, new, route)
    assert new.origin is not None
    assert new.origin.model == checkpoint.load(folder).digest


def test_experts_are_copies_of_their_own_not_one_shared_tensor(tokenizer, tmp_path):
    folder, _ = saved(config(tmp_path, "base"), tokenizer, tmp_path / "dense")
    new = system(config(tmp_path, "encdec-smoe", {"init_from": str(folder)}), tokenizer)
    upcycling.start_from(folder, new, Lines())
    before = logits(new, ROUTES[0])[0]
    with torch.no_grad():
        for _, _, moe in new.model.routed_layers():
            for name in moe.names[1:]:
                for parameter in moe.experts[name].parameters():
                    parameter.fill_(7.0)
    assert torch.equal(before, logits(new, ROUTES[0])[0])


def test_noise_changes_the_experts_and_only_them_and_the_same_seed_gives_the_same(tokenizer, tmp_path):
    folder, dense = saved(config(tmp_path, "base"), tokenizer, tmp_path / "dense")

    def started(**init: object) -> dict[str, Tensor]:
        new = system(config(tmp_path, "encdec-smoe", {"init_from": str(folder), **init}), tokenizer)
        upcycling.start_from(folder, new, Lines())
        return new.model.state_dict()

    exact, noisy, again, other = started(), started(init_noise=0.1), started(init_noise=0.1), started(init_noise=0.1, seed=1)
    for name, value in exact.items():
        assert torch.equal(noisy[name], again[name])
        assert torch.equal(value, noisy[name]) != (".experts." in name), name
        if ".experts." in name:
            assert not torch.equal(noisy[name], other[name])
            off = (noisy[name] - value).std() / value.std()
            assert 0.05 < off < 0.2, name
    twins = noisy["encoder.layers.0.ffn.experts.nb.0.weight"], noisy["encoder.layers.0.ffn.experts.wb.0.weight"]
    assert not torch.equal(*twins)
    assert dense.model.state_dict().keys() != exact.keys()


def test_adding_an_expert_keeps_the_others_and_starts_as_the_one_that_is_named(tokenizer, tmp_path):
    """A third task and a third language: new experts, new guiding tokens, and nothing else moves."""
    folder, old = saved(config(tmp_path, "encdec-smoe"), tokenizer, tmp_path / "old")
    tasks = {**TASKS, "interpret": {"kind": "translate", "languages": ["de", "fr"]}}
    init = {"init_from": str(folder), "init_experts": {"interpret": "translate"}, "init_noise": 0.0}
    wider = tiny_config(tmp_path, tasks=tasks, train=init)
    extended = tokenizer.extend(["<interpret>", "<fr>", "<de>"], tmp_path / "tokenizer")
    new, watcher = system(wider, extended), Lines()
    upcycling.start_from(folder, new, watcher)
    before, after = old.model.state_dict(), new.model.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)], value), name
        if ".interpret." not in name and ".translate." in name:
            assert torch.equal(after[name.replace(".translate.", ".interpret.")], value)
    assert {name.split(".")[5] for name in after.keys() - before.keys()} == {"interpret"}
    assert "decoder experts: `transcribe` as it is; `translate` as it is; `interpret` as a copy of `translate`" in watcher.lines
    assert "new guiding tokens: <interpret> <fr>" in watcher.lines
    ids = [extended.guiding_ids(Route(task, "fr", Bandwidth.NB)) for task in ("interpret", "translate")]
    assert ids[0] == [290, 291]
    rows = after["decoder.embedding.weight"]
    assert torch.equal(rows[290], rows[3])  # <transcribe>, the first task
    assert torch.equal(rows[291], rows[5])  # <en>, the first language
    assert new.origin is not None
    assert new.origin.copies == {"decoder.interpret": "translate"}


def test_a_new_expert_starts_as_the_one_with_which_it_shares_most_tags(tokenizer, tmp_path):
    """Else a wideband expert would start from a narrowband one, only because that is named first."""
    model = {"preset": "encdec-smoe", "encoder_experts_by": "bandwidth+accent"}
    folder, _ = saved(tiny_config(tmp_path, axes={"accent": ["us", "uk"]}, model=model), tokenizer, tmp_path / "old")
    init = {"init_from": str(folder)}
    new = system(tiny_config(tmp_path, axes={"accent": ["us", "uk", "in"]}, model=model, train=init), tokenizer)
    upcycling.start_from(folder, new, Lines())
    assert new.origin is not None
    assert new.origin.copies == {"encoder.nb-in": "nb-us", "encoder.wb-in": "wb-us"}


def test_a_group_keeps_its_weights_by_name_and_a_new_one_starts_as_a_copy(tokenizer, tmp_path):
    """German and English share an expert; then French joins, and English gets its own."""
    folder, old = saved(
        config(tmp_path, "dec-smoe", decoder_experts_by="lang", decoder_expert_groups={"all": ["en", "de"]}), tokenizer, tmp_path / "old"
    )
    tasks = {"transcribe": {"languages": ["en"]}, "translate": {"languages": ["de", "fr"]}}
    model = {"preset": "dec-smoe", "decoder_experts_by": "lang", "decoder_expert_groups": {"all": ["de", "fr"]}}
    extended = tokenizer.extend(["<fr>"], tmp_path / "tokenizer")
    new = system(tiny_config(tmp_path, tasks=tasks, model=model, train={"init_from": str(folder)}), extended)
    upcycling.start_from(folder, new, Lines())
    before, after = old.model.state_dict(), new.model.state_dict()
    experts = [name for name in after if name.startswith("decoder") and ".experts." in name]
    assert {name.split(".")[5] for name in experts} == {"en", "all"}
    for name in experts:
        assert torch.equal(after[name], before[name.replace(".experts.en.", ".experts.all.")]), name
    assert new.origin is not None and new.origin.copies == {"decoder.en": "all"}


def test_another_choice_of_routed_layers_keeps_what_is_there_and_copies_the_rest(tokenizer, tmp_path):
    folder, old = saved(config(tmp_path, "encdec-smoe", **WIDER, encoder_routed_layers=[1]), tokenizer, tmp_path / "old")
    new, watcher = system(config(tmp_path, "encdec-smoe", {"init_from": str(folder)}, **WIDER), tokenizer), Lines()
    upcycling.start_from(folder, new, watcher)
    for route in ROUTES:
        assert_equal_output(old, new, route)
    assert watcher.lines[1:] == [
        "encoder experts, layer 0: `nb` as a copy of `dense`; `wb` as a copy of `dense`",
        "encoder experts, layer 1: `nb` as it is; `wb` as it is",
        "decoder experts: `transcribe` as it is; `translate` as it is",
    ]
    assert new.origin is not None
    assert new.origin.copies == {f"encoder.layers.0.{part}.{expert}": "dense" for part in ("ffn_before", "ffn") for expert in ("nb", "wb")}


def test_without_a_name_a_new_expert_starts_as_the_first_one(tokenizer, tmp_path):
    folder, old = saved(config(tmp_path, "encdec-smoe"), tokenizer, tmp_path / "old")
    new, watcher = system(config(tmp_path, "base", {"init_from": str(folder)}), tokenizer), Lines()
    upcycling.start_from(folder, new, watcher)
    assert_equal_output(old, new, ROUTES[0])
    assert "encoder experts: `dense` as a copy of `nb`; not taken: `wb`" in watcher.lines


def test_a_missing_ctc_head_starts_fresh_and_a_superfluous_one_is_left_out(tokenizer, tmp_path):
    for there, here in ((True, False), (False, True)):
        folder, old = saved(config(tmp_path, "base", ctc=there), tokenizer, tmp_path / f"ctc-{there}")
        new = system(config(tmp_path, "encdec-smoe", {"init_from": str(folder)}, ctc=here), tokenizer)
        upcycling.start_from(folder, new, Lines())
        assert (new.model.ctc is not None) == here
        assert_equal_output(old, new, ROUTES[0])


@pytest.mark.parametrize(
    ("changes", "message", "cure"),
    [
        ({"d_model": 64}, "model.d_model: 32 there, 64 here", "--set model.d_model=32"),
        ({"heads": 4, "encoder_layers": 3}, "model.heads: 2 there, 4 here; model.encoder_layers: 2 there, 3 here", "--set model.heads=2"),
        ({"conv_kernel": 3}, "model.conv_kernel: None there", "model.conv_kernel=null"),
        ({"encoder": "conformer"}, "model.encoder: 'transformer' there, 'conformer' here", "--set model.encoder=transformer"),
        ({"encoder_shared_ffn_dim": 8}, "model.encoder_shared_ffn_dim: None there, 8 here", "--set model.encoder_shared_ffn_dim=null"),
        ({"tie_embeddings": True}, "model.tie_embeddings: False there", "model.tie_embeddings=false"),
    ],
)
def test_a_model_of_other_dimensions_is_refused_by_name_and_cure(tokenizer, tmp_path, changes, message, cure):
    folder, _ = saved(config(tmp_path, "base"), tokenizer, tmp_path / "dense")
    new = system(config(tmp_path, "encdec-smoe", {"init_from": str(folder)}, **changes), tokenizer)
    with pytest.raises(CheckpointError) as caught:
        upcycling.start_from(folder, new, Lines())
    assert message in caught.value.message
    assert cure in caught.value.hint


def test_another_tokenizer_is_refused_even_of_the_same_size(tokenizer, tmp_path):
    folder, _ = saved(config(tmp_path, "base"), tokenizer, tmp_path / "dense")
    other = ByteBPE.train(["quite other words, quite other merges"] * 3, 290, GUIDING, tmp_path / "other")
    new = system(config(tmp_path, "encdec-smoe", {"init_from": str(folder)}), other)
    with pytest.raises(CheckpointError, match=r"another tokenizer \(its pieces, learned from other text\)") as caught:
        upcycling.start_from(folder, new, Lines())
    assert f"smoe tokenize --from {folder}" in caught.value.hint


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"whisper": "dense"}, "`whisper`, which is no new expert; new are: nb, wb, transcribe, translate"), ({"nb": "x"}, "it has: dense")],
)
def test_an_expert_that_is_not_there_is_refused(tokenizer, tmp_path, asked, message):
    folder, _ = saved(config(tmp_path, "base"), tokenizer, tmp_path / "dense")
    new = system(config(tmp_path, "encdec-smoe", {"init_from": str(folder), "init_experts": asked}), tokenizer)
    with pytest.raises(ConfigError, match=r"train\.init_experts") as caught:
        upcycling.start_from(folder, new, Lines())
    assert message in caught.value.message


def test_settings_about_copies_need_a_checkpoint_to_copy_from(tmp_path):
    with pytest.raises(ConfigError, match="init_from names none"):
        config(tmp_path, "base", {"init_noise": 0.1})


def test_a_tokenizer_is_extended_without_moving_a_piece(tokenizer, tmp_path):
    extended = tokenizer.extend(["<en>", "<fr>"], tmp_path / "extended")
    assert extended.vocab_size == tokenizer.vocab_size + 1
    assert extended.guiding_tokens == (*GUIDING, "<fr>")
    text = "two <fr> drei ▁ 日本"
    assert extended.encode(text) == tokenizer.encode(text)
    assert extended.decode([*extended.encode(text), 290]) == text
    assert extended.continues(tokenizer)
    assert not tokenizer.continues(extended)
    assert tokenizer.extend(["<de>"], tmp_path / "same").model_bytes == tokenizer.model_bytes


# --- one route -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "model"), [("base", "transformer"), ("dec-ffn-x2", "transformer"), *(("encdec-smoe", model) for model in MODELS)]
)
@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_slim_model_equals_the_whole_one_on_its_route_bit_for_bit(tokenizer, tmp_path, preset, model, route):
    folder, whole = saved(config(tmp_path, preset, tie_embeddings=True, **MODELS[model]), tokenizer, tmp_path / "whole")
    report = pipeline.slim(folder, out=tmp_path / "slim", choice=Choice(route.task, route.lang, str(route.bandwidth)))
    slim = checkpoint.load(tmp_path / "slim")
    assert_equal_output(whole, slim, route)
    assert slim.plan.routes == (str(route),)
    assert slim.plan.encoder == slim.plan.decoder == StackPlan(by=None, experts=("dense",))
    assert make_plan(slim.config, [route]) == slim.plan
    assert slim.tokenizer.guiding_tokens == tuple(GUIDING)
    assert (slim.model.ctc is not None) == (route.task == "transcribe")
    if slim.model.ctc is not None and whole.model.ctc is not None:
        assert torch.equal(slim.model.ctc.weight, whole.model.ctc.weight)
    assert report.parameters == count_parameters(whole.model)["active"]
    assert report.ctc_head == count_parameters(slim.model)["ctc_head"]
    dense = report.parameters == report.parameters_before
    assert dense == (preset != "encdec-smoe")
    assert slim.origin is not None
    assert (slim.digest, slim.origin.model, slim.origin.route) == (report.model, checkpoint.load(folder).digest, str(route))
    with pytest.raises(RouteError, match=f"it has: {route}"):
        slim.plan.check(Route("transcribe", "en", Bandwidth.WB))


def test_a_slim_model_can_be_upcycled_again(tokenizer, tmp_path):
    folder, whole = saved(config(tmp_path, "encdec-smoe"), tokenizer, tmp_path / "whole")
    pipeline.slim(folder, out=tmp_path / "slim", choice=Choice("translate", "de", "wb"))
    new = system(config(tmp_path, "encdec-smoe", {"init_from": str(tmp_path / "slim")}), tokenizer)
    upcycling.start_from(tmp_path / "slim", new, Lines())
    assert_equal_output(whole, new, ROUTES[2])


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (("translate", "fr", "nb"), "no route `translate/fr/nb`: of lang it has `en`, `de`"),
        (("translate", None, None), "2 routes are `translate/*/*`: translate/de/nb, translate/de/wb"),
        (("translate", "de", "8k"), "unknown bandwidth `8k`"),
    ],
)
def test_a_route_that_is_unknown_or_not_one_is_refused_with_the_list(tokenizer, tmp_path, tags, message):
    folder, _ = saved(config(tmp_path, "encdec-smoe"), tokenizer, tmp_path / "whole")
    with pytest.raises(RouteError) as caught:
        pipeline.slim(folder, out=tmp_path / "slim", choice=Choice(tags[0], tags[1], tags[2]))
    assert message in caught.value.message
    assert not (tmp_path / "slim").exists()


def test_slim_replaces_nothing_but_an_earlier_slim_model(tokenizer, tmp_path):
    folder, _ = saved(config(tmp_path, "encdec-smoe"), tokenizer, tmp_path / "whole")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for out in (folder, tmp_path / "mine"):
        with pytest.raises(ConfigError, match=r"is there already|did not write"):
            pipeline.slim(folder, out=out, choice=Choice("transcribe", bandwidth="nb"))
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    earlier = pipeline.slim(folder, out=tmp_path / "phone", choice=Choice("translate", "de", "wb"))
    (tmp_path / "phone.link").symlink_to(tmp_path / "phone")
    again = pipeline.slim(folder, out=tmp_path / "phone.link", choice=Choice("translate", "de", "wb"))
    assert again.model == earlier.model and (tmp_path / "phone.link").is_symlink()
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "phone" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"holds `letter\.txt`, which `smoe slim` did not write"):
        pipeline.slim(folder, out=tmp_path / "phone", choice=Choice("translate", "de", "wb"))
    assert (tmp_path / "phone" / "letter.txt").read_text() == "dear"
    for bandwidth in ("nb", "wb"):
        pipeline.slim(folder, out=tmp_path / "slim", choice=Choice("transcribe", bandwidth=bandwidth))
    assert json.loads((tmp_path / "slim" / "plan.json").read_text())["routes"] == ["transcribe/en/wb"]
