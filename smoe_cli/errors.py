"""The one family of errors a user can act on; every message says what, where and the cure."""

from __future__ import annotations


def writable(text: str) -> str:
    """A text without halves of characters, which no report can hold: Python puts them into names of files that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


class SmoeError(Exception):
    """A problem that the user can mend.

    Args:
        message: What is wrong, where, and what is allowed.
        hint: What to do about it.
        own: Of many processes that train, whether it is this one's own, which no other one says.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "", own: bool = False) -> None:
        self.message, self.hint, self.own = writable(message), writable(hint), own
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class ConfigError(SmoeError):
    """A setting in `smoe.yaml`, `--config` or `--set` is missing, unknown or impossible."""


class DataError(SmoeError):
    """A corpus, manifest, audio file or hypothesis file is missing, damaged or contradictory."""


class MissingAudio(DataError):
    """A file of audio is not where it is said to be."""


class RouteError(SmoeError):
    """A task, language or bandwidth that the model or the recipe does not have."""


class CheckpointError(SmoeError):
    """A checkpoint is missing, damaged, or belongs to another plan, tokenizer or configuration."""


class CheckError(SmoeError):
    """A result was checked before it was kept, and is not what it must be."""

    exit_code = 1


class Interrupted(SmoeError):
    """The user (Ctrl-C) or the machine (SIGTERM) asked to stop; finished work is kept."""

    exit_code = 130
