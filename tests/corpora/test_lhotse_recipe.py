"""Recipes of Lhotse as corpora: what they find, what they are given, and that nothing of them escapes: prints, warnings, failures."""

from __future__ import annotations

import inspect
import json
import logging
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lhotse import AudioSource, CutSet, MonoCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet, recipes
from lhotse.recipes import prepare_librispeech, prepare_mtedx
from tqdm.auto import tqdm

from smoe_cli import pipeline, preparation
from smoe_cli.config import Config
from smoe_cli.corpora import lhotse_recipe, read_corpus
from smoe_cli.corpora.apart import WARNINGS, apart
from smoe_cli.corpora.archive import Unwritable
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import LibrispeechCorpus
from smoe_cli.errors import ConfigError, DataError
from tests.conftest import tiny_config
from tests.corpora import trees
from tests.corpora.writing import text, tone

TASKS = {"transcribe": {"languages": ["en"]}}
Returned = dict[str, Any]


def config(root: Path, recipe: str = "yesno", **changes: object) -> Config:
    corpus = {"type": "lhotse_recipe", "recipe": recipe, "path": "corpus", "language": "en", "splits": {"all": "train"}} | changes
    return tiny_config(root / "exp", data={"root": str(root), "corpora": {"theirs": corpus}}, tasks=TASKS)


def read(root: Path, recipe: str = "yesno", **changes: object) -> tuple[list[Utterance], Work]:
    work = Work("theirs", root, root / "exp" / "audio", jobs=2)
    return list(read_corpus(config(root, recipe, **changes).data.corpora["theirs"], work)), work


def own(root: Path, corpus: str = "") -> Path:
    """The folder that a recipe was given last to write to."""
    return max((root / "exp" / "audio" / corpus).glob("lhotse.*"), key=lambda folder: folder.stat().st_mtime_ns)


def heard(utterances: Sequence[Utterance]) -> list[tuple[object, ...]]:
    """Audio, times, text, speaker, language and split of each."""
    found = []
    for one in utterances:
        (source,) = one.recording.sources
        lasts_s = one.recording.duration - one.start_s if one.duration_s is None else one.duration_s
        said = (one.transcript, one.speaker, one.language, one.split)
        found.append((one.id, source.source, one.recording.num_samples, one.start_s, lasts_s, one.channel, *said))
    return sorted(found)


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder with two recordings."""
    for name in ("a", "b"):
        tone(tmp_path / "corpus" / f"{name}.wav")
    return tmp_path / "corpus"


def manifests(folder: Path, names: Sequence[str] = ("a", "b"), said: Sequence[str] = ("a", "b")) -> Returned:
    """Recordings of these names, and supervisions of those."""
    segments = [SupervisionSegment(f"s-{name}", name, 0.25, 0.5, 0, f"word {name}", "English", "anna") for name in said]
    found = [Recording.from_file(folder / f"{name}.wav", recording_id=name) for name in names]
    return {"recordings": RecordingSet.from_recordings(found), "supervisions": SupervisionSet.from_segments(segments)}


@pytest.fixture
def stands_for(monkeypatch) -> Callable[[Callable[..., Any]], None]:
    """Let a function be Lhotse's recipe `yesno`."""
    return lambda function: monkeypatch.setattr(recipes, "prepare_yesno", function)


# --- what comes out --------------------------------------------------------------------------------------


def test_lhotses_recipe_of_librispeech_gives_what_our_reader_gives(tmp_path):
    trees.librispeech(tmp_path)
    work = Work("ours", tmp_path, tmp_path / "exp" / "audio")
    ours = list(read_corpus(trees.recipe("librispeech", tmp_path).data.corpora["librispeech"], work))
    theirs, said = read(tmp_path, "librispeech", path="LibriSpeech", splits=LibrispeechCorpus.parts)
    assert len(theirs) == 14 and {one.split for one in theirs} == {"train", "dev", "test"}
    ours = [one.placed(one.split, config(tmp_path).data.corpora["theirs"]) for one in ours]
    assert heard(theirs) == heard(ours)
    assert not [*said.problems, *said.losses, *said.left_out]


