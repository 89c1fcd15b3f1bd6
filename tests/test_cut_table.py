"""A large manifest is looked up cut by cut; training cannot tell the difference."""

import gzip
import json
import pickle
import shutil

import pytest
import torch
from lhotse import CutSet
from lhotse.utils import fastcopy

from smoe_cli import checkpoint, cut_table, pipeline
from smoe_cli.batching import RouteBatches, by_route
from smoe_cli.cut_table import CutTable, Stub, digest_of, members, open_cuts, whole
from smoe_cli.cuts import read_cuts, route_of, tags_of, write_cuts
from smoe_cli.errors import DataError
from smoe_cli.layout import Layout
from smoe_cli.manifests import MEMBER_LINES, manifest_writer, read_lines
from smoe_cli.routing import make_plan
from tests.test_training import recipe, write_corpus


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    write_corpus(folder / "corpus", per_word=30)
    config = recipe(folder / "corpus", folder / "exp", train={"max_steps": 6, "workers": 0})
    pipeline.prepare(config)
    pipeline.tokenize(config)
    return config


@pytest.fixture
def large(monkeypatch):
    """Every manifest is a large one."""
    monkeypatch.setattr(cut_table, "WHOLE_CUTS", 0)


def test_a_stub_knows_what_its_cut_says(prepared, large):
    path = Layout.of(prepared).cuts("train")
    stubs, cuts = open_cuts(path), read_cuts(path)
    assert len(stubs) == len(cuts) > 2 * MEMBER_LINES
    for stub, cut in zip(stubs, cuts, strict=True):
        assert isinstance(stub, Stub) and not isinstance(cut, Stub)
        assert stub.duration == cut.duration
        assert cut_table.route_of(stub) == cut_table.route_of(cut) == route_of(cut)
        assert cut_table.corpus_of(stub) == cut_table.corpus_of(cut) == tags_of(cut).corpus
    # In any order, and again after what was unpacked has been forgotten.
    for number in (len(cuts) - 1, 0, MEMBER_LINES, MEMBER_LINES - 1, 1):
        assert whole(list(stubs)[number]).to_dict() == list(cuts)[number].to_dict()


@pytest.mark.parametrize("stubs", [False, True])
@pytest.mark.parametrize("text", ["", "  "])
def test_a_training_cut_without_text_is_refused_by_name_and_the_cure_helps(prepared, tmp_path, monkeypatch, stubs, text):
    """As a hand in the manifest leaves it."""
    layout, exp = Layout.of(prepared), tmp_path / "exp"
    shutil.copytree(layout.root, exp)
    config = prepared.model_copy(update={"exp_dir": exp})
    cuts = list(read_cuts(layout.cuts("train")))
    for cut in [cut for cut in cuts if route_of(cut).task == "translate"][3:5]:
        cut.supervisions[0].text = text
    write_cuts(Layout.of(config).cuts("train"), cuts)
    first = next(cut.id for cut in cuts if not cut.supervisions[0].text.strip())
    if stubs:
        monkeypatch.setattr(cut_table, "WHOLE_CUTS", 0)
    with pytest.raises(
        DataError, match=rf"cut `{first}` of the train split has an empty text for `translate/de/.*; cuts without text: 2"
    ) as no:
        pipeline.train(config)
    assert "smoe validate --fix" in no.value.hint and not (exp / "model").exists()
    pipeline.validate(config, fix=True)
    assert pipeline.train(config).steps == 6


def test_batches_and_digests_are_those_of_whole_cuts(prepared, large):
    path, plan = Layout.of(prepared).cuts("train"), make_plan(prepared)
    stubs, cuts = by_route(open_cuts(path), plan), by_route(read_cuts(path), plan)
    assert list(stubs) == list(cuts)
    assert {route: digest_of(route, some) for route, some in stubs.items()} == {
        route: digest_of(route, some) for route, some in cuts.items()
    }
    streams = [
        RouteBatches(groups, batch_s=9.0, max_utterances=4, seed=3, corpus_weights={"tones": 2.0}).stream() for groups in (stubs, cuts)
    ]
    for _ in range(60):
        found, expected = (next(stream) for stream in streams)
        assert [whole(cut).id for cut in found] == [cut.id for cut in expected]


def changed(cut, **recording):
    return fastcopy(cut, recording=fastcopy(cut.recording, **recording))


