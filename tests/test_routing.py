"""Plans: which route reaches which expert in which layer, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from smoe_cli import checkpoint, pipeline
from smoe_cli.audit.execution import observe_experts
from smoe_cli.audit.report import audit_report_html
from smoe_cli.audit.supervision import check_manifest
from smoe_cli.checkpoint import build_model
from smoe_cli.cli.failures import EXIT_CODES
from smoe_cli.config import ModelSettings
from smoe_cli.decoding.decode import Decoder
from smoe_cli.errors import ConfigError, RouteError
from smoe_cli.layout import Layout
from smoe_cli.model.speech_to_text import ENCODERS
from smoe_cli.recipe import load_config
from smoe_cli.routing import RoutingPlan, StackPlan, make_plan
from smoe_cli.tags import Bandwidth, Route
from smoe_cli.watch import Silent
from tests.conftest import tiny_config
from tests.test_training import recipe, write_corpus

TASKS = {"transcribe": {"languages": ["en"]}, "translate": {"languages": ["de", "fr"]}}
DENSE = {"by": None, "experts": ["dense"]}


@pytest.mark.parametrize(
    ("axis", "experts"),
    [
        ("task", ("transcribe", "translate")),
        ("lang", ("en", "de", "fr")),
        ("task+lang", ("transcribe-en", "translate-de", "translate-fr")),
        ("bandwidth", ("nb", "wb")),
    ],
)
def test_either_stack_has_an_expert_for_each_value_of_any_axis(tmp_path, axis, experts):
    config = tiny_config(tmp_path, tasks=TASKS, model={"encoder_experts_by": axis, "decoder_experts_by": axis})
    plan = make_plan(config)
    assert plan.encoder.experts == plan.decoder.experts == experts
    for route in config.routes():
        assert experts[plan.encoder.index(route)] == plan.decoder.expert(route) == route.value(axis)
    model = build_model(config.model, config.features, plan, 300)
    assert [moe.names for _, _, moe in model.routed_layers()] == [experts] * 3


@pytest.mark.parametrize(
    ("said", "layers"), [(None, None), ([2, 0], (0, 2)), ("every 1", (0, 1, 2, 3)), ("every 2", (1, 3)), ("every 3", (2,))]
)
def test_which_layers_are_routed(tmp_path, said, layers):
    config = tiny_config(tmp_path, model={"encoder_layers": 4, "encoder_routed_layers": said})
    plan = make_plan(config)
    assert plan.encoder.layers == layers
    assert plan.decoder.layers is None
    model = build_model(config.model, config.features, plan, 300)
    routed = [number for stack, number, _ in model.routed_layers() if stack == "encoder"]
    assert routed == list(range(4) if layers is None else layers)
    assert RoutingPlan.model_validate_json(plan.model_dump_json()) == plan


def test_the_dense_control_of_a_recipe_with_routed_layers_needs_no_other_change(tmp_path):
    config = tiny_config(tmp_path, model={"preset": "base", "encoder_routed_layers": [1], "encoder_shared_ffn_dim": 8})
    plan = make_plan(config)
    assert plan.encoder == StackPlan(by=None, experts=("dense",))
    assert build_model(config.model, config.features, plan, 300).encoder.layers[0].ffn.shared is not None


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"encoder_experts_by": ["bandwidth", "task"]}, "one choice a stack"),
        ({"heads": 5}, r"heads \(5\) must divide d_model \(32\), as 1, 2, 4, 8, 16, 32 do"),
        ({"encoder_experts_by": "accent"}, "`accent` is no axis of supervision; known: task, lang, bandwidth, and several joined by"),
        ({"encoder_routed_layers": [0, 2]}, r"encoder_routed_layers \[0, 2\]: the encoder has layers 0 to 1"),
        ({"decoder_routed_layers": [-1]}, r"the decoder has layers 0 to 0"),
        ({"encoder_routed_layers": []}, "no route would reach an expert; name layers, or set encoder_experts_by to null"),
        ({"encoder_routed_layers": "every 3"}, "names none of the 2 layers"),
        ({"encoder_routed_layers": [1, 1]}, "names a layer twice"),
        ({"encoder_routed_layers": 2}, "`2` names no layers; write for example"),
        ({"encoder_routed_layers": ["first"]}, "names no layers; write for example"),
        ({"encoder_shared_ffn_dim": 0}, "greater than 0"),
        ({"ffn_dim": 10**20}, "less than or equal to 1048576"),
        ({"d_model": 2, "heads": 1}, "greater than or equal to 4"),
        ({"subsampling_channels": 15}, r"subsampling_channels \(15\) must be even"),
        ({"encoder": "zipformer"}, "'transformer' or 'conformer'"),
        ({"encoder": "conformer", "conv_kernel": 4}, r"conv_kernel \(4\) must be odd"),
    ],
)
def test_an_impossible_model_is_refused_with_the_cure(tmp_path, model, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        tiny_config(tmp_path, model=model)
    assert caught.value.exit_code == 2 and 2 in EXIT_CODES


@pytest.mark.parametrize("name", ["shared", "training", "forward", "keys"])
def test_no_expert_takes_a_name_that_is_taken(tmp_path, name):
    config = tiny_config(tmp_path, tasks={name: {"kind": "transcribe", "languages": ["en"]}})
    with pytest.raises(ConfigError, match=f"cannot be named `{name}`"):
        build_model(config.model, config.features, make_plan(config), 300)


@pytest.mark.parametrize(
    ("encoder", "problem"),
    [
        ({"by": "bandwidth", "experts": ["nb", "wb"]}, "no route reaches the encoder's expert wb"),
        ({"by": "bandwidth", "experts": ["wb"]}, "no expert `nb`"),
        ({"by": "accent", "experts": ["us"]}, "`accent` is no axis"),
        ({"by": None, "experts": ["nb"]}, "chosen by no tag"),
        ({"by": None, "experts": ["dense"], "layers": [0]}, "choose by no tag"),
        ({"by": "bandwidth", "experts": ["nb", "nb"]}, "named twice"),
        ({"by": "bandwidth", "experts": ["nb"], "groups": {"all": ["wb"]}}, "group `all` is no expert"),
        ({"by": "bandwidth", "experts": ["all", "nb"], "groups": {"all": ["nb"]}}, "group `all` and expert `nb` serve the same tag"),
        ({"by": "bandwidth", "experts": ["a", "b"], "groups": {"a": ["nb"], "b": ["nb"]}}, "two groups serve the same tag"),
        ({"by": None, "experts": ["dense"], "groups": {"dense": ["nb"]}}, "chosen by no tag"),
    ],
)
def test_a_plan_in_which_routes_and_experts_do_not_meet_is_refused(encoder, problem):
    with pytest.raises(ValidationError, match=problem):
        RoutingPlan.model_validate({"encoder": encoder, "decoder": DENSE, "routes": ["transcribe/en/nb"]})


AXES = {"accent": ["us", "uk"], "channel": ["8k", "far"]}


@pytest.mark.parametrize("text", ["transcribe/en/nb", "translate/zh-tw/wb/accent=us", "identify/any/nb/accent=us/channel=8k"])
def test_a_route_is_read_as_it_is_printed(text):
    assert str(Route.parse(text)) == text
    assert Route.parse(str(Route.parse(text))) == Route.parse(text)


def test_the_order_in_which_tags_are_named_does_not_matter():
    assert Route.parse("t/en/nb/channel=8k/accent=us") == Route("t", "en", Bandwidth.NB, (("accent", "us"), ("channel", "8k")))
    assert len({Route.parse("t/en/nb/channel=8k/accent=us"), Route.parse("t/en/nb/accent=us/channel=8k")}) == 1


@pytest.mark.parametrize(
    "text", ["t/en", "t/en/nb/", "t/en/nb/us", "t/en/nb/accent=", "t/en/nb/lang=en", "t/en/nb/accent=us/accent=uk", "t/en/8k"]
)
def test_what_is_no_route_is_refused(text):
    with pytest.raises(RouteError) as caught:
        Route.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("by", "experts"),
    [
        ("accent", ("us", "uk")),
        ("bandwidth+accent", ("nb-us", "nb-uk", "wb-us", "wb-uk")),
        ("channel+lang", ("8k-en", "far-en", "8k-de", "far-de", "8k-fr", "far-fr")),
        (
            "task+lang+channel",
            ("transcribe-en-8k", "transcribe-en-far", *(f"translate-{a}-{b}" for a in ("de", "fr") for b in ("8k", "far"))),
        ),
    ],
)
def test_either_stack_has_an_expert_for_each_combination_of_any_axes(tmp_path, by, experts):
    config = tiny_config(tmp_path, tasks=TASKS, axes=AXES, model={"encoder_experts_by": by, "decoder_experts_by": by})
    plan = make_plan(config)
    assert plan.encoder.experts == plan.decoder.experts == experts
    assert len(plan.routes) == 3 * 2 * 4
    for route in config.routes():
        assert plan.encoder.expert(route) == plan.decoder.expert(route) == "-".join(route.tags[axis] for axis in by.split("+"))
    assert RoutingPlan.model_validate_json(plan.model_dump_json()) == plan
    build_model(config.model, config.features, plan, 300)


def test_experts_of_tags_without_training_data_are_not_planned_and_the_others_keep_their_order(tmp_path):
    config = tiny_config(tmp_path, tasks=TASKS, axes=AXES, model={"encoder_experts_by": "channel+accent"})
    trained = [route for route in reversed(config.routes()) if route.tags["accent"] == "uk"]
    plan = make_plan(config, trained)
    assert plan.encoder.experts == ("8k-uk", "far-uk")
    assert [Route.parse(name) for name in plan.routes] == trained[::-1]
    with pytest.raises(RouteError, match=r"it lacks a value for `accent`, `channel`"):
        plan.check(Route("transcribe", "en", Bandwidth.NB))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"model": {"encoder_experts_by": "accent+dialect"}},
            "`dialect` is no axis of supervision; known: task, lang, bandwidth, accent, channel",
        ),
        ({"model": {"encoder_experts_by": "accent+accent"}}, "names an axis twice"),
        ({"model": {"encoder_experts_by": ""}}, "`` is no axis"),
        (
            {"axes": {"x": ["a-b", "a"], "y": ["c", "b-c"]}, "model": {"encoder_experts_by": "x+y"}},
            r"a-b \+ c and a \+ b-c would share one expert `a-b-c`",
        ),
    ],
)
def test_combinations_that_cannot_be_told_apart_or_read_are_refused(tmp_path, changes, problem):
    with pytest.raises(ConfigError, match=problem):
        tiny_config(tmp_path, **({"tasks": TASKS, "axes": AXES} | changes))


def test_one_expert_serves_several_tag_values(tmp_path):
    tasks = {"transcribe": {"languages": ["en"]}, "translate": {"languages": ["de", "fr", "es", "nl"]}}
    groups = {"romance": ["fr", "es"], "de": ["de", "nl"]}
    config = tiny_config(tmp_path, tasks=tasks, model={"decoder_experts_by": "lang", "decoder_expert_groups": groups})
    plan = make_plan(config)
    assert plan.decoder.experts == ("en", "de", "romance")
    assert plan.decoder.groups == {"romance": ("fr", "es"), "de": ("de", "nl")}
    reached = {route.lang: plan.decoder.expert(route) for route in config.routes()}
    assert reached == {"en": "en", "de": "de", "nl": "de", "fr": "romance", "es": "romance"}
    assert RoutingPlan.model_validate_json(plan.model_dump_json()) == plan
    some = make_plan(config, [route for route in config.routes() if route.lang in ("en", "es")])
    assert (some.decoder.experts, some.decoder.groups) == (("en", "romance"), {"romance": ("es",)})
    dense = tiny_config(tmp_path, tasks=tasks, model={"preset": "base", "decoder_expert_groups": groups})
    assert make_plan(dense).decoder == StackPlan(by=None, experts=("dense",))


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ({"romance": ["fr", "es"]}, "group `romance` names `es`; values of `lang`: en, de, fr; name one of these"),
        ({"romance": ["fr"], "all": ["de", "fr"]}, "group `all` names `fr` and so does group `romance`; a value has one expert"),
        ({"romance": ["fr", "fr"]}, "group `romance` names `fr` twice"),
        ({"de": ["fr"]}, "group `de` has the name of a value that is not in it; rename the group, or add `de` to it"),
        ({"romance": []}, "at least 1 item"),
        ({"a.b": ["fr"]}, "match pattern"),
    ],
)
def test_groups_that_contradict_the_tags_are_refused_with_the_cure(tmp_path, groups, problem):
    with pytest.raises(ConfigError, match=problem):
        tiny_config(tmp_path, tasks=TASKS, model={"decoder_experts_by": "lang", "decoder_expert_groups": groups})


def test_a_plan_of_before_there_were_groups_labels_and_axes_is_read():
    old = {"by": "bandwidth", "experts": ["nb"], "layers": None}
    plan = RoutingPlan.model_validate({"encoder": old, "decoder": DENSE, "routes": ["transcribe/en/nb"]})
    assert (plan.encoder.groups, plan.labels, plan.encoder.expert(Route("transcribe", "en", Bandwidth.NB))) == ({}, {}, "nb")


def test_a_route_without_expert_is_an_error_that_lists_the_experts():
    plan = StackPlan(by="lang", experts=("en", "de"))
    with pytest.raises(RouteError, match="no expert `fr`; experts by lang: en, de"):
        plan.expert(Route("translate", "fr", Bandwidth.NB))


def test_every_kind_of_encoder_in_the_settings_can_be_built(tmp_path):
    kinds = ModelSettings.model_fields["encoder"].annotation.__args__
    assert set(kinds) == set(ENCODERS) and len(kinds) == 2
    for kind in kinds:
        config = tiny_config(tmp_path, model={"encoder": kind})
        build_model(config.model, config.features, make_plan(config), 300)


def test_a_conformer_with_shared_experts_in_some_layers_goes_the_whole_road(tmp_path):
    """Trained, saved, loaded, decoded; then one half-step runs the wrong experts, and the audit names it."""
    model = {
        "encoder": "conformer",
        "conv_kernel": 5,
        "encoder_routed_layers": [1],
        "encoder_shared_ffn_dim": 8,
        "decoder_experts_by": "lang",
    }
    config = recipe(
        write_corpus(tmp_path / "corpus", per_word=6),
        tmp_path / "exp",
        model=model,
        train={"max_steps": 2},
        decode={"min_max_tokens": 2, "max_tokens_per_s": 1.0},
    )
    pipeline.prepare(config)
    pipeline.tokenize(config)
    pipeline.train(config)
    report = pipeline.route_audit(config, swap=False)
    assert not report.findings
    assert report.layers == 3
    assert report.observations == 3 * sum(report.routes.values()) > 0
    assert {(row.stack, row.layer, row.part) for row in report.served} == {
        ("encoder", 1, "ffn_before"),
        ("encoder", 1, "ffn"),
        ("decoder", 0, "ffn"),
    }
    page = audit_report_html(report)
    assert ">layer 1.1<" in page and ">1.2<" in page and ">layer 0<" in page

    system = checkpoint.load(Layout.of(config).final)
    assert system.plan.encoder.layers == (1,)
    system.model.encoder.layers[1].ffn_before.names = ("wb", "nb")
    groups, _, _ = check_manifest(Layout.of(config).cuts("test"), system)
    _, findings = observe_experts(Decoder(system, config.decode.model_copy(update={"beam": 1})), groups, Silent())
    assert findings
    assert all(finding.where.startswith("encoder layer 1 ffn_before, route ") for finding in findings)


def test_a_recipe_that_sets_one_thing_twice_is_refused(tmp_path):
    (tmp_path / "smoe.yaml").write_text(
        "tasks: {transcribe: {languages: [en]}}\nmodel:\n  encoder_experts_by: task\n  encoder_experts_by: lang\n"
    )
    with pytest.raises(ConfigError, match="`encoder_experts_by` is set twice"):
        load_config(tmp_path / "smoe.yaml")


def test_two_plans_name_what_they_have_otherwise(tmp_path):
    one = make_plan(tiny_config(tmp_path))
    other = make_plan(tiny_config(tmp_path, tasks={"transcribe": {"languages": ["en", "de"]}}, model={"encoder_experts_by": "lang"}))
    assert one.differences(one) == []
    found = "; ".join(one.differences(other))
    assert "encoder by: bandwidth -> lang; encoder experts: nb, wb -> en, de" in found
    assert "decoder experts: transcribe, translate -> transcribe" in found


def test_a_language_that_is_named_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="names a language twice: en, en"):
        tiny_config(tmp_path, tasks={"transcribe": {"languages": ["en", "en"]}})
