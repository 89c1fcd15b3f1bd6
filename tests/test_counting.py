"""Laws of counting: the paper's numbers, one expert active, nothing allocated, and multiply-adds as they really happen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smoe_cli import checkpoint, counting, pipeline
from smoe_cli.errors import ConfigError
from smoe_cli.model import cost, layers
from smoe_cli.model.speech_to_text import ENCODERS
from smoe_cli.presets import PRESETS
from smoe_cli.recipe import preset_config
from smoe_cli.records import ParameterReport
from smoe_cli.routing import make_plan
from smoe_cli.tokenizer import ByteBPE
from tests.conftest import tiny_config, tiny_model

PAPER = {"base": 107.05, "dec-smoe": 119.65, "dec-ffn-x2": 119.65, "single-task": 107.05, "enc-smoe": 132.24, "encdec-smoe": 144.84}


def counted(preset: str, *overrides: str) -> ParameterReport:
    return pipeline.params(preset_config(preset, overrides))


@pytest.mark.parametrize("preset", PAPER)
def test_paper_scale_has_the_papers_parameter_counts(preset):
    report, base = counted(preset), counted("base")
    assert report.vocab_size == 40_000
    assert round(report.total / 1e6, 2) == PAPER[preset]
    if preset != "dec-ffn-x2":
        assert (report.active, report.macs_per_second) == (base.active, base.macs_per_second)
    assert counted("dec-ffn-x2").total == counted("dec-smoe").total
    experts = {
        name.partition(".")[0]: [count for other, count in report.experts.items() if other[:3] == name[:3]] for name in report.experts
    }
    if preset == "dec-ffn-x2":
        experts = {}
    assert report.total - report.active == sum(sum(sizes) - max(sizes) for sizes in experts.values())


def test_presets_grow_and_state_only_their_difference_from_base():
    totals = [counted(name).total for name in ("tiny", "small", "base")]
    assert totals == sorted(totals)
    dense = preset_config("base").model
    for name, differences in PRESETS.items():
        assert all(value != getattr(dense, key) for key, value in differences.items()), name


def test_one_task_is_a_recipe_with_one_task():
    report = counted("single-task")
    assert report.model_copy(update={"preset": "base"}) == counted("base", "tasks={transcribe: {languages: [en]}}")
    with pytest.raises(ConfigError, match="for one task in one language, and there are transcribe/en, transcribe/de"):
        counted("single-task", "tasks={transcribe: {languages: [en, de]}}")
    assert report.total == counted("base").total


def test_nothing_is_allocated(monkeypatch):
    seen = []
    real = cost.multiply_adds_per_second
    monkeypatch.setattr(counting, "multiply_adds_per_second", lambda model: seen.append(model) or real(model))
    counted("encdec-smoe")
    assert {parameter.device.type for parameter in seen[0].parameters()} == {"meta"}
    assert not list(seen[0].buffers())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conv_kernel": 3, "subsampling": 8, "encoder_experts": ("dense",)},
        {"decoder_hidden_dim": 64},
        {"encoder_shared_hidden_dim": 8, "decoder_shared_hidden_dim": 24, "encoder_routed_layers": [1], "decoder_routed_layers": [0]},
    ],
)
def test_multiply_adds_are_those_that_a_forward_pass_does(monkeypatch, encoder, changes):
    """Observed: each matrix and convolution by a hook, each attention where it is called; one utterance of 10 s, 40 tokens."""
    model = tiny_model(encoder=encoder, **({"conv_kernel": 5 if encoder == "conformer" else None} | changes))
    done = 0

    def count(module, inputs, output):
        nonlocal done
        positions = output.numel() // (module.out_channels if isinstance(module, nn.Conv1d) else module.out_features)
        done += positions * module.weight.numel()

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            module.register_forward_hook(count)
    real = torch.nn.functional.scaled_dot_product_attention

    def attend(q, k, v, attn_mask=None, is_causal=False):
        nonlocal done
        pairs = q.shape[2] * (q.shape[2] + 1) // 2 if is_causal else q.shape[2] * k.shape[2]
        done += 2 * pairs * q.shape[1] * q.shape[3]
        return real(q, k, v, attn_mask=attn_mask, is_causal=is_causal)

    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", attend)
    expert = torch.tensor([0])
    with torch.inference_mode():
        states, _ = model(torch.randn(1, 1000, 8), torch.tensor([1000]), torch.zeros(1, 40, dtype=torch.int64), expert, expert)
        model.decoder.output(states)
    assert cost.multiply_adds_per_second(model) == round(done / 10)


def test_layers_that_do_not_choose_are_counted_beside_those_that_do(tmp_path):
    """The slim model of one route has the same networks, all of them in layers without choice."""
    ffn, shared = 2 * 32 * 64 + 64 + 32, 2 * 32 * 16 + 16 + 32
    model = {"preset": "enc-smoe", "encoder_layers": 3, "encoder_routed_layers": [1], "encoder_shared_ffn_dim": 16}
    report = pipeline.params(tiny_config(tmp_path, data={"nb_downsample": True}, model=model))
    assert report.experts == {
        "encoder.dense": 2 * ffn,
        "encoder.nb": ffn,
        "encoder.wb": ffn,
        "encoder.shared": 3 * shared,
        "decoder.dense": ffn,
    }
    assert report.total - report.active == ffn


def test_a_checkpoint_is_counted_without_its_weights(tmp_path):
    config = tiny_config(tmp_path, tokenizer={"vocab_size": 270})
    tokenizer = ByteBPE.train(["one two"], 270, ["<transcribe>", "<translate>", "<en>", "<de>"], tmp_path / "tokenizer")
    plan = make_plan(config)
    model = checkpoint.build_model(config.model, config.features, plan, 270)
    checkpoint.save(tmp_path / "final", checkpoint.System(model, config, plan, tokenizer))
    (tmp_path / "final" / "model.safetensors").unlink()
    assert pipeline.params(None, checkpoint=tmp_path / "final") == pipeline.params(config)


def test_an_unknown_preset_is_refused_with_the_list():
    with pytest.raises(ConfigError, match=f"unknown preset `huge`; known presets: {', '.join(PRESETS)}"):
        preset_config("huge")
