"""Lhotse's own recipes: what `lhotse.recipes.prepare_NAME` finds in the folder of a corpus.

Recipes pass over what lacks its other half: here their warnings are problems, and what they left is counted.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

from lhotse import CutSet, MonoCut, RecordingSet, SupervisionSet
from pydantic import TypeAdapter, ValidationError

from smoe_cli.config import SPLITS
from smoe_cli.corpora.apart import ELSEWHERE, LONGEST, WARNINGS, apart
from smoe_cli.corpora.archive import Unwritable
from smoe_cli.corpora.files import AUDIO_SUFFIXES, CALL_SUFFIXES, Named, files_below, is_dir, is_file, refuse
from smoe_cli.corpora.lhotse_cuts import Tree, utterances_of
from smoe_cli.corpora.lines import where_it_lies
from smoe_cli.corpora.outside import WRITABLE
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import LhotseRecipeCorpus
from smoe_cli.errors import ConfigError, DataError
from smoe_cli.manifests import check_within

KINDS = {"recordings": RecordingSet, "supervisions": SupervisionSet, "cuts": CutSet}
"""What a part holds: recordings and supervisions, or cuts."""
SUFFIXES = {*AUDIO_SUFFIXES, *CALL_SUFFIXES}
HOME = f"{os.sep}lhotse{os.sep}recipes{os.sep}"
MOST_WARNINGS = 10_000
"""Those that become problems."""


def read(settings: LhotseRecipeCorpus, work: Work) -> Iterator[Utterance]:
    """Yield one utterance per supervision, or per cut where the recipe makes cuts.

    Raises:
        ConfigError: If the recipe does not take the options.
        DataError: If the folder is not there, or the recipe fails or returns anything but manifests. What it warns of, and a supervision
            without recording, go to `work.unfit`; a part that `splits` names in vain, is empty, or has no split, to `work.lost`.
        Unwritable: If nothing can be written to `work.audio_dir`.
    """
    folder, named = work.root / settings.path, Named()
    if not (is_dir(folder) or is_file(folder)):
        key = f"data.corpora.{work.name}.path"
        raise DataError(f"no folder `{folder}`, where `{key}` says that the corpus lies", where_it_lies("it", key))
    folder = folder.resolve()
    if work.dry_run:
        _arguments(_function(settings, work), settings, work, folder, folder)
        return
    for name, part in _wanted(_run(settings, work, folder), named, settings, work):
        recordings = {recording.id: recording for recording in part.get("recordings", ())}
        if twice := len(part.get("recordings", ())) - len(recordings):
            name_of = Counter(recording.id for recording in part["recordings"]).most_common(1)[0][0]
            work.lost(
                DataError(
                    f"part `{name}` has {twice} recordings whose id another one has, such as `{name_of}`",
                    "nobody could tell whose text is whose: rename the files",
                )
            )
        # Some recipes go through sets, or folders as they come: another order in each call.
        segments = sorted(part.get("supervisions", ()), key=lambda one: (str(one.recording_id), str(one.id)))
        cuts = list(part.get("cuts", ()))
        if not segments and not cuts:
            leave_out = f"leave it out: `data.corpora.{work.name}.splits: {{{name}: null}}`"
            work.lost(
                DataError(f"part `{name}` of Lhotse's recipe `{settings.recipe}` has no supervision", f"bring it back, or {leave_out}")
            )
        if idle := recordings.keys() - {segment.recording_id for segment in segments}:
            work.left_out[f"recordings of part `{name}` without supervision (the first: `{min(idle)}`)"] += len(idle)
        for utterance in utterances_of(_trees(name, recordings, segments, cuts), len(segments) + len(cuts), name, settings, work):
            yield replace(utterance, language="") if settings.language else utterance
    named.report_others([folder], work, f"that no recording of Lhotse's recipe `{settings.recipe}` names", SUFFIXES)


def _run(settings: LhotseRecipeCorpus, work: Work, folder: Path) -> dict[str, Mapping[str, Any]]:
    """What the recipe returns, part by part; what it warns of goes to `work.unfit`."""
    what, name = f"{work.name}: Lhotse's recipe {settings.recipe}", f"Lhotse's recipe `{settings.recipe}`"
    work.progress(0, 1, what)
    function, own = _function(settings, work), _own_folder(settings, work, folder)
    arguments = _arguments(function, settings, work, folder, own)
    expects = f"`{sys.executable} -c 'from lhotse import recipes; help(recipes.prepare_{settings.recipe})'` says what it expects"
    cure = f"{expects}; mend the corpus, `path` or `options`, or install what it lacks"
    try:
        with apart(own, f"{name} on `{folder}`", HOME, cure):
            # Some manifests are read from disk only when somebody looks.
            return {part: {key: list(found) for key, found in sets.items()} for part, sets in _parts(function(**arguments), name)}
    finally:
        work.progress(1, 1, what)
        # Not there if it could not be opened, which is said.
        if is_file(own / ELSEWHERE):
            _tell(name, own, work)


def _tell(name: str, own: Path, work: Work) -> None:
    """Make problems of what the recipe warned of, and a note of Python's warnings from elsewhere."""
    with (own / WARNINGS).open(encoding="utf-8") as lines:
        cure = f"mend the corpus; `{own / WARNINGS}` has all warnings of the recipe"
        for line in islice(lines, MOST_WARNINGS):
            work.unfit(DataError(f"{name} warns: {line.strip()}", cure))
        if next(lines, ""):
            work.lost(DataError(f"{name} warns of more than {MOST_WARNINGS:,} things", cure))
    with (own / ELSEWHERE).open(encoding="utf-8") as lines:
        if first := next(lines, "").strip():
            count = 1 + sum(1 for _ in lines)
            work.notes.append(f"Python warnings from outside {name}: {count:,}, in `{own / ELSEWHERE}`; the first: {first}")


