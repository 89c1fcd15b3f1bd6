"""`smoe slim`: options, output, refusals."""

import json
from pathlib import Path

import pytest

from smoe_cli.records import SlimReport
from smoe_cli.tags import Choice


def test_slim_hands_on_the_route_and_says_what_is_left(smoe, replace, tmp_path):
    report = SlimReport(
        checkpoint=Path("phone"),
        model="0123456789ab",
        taken_from="ba9876543210",
        route="translate/de/nb",
        parameters=107_047_936,
        ctc_head=0,
        parameters_before=144_842_752,
        bytes=428_191_744,
    )
    (tmp_path / "final").mkdir()
    slim = replace("slim", report)
    words = ("slim", "final", "--task", "translate", "--lang", "de", "--bandwidth", "nb", "--out", "phone")
    result = smoe(*words)
    assert result.stdout.splitlines() == ["route translate/de/nb: 107,047,936 of 144,842,752 parameters, 428.2 MB", "phone"]
    assert slim.call_args.args == (Path("final"),)
    assert slim.call_args.kwargs == {"out": Path("phone"), "choice": Choice("translate", "de", "nb")}
    assert json.loads(smoe(*words, "--json").stdout) == json.loads(report.model_dump_json())
    slim.return_value = report.model_copy(update={"ctc_head": 20_520_000, "bytes": 510_271_744})
    assert "107,047,936 of 144,842,752 parameters, and 20,520,000 of the CTC head, 510.3 MB" in smoe(*words).stdout


@pytest.mark.parametrize("words", [("slim", "nowhere", "--out", "phone"), ("slim", ".", "--out", "phone"), ("slim", ".")])
def test_slim_of_nothing_or_to_nowhere_exits_with_2(smoe, words):
    assert smoe(*words).exit_code == 2
