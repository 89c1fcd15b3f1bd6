"""A transformers folder: its settings and its tensors, none of which can run code."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from smoe_cli.errors import CheckpointError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Source:
    """A folder that transformers' `save_pretrained` wrote.

    Attributes:
        folder: Where it lies.
        config: Its `config.json`.
    """

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Source:
        """Read the settings.

        Raises:
            CheckpointError: If there is no such folder, or no `config.json` in it.
        """
        if not folder.is_dir():
            raise CheckpointError(
                f"no folder `{folder}`",
                "correct the path; a model that is still elsewhere is saved into a folder by transformers, model and processor both: "
                "`WhisperForConditionalGeneration.from_pretrained(NAME).save_pretrained(FOLDER)`, the same with `AutoProcessor`",
            )
        return cls(folder, _read_json(folder / "config.json"))

    def file(self, name: str, needed: bool = True) -> dict[str, Any]:
        """Another JSON file of the folder; empty if it is not there and not needed.

        Raises:
            CheckpointError: If it is missing although it is needed, or damaged.
        """
        path = self.folder / name
        if needed and not path.exists():
            raise CheckpointError(
                f"no `{name}` in `{self.folder}`",
                "in transformers, save the processor there too: `AutoProcessor.from_pretrained(NAME).save_pretrained(FOLDER)`",
            )
        return _read_json(path) if path.exists() else {}

    def settings(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with these names; transformers leaves out those that are its defaults.

        Raises:
            CheckpointError: If one is of another type than its default, or is a number that it cannot be.
        """
        said = {name: self.config.get(name, default) for name, default in defaults.items()}
        for name, default in defaults.items():
            least = 0 if name.endswith("_id") else 1
            if not _is_like(said[name], default, least):
                raise CheckpointError(
                    f"`{self.folder / 'config.json'}` says `{name}: {json.dumps(said[name])}`, where {_kind(default, least)} is needed",
                    "bring back the file that the model came with",
                )
        return said

    def expect(self, file: Mapping[str, Any], values: Mapping[str, Any], name: str) -> None:
        """Refuse a file of the folder that says something else than what can be converted; what it does not say is as it should be.

        Raises:
            CheckpointError: Naming every difference.
        """
        wrong = [f"`{key}` is {file[key]!r}, not {value!r}" for key, value in values.items() if file.get(key, value) != value]
        if wrong:
            raise CheckpointError(
                f"`{self.folder / name}`: {'; '.join(wrong)}: smoe has no such model", "convert a model without these changes"
            )

    def tensors(self) -> dict[str, Tensor]:
        """All weights, in float32.

        Raises:
            CheckpointError: If they are not there as safetensors, or damaged.
        """
        found: dict[str, Tensor] = {}
        try:
            for path in self._weight_files():
                found |= {name: tensor.float() for name, tensor in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read the weights of `{self.folder}`: {error}", "fetch the folder again") from error
        return found

    def digest(self) -> str:
        """SHA-256 of the weights, file after file."""
        digest = hashlib.sha256()
        for path in self._weight_files():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _weight_files(self) -> list[Path]:
        if (self.folder / WEIGHTS).is_file():
            return [self.folder / WEIGHTS]
        if (self.folder / INDEX).is_file():
            places = _read_json(self.folder / INDEX).get("weight_map")
            if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
                raise CheckpointError(f"`{self.folder / INDEX}` names no files", "fetch it again")
            names = sorted(set(places.values()))
            outside = [name for name in names if Path(name).name != name]
            if outside:
                raise CheckpointError(f"`{self.folder / INDEX}` names `{outside[0]}`, which is no file of its folder", "fetch it again")
            return [self.folder / name for name in names]
        raise CheckpointError(
            f"no `{WEIGHTS}` in `{self.folder}`; weights in pickles are not read, as they can run code",
            f"in transformers: `Model.from_pretrained(FOLDER).save_pretrained(FOLDER)`, which writes `{WEIGHTS}` beside the rest",
        )


def _is_like(value: Any, default: Any, least: int) -> bool:
    """Whether a setting is of its default's type: a flag, a whole number of at least `least`, another number, or a list of such."""
    match default:
        case bool():
            return isinstance(value, bool)
        case int():
            return type(value) is int and value >= least
        case float():
            return type(value) in (int, float) and 0.0 <= value < math.inf
        case _:
            return isinstance(value, list) and all(_is_like(item, default[0], least) for item in value)


def _kind(default: Any, least: int) -> str:
    """What `_is_like` asks for, in words."""
    whole = f"a whole number of at least {least}"
    return {bool: "true or false", int: whole, float: "a number of at least 0", list: f"a list of which each is {whole}"}[type(default)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read `{path}`: {error}", "name a folder that transformers' `save_pretrained` wrote") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` holds no settings", "name a folder that transformers' `save_pretrained` wrote")
    return content
