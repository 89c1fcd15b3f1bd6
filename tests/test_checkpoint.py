"""Laws of checkpoints: what does not belong together, or to the recipe, is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from smoe_cli import checkpoint, pipeline
from smoe_cli.checkpoint import CONFIG, PLAN
from smoe_cli.config import Config
from smoe_cli.errors import CheckpointError
from smoe_cli.layout import DIGESTS, WEIGHTS, Layout
from smoe_cli.records import Origin, file_digest
from smoe_cli.routing import make_plan
from smoe_cli.tags import Route
from smoe_cli.tokenizer import ByteBPE
from tests.conftest import tiny_config

TOKENS = ["<transcribe>", "<translate>", "<en>", "<de>"]
TASKS = {"transcribe": {"languages": ["en"]}, "translate": {"languages": ["de"]}}


def recipe(folder: Path, **changes: object) -> Config:
    changes = {"model": {"preset": "encdec-smoe"}, "tasks": TASKS, "data": {"nb_downsample": True}} | changes
    return tiny_config(folder / "exp", **(changes | {"model": {"preset": "encdec-smoe"} | changes["model"]}))


@pytest.fixture
def trained(tmp_path) -> Config:
    """A recipe and its model, as it is before the first step; it was given no wideband translations."""
    config = recipe(tmp_path)
    layout = Layout.of(config)
    tokenizer = ByteBPE.train(["one two three"], 270, TOKENS, layout.tokenizer)
    plan = make_plan(config, [route for route in config.routes() if str(route) != "translate/de/wb"])
    model = checkpoint.build_model(config.model, config.features, plan, 270)
    checkpoint.save(layout.final, checkpoint.System(model, config, plan, tokenizer))
    return config


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint as if it had been saved so."""
    (folder / name).write_bytes(content)
    digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    (folder / DIGESTS).write_text(json.dumps(digests | {name: file_digest(folder / name)}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"d_model": 64}}, "model.d_model: 32 -> 64"),
        ({"model": {"encoder_shared_ffn_dim": 16}}, "model.encoder_shared_ffn_dim: None -> 16"),
        ({"features": {"mel_bins": 80}}, "features.mel_bins: 40 -> 80"),
        ({"model": {"preset": "dec-smoe"}}, "expert of the encoder for transcribe/en/nb: nb -> dense"),
        ({"model": {"encoder_expert_groups": {"all": ["nb", "wb"]}}}, "expert of the encoder for transcribe/en/nb: nb -> all"),
        ({"model": {"encoder_routed_layers": [1]}}, "layers of the encoder that choose: [0, 1] -> [1]"),
        ({"tasks": {"translate": {"languages": ["de"]}}}, "its routes transcribe/en/nb, transcribe/en/wb: the recipe has none of them"),
        ({"axes": {"accent": ["us", "uk"]}}, "its routes transcribe/en/nb, "),
    ],
)
def test_the_model_of_a_recipe_that_has_changed_since_is_refused_with_what_differs(trained, tmp_path, changes, named):
    changed = recipe(tmp_path, **changes)
    with pytest.raises(CheckpointError, match="is no model of this recipe as it stands") as caught:
        checkpoint.load_trained(changed)
    assert named in caught.value.message
    assert "--checkpoint" in caught.value.hint
    for command in (pipeline.decode, pipeline.route_audit):
        with pytest.raises(CheckpointError, match="is no model of this recipe as it stands"):
            command(changed)


def test_the_model_of_another_tokenizer_than_the_recipes_is_refused(trained):
    tokenizer = Layout.of(trained).tokenizer
    ByteBPE.train(["four five six"], 271, TOKENS, tokenizer)
    with pytest.raises(CheckpointError, match="270 -> 271 pieces"):
        checkpoint.load_trained(trained)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"learning_rate": 0.5}},
        {"decode": {"beam": 3}},
        {"model": {"dropout": 0.3}},
        {"features": {"cache_mb": 1}},
        {"tasks": TASKS | {"translate": {"languages": ["de", "fr"]}}},
        {"tasks": dict(reversed(TASKS.items()))},
        {"model": {"encoder_routed_layers": [0, 1], "decoder_routed_layers": [0]}},
    ],
)
def test_what_changes_nothing_of_the_model_is_no_difference(trained, tmp_path, changes):
    system = checkpoint.load_trained(recipe(tmp_path, **changes))
    assert Route.parse("translate/de/wb") in recipe(tmp_path).routes()
    assert "translate/de/wb" not in system.plan.routes, "a route without data is no difference either"


def test_a_tokenizer_that_cannot_be_opened_is_no_other(trained):
    for file in Layout.of(trained).tokenizer.iterdir():
        file.unlink()
    checkpoint.load_trained(trained)


def test_a_model_that_began_on_the_command_line_need_not_have_the_dimensions_of_the_recipe(trained, tmp_path):
    """`smoe train --init-from` takes them from the checkpoint; the recipe says nothing of it."""
    folder = Layout.of(trained).final
    system = checkpoint.load(folder)
    system.origin = Origin(how="init", model="0" * 12, copies={})
    checkpoint.save(folder, system)
    checkpoint.load_trained(recipe(tmp_path, model={"d_model": 64}, features={"mel_bins": 80}))
    with pytest.raises(CheckpointError, match="expert of the encoder for transcribe/en/nb: nb -> dense"):
        checkpoint.load_trained(recipe(tmp_path, model={"preset": "dec-smoe"}))


def test_weights_of_another_type_are_refused_by_name(trained):
    folder = Layout.of(trained).final
    halves = {name: tensor.half() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(halves, folder / "halves")
    rewrite(folder, WEIGHTS, (folder / "halves").read_bytes())
    with pytest.raises(CheckpointError, match=r"is float16 of shape .*, expected float32 of shape"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, PLAN])
def test_digests_that_leave_out_a_file_vouch_for_nothing(trained, name):
    folder = Layout.of(trained).final
    digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    del digests[name]
    (folder / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"does not name `{name}`"):
        pipeline.params(None, checkpoint=folder)


def test_a_damaged_plan_is_told_in_plain_words(trained):
    folder = Layout.of(trained).final
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    rewrite(folder, PLAN, json.dumps(plan | {"routes": plan["routes"][:1]}).encode())
    with pytest.raises(CheckpointError, match="no route reaches the encoder's expert wb") as caught:
        checkpoint.load(folder)
    assert "pydantic" not in caught.value.message
