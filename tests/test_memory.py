"""Laws of memory: the largest batch is found without passing the bound, and a batch that is too large is done in parts."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import pytest
import torch

from smoe_cli.batching import Batch
from smoe_cli.cut_table import letters_of
from smoe_cli.errors import CheckpointError, ConfigError, SmoeError
from smoe_cli.training import memory as memories
from smoe_cli.training import step as steps
from smoe_cli.training import trainer as training
from smoe_cli.training import validate as validations
from smoe_cli.training.memory import Memory, halves, is_out_of_memory, longest_batch, most_utterances
from smoe_cli.watch import Silent
from tests.test_shares import Listener
from tests.test_training import assert_bit_identical, prepared, trainer, weights
from tests.test_training_steps import STILL, assert_resumes_exactly, first_cuts, gradients, undisturbed

__all__ = ["prepared"]


@pytest.mark.parametrize(("held", "each", "bound"), [(100, 7, 1000), (0, 10, 1000), (900, 1, 990), (500, 400, 1000), (10, 33, 1000)])
def test_the_most_utterances_are_found_and_nothing_is_tried_beyond_the_bound(held, each, bound):
    tried = []

    def measure(count):
        tried.append(held + count * each)
        return held + count * each, held

    assert most_utterances(measure, bound, 10_000) == (bound - held) // each
    assert max(tried) <= bound
    assert len(tried) <= 12
    assert most_utterances(measure, bound, 2) == min(2, (bound - held) // each)


def test_a_try_that_fails_leaves_the_one_before_and_one_that_never_fits_says_so():
    assert most_utterances(lambda count: (count, 0) if count <= 5 else None, 1000, 64) == 4
    assert most_utterances(lambda count: None, 1000, 64) == 0
    assert most_utterances(lambda count: (1001, 0), 1000, 64) == 0


def test_the_longest_cuts_are_tried_and_begin_again_where_there_are_too_few(prepared, tmp_path):
    cuts = first_cuts(trainer(prepared, tmp_path), "transcribe", 5)
    assert [cut.duration for cut in longest_batch(cuts, 3)] == sorted((cut.duration for cut in cuts), reverse=True)[:3]
    assert len(longest_batch(cuts, 12)) == 12


def test_memory_is_what_the_process_takes():
    """In a process of its own: one that has trained keeps what was freed."""
    code = (
        "import torch\nfrom smoe_cli.training.memory import Memory\nmemory = Memory(torch.device('cpu'))\nbefore = memory.used()\n"
        "large = torch.ones(50_000_000)\nused = memory.used() - before\ndel large\npeak = memory.peak() - before\nmemory.reset()\n"
        "print(used > 150e6, peak > 150e6, memory.peak() - before < 100e6, memory.free() > 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True True True True\n"


GROUPS = {
    "1": ("4:memory:/job/step", "memory/job", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"),
    "2": ("0::/job/step", "job", ("memory.max", "memory.current"), "inactive_file"),
    "2, seen from inside a container": ("0::/host/pod", "", ("memory.max", "memory.current"), "inactive_file"),
}


@pytest.mark.parametrize("version", GROUPS)
def test_the_limit_of_any_group_above_counts_and_copies_of_files_do_not(monkeypatch, tmp_path, version):
    line, group, (limit, used), dropped = GROUPS[version]
    (tmp_path / "cgroup").write_text(f"7:cpu:/other\n{line}\n")
    folder = tmp_path / "groups" / group
    (folder / "step").mkdir(parents=True)
    (folder / limit).write_text("9000000\n")
    (folder / used).write_text("8000000\n")
    (folder / "memory.stat").write_text(f"anon 1\n{dropped} 500000\n")
    memory = Memory(torch.device("cpu"))
    free = memory.free()
    monkeypatch.setattr(memories, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(memories, "PROCESS", tmp_path)
    assert memory.free() == 1_500_000 < free
    if version == "2":
        (folder / "step" / limit).write_text("max\n")
        (folder / "step" / used).write_text("100\n")
        assert memory.free() == 1_500_000
    (folder / limit).write_text("max\n" if limit == "memory.max" else "9223372036854771712\n")
    assert memory.free() > 1_500_000


def test_of_tasks_on_the_same_audio_the_one_that_writes_the_most_is_tried(prepared, tmp_path):
    run = trainer(prepared, tmp_path)
    texts = {route.task: max(letters_of(cut) for cut in cuts) for route, cuts in run.groups.items()}
    tried = []
    settings = run.settings.model_copy(update={"max_utterances": 1})
    groups = {route: run.groups[route] for route in sorted(run.groups, key=lambda route: texts[route.task])}

    def gradients(batch: Batch) -> None:
        tried.append(batch.routes[0].task)

    memories.largest_batch_s(
        groups, run.collator, gradients, lambda: None, 0, Memory(torch.device("cpu")), settings, threading.Event(), Silent()
    )
    assert len(set(texts.values())) > 1 and set(tried) == {max(texts, key=texts.__getitem__)}


def test_a_system_that_does_not_tell_is_no_place_for_auto(monkeypatch, tmp_path):
    monkeypatch.setattr(memories, "PROCESS", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="does not tell how much memory") as refused:
        Memory(torch.device("cpu"))
    assert "to a number" in refused.value.hint


# --- batch_s: auto ---------------------------------------------------------------------------------------


def test_a_run_with_a_batch_that_was_found_is_that_with_its_number_and_resumes_with_it(prepared, tmp_path, monkeypatch):
    found = trainer(prepared, tmp_path / "auto", batch_s="auto")
    found.run()
    longest = max(cut.duration for cuts in found.groups.values() for cut in cuts)
    assert found.batch_s == prepared.train.max_utterances * longest, "a tiny model is bounded by the utterances, not by memory"
    trainer(prepared, tmp_path / "number", batch_s=found.batch_s).run()
    assert_bit_identical(weights(tmp_path / "auto"), weights(tmp_path / "number"))

    def refuse(*_args: object) -> int:
        raise AssertionError("a run that goes on measures nothing")

    monkeypatch.setattr(memories, "most_utterances", refuse)
    again = trainer(prepared, tmp_path / "auto", batch_s="auto", max_steps=12)
    assert again.run().resumed_from == 8
    assert again.batch_s == found.batch_s
    with pytest.raises(CheckpointError, match=r"train.batch_s: 'auto' -> 3.0"):
        trainer(prepared, tmp_path / "auto", batch_s=3.0).run()


@pytest.mark.parametrize(
    ("most", "bound", "said"),
    [
        (
            3,
            10_000,
            "3 utterances of {longest:.1f} s, the longest cut: as many as `train.max_utterances` allows; "
            "they take 4% of what `train.memory_share` does",
        ),
        (64, 600, "5 utterances of {longest:.1f} s, the longest cut: as many as the memory takes of which `train.memory_share` is used"),
    ],
)
def test_the_log_says_what_bounds_the_batch(prepared, tmp_path, monkeypatch, most, bound, said):
    """A model of 100 bytes whose batches need 100 more for each utterance."""
    run = trainer(prepared, tmp_path)
    now = [100, 100]

    class Counted:
        def reset(self) -> None: ...

        def peak(self) -> int:
            return now[0]

        def used(self) -> int:
            return now[1]

        def free(self) -> int:
            return bound - now[1]

    heard = Listener()
    settings = run.settings.model_copy(update={"max_utterances": most, "memory_share": 1.0})

    def gradients(batch: Batch) -> None:
        now[0] = 100 + 100 * len(batch.cuts)

    found = memories.largest_batch_s(run.groups, run.collator, gradients, lambda: None, 0, Counted(), settings, threading.Event(), heard)
    longest = max(cut.duration for cuts in run.groups.values() for cut in cuts)
    assert heard.lines[-1] == said.format(longest=longest) and found == int(said.split()[0]) * longest


def test_a_batch_that_was_found_resumes_exactly(prepared, tmp_path):
    assert_resumes_exactly(prepared, tmp_path, batch_s="auto")


def test_memory_bounds_the_batch(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(memories, "most_utterances", lambda measure, bound, most: 3 if measure(1) else 0)
    run = trainer(prepared, tmp_path, batch_s="auto", max_steps=1)
    run.watcher = Listener()
    run.run()
    assert run.batch_s == 3 * max(cut.duration for cuts in run.groups.values() for cut in cuts)
    assert any("a batch of 1 x " in line and " MiB of " in line for line in run.watcher.lines)
    monkeypatch.setattr(memories, "most_utterances", lambda measure, bound, most: 0)
    with pytest.raises(ConfigError, match="does not suffice for one utterance"):
        trainer(prepared, tmp_path / "none", batch_s="auto").run()


# --- out of memory ---------------------------------------------------------------------------------------


def narrow(monkeypatch, utterances: int, error: RuntimeError) -> None:
    """A machine whose memory takes so many utterances at once."""
    real = steps.losses_of

    def losses_of(model, batch, *args, **options):
        if len(batch.cuts) > utterances:
            raise error
        return real(model, batch, *args, **options)

    monkeypatch.setattr(steps, "losses_of", losses_of)


def test_a_batch_as_two_has_the_same_utterances_without_the_padding_of_the_others(prepared, tmp_path):
    run = trainer(prepared, tmp_path)
    batch = run.collator(first_cuts(run, "translate", 5))
    parts = halves(batch)
    assert [cut.id for part in parts for cut in part.cuts] == [cut.id for cut in batch.cuts]
    for part in parts:
        again = run.collator(part.cuts)
        for name in ("features", "feature_lengths", "tokens_in", "targets", "ctc_targets", "ctc_lengths", "encoder_expert"):
            assert torch.equal(getattr(part, name), getattr(again, name)), name
    assert len(halves(halves(parts[0])[0])) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 3 bytes"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_a_step_that_is_too_large_for_memory_is_done_in_parts_with_the_same_gradients(prepared, tmp_path, monkeypatch, error):
    config = undisturbed(prepared)
    whole, parts = (trainer(config, tmp_path / name, **STILL) for name in ("whole", "parts"))
    batch = whole.collator(first_cuts(whole, "transcribe", 7))
    one = whole.train_step(batch)
    narrow(monkeypatch, 2, error)
    parts.watcher = Listener()
    several = parts.train_step(batch)
    torch.testing.assert_close(several.total, one.total, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(parts)[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert [line for line in parts.watcher.lines if "out of memory at step 0" in line][-1].endswith("lower `train.batch_s`")


@pytest.mark.parametrize("where", [training, validations])
def test_what_a_batch_that_was_too_large_computed_is_gone_before_it_is_halved(prepared, tmp_path, monkeypatch, where):
    """Without waiting for the collector of cycles: to halve it takes memory too, and only what is gone can be given back to the device."""
    run = trainer(prepared, tmp_path)
    computed: list[weakref.ref[torch.Tensor]] = []
    left: list[int] = []
    real = where.in_halves

    def encode(module, inputs, output):
        if len(inputs[0]) > 3:
            computed.append(weakref.ref(inputs[0]))
            raise RuntimeError("could not create a primitive")

    def in_halves(*args):
        left.append(sum(one() is not None for one in computed))
        return real(*args)

    run.system.model.encoder.layers[0].register_forward_hook(encode)
    monkeypatch.setattr(where, "in_halves", in_halves)
    gc.disable()
    try:
        run.validate() if where is validations else run.train_step(run.collator(first_cuts(run, "transcribe", 6)))
    finally:
        gc.enable()
    assert computed and left and not any(left)


def test_memory_for_not_even_one_utterance_ends_training_and_names_it(prepared, tmp_path, monkeypatch):
    run = trainer(prepared, tmp_path)
    narrow(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(SmoeError, match="does not suffice for one utterance at step 0; the longest is `tones-"):
        run.run()


def test_a_validation_that_is_too_large_for_memory_is_done_in_parts_with_the_same_loss(prepared, tmp_path, monkeypatch):
    run = trainer(prepared, tmp_path)
    run.watcher = Listener()
    whole = run.validate()
    for utterances in (1, 0):
        real, tried = steps.losses_of, []

        def losses_of(model, batch, *args, real=real, tried=tried, most=utterances, **options):
            tried.append(len(batch.cuts))
            if len(batch.cuts) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(model, batch, *args, **options)

        monkeypatch.setattr(validations, "losses_of", losses_of)
        if utterances:
            assert run.validate() == pytest.approx(whole, rel=1e-5)
            assert max(tried) > 1
            assert any("out of memory in validation: the utterances of a batch are taken in 2 parts" in line for line in run.watcher.lines)
        else:
            with pytest.raises(SmoeError, match="does not suffice for one utterance in validation; the longest is `tones-"):
                run.validate()


def test_a_validation_in_shards_that_is_too_large_for_memory_ends_with_what_to_do(prepared, tmp_path, monkeypatch):
    run = trainer(prepared, tmp_path)

    def no_memory(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(validations, "losses_of", no_memory)
    monkeypatch.setattr(validations, "is_divided", lambda _: True)
    with pytest.raises(SmoeError, match=r"does not suffice for a batch of the dev split, and with `train.shard`") as refused:
        run.validate()
    assert "`train.activation_checkpointing`" in refused.value.hint


def test_memory_that_does_not_suffice_for_the_optimisers_state_ends_training_with_what_to_do(prepared, tmp_path, monkeypatch):
    run = trainer(prepared, tmp_path)

    def no_memory(*_args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", no_memory)
    with pytest.raises(SmoeError, match="does not suffice for the optimiser's state at step 0") as refused:
        run.train_step(run.collator(first_cuts(run, "translate", 2)))
    assert "`train.shard`" in refused.value.hint


def test_a_batch_that_was_found_and_is_too_small_for_its_turns_is_told_with_what_helps(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(memories, "most_utterances", lambda measure, bound, most: 3)
    assert trainer(prepared, tmp_path / "three", batch_s="auto", turns_per_batch=3, max_steps=1).run().steps == 1
    with pytest.raises(ConfigError, match=r"memory takes 3 utterances of .*`train.turns_per_batch` is 4") as refused:
        trainer(prepared, tmp_path / "four", batch_s="auto", turns_per_batch=4).run()
    assert refused.value.hint.startswith("set it to 3 or less, raise `train.memory_share`")


def test_other_errors_are_not_taken_for_a_lack_of_memory(prepared, tmp_path, monkeypatch):
    for said in ("shapes do not fit", "could not create a primitive descriptor for the matmul primitive"):
        assert not is_out_of_memory(RuntimeError(said))
    run = trainer(prepared, tmp_path)
    narrow(monkeypatch, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run.run()