def test_cuts_are_other_data_when_anything_is_heard_or_written_otherwise_and_not_when_they_lie_elsewhere(prepared):
    cuts = list(read_cuts(Layout.of(prepared).cuts("train")))
    at = next(number for number, cut in enumerate(cuts) if cut.recording.transforms)
    route, cut = route_of(cuts[at]), cuts[at]
    said = fastcopy(cut.supervisions[0], custom=cut.supervisions[0].custom | {"transcript": "another"})
    (source,) = cut.recording.sources
    lines = [*cut.recording.transforms[:-1], {"name": "Telephone", "kwargs": {"codec": "gsm"}}]
    other = {
        "transcript": fastcopy(cut, supervisions=[said]),
        "line": changed(cut, transforms=lines),
        "start": fastcopy(cut, start=cut.start + 0.01),
        "recording": changed(cut, id="another"),
    }
    before = digest_of(route, CutSet.from_cuts(cuts))
    assert [name for name, it in other.items() if digest_of(route, CutSet.from_cuts([*cuts[:at], it, *cuts[at + 1 :]])) == before] == []
    moved = changed(cut, sources=[fastcopy(source, source="/elsewhere/" + source.source.rpartition("/")[2])])
    assert digest_of(route, CutSet.from_cuts([*cuts[:at], moved, *cuts[at + 1 :]])) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_stubs_gives_the_same_weights(prepared, tmp_path, monkeypatch, workers):
    models = []
    for limit in (0, 10**9):
        monkeypatch.setattr(cut_table, "WHOLE_CUTS", limit)
        train = prepared.train.model_copy(update={"workers": workers, "sample_utterances": 1})
        config = prepared.model_copy(update={"train": train})
        layout = Layout.of(config)
        for folder in (layout.model,):
            pipeline.train(config, resume="never")
            models.append(checkpoint.load(folder / "final").model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_stub_takes_no_table_along():
    """What goes to a loader's worker is a number: the table stays where it is."""
    from smoe_cli.training.loading import From

    class Stream:
        def stream(self, step, per_step):
            del step, per_step
            stub = Stub(id=7, start=0.0, duration=1.0, channel=0)
            object.__setattr__(stub, "table", None)
            yield [stub]

    (handles,) = From(Stream(), 0, 1)
    assert handles == (0, [7]) and len(pickle.dumps(handles)) < 50


def test_a_manifest_packed_otherwise_is_read_whole(prepared, tmp_path, large):
    lines = [raw for _, raw in read_lines(Layout.of(prepared).cuts("train"))]
    (tmp_path / "one.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    found = open_cuts(tmp_path / "one.jsonl.gz")
    assert isinstance(found, CutSet) and not isinstance(next(iter(found)), Stub)
    with pytest.raises(DataError, match="is not packed as `smoe prepare` does it"):
        odd = [gzip.compress(b"".join(lines[start : start + 5])) for start in (0, 5)]
        (tmp_path / "odd.jsonl.gz").write_bytes(b"".join(odd))
        CutTable(tmp_path / "odd.jsonl.gz")


def test_what_is_damaged_or_changed_is_named(prepared, tmp_path, large):
    lines = [raw for _, raw in read_lines(Layout.of(prepared).cuts("train"))]

    def write(name: str, some: list[bytes]):
        with manifest_writer(tmp_path / name) as put:
            for line in some:
                put(line)
        return tmp_path / name

    path = write("cuts.jsonl.gz", lines)
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    with pytest.raises(DataError, match=r"cannot read manifest `.*cuts.jsonl.gz`: it ends in the middle"):
        CutTable(path)
    path.write_bytes(content[:200] + bytes(40) + content[240:])
    with pytest.raises(DataError, match=r"cannot read manifest|is not JSON"):
        CutTable(path)
    tree = json.loads(lines[70])
    tree["supervisions"][0]["custom"].pop("bandwidth")
    with pytest.raises(DataError, match="lacks supervision: `bandwidth`"):
        CutTable(write("lacking.jsonl.gz", [*lines[:70], json.dumps(tree).encode() + b"\n", *lines[71:]]))
    with pytest.raises(DataError, match="no manifest"):
        CutTable(tmp_path / "missing.jsonl.gz")
    with pytest.raises(DataError, match="is empty"):
        CutTable(write("empty.jsonl.gz", []))
    path.write_bytes(content)
    table = CutTable(path)
    write("cuts.jsonl.gz", lines[:3])
    with pytest.raises(DataError, match="was changed while it was in use"):
        table[len(lines) - 1]


def test_members_are_found_whatever_the_file_is_read_in(prepared, monkeypatch):
    path = Layout.of(prepared).cuts("train")
    lines = [raw for _, raw in read_lines(path)]
    for block in (1, 7, 1000, 2**20):
        monkeypatch.setattr(cut_table, "BLOCK", block)
        found = list(members(path))
        assert [line for _, some in found for line in some] == lines
        assert all(len(some) == MEMBER_LINES for _, some in found[:-1])
        assert [path.read_bytes()[offset : offset + 2] for offset, _ in found] == [b"\x1f\x8b"] * len(found)


def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cut_table, "LONGEST_MEMBER", 1000)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(DataError, match="unpacks to more than a manifest of cuts does"):
        list(members(tmp_path / "bomb.jsonl.gz"))
