"""Reading a recipe: `smoe.yaml`, `--set`, and what a checkpoint to start from says; the result is one checked `Config`."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from smoe_cli.config import CHECKPOINT_CONFIG, CHECKPOINTS, FEATURE_HANDLING, FINAL, MODEL, RECIPE_FILE, ROUTING_KEYS, Config
from smoe_cli.corpus_settings import Corpus, Settings
from smoe_cli.errors import ConfigError
from smoe_cli.presets import PAPER_SCALE, SINGLE_TASK, apply_preset, known_preset

S = TypeVar("S", bound=Settings)


class _EachKeyOnce(yaml.SafeLoader):
    """YAML whose mappings name no key twice: the library would take the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"`{twice}` is set twice", node.start_mark)
        return super().construct_mapping(node, deep)


UNSET_VARIABLE = re.compile(r"\$\{?(\w+)")
"""What is left of a variable that the environment does not have."""
FORM = re.compile(r"(constrained-)?(float|int|str|bool)|[\w-]+\[.*\]")
"""A form that a value may have, which pydantic counts among the names of a setting that may have several."""
SHOULD_BE = " should be "
CORPUS_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

CORPORA: dict[str, type[BaseModel]] = {kind.model_fields["type"].default: kind for kind in get_args(get_args(Corpus)[0])}
"""What `type` of a corpus says -> the class of its settings."""


def load_config(path: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read a recipe and apply `a.b=c` overrides; the preset fills in what the recipe leaves open.

    Args:
        path: The recipe, or None for `smoe.yaml` in the working folder.
        overrides: `key.key=value`, the value read as YAML.

    Raises:
        ConfigError: If the file is missing or not YAML, or a setting is unknown or impossible.
    """
    path = path or Path(RECIPE_FILE)
    try:
        with path.open(encoding="utf-8") as file:
            # As safe as `safe_load`: the loader is a SafeLoader.
            tree = yaml.load(file, Loader=_EachKeyOnce)
    except FileNotFoundError:
        raise ConfigError(
            f"no recipe `{path}`", "change into a recipe folder or name one with --config; a trained model alone is used with --checkpoint"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read recipe `{path}`: {error}", "correct the file there; it must be YAML, each key once") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe `{path}` holds no settings", "a recipe is a YAML mapping; see recipes/quickstart/smoe.yaml")
    changes = list(overrides)
    for override in changes:
        _override(tree, override)
    return parse_config(tree, " --set ".join([str(path), *changes]), path.parent)


def preset_config(preset: str, overrides: Iterable[str] = ()) -> Config:
    """The settings of a preset at paper scale, which need no recipe.

    Raises:
        ConfigError: If the preset is unknown, or a setting is unknown or impossible.
    """
    tree = copy.deepcopy(PAPER_SCALE) | {"model": {"preset": known_preset(preset)}}
    if preset == SINGLE_TASK:
        tree["tasks"] = dict(list(tree["tasks"].items())[:1])
    for override in overrides:
        _override(tree, override)
    return parse_config(tree, f"preset {preset}")


def parse_config(tree: dict[str, Any], where: str, base: Path | None = None) -> Config:
    """Check a tree of settings; relative `data.root`, `exp_dir` and `train.init_from` start from `base`.

    Raises:
        ConfigError: Naming each setting that is unknown or impossible.
    """
    tree = dict(tree)
    _check_names(tree, where)
    if base is not None:
        exp_dir = os.path.expandvars(os.path.expanduser(str(tree.get("exp_dir") or "exp")))
        if unset := UNSET_VARIABLE.search(exp_dir):
            raise ConfigError(f"`exp_dir` names `${unset[1]}`, which is not set; in `{where}`", f"export {unset[1]}=FOLDER")
        tree["exp_dir"] = str(base / exp_dir)
        data = tree.get("data") or {}
        if isinstance(data, dict):
            tree["data"] = data | {"root": _from(base, data.get("root") or ".")}
        train = tree.get("train")
        if isinstance(train, dict):
            tree["train"] = train = train | ({"init_from": _from(base, train["init_from"])} if train.get("init_from") else {})
            if isinstance(augment := train.get("augment"), dict):
                train["augment"] = augment | {name: _from(base, augment[name]) for name in ("rooms", "noise") if augment.get(name)}
    _inherit(tree)
    config = parse_settings(Config, tree, where=f"; in `{where}`")
    for name, corpus in config.data.corpora.items():
        if problem := corpus.problem():
            raise ConfigError(f"data.corpora.{name}: {problem}; in `{where}`", "correct `recipe`")
    config.lies_in(base)
    return config


def _check_names(tree: Mapping[str, Any], where: str) -> None:
    """Refuse names of corpora that files cannot be named by. Not asked of a checkpoint's recipe: its model is as it is.

    Raises:
        ConfigError: Naming one.
    """
    data = tree.get("data")
    corpora = data.get("corpora") if isinstance(data, dict) else None
    for name in corpora if isinstance(corpora, dict) else ():
        if not (isinstance(name, str) and CORPUS_NAME.fullmatch(name)):
            raise ConfigError(
                f"`data.corpora`: `{name}` cannot name a corpus, as files are named by it; in `{where}`",
                "take a letter, then letters, digits, `_` and `-`",
            )


def parse_settings(kind: type[S], tree: Mapping[str, Any], group: str = "", where: str = "") -> S:
    """Check one group of settings.

    Args:
        kind: The group.
        tree: Setting -> value.
        group: What the settings' names begin with in a recipe, e.g. `decode.`.
        where: What the message ends with: what is wrong comes first, as the settings that were given may be many.

    Raises:
        ConfigError: Naming each setting that is unknown or impossible.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for item in error.errors():
            named, wrong = _problem(item, group, kind)
            problems.setdefault(named, []).append(wrong)
        # Of several forms that a value may have, none fits.
        said = [
            named + " or ".join([wrongs[0], *(wrong.rpartition(SHOULD_BE)[2] for wrong in wrongs[1:])])
            for named, wrongs in problems.items()
        ]
        raise ConfigError("; ".join(said) + where, "docs/reference/config.md lists every setting") from None


def _inherit(tree: dict[str, Any]) -> None:
    """Let a recipe that starts from a checkpoint state only how its model differs: which experts there are, and what it sets itself.

    Where that checkpoint is not there any more, the run's own ones say the same; without those, nothing is taken.
    """
    train, model, features = (tree.get(section) or {} for section in ("train", "model", "features"))
    if not all(isinstance(section, dict) for section in (train, model, features)) or not train.get("init_from"):
        return
    own = Path(tree.get("exp_dir") or "exp") / MODEL
    folders = [Path(train["init_from"]), own / FINAL, *sorted((own / CHECKPOINTS).glob("step-*"), reverse=True)]
    path = next((folder / CHECKPOINT_CONFIG for folder in folders if (folder / CHECKPOINT_CONFIG).is_file()), None)
    if path is None:
        return
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"`train.init_from`: cannot read `{path}`: {error}", "name a whole checkpoint") from error
    if not isinstance(given, dict) or not all(isinstance(given.get(section), dict) for section in ("model", "features")):
        raise ConfigError(
            f"`train.init_from`: `{train['init_from']}` is no checkpoint of smoe", "convert it first: `smoe convert FOLDER --out MODEL`"
        )
    shape = {key: value for key, value in given["model"].items() if key != "preset" and not key.endswith(ROUTING_KEYS)}
    tree["model"] = shape | apply_preset(model)
    tree["features"] = {key: value for key, value in given["features"].items() if key not in FEATURE_HANDLING} | features


