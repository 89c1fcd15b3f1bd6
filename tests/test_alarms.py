"""Laws of what training refuses before it computes: tags that nothing teaches, a tokenizer of another recipe, cuts that are too long."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest
from lhotse import CutSet, MonoCut

from smoe_cli import cut_table, pipeline
from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts, route_of, tags_of, write_cuts
from smoe_cli.errors import CheckpointError, ConfigError, DataError
from smoe_cli.layout import Layout
from smoe_cli.tokenizer import ByteBPE, open_tokenizer
from smoe_cli.training import Trainer
from tests.many_tasks import recipe as recipe_of_many
from tests.many_tasks import write_corpus as write_many
from tests.test_shares import Listener
from tests.test_training import dense, prepared, recipe, trainer, write_corpus

__all__ = ["prepared"]
ACCENTS = {"accent": ["us", "uk", "in"]}


def every(cut: MonoCut) -> bool:
    return True


def wideband(cut: MonoCut) -> bool:
    return tags_of(cut).bandwidth == "wb"


def with_data(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def begin(config: Config, folder, at: Layout, kept: Callable[[MonoCut], bool] = every, **cuts: CutSet) -> tuple[Trainer, list[str]]:
    """A trainer on the training cuts that are kept, and what it says."""
    said = Listener()
    found = {"train": read_cuts(at.cuts("train")).filter(kept).to_eager(), "dev": read_cuts(at.cuts("dev"))} | cuts
    return Trainer(config, folder, found["train"], found["dev"], open_tokenizer(at.tokenizer), said), said.lines


# --- tags ------------------------------------------------------------------------------------------------


def test_a_band_that_the_recipe_asks_for_and_no_cut_has_is_refused(prepared, tmp_path):
    at = Layout.of(prepared)
    with pytest.raises(
        DataError, match=r"no training cut has bandwidth `nb`, which `data.nb_downsample: true` asks for: expert `nb` of the en"
    ):
        begin(prepared, tmp_path, at, wideband)
    corpora = {"tones": prepared.data.corpora["tones"].model_copy(update={"bandwidth": "nb"})}
    with pytest.raises(DataError, match=r"which `data.corpora.tones.bandwidth: nb` asks for"):
        begin(with_data(prepared, nb_downsample=False, corpora=corpora), tmp_path, at, wideband)
    tested_only = {"tones": corpora["tones"].model_copy(update={"splits": {"train": None}})}
    begin(with_data(prepared, nb_downsample=False, corpora=tested_only), tmp_path, at, wideband)


@pytest.mark.parametrize(
    ("settings", "counts"),
    [({}, ""), ({"average": "last 2"}, "")]
    + [
        ({name: value}, f", and does not count in what `train.{name}` compares") for name, value in (("average", "best 2"), ("patience", 3))
    ],
)
def test_a_trained_route_without_dev_cuts_is_told(prepared, tmp_path, settings, counts):
    at = Layout.of(prepared)
    config = prepared.model_copy(update={"train": prepared.train.model_copy(update=settings)})
    _, said = begin(config, tmp_path, at, dev=read_cuts(at.cuts("dev")).filter(wideband).to_eager())
    missing = [line for line in said if "no dev cuts" in line]
    assert missing and all("/nb" in line and line.endswith(f"it is not validated{counts}") for line in missing)
    assert not [line for line in begin(config, tmp_path, at)[1] if "dev cuts" in line]


def test_a_band_that_nothing_asks_for_may_be_missing_and_is_told(prepared, tmp_path):
    run, said = begin(with_data(prepared, nb_downsample=False), tmp_path, Layout.of(prepared), wideband)
    assert run.plan.encoder.experts == ("wb",)
    assert "no training cut has bandwidth `nb`: the model will have no route for it" in said
    assert "the encoder will have no expert `nb`: no training cut reaches it; it has wb" in said
    assert not [line for line in begin(prepared, tmp_path, Layout.of(prepared))[1] if "no training cut" in line]


def test_a_band_that_no_expert_is_for_may_be_missing(prepared, tmp_path):
    said = begin(dense(prepared), tmp_path, Layout.of(prepared), wideband)[1]
    assert "no training cut has bandwidth `nb`: the model will have no route for it" in said
    assert not [line for line in said if "no expert" in line]


def test_a_route_whose_tags_are_all_there_but_never_together_is_told(prepared, tmp_path):
    run, said = begin(prepared, tmp_path, Layout.of(prepared), lambda cut: wideband(cut) or tags_of(cut).task == "transcribe")
    assert "translate/de/nb" not in run.plan.routes
    assert "no training cut is of translate/de/nb: the model will not have these routes" in said


@pytest.fixture(scope="module")
def of_accents(tmp_path_factory) -> Config:
    """Prepared data of two accents, and a recipe with a third one."""
    folder = tmp_path_factory.mktemp("accents")
    config = recipe_of_many(write_many(folder / "corpus"), folder / "exp", axes=ACCENTS)
    pipeline.prepare(config)
    pipeline.tokenize(config)
    return config


def test_a_value_of_an_axis_that_leaves_an_expert_without_cuts_is_noted_and_then_refused(of_accents, tmp_path):
    at = Layout.of(of_accents)
    notes = json.loads(at.prepare_report.read_text())["notes"]
    assert any("accent `in`: `smoe train` will refuse that, as expert `nb-in` of the encoder would never learn" in note for note in notes)
    with pytest.raises(
        DataError, match=r"no training cut has accent `in`, which `axes.accent` asks for: expert `nb-in` of the encoder"
    ) as no:
        begin(of_accents, tmp_path, at)
    assert "take `in` out of it, or let it share an expert" in no.value.hint


@pytest.mark.parametrize(
    "model",
    [
        {"encoder_experts_by": "bandwidth"},
        {"encoder_experts_by": "accent", "encoder_expert_groups": {"british": ["uk", "in"]}},
    ],
)
def test_a_value_whose_routes_have_no_expert_of_their_own_may_be_missing(of_accents, tmp_path, model):
    config = recipe_of_many(tmp_path, of_accents.exp_dir, axes=ACCENTS, model=model)
    run, said = begin(config, tmp_path, Layout.of(of_accents))
    assert not [route for route in run.plan.routes if "accent=in" in route]
    assert "no training cut has accent `in`: the model will have no route for it" in said


# --- the tokenizer ---------------------------------------------------------------------------------------


def test_a_tokenizer_of_another_size_is_refused(prepared, tmp_path):
    other = prepared.model_copy(update={"tokenizer": prepared.tokenizer.model_copy(update={"vocab_size": 290})})
    with pytest.raises(CheckpointError, match=r"has 300 pieces, and `tokenizer.vocab_size` is 290") as refused:
        begin(other, tmp_path, Layout.of(prepared))
    assert "`smoe tokenize` again, or set `tokenizer.vocab_size` to 300" in refused.value.hint


def test_a_tokenizer_of_another_kind_is_refused(prepared, tmp_path):
    run = trainer(prepared, tmp_path)
    run.tokenizer.kind = "SentencePiece of elsewhere"
    at = Layout.of(prepared)
    with pytest.raises(CheckpointError, match="is `SentencePiece of elsewhere`, and the recipe's own would be `byte-level BPE`"):
        Trainer(prepared, tmp_path, read_cuts(at.cuts("train")), read_cuts(at.cuts("dev")), run.tokenizer)


def test_a_tokenizer_without_a_guiding_token_of_the_recipe_is_refused(prepared, tmp_path):
    at = Layout.of(prepared)
    french = ByteBPE.train(["some words", "and others"] * 9, 270, ["<transcribe>", "<en>", "<fr>"], tmp_path / "french")
    config = prepared.model_copy(update={"tokenizer": prepared.tokenizer.model_copy(update={"vocab_size": 270})})
    with pytest.raises(CheckpointError, match=r"the tokenizer is of another recipe: .*no guiding token `<translate>`"):
        Trainer(config, tmp_path, read_cuts(at.cuts("train")), read_cuts(at.cuts("dev")), french)


# --- lengths ---------------------------------------------------------------------------------------------


def test_a_cut_longer_than_the_window_is_refused_with_its_audio_and_one_that_is_never_used_is_not(prepared, tmp_path):
    at = Layout.of(prepared)
    longest_s = {split: max(cut.duration for cut in read_cuts(at.cuts(split))) for split in ("train", "dev")}
    assert longest_s["dev"] < longest_s["train"]

    def window(seconds: float, **train: object) -> Config:
        features = prepared.features.model_copy(update={"window_s": seconds})
        return prepared.model_copy(update={"features": features, "train": prepared.train.model_copy(update=train)})

    begin(window(longest_s["train"]), tmp_path, at)
    with pytest.raises(
        DataError, match=r"of the train split lasts 0.8\d s, and the model takes 0.7 s \(`features.window_s`\); .*/corpus/.\d+.flac"
    ):
        begin(window(0.7), tmp_path, at)
    short = {"train": read_cuts(at.cuts("train")).filter(lambda cut: cut.duration <= 0.6).to_eager()}
    with pytest.raises(DataError, match="of the dev split lasts"):
        begin(window(0.6), tmp_path, at, **short)
    ordered = CutSet.from_cuts(sorted(read_cuts(at.cuts("dev")), key=lambda cut: cut.duration))
    begin(window(0.6, validation_utterances=1), tmp_path, at, **short, dev=ordered)
    slow = prepared.train.augment.model_copy(update={"speeds": [0.8, 1.0]})
    with pytest.raises(DataError, match=r"of the train split lasts 0.8\d s \(1.0\d s at the slowest of `train.augment.speeds`\)"):
        begin(window(longest_s["train"], augment=slow), tmp_path, at)


def test_an_utterance_longer_than_the_window_is_found_when_it_is_prepared(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 4)
    assert pipeline.prepare(recipe(corpus, tmp_path / "exp", features={"window_s": 0.6})).rows
    with pytest.raises(DataError, match=r"utterance `a3` lasts 0.59 s, and the model takes 0.58 s \(`features.window_s`\)"):
        pipeline.prepare(recipe(corpus, tmp_path / "exp", features={"window_s": 0.58}))


def test_what_is_refused_is_refused_before_a_folder_is_made(prepared, tmp_path):
    with pytest.raises(DataError, match="no training cut has bandwidth"):
        begin(prepared, tmp_path / "never", Layout.of(prepared), wideband)
    assert not (tmp_path / "never").exists()


# --- texts -----------------------------------------------------------------------------------------------


def rewritten(cuts: CutSet, number: int, text: str) -> CutSet:
    """Cuts of which one has another text."""
    found = list(cuts)
    found[number].supervisions[0].text = text
    return CutSet.from_cuts(found)


def test_a_dev_cut_without_text_is_refused_where_validation_or_samples_use_it(prepared, tmp_path):
    at = Layout.of(prepared)
    blank = {"dev": rewritten(read_cuts(at.cuts("dev")), -1, " ")}
    route, count = str(route_of(list(blank["dev"])[-1])), Counter(map(route_of, blank["dev"]))[route_of(list(blank["dev"])[-1])]

    def used(**train: object) -> Config:
        return prepared.model_copy(update={"train": prepared.train.model_copy(update=train)})

    begin(used(validation_utterances=count - 1), tmp_path, at, **blank)
    for settings in ({"validation_utterances": count}, {"validation_utterances": 1, "sample_utterances": count}):
        with pytest.raises(DataError, match=rf"of the dev split has an empty text for `{route}`") as no:
            begin(used(**settings), tmp_path, at, **blank)
        assert "smoe validate --fix" in no.value.hint


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("stubs", [False, True])
def test_a_text_with_more_tokens_than_the_model_takes_is_refused_at_the_start(prepared, tmp_path, monkeypatch, split, stubs):
    at = Layout.of(prepared)
    config = prepared.model_copy(update={"model": prepared.model.model_copy(update={"max_tokens": 30})})
    begin(config, tmp_path, at)
    some = rewritten(read_cuts(at.cuts(split)), 3, "\N{GOTHIC LETTER AHSA}" * 12)
    cut = list(some)[3]
    tokens = len(open_tokenizer(at.tokenizer).guiding_ids(route_of(cut))) + 1 + 12 * 4  # with the space before it
    if stubs:
        write_cuts(tmp_path / "cuts.jsonl.gz", list(some))
        monkeypatch.setattr(cut_table, "WHOLE_CUTS", 0)
        some = cut_table.open_cuts(tmp_path / "cuts.jsonl.gz")
    with pytest.raises(
        DataError, match=rf"`{cut.id}` of the {split} split has {tokens} tokens, guiding tokens included; the model takes 30"
    ):
        Trainer(
            config,
            tmp_path,
            *({"train": read_cuts(at.cuts("train")), "dev": read_cuts(at.cuts("dev"))} | {split: some}).values(),
            open_tokenizer(at.tokenizer),
        )


# --- weights of routes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"summarise": 2.0}, "`summarise` names no route; there are task: transcribe, translate; lang: en, de; bandwidth: nb, wb"),
        ({"translate/en": 2.0}, "`translate/en` names no route; there are transcribe/en/nb"),
        ({"nb/wb": 2.0}, "`nb/wb` names no route"),
        ({"nb": 0.0}, "`nb`: 0 must be above 0"),
        ({"nb": "0 to 1 over 10 steps"}, "`nb`: `0 to 1 over 10 steps` must be above 0, at its start and its end"),
        ({"nb": "1 to 2"}, "`nb`: `1 to 2` is neither a number nor of the form `1 to 5 over 20000 steps`"),
    ],
)
def test_a_weight_that_means_nothing_is_refused_with_what_there_is(prepared, tmp_path, weights, said):
    with pytest.raises(ConfigError) as refused:
        recipe(tmp_path, tmp_path, train={"route_weights": weights})
    assert said in refused.value.message


def test_a_weight_of_a_route_without_cuts_is_refused(prepared, tmp_path):
    config = with_data(prepared, nb_downsample=False)
    config = config.model_copy(update={"train": config.train.model_copy(update={"route_weights": {"nb": 2.0}})})
    with pytest.raises(DataError, match=r"`train.route_weights` has `nb: 2.0`, and of the routes with training cuts `nb` names no route"):
        begin(config, tmp_path, Layout.of(prepared), wideband)


def test_a_value_of_two_axes_must_say_which(tmp_path):
    tasks = {"transcribe": {"languages": ["en", "nb"]}}
    with pytest.raises(ConfigError, match="`nb` is a value of lang and of bandwidth; write `lang=nb` or `bandwidth=nb`"):
        recipe(tmp_path, tmp_path, tasks=tasks, train={"route_weights": {"nb": 2.0}})
    assert recipe(tmp_path, tmp_path, tasks=tasks, train={"route_weights": {"lang=nb": 2.0}}).train.route_weights == {"lang=nb": 2.0}


@pytest.mark.parametrize("temperature", [0.5, "5 to 0.5 over 10 steps", "hot"])
def test_a_temperature_below_1_or_of_no_known_form_is_refused(tmp_path, temperature):
    with pytest.raises(ConfigError, match=r"`train.temperature`: .*(must be at least 1|is neither a number nor)"):
        recipe(tmp_path, tmp_path, train={"temperature": temperature})


def test_a_configuration_of_before_weights_were_general_is_read(prepared):
    old = json.loads(prepared.model_dump_json())
    del old["train"]["route_weights"]
    old["train"]["task_weights"] = {"translate": 0.5}
    assert Config.model_validate(old).train.route_weights == {"translate": 0.5}