def test_parts_of_several_languages_are_named_with_both_and_give_what_lhotse_returns(tmp_path):
    trees.mtedx(tmp_path)
    for part, talk in {"train": "0123e5", "valid": "-ab_9", "test": "xYz"}.items():
        span = "00:00:00.500 --> 00:00:01.500\nBuenos días.\n"
        text(tmp_path / "mtedx" / "es-es" / "data" / part / "vtt" / f"{talk}.es.vtt", "WEBVTT\n", "Kind: captions\n", span)
    returned = prepare_mtedx(tmp_path / "mtedx", tmp_path / "elsewhere", ["es"])
    splits = {"es/train": "train", "es/valid": "dev", "es/test": "test"}
    found, work = read(tmp_path, "mtedx", path="mtedx", options={"languages": ["es"]}, splits=splits, language="")
    expected = []
    for part, sets in returned["es"].items():
        lasts = {one.id: one for one in sets["recordings"]}
        for one in sets["supervisions"]:
            recording = lasts[one.recording_id]
            audio = (str(Path(recording.sources[0].source).resolve()), recording.num_samples, one.start, one.duration, 0)
            expected.append((one.id, *audio, one.text, one.speaker, "es", splits[f"es/{part}"]))
    assert len(expected) == 3 and heard(found) == sorted(expected)
    assert not work.problems and not work.losses
    # The pairs with translations have audio of their own.
    assert [(what.partition(" (")[0], count) for what, count in work.left_out.items()] == [
        ("files of audio that no recording of Lhotse's recipe `mtedx` names", 3)
    ]


def test_a_corpus_without_parts_is_one_part_named_all(tmp_path):
    folder = tmp_path / "LJSpeech-1.1"
    tone(folder / "wavs" / "LJ001-0001.wav", rate=22050)
    text(folder / "metadata.csv", "LJ001-0001|Printing, in 1440|Printing, in fourteen forty", "LJ001-0002|Lost|Lost")
    found, work = read(tmp_path, "ljspeech", path="LJSpeech-1.1")
    assert [(one.id, one.transcript, one.language, one.split) for one in found] == [("LJ001-0001", "Printing, in 1440", "en", "train")]
    assert [problem.message for problem in work.problems] == [
        f"Lhotse's recipe `ljspeech` warns: No such file: {folder}/wavs/LJ001-0002.wav"
    ]
    _, work = read(tmp_path, "ljspeech", path="LJSpeech-1.1", splits={"all": "train", "dev": "dev"})
    assert "names `dev`; Lhotse's recipe `ljspeech` found: all" in work.losses[0].message


def test_a_corpus_that_changed_is_read_anew_though_the_recipe_keeps_manifests(tmp_path):
    trees.mini_librispeech(tmp_path)
    splits = {"train-clean-5": "train", "dev-clean-2": "dev"}
    before, _ = read(tmp_path, "librispeech", path="LibriSpeech", splits=splits)
    path = tmp_path / "LibriSpeech" / "dev-clean-2" / "2" / "100" / "2-100.trans.txt"
    path.write_text(path.read_text().replace("CHAPTER ONE", "CHAPTER TWO"))
    after, _ = read(tmp_path, "librispeech", path="LibriSpeech", splits=splits)
    assert {one.transcript for one in after} - {one.transcript for one in before} == {"CHAPTER TWO"}


def test_audio_that_a_recipe_made_is_kept_for_the_same_options_and_no_others(tmp_path, corpus, stands_for):
    made = []

    def recipe(corpus_dir: Path, output_dir: Path, rate: int) -> Returned:
        if not (output_dir / "a.wav").exists():
            made.append(rate)
            tone(output_dir / "a.wav", rate=rate)
        return manifests(output_dir, ("a",), ("a",))

    stands_for(recipe)
    rates = [read(tmp_path, options={"rate": rate})[0][0].recording.sampling_rate for rate in (16000, 16000, 8000, 16000)]
    assert (rates, made) == ([16000, 16000, 8000, 16000], [16000, 8000])


