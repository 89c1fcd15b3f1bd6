"""`smoe pack`: options, output, refusals."""

import json
from pathlib import Path

import pytest

from smoe_cli.packing import CARD, Packed, PackReport
from smoe_cli.steps import Step


@pytest.fixture
def report() -> PackReport:
    train = Packed(split="train", cuts=1200, hours=1.5, shards=2, bytes=86_400_000, kept=False)
    return PackReport(folder=Path("pack"), audio="flac", splits=[train, train.model_copy(update={"split": "dev", "kept": True})])


def test_pack_hands_on_its_options_and_prints_what_it_wrote(smoe, replace, tmp_path, report):
    pack = replace("pack", report)
    result = smoe("pack", "--out", "pack", "--shard-size", "600", "--audio", "opus", "--jobs", "3")
    assert result.exit_code == 0 and result.stdout.splitlines()[-1] == "pack"
    assert [word for word in ("train", "1,200", "1.50", "2", "86.40", "as it was") if word not in result.stdout] == []
    asked = pack.call_args.kwargs
    assert (asked["cuts"], asked["out"], asked["shard_size"], asked["audio"], asked["jobs"]) == ((), Path("pack"), 600, "opus", 3)
    assert pack.call_args.args[0].name == "tiny"
    assert json.loads(smoe("pack", "--out", "pack", "--json").stdout) == json.loads(report.model_dump_json())


def test_named_manifests_need_no_recipe(smoe, replace, recipe, tmp_path, report):
    recipe.unlink()
    (tmp_path / "cuts.train.jsonl").touch()
    pack = replace("pack", report)
    assert smoe("pack", "cuts.train.jsonl", "--out", "pack").exit_code == 0
    assert (pack.call_args.args[0], pack.call_args.kwargs["cuts"]) == (None, [Path("cuts.train.jsonl")])


def test_a_dry_run_of_pack_names_files_and_writes_none(smoe, tmp_path):
    (tmp_path / "cuts.train.jsonl").touch()
    plan = Step.model_validate_json(smoe("pack", "cuts.train.jsonl", "--out", "pack", "--dry-run", "--json").stdout)
    assert (plan.name, plan.state, plan.reason) == ("pack", "would run", "flac, 1,000 cuts a shard")
    assert ([str(path) for path in plan.reads], [str(path) for path in plan.writes]) == (["cuts.train.jsonl"], ["pack"])
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "pack"), "no manifests in `exp/cuts`"),
        (("cuts.train.jsonl", "--out", "mine"), "`mine/train` is there already, and `smoe pack` did not write it"),
        (("cuts.train.jsonl", "cuts.train.jsonl.gz", "--out", "pack"), "are of the same split, `train`"),
        (("cuts.train.jsonl", "--out", "cuts.train.jsonl"), "`cuts.train.jsonl` is a file"),
        (("nowhere.jsonl", "--out", "pack"), "nowhere.jsonl"),
        (("--out", "pack", "--audio", "mp3"), "mp3"),
        (("--out", "pack", "--shard-size", "0"), "--shard-size"),
        ((), "--out"),
    ],
)
def test_pack_and_its_dry_run_refuse_the_same_with_exit_code_2(smoe, tmp_path, words, message):
    for name in ("cuts.train.jsonl", "cuts.train.jsonl.gz"):
        (tmp_path / name).touch()
    (tmp_path / "mine" / "train").mkdir(parents=True)
    (tmp_path / "mine" / "train" / CARD).write_text("{}")
    for more in ((), ("--dry-run",)):
        result = smoe("pack", *words, *more)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr and "hint: " in result.stderr
