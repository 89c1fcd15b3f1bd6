"""Laws of one step: parts equal the whole, chunks equal the whole, and what must not move does not."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter

import pytest
import torch
import torch._dynamo.utils
import torch._inductor.config
import torch.nn.functional as F

from smoe_cli import checkpoint
from smoe_cli.batching import MOVED
from smoe_cli.checkpoint import build_model
from smoe_cli.errors import CheckpointError, ConfigError, Interrupted, SmoeError
from smoe_cli.loss import Weights, combined_loss
from smoe_cli.model.softmax import chosen_log_probs
from smoe_cli.routing import make_plan
from smoe_cli.training import Trainer, loading
from smoe_cli.training.compiling import COMPILED, compile_parts
from smoe_cli.training.optimiser import clip
from smoe_cli.training.precision import Precision
from tests.conftest import tiny_config
from tests.test_training import assert_bit_identical, prepared, trainer, weights

__all__ = ["prepared"]
STILL = {"time_masks": 0, "frequency_masks": 0, "clip_norm": 1e9}
"""Without augmentation; gradients stay as they are."""


def undisturbed(config):
    """The recipe without dropout, whose masks depend on the shape of a batch."""
    return config.model_copy(update={"model": config.model.model_copy(update={"dropout": 0.0})})


def gradients(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in run.system.model.named_parameters() if parameter.grad is not None}


def first_cuts(run: Trainer, task: str, count: int = 6) -> list:
    route = next(route for route in run.groups if route.task == task)
    return list(run.groups[route])[:count]


def stop_after(run: Trainer, steps: int) -> None:
    """Let a run be interrupted after some steps, as by Ctrl-C."""
    step = run.train_step

    def stopping(*batches):
        if run.step == steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*batches)

    run.train_step = stopping


def assert_resumes_exactly(prepared, tmp_path, steps: int = 3, **changes: object) -> None:
    trainer(prepared, tmp_path / "whole", **changes).run()
    stopped = trainer(prepared, tmp_path / "parts", **changes)
    stop_after(stopped, steps)
    with pytest.raises(Interrupted):
        stopped.run()
    assert trainer(prepared, tmp_path / "parts", **changes).run().resumed_from == steps
    assert_bit_identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


# --- turns -----------------------------------------------------------------------------------------------


def test_resuming_under_weights_that_move_equals_never_having_stopped(prepared, tmp_path):
    moving = {"route_weights": {"translate": "0.1 to 3 over 6 steps"}, "temperature": "1 to 4 over 7 steps", "max_steps": 12}
    shares = trainer(prepared, tmp_path / "shares", **moving).batches.shares_at
    assert shares(0) != shares(5) != shares(7) == shares(100)
    assert_resumes_exactly(prepared, tmp_path, steps=5, **moving)


def test_a_run_that_goes_on_knows_the_epochs_that_are_over(prepared, tmp_path):
    first = trainer(prepared, tmp_path, max_steps=40, validate_every=40)
    first.run()
    over = {name: list(counts) for name, counts in first.batches.epochs.items()}
    assert all(over.values()), "every route has been through an epoch"
    again = trainer(prepared, tmp_path, max_steps=40, validate_every=40)
    assert again.run().resumed_from == 40
    assert again.batches.epochs == over


# --- accumulation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_several_batches_give_the_step_of_one_batch_of_all_their_utterances(prepared, tmp_path, task):
    config = undisturbed(prepared)
    whole, parts = (trainer(config, tmp_path / name, **STILL) for name in ("whole", "parts"))
    cuts = first_cuts(whole, task)
    one = whole.train_step(whole.collator(cuts))
    # Parts of unlike size: each counts by its tokens, not as one of three.
    several = parts.train_step(*(parts.collator(part) for part in (cuts[:1], cuts[1:3], cuts[3:])))
    torch.testing.assert_close(several.total, one.total, rtol=1e-5, atol=1e-6)
    assert several.tokens == one.tokens
    found, wanted = gradients(parts), gradients(whole)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_each_batch_of_a_step_has_dropout_of_its_own(prepared, tmp_path):
    run = trainer(prepared, tmp_path)
    cuts, seen = first_cuts(run, "transcribe"), []
    run.system.model.encoder.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0] == 0))
    batch = run.collator(cuts)
    run.train_step(batch, batch)
    assert not torch.equal(seen[0], seen[1])
    run.train_step(batch)
    assert seen[0].any()
    assert torch.equal(seen[0], seen[2]), "the first batch of a step is disturbed as if it were the only one"


def test_the_batches_of_a_step_are_of_one_route_and_none_is_left_out(prepared, tmp_path):
    run = trainer(prepared, tmp_path, accumulate=3, max_steps=6)
    step, served = run.train_step, []

    def watch(*batches):
        served.append([batch.cuts for batch in batches])
        assert len({route for batch in batches for route in batch.routes}) == 1
        return step(*batches)

    run.train_step = watch
    run.run()
    assert [len(batches) for batches in served] == [3] * 6
    turns = run.batches.turns()
    assert [run.collator(batches[0]).routes[0] for batches in served] == [next(turns) for _ in range(6)]


def test_accumulation_resumes_exactly_and_cannot_be_changed_on_the_way(prepared, tmp_path):
    assert_resumes_exactly(prepared, tmp_path, accumulate=2)
    with pytest.raises(CheckpointError, match=r"train.accumulate: 2 -> 1"):
        trainer(prepared, tmp_path / "parts").run()


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_step_takes_gradients_as_torchs_own_clipping_leaves_them(prepared, tmp_path, scale):
    ours, theirs = (trainer(prepared, tmp_path / name) for name in ("ours", "theirs"))
    for run in (ours, theirs):
        run.train_step(run.collator(first_cuts(run, "translate")))
        for weight in run.system.model.parameters():
            if weight.grad is not None:
                weight.grad.copy_(scale * torch.linspace(-1, 1, weight.numel()).view_as(weight))
    clip(ours.system.model, ours.optimiser, 5.0)
    torch.nn.utils.clip_grad_norm_(theirs.system.model.parameters(), 5.0)
    theirs.optimiser.grad_scale = None
    for run in (ours, theirs):
        run.optimiser.step()
    for one, other in zip(ours.system.model.parameters(), theirs.system.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


# --- the vocabulary in chunks ----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradients_are_those_of_torchs_own_losses_of_all_scores(rows, smoothing):
    n, u, s, d, v, dtype = 3, 5, 30, 8, 40, torch.float64
    targets = torch.randint(1, v, (n, u))
    targets[:, 0] = targets[1, 3:] = -100
    # A repeated token, one that comes back later, an utterance without a transcript, and one that is too long for its frames.
    ctc_targets = torch.tensor([[4, 4, 5, 4], [7, 8, 0, 0], [9, 9, 9, 9]])
    ctc_lengths, frames = torch.tensor([4, 2, 4]), torch.tensor([30, 21, 5])
    if smoothing:
        ctc_lengths[1] = 0
    states, memory = (torch.randn(n, length, d, dtype=dtype, requires_grad=True) for length in (u, s))
    output, head = torch.nn.Linear(d, v, bias=False, dtype=dtype), torch.nn.Linear(d, v, dtype=dtype)
    leaves = [states, memory, output.weight, head.weight, head.bias]

    said = ctc_lengths > 0
    attention = F.cross_entropy(output(states).flatten(0, 1), targets.flatten(), ignore_index=-100, label_smoothing=smoothing)
    log_probs = head(memory[said]).log_softmax(-1).transpose(0, 1)
    each = F.ctc_loss(log_probs, ctc_targets[said], frames[said], ctc_lengths[said], reduction="none", zero_infinity=True)
    ctc = each.sum() / ctc_lengths[:2].sum()
    wanted = 0.7 * attention + 0.3 * ctc

    real = torch.cat([memory[number, :length] for number, length in enumerate(frames.tolist())])
    heard = (real, head, frames, ctc_targets, ctc_lengths)
    found = combined_loss(states, output, targets, *heard, Weights(smoothing, 0.3, -100, 0), rows, dtype)
    for one, other in ((found.total, wanted), (found.attention, attention), (found.ctc, ctc)):
        torch.testing.assert_close(one, other.detach(), rtol=1e-6, atol=1e-6, check_dtype=False)
    assert (found.tokens, found.too_short) == (int((targets >= 0).sum()), 1)
    for one, other in zip(torch.autograd.grad(found.total, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_chosen_log_probabilities_have_the_gradient_that_differences_give():
    from smoe_cli.model.softmax import chosen_log_probs

    states, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (6, 3), (6,)))
    columns = torch.tensor([[0, 1], [2, 2], [3, 0], [5, 4], [1, 1]])
    assert torch.autograd.gradcheck(lambda x, w, b: chosen_log_probs(x, w, b, columns, 2, torch.float64), (states, weight, bias))


def test_no_more_rows_of_scores_are_held_than_asked_for(prepared, tmp_path):
    """Every tensor as wide as the vocabulary that a step makes, but for the weights and their gradients, has at most so many rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    run = trainer(prepared, tmp_path, loss_chunk=16)
    batch = run.collator(first_cuts(run, "transcribe"))
    pieces, width, tallest = run.tokenizer.vocab_size, run.config.model.d_model, 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal tallest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim >= 2 and out.shape[-1] == pieces and out.shape[-2] != width:
                tallest = max(tallest, out.numel() // pieces)
            return out

    with Watch():
        run.train_step(batch)
    assert 0 < tallest <= 16
    assert batch.feature_lengths.sum() > 4 * 16


def test_scores_that_would_take_much_memory_are_computed_in_chunks_by_default(prepared, tmp_path, monkeypatch):
    run = trainer(prepared, tmp_path)
    batch = run.collator(first_cuts(run, "transcribe"))
    asked = []

    def scores(states, weight, bias, columns, rows, dtype):
        asked.append(rows)
        return chosen_log_probs(states, weight, bias, columns, rows, dtype)

    monkeypatch.setattr("smoe_cli.loss.chosen_log_probs", scores)
    monkeypatch.setattr("smoe_cli.training.step.MOST_SCORES", 16 * run.tokenizer.vocab_size)
    run.train_step(batch)
    assert set(asked) == {16}


def test_training_in_chunks_is_training_and_may_begin_on_the_way(prepared, tmp_path):
    config = undisturbed(prepared)
    whole, chunks = (trainer(config, tmp_path / f"{rows}", **STILL, loss_chunk=rows) for rows in (0, 16))
    batch = whole.collator(first_cuts(whole, "transcribe"))
    torch.testing.assert_close(chunks.train_step(batch).total, whole.train_step(batch).total, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(chunks)[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    trainer(prepared, tmp_path / "run", max_steps=4).run()
    assert trainer(prepared, tmp_path / "run", loss_chunk=16).run().resumed_from == 4


# --- freezing and learning rates of parts ----------------------------------------------------------------


FROZEN = {
    "encoder": lambda name: name.startswith("encoder."),
    "subsampler": lambda name: name.startswith("encoder.subsampler."),
    "embeddings": lambda name: name in ("decoder.embedding.weight", "decoder.output.weight"),
    "experts": lambda name: ".experts." in name,
    "shared": lambda name: ".experts." not in name,
    "nb": lambda name: ".experts.nb." in name,
    "decoder.translate": lambda name: ".experts.translate." in name,
    "encoder.layers.0.*": lambda name: name.startswith("encoder.layers.0."),
}


@pytest.mark.parametrize("part", FROZEN)
def test_frozen_weights_stay_bit_identical_and_have_no_optimiser_state(prepared, tmp_path, part):
    run = trainer(prepared, tmp_path, freeze=[part], max_steps=8, validate_every=8)
    before = {name: value.clone() for name, value in run.system.model.state_dict().items()}
    run.run()
    after = run.system.model.state_dict()
    still = {name for name in before if FROZEN[part](name)}
    assert still and still != set(before)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (name in still), name
    tensors = checkpoint.load_position(tmp_path / "checkpoints" / "step-00000008").tensors
    assert {key.rpartition("|")[0] for key in tensors} == set(before) - still


def test_a_part_that_does_not_exist_is_refused_with_those_that_do(prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"`train.freeze` names `tail`.*encoder, decoder.*experts, shared"):
        trainer(prepared, tmp_path, freeze=["tail"])
    with pytest.raises(ConfigError, match=r"`train.lr_factors` names `tail`.*encoder.nb"):
        trainer(prepared, tmp_path, lr_factors={"tail": 2.0})


def test_freezing_all_that_a_route_uses_is_refused(prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"holds every weight of route `transcribe/en/nb` still"):
        trainer(prepared, tmp_path, freeze=["shared", "nb", "transcribe"])
    assert trainer(prepared, tmp_path, freeze=["shared", "nb"]).run().steps == 8


def test_freezing_resumes_exactly_and_cannot_be_changed_on_the_way(prepared, tmp_path):
    assert_resumes_exactly(prepared, tmp_path, freeze=["embeddings"], lr_factors={"experts": 0.5})
    with pytest.raises(CheckpointError, match=r"train.freeze: \['embeddings'\] -> \[\]"):
        trainer(prepared, tmp_path / "parts", lr_factors={"experts": 0.5}).run()


def test_a_factor_scales_the_updates_of_its_part_and_several_multiply(prepared, tmp_path):
    # Without weight decay and on the first step, AdamW moves every weight by its learning rate times the sign of its gradient.
    runs = [trainer(prepared, tmp_path, weight_decay=0.0, lr_factors=factors) for factors in ({}, {"experts": 0.5, "encoder": 4.0})]
    batch = runs[0].collator(first_cuts(runs[0], "transcribe"))
    moved = []
    for run in runs:
        before = {name: value.clone() for name, value in run.system.model.state_dict().items()}
        run.train_step(batch)
        moved.append({name: value - before[name] for name, value in run.system.model.state_dict().items()})
    for name, plain in moved[0].items():
        factor = (0.5 if ".experts." in name else 1.0) * (4.0 if name.startswith("encoder.") else 1.0)
        torch.testing.assert_close(moved[1][name], factor * plain, rtol=1e-3, atol=1e-6, msg=name)


# --- activations computed again --------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_computed_again_give_the_same_gradients_bit_for_bit_with_dropout(prepared, tmp_path, precision):
    kept, again = (trainer(prepared, tmp_path / f"{on}", activation_checkpointing=on) for on in (False, True))
    batch = kept.collator(first_cuts(kept, "transcribe"))
    for run in (kept, again):
        run.precision = Precision(precision, "highest", "as the test says")
        run.train_step(batch)
        run.step += 1
        run.train_step(batch)
    assert_bit_identical(gradients(kept), gradients(again))
    assert_bit_identical(kept.system.model.state_dict(), again.system.model.state_dict())


def test_activations_computed_again_are_not_kept(prepared, tmp_path):
    def kept_bytes(recompute: bool) -> int:
        run = trainer(prepared, tmp_path, activation_checkpointing=recompute)
        batch = run.collator(first_cuts(run, "transcribe"))
        run.system.model.train()
        weights = {weight.data_ptr() for weight in run.system.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in weights:
                kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            held = run.system.model(batch.features, batch.feature_lengths, batch.tokens_in, batch.encoder_expert, batch.decoder_expert)
        assert held[0].requires_grad
        return sum(kept.values())

    assert kept_bytes(True) < 0.5 * kept_bytes(False)


def test_computing_activations_again_may_begin_on_the_way(prepared, tmp_path):
    trainer(prepared, tmp_path / "whole").run()
    stopped = trainer(prepared, tmp_path / "parts")
    stop_after(stopped, 3)
    with pytest.raises(Interrupted):
        stopped.run()
    trainer(prepared, tmp_path / "parts", activation_checkpointing=True).run()
    assert_bit_identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


# --- compiled --------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
def test_compiled_steps_are_those_of_plain_ones_for_batches_of_every_shape_with_one_set_of_graphs(prepared, tmp_path):
    config = undisturbed(prepared)
    plain, compiled = trainer(config, tmp_path / "plain"), trainer(config, tmp_path / "compiled", compile=True)
    graphs = torch._dynamo.utils.counters["stats"]
    made = []
    for task, count in (("transcribe", 6), ("translate", 3), ("transcribe", 4), ("translate", 5)):
        batch = plain.collator(first_cuts(plain, task, count))
        torch.testing.assert_close(compiled.train_step(batch).total, plain.train_step(batch).total, rtol=1e-4, atol=1e-4)
        for name, gradient in gradients(plain).items():
            # AdamW turns a last digit of a gradient that is all but zero into a whole step: compare what the steps begin with.
            torch.testing.assert_close(gradients(compiled)[name], gradient, rtol=1e-3, atol=1e-4, msg=name)
        compiled.system.model.load_state_dict(plain.system.model.state_dict())
        made.append(graphs["unique_graphs"])
    assert made[0] > 0
    assert made[-1] == made[0], "no shape and no route made a graph of its own"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
def test_a_conformers_convolution_is_compiled_too(tmp_path):
    config = tiny_config(tmp_path, model={"encoder": "conformer", "conv_kernel": 3})
    model = build_model(config.model, config.features, make_plan(config), 300)
    kinds = Counter(type(part).__name__ for part in model.modules() if isinstance(part, COMPILED))
    assert kinds["ConformerConvolution"] == config.model.encoder_layers
    assert compile_parts(model) == kinds.total()


def test_compiling_without_a_compiler_is_refused(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r"`train.compile` needs a C\+\+ compiler"):
        trainer(prepared, tmp_path, compile=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_lie_in_pinned_memory_for_a_gpu_alone(prepared, tmp_path, monkeypatch, device):
    pinned: set[int] = set()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        pinned.add(copy.data_ptr())
        return copy

    # As if torch found a GPU.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    run, batches = trainer(prepared, tmp_path, workers=0), []

    def no_step(batch):
        batches.append(batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train_step", no_step)
    run.device = torch.device(device)
    with pytest.raises(KeyboardInterrupt):
        run._loop()
    lies = {name: getattr(batches[0], name).data_ptr() in pinned for name in (*MOVED, "encoder_expert", "decoder_expert")}
    assert {name for name, is_pinned in lies.items() if is_pinned} == (set(MOVED) if device == "cuda" else set())
    made = next(loading.feed(run.collator, run.batches, 0, 1, 0))[0]
    assert all(torch.equal(getattr(batches[0], name), getattr(made, name)) for name in MOVED)


def test_a_loader_whose_pinning_ends_is_told_with_the_cure():
    told = pytest.raises(SmoeError, match=r"(?s)a process that loads data has ended: Pin memory.*lower `train.workers`")
    with told, loading.workers_noticed():
        raise RuntimeError("Pin memory thread exited unexpectedly")