def _function(settings: LhotseRecipeCorpus, work: Work) -> Callable[..., Any]:
    if problem := settings.problem():
        raise ConfigError(f"data.corpora.{work.name}: {problem}", "correct `recipe`")
    # Not above: this loads all of them.
    from lhotse import recipes

    return cast(Callable[..., Any], getattr(recipes, f"prepare_{settings.recipe}"))


def _arguments(function: Callable[..., Any], settings: LhotseRecipeCorpus, work: Work, folder: Path, own: Path) -> dict[str, Any]:
    """What the recipe is called with.

    Raises:
        ConfigError: If an option is missing, unknown, or of a type that it cannot have.
        DataError: If one names a file or folder that is not there, or leads out of an untrusted corpus.
    """
    parameters, kinds = inspect.signature(function).parameters, get_type_hints(function)
    corpus = next(name for name in parameters if _is_path(kinds.get(name)))
    given = {"output_dir": own, "num_jobs": work.jobs, "absolute_paths": True}
    free = [name for name in parameters if name not in (corpus, "output_dir")]
    key, what = f"data.corpora.{work.name}.options", f"`lhotse.recipes.prepare_{settings.recipe}`"
    if unknown := [name for name in settings.options if name not in free]:
        raise ConfigError(f"`{key}` names `{unknown[0]}`; {what} takes: {', '.join(free) or 'none'}", "correct it, or take it away")
    needed = [name for name in free if parameters[name].default is inspect.Parameter.empty and name not in {*given, *settings.options}]
    if needed:
        raise ConfigError(f"{what} needs {', '.join(f'`{name}`' for name in needed)}", f"say so: `{key}: {{{needed[0]}: ...}}`")
    said = {}
    for name, value in settings.options.items():
        kind = kinds.get(name, Any)
        try:
            said[name] = given_as = TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        except ValidationError:
            raise ConfigError(f"`{key}.{name}` is `{value}`; {what} takes {inspect.formatannotation(kind)}", "correct it") from None
        if _is_path(kind) and given_as is not None:
            several = isinstance(given_as, list)
            paths = [work.root.resolve() / path for path in (given_as if several else [given_as])]
            said[name] = paths if several else paths[0]
            if lost := [path for path in paths if not (is_dir(path) or is_file(path))]:
                cure = "correct it, or bring that back; if the recipe is to write there, make an empty folder"
                raise DataError(f"no file or folder `{lost[0]}`, which `{key}.{name}` names", cure)
            if settings.untrusted:
                _check_links(paths, work)
    if settings.untrusted:
        _check_links([folder], work)
    start = {corpus: [folder] if get_origin(kinds[corpus]) is list else folder}
    return start | {name: value for name, value in given.items() if name in parameters} | said


def _is_path(kind: object) -> bool:
    return kind is Path or any(_is_path(inner) for inner in get_args(kind))


