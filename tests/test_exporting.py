"""Laws of an exported model: it computes what torch computes, is checked before it is kept, and replaces nothing of anyone's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smoe_cli import checkpoint, exporting, pipeline
from smoe_cli.checkpoint import System
from smoe_cli.config import DecodeSettings
from smoe_cli.decoding.beam import beam_search
from smoe_cli.decoding.onnx import OnnxModel, read_card
from smoe_cli.errors import CheckError, CheckpointError, ConfigError, DataError, RouteError
from smoe_cli.layout import EXPORT_CARD
from smoe_cli.records import Export, file_digest, write_json
from smoe_cli.tags import Choice, Route
from smoe_cli.tokenizer import ByteBPE, Tokenizer
from tests.test_house import ROOT
from tests.test_upcycling import GUIDING, config, saved

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
SMALL = {"encoder_layers": 1}
KINDS = {
    "transformer, CTC": ("transcribe/en/nb", SMALL | {"conv_kernel": 5}),
    "conformer, shared experts, tied": (
        "translate/de/wb",
        {
            "encoder": "conformer",
            "conv_kernel": 5,
            "encoder_layers": 1,
            "encoder_shared_ffn_dim": 8,
            "decoder_shared_ffn_dim": 16,
            "tie_embeddings": True,
        },
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return ByteBPE.train(["one two three", "eins zwei drei"] * 3, 290, GUIDING, tmp_path_factory.mktemp("tokenizer"))


def lend_graphs(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let an export take its float32 graphs from an earlier one: making them takes seconds."""
    for name, graph in (("export_encoder", exporting.ENCODER), ("export_step", exporting.DECODER)):
        patch.setattr(exporting, name, lambda _, path, graph=graph: shutil.copyfile(folder / graph, path))


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tokenizer, tmp_path_factory) -> tuple[System, Route, Path, Export]:
    """A model, one of its routes, and what was exported of it: of the tied one in 8 bits too, in the folder `int8` beside."""
    route, changes = KINDS[request.param]
    route, folder = Route.parse(route), tmp_path_factory.mktemp("exported")
    whole, system = saved(config(folder, "encdec-smoe", **changes), tokenizer, folder / "whole")
    choice = Choice(route.task, route.lang, str(route.bandwidth))
    report = pipeline.export(whole, out=folder / "float32", choice=choice)
    if changes.get("tie_embeddings"):
        with pytest.MonkeyPatch.context() as patch:
            lend_graphs(patch, folder / "float32")
            pipeline.export(whole, out=folder / "int8", int8=True, choice=choice)
    return system, route, folder / "float32", report


def batch(lengths):
    return torch.randn(len(lengths), max(lengths), 40), torch.tensor(lengths)


def experts(system, route, count):
    return [torch.full((count,), stack.index(route)) for stack in (system.plan.encoder, system.plan.decoder)]


@torch.inference_mode()
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("lengths", [[41, 9, 30], [17], [23, 23], [90, 1]])
def test_the_graphs_compute_what_torch_computes(exported, lengths, beams):
    system, route, folder, _ = exported
    model, onnx = system.model, OnnxModel(folder, threads=1)
    features, lengths_N = batch(lengths)
    encoder, decoder = experts(system, route, len(lengths))
    memory, arrays = model.encoder(features, lengths_N, encoder), onnx.encode(features.numpy(), lengths_N.numpy())
    assert ("ctc_log_probs" in arrays) == (route.task == "transcribe")
    if "ctc_log_probs" in arrays:
        log_probs = F.log_softmax(model.ctc(memory.states), -1)
        for row, length in enumerate(memory.lengths.tolist()):
            np.testing.assert_allclose(arrays["ctc_log_probs"][row, :length], log_probs[row, :length].numpy(), atol=1e-4)
    state, caches = model.decoder.start(memory, beams), onnx.start(len(lengths), beams)
    for _ in range(5):
        tokens = torch.randint(0, 290, (len(lengths) * beams,))
        logits = model.decoder.step(tokens, state, memory, decoder)
        found, caches = onnx.step(tokens.view(-1, beams).numpy(), arrays, caches)
        np.testing.assert_allclose(found.reshape(logits.shape), logits.numpy(), atol=1e-4)


@torch.inference_mode()
def test_greedy_text_is_that_of_torch(exported):
    system, route, folder, _ = exported
    onnx, lengths, limits = OnnxModel(folder, threads=1), [70, 25, 50], [9, 14, 11]
    features, lengths_N = batch(lengths)
    encoder, decoder = experts(system, route, 3)
    memory = system.model.encoder(features, lengths_N, encoder)
    prefix = torch.tensor([system.tokenizer.guiding_ids(route)] * 3)
    wanted = beam_search(system.model, memory, prefix, decoder, limits, DecodeSettings(beam=1), 0.0, system.tokenizer)
    found = onnx.greedy([item[:length].numpy() for item, length in zip(features, lengths, strict=True)], limits)
    assert found == [beams[0].tokens for beams in wanted]
    assert all(found)


