"""`smoe export`, and what `smoe slim` shares with it: options, output, refusals, dry runs."""

import json
from pathlib import Path

import pytest

from smoe_cli.config import FeatureSettings
from smoe_cli.errors import CheckError, ConfigError
from smoe_cli.records import Export, ExportCheck, Graph
from smoe_cli.tags import Bandwidth, Choice, Route

REPORT = Export(
    model="0123456789ab",
    route="translate/de/nb",
    precision="int8",
    front_end=FeatureSettings(),
    features={"sampling_rate": 16000},
    vocab_size=600,
    prefix_ids=[4, 5],
    end_id=2,
    silent_ids=[0, 1],
    labels=[],
    max_tokens_per_s=20.0,
    min_max_tokens=20,
    max_tokens=None,
    encoder=Graph(file="encoder.onnx", bytes=2_400_000, sha256="0", inputs=[], outputs=[]),
    decoder=Graph(file="decoder.onnx", bytes=1_300_000, sha256="1", inputs=[], outputs=[]),
    bytes_float32=13_900_000,
    check=ExportCheck(max_difference=0.31, relative_difference=0.0213, largest_logit=4.5, tokens=156, same_token=0.987),
    opset=20,
    versions={},
)
WORDS = ("final", "--task", "translate", "--lang", "de", "--bandwidth", "nb", "--out", "phone")
TAGS = {"out": Path("phone"), "choice": Choice("translate", "de", "nb")}


@pytest.fixture(autouse=True)
def final(tmp_path) -> None:
    (tmp_path / "final").mkdir()


def test_export_hands_on_the_route_and_says_what_was_checked(smoe, replace):
    export = replace("export", REPORT)
    result = smoe("export", *WORDS, "--int8")
    assert result.stdout.splitlines() == [
        "route translate/de/nb: 2.4 + 1.3 MB, 13.9 MB before int8",
        "against torch: logits differ by 0.31 at most, 2.1% of their spread; same token in 98.7% of 156 steps on noise",
        "phone",
    ]
    assert export.call_args.args == (Path("final"),)
    assert {name: value for name, value in export.call_args.kwargs.items() if name != "watcher"} == TAGS | {"int8": True}
    assert json.loads(smoe("export", *WORDS, "--json").stdout) == json.loads(REPORT.model_dump_json())


@pytest.mark.parametrize("command", ["slim", "export"])
def test_a_dry_run_checks_and_names_the_route_and_does_nothing(smoe, replace, command):
    work, check = replace(command, AssertionError), replace(f"check_{command}", Route("translate", "de", Bandwidth.NB))
    result = smoe(command, *WORDS, "--dry-run")
    assert result.stdout.splitlines()[0] == f"{command}: would run (route translate/de/nb)"
    assert [line.split() for line in result.stdout.splitlines()[-3:-1]] == [["reads", "final", "exists"], ["writes", "phone"]]
    assert check.call_args.kwargs == TAGS
    work.assert_not_called()
    plan = json.loads(smoe(command, *WORDS, "--dry-run", "--json").stdout)
    assert (plan["state"], plan["reads"], plan["writes"]) == ("would run", ["final"], ["phone"])


@pytest.mark.parametrize(("error", "code"), [(CheckError("they differ"), 1), (ConfigError("not installed: onnx", "pip install"), 2)])
def test_a_failed_check_exits_with_1_and_a_missing_package_with_2(smoe, replace, error, code):
    replace("export", error)
    result = smoe("export", *WORDS)
    assert result.exit_code == code
    assert error.message in result.stderr


@pytest.mark.parametrize("command", ["slim", "export"])
def test_what_is_no_checkpoint_is_refused_by_a_dry_run_too(smoe, command):
    result = smoe(command, *WORDS, "--dry-run")
    assert result.exit_code == 2
    assert "`final` is no checkpoint" in result.stderr