@pytest.mark.parametrize("form", ["a pair", "cuts", "without parts"])
def test_other_forms_of_manifests_are_understood(tmp_path, corpus, stands_for, form):
    def recipe(corpus_dir: Path) -> Any:
        both = manifests(corpus_dir)
        if form == "cuts":
            # One supervision each, as cuts of Lhotse have it here.
            return {"cuts": CutSet.from_manifests(**both).trim_to_supervisions().to_eager()}
        return tuple(both.values()) if form == "a pair" else both

    stands_for(recipe)
    found, work = read(tmp_path)
    assert [(one.transcript, one.start_s, one.duration_s, one.language, one.split) for one in found] == [
        ("word a", 0.25, 0.5, "en", "train"),
        ("word b", 0.25, 0.5, "en", "train"),
    ]
    assert not work.problems and not work.losses and not work.left_out


def test_what_lacks_its_other_half_is_counted_or_named(tmp_path, corpus, stands_for):
    tone(corpus / "more" / "c.sph", format="NIST")

    def recipe(corpus_dir: Path) -> Returned:
        return manifests(corpus_dir, said=("a", "z"))

    stands_for(recipe)
    found, work = read(tmp_path)
    assert [one.id for one in found] == ["s-a"]
    assert [problem.message for problem in work.problems] == ["part `all`: supervision `s-z`: there is no recording `z`"]
    assert dict(work.left_out) == {
        "recordings of part `all` without supervision (the first: `b`)": 1,
        f"files of audio that no recording of Lhotse's recipe `yesno` names (the first: `{corpus / 'more' / 'c.sph'}`)": 1,
    }


def test_two_recordings_under_one_id_are_named(tmp_path, corpus, stands_for):
    def recipe(corpus_dir: Path) -> Returned:
        twice = [Recording.from_file(corpus_dir / f"{name}.wav", recording_id="a") for name in ("a", "b")]
        return manifests(corpus_dir, said=("a",)) | {"recordings": RecordingSet.from_recordings(twice)}

    stands_for(recipe)
    _, work = read(tmp_path)
    assert [problem.message for problem in work.losses] == ["part `all` has 1 recordings whose id another one has, such as `a`"]


@pytest.mark.parametrize("linked", ["a folder", "files"])
def test_audio_behind_a_link_inside_the_corpus_is_not_counted_as_left_over(tmp_path, corpus, stands_for, linked):
    (corpus / "data").mkdir()
    if linked == "a folder":
        (corpus / "train").symlink_to("data")
    for name in ("a.wav", "b.wav"):
        (corpus / name).rename(corpus / "data" / name)
        if linked == "files":
            (corpus / "train").mkdir(exist_ok=True)
            (corpus / "train" / name).symlink_to(f"../data/{name}")

    def recipe(corpus_dir: Path) -> Returned:
        return manifests(corpus_dir / "train")

    stands_for(recipe)
    found, work = read(tmp_path)
    assert len(found) == 2 and not work.left_out


def test_a_part_that_is_no_split_and_one_that_is_not_there_are_named_and_the_others_read(tmp_path, corpus, stands_for):
    def recipe(corpus_dir: Path) -> Returned:
        return {"en": {"train": manifests(corpus_dir)}, "odd": manifests(corpus_dir), "none": manifests(corpus_dir)}

    stands_for(recipe)
    found, work = read(tmp_path, splits={"en/train": "train", "dev": "dev", "none": None})
    assert [one.split for one in found] == ["train", "train"]
    assert [loss.message for loss in work.losses] == [
        "`data.corpora.theirs.splits` names `dev`; Lhotse's recipe `yesno` found: en/train, none, odd",
        "part `odd` of corpus `theirs` is in split `odd`; known: train, dev, test",
    ]