def test_the_card_says_what_the_model_is(exported):
    system, route, folder, report = exported
    card = read_card(folder)
    assert card == report
    assert (card.route, card.precision, card.prefix_ids) == (str(route), "float32", system.tokenizer.guiding_ids(route))
    assert card.model == checkpoint.load(folder.parent / "whole").digest
    assert card.check.max_difference < 1e-4
    assert card.check.same_token == 1.0
    assert (card.features["num_filters"], card.features["frame_shift"]) == (40, 0.01)
    assert {name: path.stat().st_size for name in ("encoder.onnx", "decoder.onnx") for path in [folder / name]} == {
        graph.file: graph.bytes for graph in (card.encoder, card.decoder)
    }
    tokens = next(tensor for tensor in card.decoder.inputs if tensor.name == "tokens")
    assert (tokens.type, tokens.shape) == ("int64", ["N", "B"])


def test_int8_is_smaller_and_close(exported):
    *_, folder, report = exported
    if not (folder.parent / "int8").exists():
        pytest.skip("exported in float32 only")
    onnx = OnnxModel(folder.parent / "int8", threads=1)
    card = onnx.card
    assert card.precision == "int8"
    assert card.encoder.bytes + card.decoder.bytes < card.bytes_float32 == report.bytes_float32
    assert 0.0 < card.check.relative_difference < 0.1
    assert card.check.same_token > 0.8
    assert len(onnx.texts([torch.randn(30, 40).numpy()], [0.3])) == 1


def mixed_up(folder: Path, out: Path) -> Path:
    """An export whose decoder is one with its embeddings mixed up, as an earlier quantiser's fault left them."""
    import onnx

    shutil.copytree(folder, out)
    graph = onnx.load(out / "decoder.onnx")
    embedding = next(tensor for tensor in graph.graph.initializer if list(tensor.dims) == [290, 32])
    embedding.raw_data = np.roll(onnx.numpy_helper.to_array(embedding), 7).tobytes()
    onnx.save(graph, out / "decoder.onnx")
    return out


def test_a_graph_with_other_weights_is_far_from_what_int8_may_do(exported, tmp_path):
    """The bound must tell rounding from a fault."""
    _, route, folder, _ = exported
    broken = mixed_up(folder, tmp_path / "broken")
    card = read_card(broken)
    digest = file_digest(broken / "decoder.onnx")
    write_json(broken / EXPORT_CARD, card.model_copy(update={"decoder": card.decoder.model_copy(update={"sha256": digest})}))
    slim = exporting.slimming.one_route(checkpoint.load(folder.parent / "whole"), route)
    assert exporting.compare(slim, OnnxModel(broken, 1)).relative_difference > exporting.INT8_TOLERANCE


def test_a_graph_that_is_not_the_one_of_the_export_is_refused(exported, tmp_path):
    *_, folder, _ = exported
    swapped = mixed_up(folder, tmp_path / "swapped")
    with pytest.raises(CheckpointError, match=r"`decoder\.onnx` is not the one that `export\.json` names"):
        OnnxModel(swapped)
    encoder = swapped / "encoder.onnx"
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"`encoder\.onnx` is not the one that `export\.json` names"):
        OnnxModel(swapped)
    encoder.unlink()
    with pytest.raises(CheckpointError, match=r"`encoder\.onnx` is missing"):
        OnnxModel(swapped)


def test_what_fails_the_check_is_not_kept_and_an_earlier_export_stays(exported, monkeypatch):
    _, route, folder, report = exported
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    monkeypatch.setattr(exporting, "ROUNDING", -1.0)
    lend_graphs(monkeypatch, folder)
    with pytest.raises(CheckError, match="something else than torch") as caught:
        pipeline.export(folder.parent / "whole", out=folder, choice=Choice(route.task, route.lang, str(route.bandwidth)))
    assert caught.value.exit_code == 1
    assert read_card(folder) == report
    assert not list(folder.parent.glob(".*"))