def _parts(found: Any, what: str, names: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, manifests) of each part in what a recipe returned, however deep.

    Raises:
        DataError: If there is anything else in it, or nothing.
    """
    if isinstance(found, tuple):
        found = dict(zip(KINDS, found, strict=False))
    if not isinstance(found, Mapping) or not found:
        shown = f"`{found}`" if not found else f"a value of type `{type(found).__name__}`"
        raise DataError(
            f"{what} returned {shown}{' as part ' if names else ''}{'/'.join(names)}, where manifests are expected"[:LONGEST],
            "correct `path` or `options`; a recipe that writes manifests, and returns none, runs in Lhotse: name them as `type: lhotse`",
        )
    if sets := {key: found[key] for key, kind in KINDS.items() if isinstance(found.get(key), kind)}:
        yield "/".join(names) or "all", sets
        return
    for key, inner in found.items():
        yield from _parts(inner, what, (*names, str(key)))


def _wanted(
    parts: Mapping[str, Mapping[str, Any]], named: Named, settings: LhotseRecipeCorpus, work: Work
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts that are some split, by name; audio of the others is known too."""
    key = f"data.corpora.{work.name}.splits"
    for name in sorted(settings.splits.keys() - parts.keys()):
        there = f"Lhotse's recipe `{settings.recipe}` found: {', '.join(sorted(parts))}"
        work.lost(DataError(f"`{key}` names `{name}`; {there}", "bring back that part of the corpus, or correct the name"))
    for name, part in sorted(parts.items()):
        recordings = [*part.get("recordings", ()), *(cut.recording for cut in part.get("cuts", ()) if isinstance(cut, MonoCut))]
        for path in (Path(work.root, source.source) for one in recordings if one for source in one.sources if source.type == "file"):
            named.add(path)
            named.add(path.resolve())
        split = settings.split_of(name)
        if split in SPLITS:
            yield name, part
        elif split is not None:
            cure = f"say which split it is: `{key}: {{{name}: train}}`, or dev, test; null leaves it out"
            work.lost(DataError(f"part `{name}` of corpus `{work.name}` is in split `{split}`; known: {', '.join(SPLITS)}", cure))


def _trees(part: str, recordings: Mapping[str, Any], segments: list[Any], cuts: list[Any]) -> Iterator[tuple[str, Tree]]:
    """(place, object that describes a cut) of each cut and each supervision."""
    for cut in cuts:
        yield f"part `{part}`", cut.to_dict()
    for segment in segments:
        where, recording = f"part `{part}`: supervision `{segment.id}`", recordings.get(segment.recording_id)
        if recording is None:
            yield where, DataError(f"{where}: there is no recording `{segment.recording_id}`", "bring back its audio, or remove its text")
            continue
        said = replace(segment, start=0.0, alignment=None).to_dict()
        tree = {"id": segment.id, "start": segment.start, "duration": segment.duration, "channel": segment.channel, "type": "MonoCut"}
        yield where, tree | {"supervisions": [said], "recording": recording.to_dict()}


def _own_folder(settings: LhotseRecipeCorpus, work: Work, corpus: Path) -> Path:
    """Where the recipe may write, by what it is asked for: audio that it made with other options is not taken for what it makes now.

    What else it wrote before is removed, for it could be believed, too; only audio stays.

    Raises:
        Unwritable: If it cannot be.
    """
    asked = json.dumps([settings.recipe, str(corpus), settings.options], sort_keys=True)
    folder = work.audio_dir.resolve() / f"lhotse.{zlib.crc32(asked.encode(errors='surrogateescape')):08x}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in files_below(folder, refuse):
            if path.suffix.lower() not in SUFFIXES:
                path.unlink()
    except OSError as error:
        raise Unwritable(f"cannot write `{folder}`: {error.strerror}", WRITABLE) from error
    return folder


def _check_links(paths: list[Path], work: Work) -> None:
    """Refuse what leads out of an untrusted corpus, links inside it too, and in what they lead to: nobody knows what a recipe opens.

    Raises:
        DataError: If something does.
    """
    seen = set()
    for path in paths:
        check_within(path, work.root, f"corpus `{work.name}`")
        for place, folders, files in os.walk(path, followlinks=True):
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            for name in (*folders, *files):
                if (entry := Path(place, name)).is_symlink():
                    check_within(entry, work.root, f"corpus `{work.name}`")
