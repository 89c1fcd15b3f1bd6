"""Transcription, two translations, language identification and classification in one model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smoe_cli import checkpoint, pipeline
from smoe_cli.batching import Collator
from smoe_cli.checkpoint import System
from smoe_cli.config import Config
from smoe_cli.cuts import Tags, read_cuts, route_of, tags_of
from smoe_cli.decoding.decode import Decoder
from smoe_cli.decoding.labels import AT_ONCE, label_log_probs
from smoe_cli.errors import DataError, RouteError
from smoe_cli.features import FrontEnd
from smoe_cli.layout import Layout
from smoe_cli.loss import Weights, combined_loss
from smoe_cli.records import Hypothesis, read_hypotheses
from smoe_cli.tags import Route
from smoe_cli.tokenizer import END_ID, open_tokenizer
from smoe_cli.training import Trainer
from smoe_cli.training.diary import by_task
from smoe_cli.watch import Silent
from tests.conftest import as_given, tiny_config
from tests.many_tasks import TASKS, recipe, write_corpus


@pytest.fixture
def system(five_tasks) -> System:
    return checkpoint.load(Layout.of(five_tasks).final)


def test_five_kinds_of_answer_go_the_whole_road(five_tasks, system):
    routes = {Route.parse(name) for name in system.plan.routes}
    assert {(route.task, route.lang) for route in routes} == set(five_tasks.targets())
    assert {route.tags["accent"] for route in routes} == {"us", "uk"}
    assert system.plan.encoder.experts == ("nb-us", "nb-uk", "wb-us", "wb-uk")
    assert system.plan.decoder.experts == ("transcribe-en", "german", "translate-fr", "naming")
    assert system.plan.labels == {"identify": ("en", "es"), "intent": ("count", "order")}
    report = pipeline.score(five_tasks)
    slices = {(part.task, part.lang): part for part in report.slices}
    assert slices.keys() == set(five_tasks.targets())
    assert [score.metric for score in slices["identify", "any"].scores] == ["accuracy"]
    assert {tuple(part.tags.items()) for part in report.slices} == {(("accent", "uk"),)}, "the test split has one accent"
    found = pipeline.route_audit(five_tasks, utterances=2)
    assert not [finding for finding in found.findings if finding.check != "swap"]
    assert all(row.planned for row in found.served)
    assert {Route.parse(name) for name in found.routes} == {route for route in routes if route.tags["accent"] == "uk"}
    assert {swap.metric for swap in found.swaps} == {"wer", "bleu", "accuracy"}


def test_all_kinds_of_answer_are_learned_in_one_model(five_tasks, tmp_path):
    """Every task gets better on the words it is trained on, and what answers with a label finds most of them."""
    layout = Layout.of(five_tasks)
    config = five_tasks.model_copy(
        update={"exp_dir": tmp_path, "train": five_tasks.train.model_copy(update={"max_steps": 240, "warmup_steps": 20})}
    )
    cuts = read_cuts(layout.cuts("train"))
    trainer = Trainer(config, tmp_path / "model", cuts, cuts, open_tokenizer(layout.tokenizer))
    before = by_task(trainer.validate())
    trainer.run()
    after = by_task(trainer.validation)
    assert before.keys() == after.keys() == set(config.tasks)
    assert all(after[task] < 0.6 * before[task] for task in before), (before, after)


def test_prepare_says_what_is_lacking(five_tasks):
    report = json.loads(Layout.of(five_tasks).prepare_report.read_text())
    notes = "\n".join([*report["notes"], *(finding["message"] for finding in report["findings"])])
    assert "10 utterances have no label `wish` for intent; they serve the other tasks" in notes
    assert "10 utterances have no text for translate/fr; they serve the other tasks" in notes
    assert "labels of intent in the test split that training never sees, and so can only be wrong: never-heard" in notes


def test_every_route_reaches_exactly_the_expert_of_its_tags(system):
    for route in map(Route.parse, system.plan.routes):
        assert system.plan.encoder.expert(route) == f"{route.bandwidth}-{route.tags['accent']}"
        assert system.plan.decoder.expert(route) == {
            "translate-de": "german",
            "identify-any": "naming",
            "intent-any": "naming",
        }.get(route.value("task+lang"), route.value("task+lang"))


def batch_of(config: Config, system: System, name: str = "train"):
    """One cut of every route of the plan."""
    of_route = {route_of(cut): cut for cut in read_cuts(Layout.of(config).cuts(name))}
    features = config.features
    return Collator(FrontEnd(features), system.tokenizer, system.plan), list(of_route.values())


@torch.inference_mode()
def test_a_batch_of_all_tasks_equals_its_utterances_one_by_one(five_tasks, system):
    collator, cuts = batch_of(five_tasks, system)
    assert len(cuts) == len(system.plan.routes) == 20
    whole = collator(cuts)
    model = system.model
    states, memory = model(whole.features, whole.feature_lengths, whole.tokens_in, whole.encoder_expert, whole.decoder_expert)
    for number, cut in enumerate(cuts):
        alone = collator([cut])
        alone_states, alone_memory = model(
            alone.features, alone.feature_lengths, alone.tokens_in, alone.encoder_expert, alone.decoder_expert
        )
        frames, tokens = alone_memory.states.shape[1], alone_states.shape[1]
        torch.testing.assert_close(memory.states[number, :frames], alone_memory.states[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states[number, :tokens], alone_states[0], rtol=1e-4, atol=1e-5)


def test_a_step_on_labels_leaves_the_experts_of_the_other_tasks_bit_identical(five_tasks, tmp_path):
    layout = Layout.of(five_tasks)
    trainer = Trainer(
        five_tasks, tmp_path, read_cuts(layout.cuts("train")), read_cuts(layout.cuts("dev")), open_tokenizer(layout.tokenizer)
    )
    route = next(route for route in trainer.groups if route.task == "identify" and str(route.bandwidth) == "nb")
    before = {name: value.clone() for name, value in trainer.system.model.state_dict().items()}
    trainer.train_step(trainer.collator(list(trainer.groups[route])[:4]))
    changed = {name for name, value in trainer.system.model.state_dict().items() if not torch.equal(value, before[name])}
    used = {trainer.plan.encoder.expert(route), trainer.plan.decoder.expert(route)}
    assert {name.split(".experts.")[1].split(".")[0] for name in changed if ".experts." in name} == used


# --- labels ----------------------------------------------------------------------------------------------


def test_only_labels_seen_in_training_are_written_and_an_unseen_one_is_wrong_and_counted(five_tasks, system):
    layout = Layout.of(five_tasks)
    for task in ("identify", "intent"):
        found = list(read_hypotheses(layout.hypotheses("test", task, "any")))
        assert found and {item.text for item in found} <= set(system.plan.labels[task])
        assert all(item.score <= 0 and item.stopped == "end" for item in found)
    unseen = [item for item in found if item.unseen]
    assert unseen and {item.references[0] for item in unseen} == {"never-heard"}
    report = pipeline.score(five_tasks)
    assert sum(part.unseen for part in report.slices if part.task == "intent") == len(unseen)
    assert f"never seen in training: {len(unseen)} of the right labels of intent" in report.notes
    page = (layout.scores / "report.html").read_text(encoding="utf-8")
    assert "a label never seen in training" in page and "accent=uk" in page


@torch.inference_mode()
def test_the_score_of_a_label_is_its_log_probability_under_the_decoder(five_tasks, system):
    collator, cuts = batch_of(five_tasks, system)
    batch = collator([cut for cut in cuts if route_of(cut).task == "intent"])
    labels = [f"label-{number}" for number in range(AT_ONCE)] + ["a", "a much longer one"]
    spelled = [[*system.tokenizer.encode(label), END_ID] for label in labels]
    memory = system.model.encoder(batch.features, batch.feature_lengths, batch.encoder_expert)
    prefix = torch.tensor([system.tokenizer.guiding_ids(route) for route in batch.routes])
    found = label_log_probs(system.model, memory, prefix, batch.decoder_expert, spelled)
    assert found.shape == (len(batch.cuts), len(labels))
    for number, ids in enumerate(spelled):
        tokens = torch.cat([prefix, torch.tensor([ids[:-1]], dtype=torch.int64).expand(len(prefix), -1)], 1)
        states = system.model.decoder(tokens, memory, batch.decoder_expert)
        log_probs = system.model.decoder.output(states)[:, prefix.shape[1] - 1 :].log_softmax(-1).double()
        wanted = sum(log_probs[:, position, token] for position, token in enumerate(ids))
        torch.testing.assert_close(found[:, number], wanted, rtol=1e-4, atol=1e-4)


def test_the_beam_decides_nothing_about_labels(five_tasks, system):
    cuts = [cut for cut in read_cuts(Layout.of(five_tasks).cuts("test")) if route_of(cut).task == "identify"]
    search = five_tasks.decode
    greedy, wide = (Decoder(system, search.model_copy(update={"beam": beam})).decode(cuts) for beam in (1, 7))
    assert [item.text for item in greedy] == [item.text for item in wide]


def test_labels_stay_as_they_are_written(tmp_path):
    """The text policy is for text."""
    corpus = write_corpus(tmp_path / "corpus", 2)
    table = corpus / "table.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("\tcount\t", "\tCount-It!\t"), encoding="utf-8")
    config = recipe(corpus, tmp_path / "exp")
    config = config.model_copy(update={"data": config.data.model_copy(update={"lowercase": True, "strip_punctuation": True})})
    pipeline.prepare(config)
    texts = {cut.supervisions[0].text for split in ("dev", "train") for cut in read_cuts(Layout.of(config).cuts(split))}
    assert "Count-It!" in texts


# --- no transcript ---------------------------------------------------------------------------------------


def test_an_utterance_without_transcript_has_no_ctc_term_exactly():
    logits, targets = torch.randn(3, 2, 5), torch.tensor([[1, 2], [3, 2], [4, 2]])
    ctc = torch.randn(3, 9, 5, requires_grad=True)
    ctc_targets, frames = torch.tensor([[1, 2], [0, 0], [3, 0]]), torch.tensor([9, 8, 9])
    every = [ctc[number, :length] for number, length in enumerate(frames.tolist())]
    same, joined = as_given(5), Weights(0.0, 0.3, -100, 0)
    found = combined_loss(logits, same, targets, torch.cat(every), same, frames, ctc_targets, torch.tensor([2, 0, 1]), joined)
    heard = torch.tensor([0, 2])
    lengths = torch.tensor([2, 1])
    memory = torch.cat([every[0], every[2]])
    alone = combined_loss(logits[heard], same, targets[heard], memory, same, frames[heard], ctc_targets[heard], lengths, joined)
    assert torch.equal(found.ctc, alone.ctc)
    torch.testing.assert_close(found.total, 0.7 * found.attention + 0.3 * alone.ctc)
    assert found.too_short == 0
    found.total.backward()
    assert torch.equal(ctc.grad[1], torch.zeros(9, 5)) and ctc.grad[0].abs().sum() > 0


def test_a_batch_without_any_transcript_does_not_touch_the_ctc_head():
    ctc = torch.randn(1, 9, 5, requires_grad=True)
    logits = torch.randn(1, 2, 5, requires_grad=True)
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    heard = (ctc[0], as_given(5), torch.tensor([9]), nothing, torch.tensor([0]))
    found = combined_loss(logits, as_given(5), torch.tensor([[1, 2]]), *heard, Weights(0.0, 0.3, -100, 0))
    assert torch.equal(found.total, 0.7 * found.attention) and found.ctc == 0
    found.total.backward()
    assert ctc.grad is None and logits.grad is not None


def test_a_transcript_may_be_missing_only_where_no_task_writes_it_down(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 2)
    assert pipeline.prepare(recipe(corpus, tmp_path / "exp")).rows
    with pytest.raises(DataError, match="utterance `hola0` of corpus `tones` has no transcript, and task `transcribe` writes `es`"):
        pipeline.prepare(recipe(corpus, tmp_path / "exp", tasks=TASKS | {"transcribe": {"languages": ["en", "es"]}}))


# --- what is spoken --------------------------------------------------------------------------------------


def test_a_language_that_nobody_named_is_noted_and_never_learned_as_a_label(tmp_path):
    tasks = {"translate": {"languages": ["de"]}}
    config = recipe(write_corpus(tmp_path / "corpus", 2), tmp_path / "exp", tasks=tasks, model={})

    def notes(tasks: dict[str, object] = tasks, **said: object) -> str:
        table = config.data.corpora["tones"].model_dump() | {"language_column": None} | said
        data = config.data.model_dump() | {"corpora": {"tones": table}}
        return "\n".join(pipeline.prepare(recipe(Path(), tmp_path / "exp", data=data, tasks=tasks, model={})).notes)

    note = "nobody names the spoken language of 6 utterances of `tones`: taken to be `en`; say `data.corpora.tones.language`"
    assert note in notes()
    assert "nobody names" not in notes(language="en") + notes(language_column="lang")
    with pytest.raises(DataError, match="nobody named its language, and task `identify` is to learn it"):
        notes(tasks | {"identify": {}})


def test_training_says_when_there_is_nothing_to_choose(five_tasks, tmp_path):
    class Lines(Silent):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def log(self, line: str) -> None:
            self.lines.append(line)

    lines, layout = Lines(), Layout.of(five_tasks)
    some = read_cuts(layout.cuts("train")).filter(lambda cut: tags_of(cut).task != "identify" or cut.supervisions[0].text == "en")
    Trainer(five_tasks, tmp_path, some.to_eager(), read_cuts(layout.cuts("dev")), open_tokenizer(layout.tokenizer), lines)
    assert "task `identify` has one label in all of the train split, `en`: there is nothing to choose" in lines.lines


def test_a_model_without_labels_refuses_the_task(five_tasks, system):
    bare = replace(system, plan=system.plan.model_copy(update={"labels": {}}))
    cuts = [cut for cut in read_cuts(Layout.of(five_tasks).cuts("test")) if route_of(cut).task == "intent"]
    with pytest.raises(RouteError, match="knows no label for task `intent`"):
        Decoder(bare).decode(cuts)


def test_files_of_before_there_were_axes_and_labels_are_read(tmp_path):
    config = tiny_config(tmp_path)
    old = json.loads(config.model_dump_json())
    del old["axes"]
    for settings, new in (
        (old["model"], ("encoder_expert_groups", "decoder_expert_groups")),
        *((task, ("label",)) for task in old["tasks"].values()),
        *((corpus, ("tags", "labels")) for corpus in old["data"]["corpora"].values()),
    ):
        for key in new:
            del settings[key]
    assert Config.model_validate(old) == config
    tags = {"utterance": "u", "corpus": "c", "task": "t", "bandwidth": "nb", "source_lang": "en", "transcript": "a", "references": ["a"]}
    assert Tags.model_validate(tags | {"subset": "", "synthetic": False}).axes == {}
    hypothesis = Hypothesis(id="c", task="t", lang="en", bandwidth="nb", text="a")
    assert (hypothesis.tags, hypothesis.route) == ({}, Route.parse("t/en/nb"))
