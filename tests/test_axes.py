"""Axes of supervision of the recipe's own: every utterance has a value on each, and it chooses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from smoe_cli import checkpoint, pipeline
from smoe_cli.corpora import read_corpus
from smoe_cli.corpora.utterance import Work
from smoe_cli.cuts import read_cuts, route_of, tags_of
from smoe_cli.decoding.decode import Decoder
from smoe_cli.decoding.onnx import OnnxModel
from smoe_cli.errors import ConfigError, DataError, RouteError
from smoe_cli.features import FrontEnd
from smoe_cli.layout import Layout
from smoe_cli.tags import Choice, Route
from tests.many_tasks import recipe, write_corpus


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("\ten\tuk\t", "\ten\taustralian\t", "utterance `one5` of corpus `tones` has the unknown value `australian` on axis `accent`"),
        (
            "\ten\tuk\t",
            "\ten\tUK\t",
            r"(?s)table.tsv` line \d+: utterance `one5` .* unknown value `UK` on axis `accent`; .*: write it `uk`",
        ),
        ("\ten\tuk\t", "\ten\t\t", "utterance `one5` of corpus `tones` has no value on axis `accent`; known: us, uk"),
    ],
)
def test_an_utterance_without_a_known_tag_is_refused_by_name(tmp_path, old, new, problem):
    corpus = write_corpus(tmp_path / "corpus", 6)
    table = corpus / "table.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DataError, match=problem) as caught:
        pipeline.prepare(recipe(corpus, tmp_path / "exp"))
    assert caught.value.hint


def test_a_cut_whose_tag_was_lost_or_forged_is_refused_by_name(five_tasks, tmp_path):
    system = checkpoint.load(Layout.of(five_tasks).final)
    with gzip.open(Layout.of(five_tasks).cuts("test"), "rt", encoding="utf-8") as file:
        line = json.loads(file.readline())
    tags = line["supervisions"][0]["custom"]
    for axes, problem in (({}, "lacks a value for `accent`"), ({"accent": "mars"}, "no route `transcribe/en/wb/accent=mars`")):
        tags["axes"] = axes
        (tmp_path / "cuts.jsonl").write_text(json.dumps(line), encoding="utf-8")
        cut = next(iter(read_cuts(tmp_path / "cuts.jsonl")))
        with pytest.raises(RouteError, match=f"cut `{cut.id}`: the model has no route") as caught:
            route_of(cut, system.plan)
        assert problem in caught.value.message


def test_constant_tags_and_labels_hold_where_the_table_says_nothing(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 2)
    config = recipe(corpus, tmp_path / "exp")
    table = config.data.corpora["tones"].model_copy(update={"tag_columns": {}, "tags": {"accent": "uk"}, "labels": {"wish": "none"}})
    found = list(read_corpus(table, Work("tones", corpus, tmp_path)))
    assert {utterance.tags["accent"] for utterance in found} == {"uk"}
    assert {utterance.labels["wish"] for utterance in found if utterance.language == "es"} == {"none"}
    assert {utterance.labels["wish"] for utterance in found if utterance.id == "one1"} == {"count"}


def test_lhotse_manifests_name_the_fields_of_tags_and_labels(five_tasks, tmp_path):
    from smoe_cli.corpus_settings import LhotseCorpus

    cuts = read_cuts(Layout.of(five_tasks).cuts("dev"))
    for cut in cuts:
        cut.supervisions[0].custom |= {"dialect": "uk", "wish": "order" if cut.supervisions[0].language == "en" else None}
    cuts.to_file(tmp_path / "cuts.jsonl")
    settings = LhotseCorpus(cuts={"dev": "cuts.jsonl"}, tag_fields={"accent": "dialect"}, label_fields={"wish": "wish"})
    found = list(read_corpus(settings, Work("manifest", tmp_path, tmp_path)))
    assert {utterance.tags["accent"] for utterance in found} == {"uk"}
    assert {utterance.labels.get("wish") for utterance in found} == {"order", None}


def test_bare_audio_needs_every_tag_that_is_open(five_tasks, tmp_path):
    path = Path(five_tasks.data.root) / "one0.flac"
    with pytest.raises(RouteError, match="axis `accent` has several values: us, uk") as caught:
        pipeline.decode(five_tasks, inputs=[path], choice=Choice("intent"))
    assert "--tag accent=us" in caught.value.hint
    (found,) = pipeline.decode(five_tasks, inputs=[path], choice=Choice("intent", tags=(("accent", "uk"),))).hypotheses
    assert (found.route, found.text in ("count", "order")) == (Route.parse("intent/any/wb/accent=uk"), True)
    with pytest.raises(RouteError, match=r"no route `\*/\*/\*/accent=in`: of accent it has `us`, `uk`"):
        pipeline.decode(five_tasks, inputs=[path], choice=Choice(tags=(("accent", "in"),)))


def test_a_choice_of_tags_decodes_their_cuts_alone(five_tasks, tmp_path):
    manifest, out = Layout.of(five_tasks).cuts("train"), tmp_path / "some.jsonl"
    report = pipeline.decode(five_tasks, inputs=[manifest], choice=Choice("identify", tags=(("accent", "us"),)), out=out)
    assert {(item.task, item.tags["accent"]) for item in report.hypotheses} == {("identify", "us")}
    assert len(report.hypotheses) == sum(
        tags_of(cut).task == "identify" and tags_of(cut).axes == {"accent": "us"} for cut in read_cuts(manifest)
    )


def test_a_slim_model_of_a_tagged_label_route_answers_as_the_whole_one(five_tasks, tmp_path):
    system = checkpoint.load(Layout.of(five_tasks).final)
    with pytest.raises(RouteError, match=r"2 routes are `identify/\*/wb`: identify/any/wb/accent=us, identify/any/wb/accent=uk"):
        pipeline.slim(Layout.of(five_tasks).final, out=tmp_path / "slim", choice=Choice("identify", bandwidth="wb"))
    report = pipeline.slim(
        Layout.of(five_tasks).final, out=tmp_path / "slim", choice=Choice("identify", bandwidth="wb", tags=(("accent", "uk"),))
    )
    assert report.route == "identify/any/wb/accent=uk"
    slim = checkpoint.load(tmp_path / "slim")
    assert slim.plan.labels == {"identify": ("en", "es")}
    cuts = [cut for cut in read_cuts(Layout.of(five_tasks).cuts("test")) if str(route_of(cut)) == report.route]
    one, other = (Decoder(either, five_tasks.decode).decode(cuts) for either in (system, slim))
    assert [(item.text, item.score) for item in one] == [(item.text, item.score) for item in other]
    (bare,) = pipeline.decode(None, inputs=[Path(five_tasks.data.root) / "one0.flac"], checkpoint=tmp_path / "slim").hypotheses
    assert bare.tags == {"accent": "uk"}
    pipeline.export(tmp_path / "slim", out=tmp_path / "phone")
    phone, front_end = OnnxModel(tmp_path / "phone", threads=1), FrontEnd(five_tasks.features)
    features = [front_end(cut).numpy() for cut in cuts]
    assert phone.texts(features, [cut.duration for cut in cuts]) == [item.text for item in one]
    scores = torch.from_numpy(phone.label_scores(features)).log_softmax(-1).max(-1).values
    torch.testing.assert_close(scores, torch.tensor([item.score for item in one]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"axes": {"task": ["a"]}}, r"axis `task` is built in \(task, lang, bandwidth\)"),
        ({"axes": {"accent": ["us", "us"]}}, "axis `accent` names a value twice"),
        ({"axes": {"accent": []}}, "axes.accent"),
        ({"axes": {"accent": ["US"]}}, "match pattern"),
        ({"axes": {"ac+cent": ["us"]}}, "match pattern"),
        ({"axes": {}}, "data.corpora.tones.tag_columns names `accent`, no axis of the recipe; `axes` has: none"),
        (
            {"tasks": {"identify": {"languages": ["en"]}}},
            "task `identify` answers with a label, whatever is spoken: it takes no `languages`",
        ),
        ({"tasks": {"transcribe": {}}}, "task `transcribe` writes text: name its `languages`"),
        ({"tasks": {"transcribe": {"languages": ["any"]}}}, "`any` stands for the language of tasks that answer with a label"),
        ({"tasks": {"identify": {"label": "x"}}}, "only kind `classify` has a `label`"),
    ],
)
def test_axes_and_tasks_that_cannot_be_are_refused(tmp_path, changes, problem):
    with pytest.raises(ConfigError, match=problem):
        recipe(tmp_path, tmp_path / "exp", **({"model": {}} | changes))