def _from(base: Path, folder: object) -> str:
    return str(base / os.path.expanduser(os.path.expandvars(str(folder))))


def _near(kind: type[BaseModel], names: Sequence[Any]) -> str:
    """Settings of the group that ``names`` lead to whose names are like the last one, in words; empty if there is none."""
    for name in names[:-1]:
        field = kind.model_fields.get(str(name))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return ""
        kind = field.annotation
    near = get_close_matches(str(names[-1]), kind.model_fields)
    return f"; near it: {', '.join(f'`{name}`' for name in near)}" if near else ""


def _problem(item: Any, group: str, kind: type[BaseModel]) -> tuple[str, str]:
    """Which setting is wrong, and what of it."""
    names = [*item["loc"]]
    if FORM.fullmatch(str(names[-1] if names else "")):
        names.pop()
    corpus = names.index("corpora") + 1 if "corpora" in names[:2] else len(names)
    below = names[corpus + 1 :]
    if below:
        # The kind of the corpus, which pydantic counts among the names, and no recipe does.
        kind, below = CORPORA[names.pop(corpus + 1)], below[1:]
    key = ".".join([*group.split(".")[:-1], *map(str, names)])
    if item["type"] == "extra_forbidden":
        return f"unknown setting `{key}`", _near(kind, below or names)
    if item["type"] in ("union_tag_not_found", "union_tag_invalid"):
        given = item["input"].get("type") if isinstance(item["input"], dict) else None
        if given is None:
            return f"`{key}`", f" has no `type`, which says what kind of corpus it is; known: {', '.join(CORPORA)}"
        near = "".join(f"; near it: `{name}`" for name in get_close_matches(str(given), CORPORA, n=1))
        return f"unknown `{key}.type` `{given}`", f"{near}; known: {', '.join(CORPORA)}"
    message = re.sub(r"^Value error, ", "", item["msg"])
    if not key:
        return "", message
    if found := re.fullmatch(r"Input should be (.*?)(?:, unable to parse .*)?", message):
        given = item["input"]
        return f"`{key}`", f"{f' is `{given}`, and' if isinstance(given, str | int | float) else ''}{SHOULD_BE}{found[1]}"
    return f"`{key}`", f": {message}"


def data_root(config: Config) -> Path:
    """The folder that corpora lie in; asked for only where they are read, so that a trained model does not need it.

    Raises:
        ConfigError: If `data.root` names an environment variable that is not set.
    """
    root = config.data.root or Path()
    unset = UNSET_VARIABLE.search(str(root))
    if unset and not root.exists():  # a folder's own name may hold a `$`
        raise ConfigError(f"`data.root` names `${unset[1]}`, which is not set", f"export {unset[1]}=FOLDER, or use --set data.root=FOLDER")
    return root


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"`--set {override}` is not of the form key.key=value", "for example --set train.max_steps=500")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"`--set {override}`: the value is not YAML: {error}", "quote the value") from error
    node = tree
    *parents, last = key.split(".")
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(
                f"`--set {override}`: `{parent}` is a value, not a group of settings", "docs/reference/config.md lists every setting"
            )
        node = child
    node[last] = value