@pytest.mark.parametrize("recorded", [("a",), ()])
def test_a_part_that_comes_out_empty_is_lost_unless_it_is_left_out(tmp_path, corpus, stands_for, recorded):
    def recipe(corpus_dir: Path) -> Returned:
        return {"train": manifests(corpus_dir), "dev": manifests(corpus_dir, recorded, said=())}

    stands_for(recipe)
    found, work = read(tmp_path, splits={"train": "train", "dev": "dev"})
    assert len(found) == 2
    assert [loss.message for loss in work.losses] == ["part `dev` of Lhotse's recipe `yesno` has no supervision"]
    assert "`data.corpora.theirs.splits: {dev: null}`" in work.losses[0].hint
    _, work = read(tmp_path, splits={"dev": None})
    assert not work.losses


def test_bad_rows_are_problems_a_line_each(tmp_path, corpus, stands_for):
    def recipe(corpus_dir: Path) -> Returned:
        found = manifests(corpus_dir)
        both = [SupervisionSegment("both", "a", 0.0, 0.5, [0, 1], "one"), SupervisionSegment("backwards", "a", 0.5, -0.25, 0, "two")]
        return {"recordings": found["recordings"], "supervisions": SupervisionSet.from_segments([*found["supervisions"], *both])}

    stands_for(recipe)
    found, work = read(tmp_path)
    assert [one.id for one in found] == ["s-a", "s-b"]
    said = [problem.message for problem in work.problems]
    assert len(said) == 2
    assert re.match(r"part `all`: supervision `backwards`: .*`duration`: input should be greater than 0", said[0])
    assert re.match(r"part `all`: supervision `both`: .*`channel`: input should be a valid integer", said[1])


@pytest.mark.parametrize("kind", ["command", "url", "outside"])
def test_audio_of_commands_addresses_and_other_folders_is_checked_as_in_manifests(tmp_path, corpus, stands_for, kind):
    tone(tmp_path.parent / f"{tmp_path.name}-outside.wav")
    elsewhere = str(tmp_path.parent / f"{tmp_path.name}-outside.wav")
    named = {"command": f"touch {tmp_path / 'ran'}", "url": "http://localhost:9/a.wav", "outside": elsewhere}[kind]

    def recipe(corpus_dir: Path) -> Returned:
        source = AudioSource("file" if kind == "outside" else kind, [0], named)
        found = [Recording("a", [source], 16000, 16000, 1.0)]
        return manifests(corpus_dir, said=("a",)) | {"recordings": RecordingSet.from_recordings(found)}

    stands_for(recipe)
    found, work = read(tmp_path, untrusted=True) if kind == "outside" else read(tmp_path)
    expected = r"leads out of .* marked untrusted" if kind == "outside" else rf"takes audio from a source of type `{kind}`"
    assert not found and re.search(rf"supervision `s-a`.*{expected}", work.problems[0].message)
    assert not (tmp_path / "ran").exists()


def test_audio_of_a_command_that_is_allowed_is_brought_in_once(tmp_path, corpus, stands_for):
    def recipe(corpus_dir: Path) -> Returned:
        found = Recording("a", [AudioSource("command", [0], "echo ran >> log; cat corpus/a.wav")], 16000, 16000, 1.0)
        return manifests(corpus_dir, said=("a",)) | {"recordings": RecordingSet.from_recordings([found])}

    stands_for(recipe)
    for _ in range(2):
        (one,), work = read(tmp_path, allow_sources=["command"])
        assert not work.problems and one.recording.sources[0].source.endswith(".flac")
    assert (tmp_path / "log").read_text() == "ran\n"


def test_what_an_untrusted_corpus_links_to_is_not_even_opened(tmp_path, corpus, stands_for):
    (tmp_path / "secret.txt").write_text("secret")
    root = tmp_path / "inside"
    root.mkdir()
    corpus.rename(root / "corpus")
    (root / "corpus" / "texts").symlink_to(tmp_path)
    opened = []

    def recipe(corpus_dir: Path, transcript_dir: Path | None = None) -> Returned:
        opened.append((corpus_dir / "texts" / "secret.txt").read_text())
        return manifests(corpus_dir)

    stands_for(recipe)
    for changes in ({}, {"transcript_dir": ".."}):
        with pytest.raises(DataError, match=r"leads out of `.*inside`, and what is marked untrusted may not"):
            read(root, untrusted=True, options=changes)
        (root / "corpus" / "texts").unlink(missing_ok=True)
    assert not opened


