"""However a command ends, the exit code and the message say so, in this process and in one of its own."""

import errno
import re
import signal

import pytest
import typer

from smoe_cli.errors import CheckpointError, ConfigError, DataError, Interrupted, RouteError


@pytest.mark.parametrize("error", [ConfigError, DataError, RouteError, CheckpointError])
def test_our_errors_exit_with_2_and_a_hint_and_no_traceback(smoe, replace, error):
    replace("params", error("cut `a-st`: no task `str`; known: transcribe", "correct the manifest"))
    result = smoe("params")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: cut `a-st`: no task `str`; known: transcribe\n\nhint: correct the manifest\n"


@pytest.mark.parametrize(
    ("ranks", "own", "says"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, False, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False, False),
        ({"RANK": "1", "LOCAL_RANK": "1"}, True, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False, True),
        ({}, False, True),
    ],
)
def test_of_many_processes_on_a_machine_one_says_what_all_have_to_say(smoe, replace, monkeypatch, ranks, own, says):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"WORLD_SIZE": "16"} | ranks).items():
        monkeypatch.setenv(name, value)
    replace("params", DataError("nothing there", "bring it", own=own))
    result = smoe("params")
    assert (result.exit_code, result.stderr) == (2, "error: nothing there\n\nhint: bring it\n" if says else "")


@pytest.mark.parametrize(
    "words",
    [
        ("params", "--no-such"),
        ("--no-such",),
        ("no-such",),
        ("decode", "no-such.wav"),
        ("decode", "--beam", "0"),
        ("train", "--resume", "x"),
    ],
)
def test_wrong_words_exit_with_2_and_a_hint(smoe, words):
    result = smoe(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert "\n\nhint: `smoe " in result.stderr


def test_a_misspelt_command_is_told_the_right_one(smoe):
    assert "Did you mean 'train'?" in smoe("trian").stderr


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(smoe):
    result = smoe()
    assert result.exit_code == 2
    assert "route-audit" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "train.max_step=5"), "unknown setting `train.max_step`"),
        (("--set", "train.max_steps"), "not of the form key.key=value"),
        (("--set", "model.heads=5"), "must divide d_model"),
        (("--config", "other.yaml"), "no recipe `other.yaml`"),
        (("--preset", "huge"), "known presets: base"),
    ],
)
def test_a_wrong_setting_exits_with_2_before_anything_runs(smoe, replace, words, message):
    params = replace("params", None)
    result = smoe("params", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    params.assert_not_called()


def test_a_wrong_setting_comes_before_all_that_were_given(smoe):
    result = smoe("params", *("--set", "train.seed=1") * 9, "--set", "train.max_step=5")
    assert result.stderr.startswith(
        "error: unknown setting `train.max_step`; near it: `max_steps`, `warmup_steps`; in `smoe.yaml --set train.seed=1 "
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("training stopped at step 40", "run it again")])
def test_an_interruption_exits_with_130_and_one_line(smoe, replace, error):
    replace("params", error)
    result = smoe("params")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.startswith("interrupted: ")
    assert result.stderr.count("\n") == 1


def test_a_fault_of_ours_exits_with_70_and_shows_its_traceback_only_when_asked(smoe, replace, monkeypatch):
    replace("params", ZeroDivisionError("division by zero"))
    result = smoe("params")
    assert (result.exit_code, result.stdout) == (70, "")
    assert result.stderr.startswith("error: smoe failed unexpectedly: ZeroDivisionError: division by zero\n\nhint: ")
    assert "Traceback" not in result.stderr
    assert "Traceback" in smoe("--debug", "params").stderr
    monkeypatch.setenv("SMOE_DEBUG", "1")
    assert "Traceback" in smoe("params").stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "exp/model.bin"), "`exp/model.bin` is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "is full"),
        (PermissionError(errno.EACCES, "Permission denied", "exp"), "`exp` may not be used by this user"),
    ],
)
def test_a_full_disk_or_missing_rights_exit_with_2_and_the_cure(smoe, replace, error, said):
    replace("params", error)
    result = smoe("params")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "exp_dir" in result.stderr


FORGED = "a\x1b]0;owned\x07\x9b2J\u202egnp\ud800"
HARMLESS = r"a\x1b]0;owned\x07\x9b2J\u202egnp\ud800"


@pytest.mark.parametrize("error", [DataError(f"cut `{FORGED}`:\nsilent", f"remove {FORGED}"), Interrupted(FORGED), ValueError(FORGED)])
def test_what_somebody_wrote_into_an_id_does_nothing_to_a_terminal(smoe, replace, error):
    replace("params", error)
    for shown in (smoe("params").stderr, smoe("--debug", "params").stderr):
        assert HARMLESS in shown
        assert not re.search(r"[^\n -~]", shown)
        assert "`:\nsilent\n\nhint: remove" in shown or not isinstance(error, DataError)


def test_a_command_may_end_with_a_code_of_its_own(smoe, replace):
    replace("params", typer.Exit(1))
    assert smoe("params").exit_code == 1


def test_a_process_of_its_own_ends_alike(process):
    for words, code in ((("params", "--no-such"), 2), (("params", "--set", "model.heads=5"), 2), (("--version",), 0)):
        command = process(*words)
        stdout, stderr = command.communicate(timeout=60)
        assert command.returncode == code
        assert bool(stdout) == (code == 0)
        assert bool(stderr) == (code != 0)
        assert "Traceback" not in stderr
        assert "\x1b" not in stdout + stderr


WAIT = "    print('ready', flush=True)\n    time.sleep(60)\n"
"""Until the signal comes."""
HALF_LOADED = (
    f"    try:\n    {WAIT.replace(chr(10), chr(10) + '    ').rstrip(' ')}    except BaseException:\n        import numpy.no_such\n"
)
"""As a library does that an interrupt left half-loaded."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("work", [WAIT, HALF_LOADED])
def test_signals_end_a_process_with_130_and_one_line(process, number, work):
    command = process(
        "params",
        before=f"import time\nfrom smoe_cli import pipeline\ndef params(config, checkpoint):\n{work}pipeline.params = params",
    )
    assert command.stdout.readline() == "ready\n"
    command.send_signal(number)
    _, stderr = command.communicate(timeout=60)
    assert command.returncode == 130
    assert stderr == "interrupted: finished files are kept, unfinished ones begin again; run the same command again\n"


def test_a_reader_that_leaves_ends_a_process_quietly(process):
    command = process(
        "params",
        "--json",
        before="from smoe_cli import pipeline\n"
        "class Report:\n    def model_dump_json(self, indent): return 'x' * 1_000_000\n"
        "pipeline.params = lambda config, checkpoint: Report()",
    )
    assert command.stdout.read(1) == "x"
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(timeout=60) == 141


def test_a_broken_pipe_elsewhere_is_not_mistaken_for_a_reader_that_left(smoe, replace):
    replace("params", BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert smoe("params").exit_code == 70
