"""Progress: plain lines for log files, bars for terminals, nothing on stdout."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from smoe_cli.cli.watcher import LineWatcher

ROOT = Path(__file__).parents[2]


def test_lines_come_at_the_start_at_the_end_and_every_ten_seconds_between():
    stream, now = io.StringIO(), iter(float(second) for second in range(100))
    watcher = LineWatcher(stream, clock=lambda: next(now))
    for step in range(26):
        watcher.progress("train", step, 25, f"loss {step}")
    assert stream.getvalue().splitlines() == [
        "train  0/25  0:00:00  loss 0",
        "train  10/25  0:00:10, left 0:00:15  loss 10",
        "train  20/25  0:00:20, left 0:00:05  loss 20",
        "train  25/25  0:00:25  loss 25",
    ]


def test_the_time_left_ignores_what_was_done_before_a_run_was_resumed():
    stream, now = io.StringIO(), iter((0.0, 10.0))
    watcher = LineWatcher(stream, clock=lambda: next(now))
    watcher.progress("train", 900, 1000)
    watcher.progress("train", 950, 1000)
    assert stream.getvalue().splitlines()[1] == "train  950/1,000  0:00:10, left 0:00:10"


def test_work_that_begins_again_is_announced_again():
    stream = io.StringIO()
    watcher = LineWatcher(stream, clock=lambda: 0.0)
    for _ in range(2):
        watcher.progress("validate", 0, 2)
        watcher.progress("validate", 1, 2)
        watcher.progress("validate", 2, 2)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["0/2", "2/2", "0/2", "2/2"]


WORK = """
from smoe_cli.cli.watcher import open_watcher
with open_watcher() as watcher:
    watcher.log("[bold] is no markup")
    watcher.log("\\x1b]0;owned\\x07")
    for done in range(3):
        watcher.progress("train", done, 2, "[loss 1]")
        watcher.progress("\\x1b]0;owned\\x07", done, 2, "\\x1b]0;owned\\x07")
print("result")
"""


def test_a_log_file_gets_no_control_characters():
    done = subprocess.run(
        [sys.executable, "-c", WORK], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "result\n"
    assert done.stderr.splitlines()[0] == "[bold] is no markup"
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stderr)
    assert done.stderr.splitlines()[1] == r"\x1b]0;owned\x07"


def on_terminal(work: str = WORK, **environment: str) -> str:
    """What a terminal receives on stderr while stdout is a pipe."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", work],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"} | environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        check=True,
    )
    os.close(theirs)
    received = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        received += part
    os.close(ours)
    assert done.stdout == "result\n"
    return received.decode()


def test_a_terminal_gets_a_bar_and_keeps_a_line():
    text = on_terminal()
    assert "\x1b[" in text
    assert "━" in text
    assert "[bold] is no markup" in text
    assert r"\x1b]0;owned\x07" in text and "\x1b]" not in text and "\x07" not in text
    assert "train  2/2  0:00:00  [loss 1]" in text


def test_no_color_is_honoured_on_a_terminal():
    assert not re.search(r"\x1b\[[0-9;]*[34]\d", on_terminal(NO_COLOR="1"))


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    assert "\x1b" not in on_terminal(TERM="dumb")


@pytest.mark.parametrize(("columns", "bars", "cut"), [(60, 0, True), (80, 0, True), (120, 12, False), (200, 30, False)])
def test_a_narrow_terminal_shows_steps_and_times_whole_and_gives_up_the_bar_and_then_the_detail(columns, bars, cut):
    detail = "loss transcribe 4.12  translate 5.33  12,345 frames/s  waiting 3%"
    text = on_terminal(
        f"""
from smoe_cli.cli.watcher import open_watcher
with open_watcher() as watcher:
    for done in (27_100, 27_200):
        watcher.progress("train", done, 300_000, {detail!r})
        watcher._progress.refresh()
print("result")
""",
        COLUMNS=str(columns),
    )
    frames = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines() if line.startswith("train")]
    last = frames[-1].rstrip()
    assert re.match(r"train [━╸╺]* *27,200/300,000 0:00:0\d left ([\d:]+|-:--:--) loss tra", last), last
    assert len(last) <= columns and ("…" in last, last.endswith("waiting 3%")) == (cut, not cut)
    assert len(re.findall("[━╸╺]", last)) == bars


def test_a_narrow_terminal_has_a_bar_where_there_is_room():
    assert "━" * 20 in on_terminal(COLUMNS="80")


def test_a_bar_goes_on_while_what_others_print_goes_to_a_file(tmp_path):
    text = on_terminal(f"""
import sys, time
from pathlib import Path
from smoe_cli.cli.watcher import open_watcher
from smoe_cli.corpora.apart import apart
with open_watcher() as watcher:
    watcher.progress("read", 0, 2)
    with apart(Path({str(tmp_path)!r}), "a recipe", "/nowhere/", "mend it"):
        print("of others", file=sys.stderr)
        watcher.progress("inside", 1, 2)
        time.sleep(0.6)  # the bar draws itself at least once meanwhile
        watcher.progress("inside", 2, 2)
    watcher.progress("read", 2, 2)
print("result")
""")
    assert (tmp_path / "printed.txt").read_text() == "of others\n"
    assert "of others" not in text
    assert re.search(r"inside.*━.*1/2.*inside  2/2.*read  2/2", text, re.DOTALL)