def test_links_in_a_linked_folder_of_an_untrusted_corpus_are_followed_once(tmp_path, corpus, stands_for):
    (tmp_path / "texts").mkdir()
    (corpus / "texts").symlink_to("../texts")
    (tmp_path / "texts" / "back").symlink_to("../corpus")
    stands_for(manifests)
    assert len(read(tmp_path, untrusted=True)[0]) == 2
    (tmp_path / "texts" / "secret").symlink_to(tmp_path.parent)
    with pytest.raises(DataError, match=r"texts/secret` leads out of `.*`, and what is marked untrusted may not"):
        read(tmp_path, untrusted=True)


# --- what goes in ----------------------------------------------------------------------------------------


def test_an_unknown_recipe_is_refused_with_those_near_it_before_lhotse_is_loaded(tmp_path):
    corpus = "data: {corpora: {x: {type: lhotse_recipe, recipe: LJSpeach, path: x}}}"
    text(tmp_path / "smoe.yaml", corpus, "tasks: {transcribe: {languages: [en]}}")
    code = f"""
import sys
from pathlib import Path
from smoe_cli.errors import ConfigError
from smoe_cli.recipe import load_config
try:
    load_config(Path({str(tmp_path / "smoe.yaml")!r}))
except ConfigError as error:
    print(error.message)
load_config(Path({str(tmp_path / "smoe.yaml")!r}), ["data.corpora.x.recipe=ljspeech"])
print({{"lhotse", "torch"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    said, modules = done.stdout.splitlines()
    assert "data.corpora.x: Lhotse has no recipe `LJSpeach`; it has, among others: ljspeech" in said
    assert modules == "set()"
    with pytest.raises(ConfigError, match=r"no recipe `nothing_like_it`; it has, among others: .*aishell.*yesno"):
        read(tmp_path, "nothing_like_it")


def test_a_recipe_gets_its_folder_our_folder_jobs_and_options_with_paths_from_the_root(tmp_path, corpus, stands_for):
    given = {}

    def recipe(
        version: str,
        corpus_dir: Path,
        transcript_dir: Path | None = None,
        lists: Sequence[Path | str] = (),
        output_dir: Path | None = None,
        num_jobs: int = 1,
        absolute_paths: bool = False,
        rate: float = 1.0,
        parts: str | Sequence[str] = "auto",
        pair: tuple[str, ...] = (),
    ) -> Returned:
        given.update({name: value for name, value in locals().items() if name != "given"})
        return manifests(corpus_dir)

    stands_for(recipe)
    elsewhere = tmp_path / "else" / "where"
    for folder in (tmp_path / "texts", tmp_path / "a", elsewhere):
        folder.mkdir(parents=True)
    options = {"version": "2", "transcript_dir": "texts", "lists": ["a", str(elsewhere)], "rate": 2, "parts": ["x"], "pair": ["y"]}
    _, work = read(tmp_path, options=options)
    assert not work.problems
    assert given == {
        "version": "2",
        "corpus_dir": corpus,
        "transcript_dir": tmp_path / "texts",
        "lists": [tmp_path / "a", elsewhere],
        "output_dir": own(tmp_path),
        "num_jobs": 2,
        "absolute_paths": True,
        "rate": 2.0,
        "parts": ["x"],
        "pair": ("y",),
    }
    read(tmp_path, options=options | {"num_jobs": 1, "absolute_paths": False})
    assert (given["num_jobs"], given["absolute_paths"]) == (1, False)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("ljspeech", {"mic": "mic1"}, r"`data.corpora.theirs.options` names `mic`; `lhotse.recipes.prepare_ljspeech` takes: none"),
        ("vctk", {"mic": "mic1"}, r"names `mic`; .* takes: use_edinburgh_vctk_url, mic_id"),
        ("vctk", {"corpus_dir": "x"}, r"names `corpus_dir`"),
        ("vctk", {"output_dir": "x"}, r"names `output_dir`"),
        ("vctk", {"use_edinburgh_vctk_url": "yes"}, r"`data.corpora.theirs.options.use_edinburgh_vctk_url` is `yes`; .* takes .*bool"),
        ("tedlium", {"num_jobs": True}, r"options.num_jobs` is `True`; .* takes int"),
        ("tedlium", {"dataset_parts": {"train": 1}}, r"options.dataset_parts` is .* takes .*Sequence\[str\]"),
        ("heroico", {}, r"`lhotse.recipes.prepare_heroico` needs `transcript_dir`"),
        ("speechcommands", {}, r"`lhotse.recipes.prepare_speechcommands` needs `speechcommands_version`"),
    ],
)
def test_an_option_that_a_recipe_does_not_take_or_lacks_is_refused_with_what_is_allowed(tmp_path, corpus, recipe, options, message):
    for call in (pipeline.prepare, lambda settings: preparation.check(settings, None)):
        with pytest.raises(ConfigError, match=message) as caught:
            call(config(tmp_path, recipe, options=options))
        assert caught.value.hint


@pytest.mark.parametrize("call", [pipeline.prepare, lambda settings: preparation.check(settings, None)])
def test_a_path_among_the_options_that_leads_to_nothing_is_refused_before_the_recipe_runs(tmp_path, corpus, stands_for, call):
    def recipe(corpus_dir: Path, transcript_dir: Path) -> Returned:
        raise AssertionError

    stands_for(recipe)
    with pytest.raises(
        DataError, match=rf"^no file or folder `{tmp_path}/texts`, which `data.corpora.theirs.options.transcript_dir` names"
    ):
        call(config(tmp_path, options={"transcript_dir": "texts"}))


def test_every_recipe_of_lhotse_is_known_and_has_a_path_and_types_that_can_be_checked(tmp_path, corpus):
    source = Path(recipes.__file__).read_text(encoding="utf-8")
    names = sorted(name.removeprefix("prepare_") for name in dir(recipes) if name.startswith("prepare_"))
    assert len(names) >= 90 and all(f"prepare_{name}" in source for name in names)
    work, lacking = Work("theirs", tmp_path, tmp_path / "exp" / "audio"), []
    for name in names:
        settings = config(tmp_path, name).data.corpora["theirs"]
        assert not settings.problem()
        try:
            function = getattr(recipes, f"prepare_{name}")
            arguments = lhotse_recipe._arguments(function, settings, work, corpus, tmp_path)
            inspect.signature(function).bind(**arguments)
            assert corpus in arguments.values() or [corpus] in arguments.values()
        except ConfigError as error:
            lacking.append(error.message)
    assert len(lacking) < 15 and all(" needs `" in message for message in lacking)


# --- what may not get out --------------------------------------------------------------------------------


def test_what_a_recipe_warns_of_is_a_problem_and_what_it_prints_goes_to_a_file(tmp_path, corpus, stands_for, capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # those of pytest refuse wrong calls
    # Python's own warnings count where a recipe gives them.
    source = "def warn():\n    import warnings\n    warnings.warn('two lines,\\nby Python')\n"
    scope: dict[str, Any] = {}
    exec(compile(source, "/x/lhotse/recipes/yesno.py", "exec"), scope)

    def recipe(corpus_dir: Path) -> Returned:
        for _ in tqdm(range(3), desc="a bar"):
            print("to stdout")
        print("to stderr", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo of a program; echo and its complaint >&2"], check=True)
        logging.warning("No such file:\n  x.wav")
        logging.getLogger("deep.inside").error("of any logger")
        logging.getLogger("deep.inside").error("called in a wrong way", ValueError(7))
        logging.info("nothing to see")
        warnings.warn("of somebody else", stacklevel=1)
        warnings.warn("and another", stacklevel=1)
        scope["warn"]()
        return manifests(corpus_dir)

    stands_for(recipe)
    found, work = read(tmp_path)
    assert len(found) == 2
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    written = (own(tmp_path) / "printed.txt").read_text()
    assert all(said in written for said in ("to stdout", "to stderr", "a bar", "of a program", "and its complaint"))
    *plain, last = [problem.message.removeprefix("Lhotse's recipe `yesno` warns: ") for problem in work.problems]
    assert plain == ["No such file: x.wav", "of any logger", "called in a wrong way (ValueError(7),)"]
    assert "UserWarning: two lines, by Python" in last
    (note,) = work.notes
    elsewhere = own(tmp_path) / "warnings-elsewhere.txt"
    assert re.match(rf"Python warnings from outside Lhotse's recipe `yesno`: 2, in `{elsewhere}`; the first: .*of somebody else", note)
    assert [re.search("of somebody else|and another", line)[0] for line in elsewhere.open()] == ["of somebody else", "and another"]
    assert logging.getLogger().handlers == []
    print("heard again")
    assert capfd.readouterr().out == "heard again\n"


def test_what_python_warns_of_elsewhere_is_a_note(tmp_path, corpus, stands_for):
    def recipe(corpus_dir: Path) -> Returned:
        warnings.warn("of somebody else", stacklevel=1)
        return manifests(corpus_dir)

    stands_for(recipe)
    report = pipeline.prepare(config(tmp_path))
    assert any(
        re.match("`theirs`: Python warnings from outside Lhotse's recipe .*: 1, in .*of somebody else", note) for note in report.notes
    )


def test_warnings_are_bounded_and_beyond_that_the_corpus_is_refused_whatever_may_be_unfit(tmp_path, corpus, stands_for, monkeypatch):
    monkeypatch.setattr(lhotse_recipe, "MOST_WARNINGS", 2)

    def recipe(corpus_dir: Path, warnings: int = 0) -> Returned:
        for number in range(warnings):
            logging.warning("%d%s", number, "x" * 10_000)
        return manifests(corpus_dir)

    stands_for(recipe)
    report = pipeline.prepare(config(tmp_path, options={"warnings": 2}, max_unfit=2))
    assert report.utterances == {"train": 2} and "2 unfit utterances left out" in " ".join(report.notes)
    with pytest.raises(DataError, match=r"(?s)recipe `yesno` warns of more than 2 things\n.*warns: 0x+\n.*warns: 1x+\n") as caught:
        pipeline.prepare(config(tmp_path, options={"warnings": 4}, max_unfit=9))
    assert len(caught.value.message) < 2000
    assert len((own(tmp_path, "theirs") / WARNINGS).read_text().splitlines()) == 4


def parse(corpus_dir: Path) -> Returned:
    ET.fromstring("<a>")
    raise AssertionError


def check(corpus_dir: Path) -> Returned:
    raise AssertionError


def look_up(corpus_dir: Path) -> Returned:
    return {}["speaker"]


def give_up(corpus_dir: Path) -> Returned:
    sys.exit("install sph2pipe")


def open_lost(corpus_dir: Path) -> Returned:
    return json.loads((corpus_dir / "lost.json").read_text())


def late(corpus_dir: Path) -> Returned:
    """A manifest that is read only when somebody looks."""
    path = corpus_dir / "lazy.jsonl"
    path.write_text("{}\n")
    return manifests(corpus_dir) | {"supervisions": SupervisionSet.from_jsonl_lazy(path)}


FAILURES = {
    parse: r"ParseError: no element found: line 1, column 3 \(.*, line \d+: `.*`\)",
    check: r"AssertionError \(test_lhotse_recipe.py, line \d+: `raise AssertionError`\)",
    look_up: r"KeyError: 'speaker' \(",
    give_up: r"SystemExit: install sph2pipe \(",
    open_lost: r"FileNotFoundError: .*No such file or directory: '.*lost.json' \(",
    late: r"\w+: .* \(",
}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda one: one.__name__)
def test_whatever_a_recipe_raises_is_an_error_that_names_it_and_the_cure(tmp_path, corpus, stands_for, failure):
    def recipe(corpus_dir: Path) -> Returned:
        logging.warning("something is odd")
        return failure(corpus_dir)

    stands_for(recipe)
    said = rf"Lhotse's recipe `yesno` on `.*corpus` fails: {FAILURES[failure]}.*warns: something is odd"
    with pytest.raises(DataError, match=f"(?s){said}") as caught:
        pipeline.prepare(config(tmp_path))
    cure = r"help\(recipes.prepare_yesno\)'` says what it expects; mend the corpus, `path` or `options`, or install what it lacks; `"
    assert re.search(cure + ".*printed.txt` has what it printed", caught.value.hint)
    assert not list((tmp_path / "exp").rglob("cuts.*"))


@pytest.mark.parametrize("name", ["printed.txt", "warnings.txt", "warnings-elsewhere.txt"])
def test_a_file_of_ours_that_cannot_be_opened_is_what_is_said(tmp_path, corpus, stands_for, name):
    stands_for(manifests)
    read(tmp_path)
    (own(tmp_path) / name).unlink()
    (own(tmp_path) / name).mkdir()
    with pytest.raises(Unwritable, match=rf"^cannot write `.*{name}`: Is a directory\n"):
        read(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_warning_that_cannot_be_written_is_not_lost_in_silence(tmp_path):
    (tmp_path / WARNINGS).symlink_to("/dev/full")
    with (
        pytest.raises(Unwritable, match=rf"^cannot write `{tmp_path}`: No space left on device\n"),
        apart(tmp_path, "a recipe", "/nowhere/", "mend it"),
    ):
        logging.warning("of a missing file")


def test_ctrl_c_stays_ctrl_c(tmp_path, corpus, stands_for, capfd):
    def recipe(corpus_dir: Path) -> Returned:
        raise KeyboardInterrupt

    stands_for(recipe)
    with pytest.raises(KeyboardInterrupt):
        pipeline.prepare(config(tmp_path))
    print("still here")
    assert capfd.readouterr().out == "still here\n"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"returned `None`, where manifests are expected"),
        ({}, r"returned `\{\}`, where manifests are expected"),
        ({"en": {"train": 3}}, r"returned a value of type `int` as part en/train, where manifests are expected"),
        ("a path", r"returned a value of type `str`, where manifests are expected"),
    ],
)
def test_what_is_no_manifest_is_said_to_be_none(tmp_path, corpus, stands_for, returned, message):
    def recipe(corpus_dir: Path) -> Any:
        return returned

    stands_for(recipe)
    with pytest.raises(DataError, match=f"Lhotse's recipe `yesno` {message}") as caught:
        pipeline.prepare(config(tmp_path))
    assert "name them as `type: lhotse`" in caught.value.hint


def test_cuts_that_are_no_plain_ones_are_problems(tmp_path, corpus, stands_for):
    def recipe(corpus_dir: Path) -> Returned:
        cuts = list(CutSet.from_manifests(**manifests(corpus_dir)))
        assert isinstance(cuts[0], MonoCut)
        return {"cuts": CutSet.from_cuts([cuts[0].mix(cuts[1])])}

    stands_for(recipe)
    found, work = read(tmp_path)
    assert not found and "is not one channel of one recording" in work.problems[0].message


def test_librispeech_of_lhotse_leaves_out_what_we_refuse_and_here_it_is_a_problem(tmp_path):
    """Why the warnings are listened to: Lhotse itself goes on."""
    trees.mini_librispeech(tmp_path)
    (tmp_path / "LibriSpeech" / "dev-clean-2" / "2" / "100" / "2-100-0001.flac").unlink()
    assert len(prepare_librispeech(tmp_path / "LibriSpeech")["dev-clean-2"]["supervisions"]) == 1
    _, work = read(tmp_path, "librispeech", path="LibriSpeech", splits={"train-clean-5": "train", "dev-clean-2": "dev"})
    assert [problem.message for problem in work.problems] == [
        f"Lhotse's recipe `librispeech` warns: No such file: {tmp_path}/LibriSpeech/dev-clean-2/2/100/2-100-0001.flac"
    ]