def test_a_slim_checkpoint_exports_its_only_route(exported, monkeypatch, tmp_path):
    _, route, folder, report = exported
    pipeline.slim(folder.parent / "whole", out=tmp_path / "slim", choice=Choice(route.task, route.lang, str(route.bandwidth)))
    assert pipeline.check_export(tmp_path / "slim", out=tmp_path / "phone") == route
    assert not (tmp_path / "phone").exists()
    lend_graphs(monkeypatch, folder)
    assert pipeline.export(tmp_path / "slim", out=tmp_path / "phone").check == report.check


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return saved(config(folder, "encdec-smoe", **SMALL), tokenizer, folder / "whole")[0]


def test_nothing_but_an_earlier_export_is_replaced(whole, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for out in (whole, tmp_path / "mine"):
        with pytest.raises(ConfigError, match="is no exported model"):
            pipeline.export(whole, out=out, choice=Choice("transcribe", bandwidth="nb"))
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_an_earlier_export_with_somebody_elses_file_in_it_is_not_replaced(exported, whole, tmp_path):
    *_, folder, _ = exported
    shutil.copytree(folder, tmp_path / "phone")
    assert pipeline.check_export(whole, out=tmp_path / "phone", choice=Choice("transcribe", bandwidth="nb"))
    (tmp_path / "phone" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"holds `letter\.txt`, which `smoe export` did not write"):
        pipeline.check_export(whole, out=tmp_path / "phone", choice=Choice("transcribe", bandwidth="nb"))


def test_a_route_that_is_not_one_is_refused_with_the_list(whole, tmp_path):
    with pytest.raises(RouteError, match=r"2 routes are `translate/\*/\*`: translate/de/nb, translate/de/wb"):
        pipeline.export(whole, out=tmp_path / "phone", choice=Choice("translate"))
    with pytest.raises(RouteError, match="the model has 4 routes: "):
        pipeline.export(whole, out=tmp_path / "phone")
    with pytest.raises(RouteError, match="`accent` is no axis of the model; it has none for --tag"):
        pipeline.export(whole, out=tmp_path / "phone", choice=Choice(tags=(("accent", "us"),)))


@pytest.mark.parametrize("package", exporting.PACKAGES)
def test_without_the_extra_the_command_says_how_to_get_it(whole, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=package) as caught:
        pipeline.export(whole, out=tmp_path / "phone", choice=Choice("transcribe", bandwidth="nb"))
    assert (caught.value.exit_code, caught.value.hint) == (2, "pip install 'smoe[onnx]'")


def test_a_folder_without_a_card_is_no_exported_model(whole):
    with pytest.raises(CheckpointError, match="holds no exported model"):
        OnnxModel(whole)


def test_an_exported_model_is_no_checkpoint_and_is_called_what_it_is(exported):
    *_, folder, _ = exported
    with pytest.raises(CheckpointError, match=r"is no checkpoint or an incomplete one: it has no `digests\.json`") as caught:
        checkpoint.load(folder)
    assert caught.value.hint.startswith("it is an exported model")


@pytest.mark.parametrize("shape", [(0, 40), (20, 39)])
def test_features_that_the_model_does_not_take_are_refused_and_none_are_no_texts(exported, shape):
    *_, folder, _ = exported
    model = OnnxModel(folder, threads=1)
    with pytest.raises(DataError, match=rf"of {shape[0]} to {shape[0]} frames with {shape[1]} bins; the model takes .* 40 bins"):
        model.texts([np.zeros(shape, np.float32)], [0.2])
    assert model.texts([], []) == []


def test_the_runner_needs_no_torch(exported):
    *_, folder, _ = exported
    code = (
        "import sys, numpy, pathlib; from smoe_cli.decoding.onnx import OnnxModel; "
        f"found = OnnxModel(pathlib.Path({str(folder)!r})).texts([numpy.zeros((20, 40), numpy.float32)], [0.2]); "
        "print(len(found), {'torch', 'lhotse'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1 set()\n"


def test_the_search_in_the_documentation_is_that_of_the_runner(exported, monkeypatch):
    *_, folder, _ = exported
    page = (ROOT / "docs" / "how-to" / "ship-to-a-device.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "InferenceSession" in block)
    (folder.parent / "phone").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    names = {"features": torch.randn(70, 40).numpy(), "seconds": 1.2}
    exec(code, names)
    model = OnnxModel(folder)
    written = [token for token in names["tokens"] if token not in (*model.card.prefix_ids, model.card.end_id)]
    assert written == [token for token in model.greedy([names["features"]], model.limits([1.2]))[0] if token not in model.card.prefix_ids]


def test_a_model_too_large_for_one_file_is_refused_before_anything_is_done(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "MAX_BYTES", 1e5)
    with pytest.raises(ConfigError, match="GB of weights"):
        pipeline.check_export(whole, out=tmp_path / "phone", choice=Choice("transcribe", bandwidth="nb"))
