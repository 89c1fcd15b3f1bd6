"""What a recipe says of each corpus, one class per kind: `data.corpora.NAME` with its `type`. The readers are in `corpora/`."""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from smoe_cli.tags import Bandwidth

Outsider = Literal["command", "url"]
"""What Lhotse can take audio from besides files, and a recipe can allow; `memory` and `shar` it cannot."""


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusSettings(Settings):
    """What every corpus may say."""

    reader: ClassVar[str]
    """Module with `read(settings, work) -> Iterator[Utterance]`."""
    made: ClassVar[bool] = False
    """Whether it is made here: it then has no files that `data.root` could say the place of."""
    parts: ClassVar[dict[str, str | None]] = {}
    """Split as the corpus names it -> split of the recipe, where `splits` does not say otherwise; None: left out."""

    language: str = Field(
        "", description="Spoken language, unless the corpus names one per utterance; where neither does, `en`, and `smoe prepare` says so."
    )
    bandwidth: Bandwidth | Literal["auto"] | None = Field(
        None,
        description="What the recordings carry where neither their sampling rate nor the corpus tells, e.g. `nb` for telephone speech at "
        "16 kHz; "
        "`auto`: estimated from each one's spectrum; null: as `data.bandwidth` says.",
    )
    subset: str = Field("", description="Name under which this corpus is scored apart; empty: with the others.")
    tags: dict[str, str] = Field({}, description="Axis of the recipe's `axes` -> value, unless the corpus has one per utterance.")
    labels: dict[str, str] = Field({}, description="Label, e.g. `intent` -> value, unless the corpus has one per utterance.")
    languages: dict[str, str] = Field({}, description="Rename languages, spoken or written, e.g. `{en-US: en}`.")
    splits: dict[str, str | None] = Field({}, description="Rename splits, e.g. `{dev: test}`; null leaves a split out.")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Factor on how often its cuts are drawn in training, beside those of other corpora."
    )
    max_unfit: int = Field(
        0,
        ge=0,
        description="How many unfit utterances may be left out, each by name, in `cuts/unfit.CORPUS.txt`; with one more it is refused.",
    )
    untrusted: bool = Field(
        False, description="Whether somebody else made it: its files must then lie in `data.root`, symbolic links followed."
    )

    def sources(self) -> list[Path]:
        """The tables or manifests that it starts from, relative to `data.root`: when one changes, it must be prepared again."""
        return []

    def problem(self) -> str:
        """What keeps it from being prepared on this machine, if that is quick to tell; a trained model does not need to know."""
        return ""

    def split_of(self, part: str) -> str | None:
        """The recipe's name of one of the corpus's own splits; None: it is left out."""
        return self.splits.get(part, self.parts.get(part, part))


class OutsideCorpus(CorpusSettings):
    """What corpora have in common whose manifests may name more than files."""

    allow_sources: list[Outsider] = Field(
        [],
        description="What their audio may come from besides files: `command`, a line of shell that may do whatever you may; `url`, http or "
        "https. `smoe prepare` runs or fetches each once, and keeps the audio as FLAC. Not for a corpus that is `untrusted`.",
    )

    @model_validator(mode="after")
    def _check_trusted(self) -> OutsideCorpus:
        if self.untrusted and self.allow_sources:
            raise ValueError(
                f"`untrusted` and `allow_sources: [{', '.join(self.allow_sources)}]` contradict each other: a manifest that is not trusted "
                "runs nothing and reaches nothing; take one of them away"
            )
        return self


class SupervisedCorpus(CorpusSettings):
    """What corpora have in common whose texts stand in Lhotse's supervisions."""

    translations: dict[str, str] = Field({}, description="Target language -> custom field of the supervision that holds its text.")
    tag_fields: dict[str, str] = Field({}, description="Axis of the recipe's `axes` -> custom field of the supervision.")
    label_fields: dict[str, str] = Field({}, description="Label, e.g. `intent` -> custom field of the supervision.")
    bandwidth_field: str | None = Field(
        None, description="Custom field of the supervision with what the recording carries, `nb` or `wb`, where it says so."
    )


class TsvCorpus(CorpusSettings):
    """A tab-separated table: id, path, split, speaker, sample_rate, duration, transcript, one column per target language."""

    reader = "smoe_cli.corpora.tsv"
    type: Literal["tsv"] = "tsv"
    path: Path = Field(description="The table: UTF-8, one header line, no quoting; audio paths start from its folder, unless absolute.")
    translations: dict[str, str] = Field({}, description="Target language -> column; several references by ` ||| `.")
    language_column: str | None = Field(None, description="Column with the spoken language, when it differs by row.")
    subset_column: str | None = Field(None, description="Column whose value names the subset scored apart.")
    tag_columns: dict[str, str] = Field({}, description="Axis of the recipe's `axes` -> column with its value.")
    label_columns: dict[str, str] = Field({}, description="Label, e.g. `intent` -> column with its value; empty: the utterance has none.")
    bandwidth_column: str | None = Field(None, description="Column with what each recording carries, `nb` or `wb`; empty: it does not say.")
    segments_column: str | None = Field(None, description="Column with several audio paths, joined with `gaps_ms` between them.")
    where: dict[str, list[str]] = Field({}, description="Keep rows whose column has one of these values.")
    minimum: dict[str, float] = Field({}, description="Keep rows whose column is a number of at least this, e.g. `{age: 18}`.")

    def sources(self) -> list[Path]:
        return [self.path]


class LhotseCorpus(OutsideCorpus, SupervisedCorpus):
    """Existing Lhotse cut manifests, one per split."""

    reader = "smoe_cli.corpora.lhotse_cuts"
    type: Literal["lhotse"] = "lhotse"
    cuts: dict[str, Path] = Field(description="Split -> cut manifest (`.jsonl` or `.jsonl.gz`); audio paths in it start from `data.root`.")

    def sources(self) -> list[Path]:
        return list(self.cuts.values())


class LhotseRecipeCorpus(OutsideCorpus, SupervisedCorpus):
    """Any corpus that Lhotse has a recipe for: what its own function `lhotse.recipes.prepare_RECIPE` finds.

    `splits` has the parts that the recipe returns, `train`, or `en/train` where it has some for each language; without parts, `all`.
    """

    reader = "smoe_cli.corpora.lhotse_recipe"
    type: Literal["lhotse_recipe"] = "lhotse_recipe"
    recipe: str = Field(description="Its name, e.g. `tedlium`.")
    path: Path = Field(description="The corpus's folder, which the recipe gets as its first path.")
    options: dict[str, JsonValue] = Field(
        {},
        description="Further arguments of the recipe, by name; paths start from `data.root`. Unless they say otherwise, `num_jobs` is "
        "`--jobs` and `absolute_paths` true, where it has these; `output_dir` is in `exp_dir`.",
    )
    language: str = Field(
        "", description="Spoken language, whatever the recipe calls it, most often `English`; where it has several, `languages` renames."
    )

    def problem(self) -> str:
        # By its source: to import it takes seconds.
        spec = find_spec("lhotse")
        if spec is None or spec.origin is None:
            return ""
        source = Path(spec.origin).with_name("recipes").joinpath("__init__.py").read_text(encoding="utf-8")
        known = sorted(set(re.findall(r"\bprepare_(\w+)", source)))
        near = get_close_matches(self.recipe.lower(), known, n=5) or known
        return "" if self.recipe in known else f"Lhotse has no recipe `{self.recipe}`; it has, among others: {', '.join(near)}"


class SynthCorpus(CorpusSettings):
    """Synthetic speech over a built-in parallel text (English with exact German and French); label `subject`: what it is about."""

    reader = "smoe_cli.corpora.synth"
    made = True
    type: Literal["synth"] = "synth"
    sentences: dict[str, int] = Field({"train": 1200, "dev": 60, "test": 150}, description="Distinct sentences per split; none is shared.")
    renditions: int = Field(1, ge=1, description="Voices that speak each training sentence.")
    engines: list[Literal["hibari", "nanotts", "piper", "espeak"]] = Field(
        ["hibari", "nanotts"], description="Synthesizers; `piper` and `espeak` come with the extra `smoe[gpl-voices]`."
    )
    seed: int = Field(0, description="Same seed, same sentences, voices, speeds and pitches.")


class FolderCorpus(CorpusSettings):
    """What corpora have in common that are one folder per split."""

    path: Path = Field(description="The folder that holds `folders`.")
    folders: dict[str, str] = Field(
        {"train": "train", "dev": "dev", "test": "test"},
        description="Split -> its folder in `path`; those that `splits` leaves out are not opened.",
    )

    def inside(self, *names: str) -> list[Path]:
        """Files of these names in the folder of every split that is not left out, relative to `data.root`."""
        kept = [folder for split, folder in self.folders.items() if self.split_of(split) is not None]
        return [self.path / folder / name for folder in kept for name in names]


class KaldiCorpus(FolderCorpus, OutsideCorpus):
    """Data folders of Kaldi and ESPnet: `wav.scp`, `text`; if there, `segments`, `utt2spk`, `utt2lang`, `reco2file_and_channel`."""

    reader = "smoe_cli.corpora.kaldi"
    type: Literal["kaldi"] = "kaldi"
    text: str | None = Field("text", description="File with the transcripts, e.g. `text.tc.en`; null: there is none.")
    translations: dict[str, str | list[str]] = Field(
        {},
        description="Target language -> text file, e.g. `{de: text.tc.de}`; several right answers: a list of files.",
    )
    audio_root: Path | None = Field(
        None, description="Folder that relative paths in `wav.scp` start from, relative to `data.root`; null: each data folder itself."
    )

    def sources(self) -> list[Path]:
        texts = [name for named in self.translations.values() for name in ([named] if isinstance(named, str) else named)]
        files = ("wav.scp", "segments", "utt2spk", "utt2lang", "reco2file_and_channel")
        return self.inside(*files, *([self.text] if self.text else []), *texts)


class NemoCorpus(CorpusSettings):
    """Manifests of NeMo, an object a line: `audio_filepath`, `duration`, `offset`, `lang` or `source_lang`, `target_lang`, `taskname`."""

    reader = "smoe_cli.corpora.nemo"
    type: Literal["nemo"] = "nemo"
    manifests: dict[str, Path] = Field(
        description="Split -> manifest (`.json`, `.jsonl`, or packed as `.gz`); audio paths start from its folder."
    )
    text_field: str = Field(
        "text", description="Field with the text: what is said, or in rows that translate and have no answer, the translation."
    )
    answer_field: str = Field("answer", description="Field with the text in `target_lang`, where rows have both; `na`: there is none.")
    id_field: str = Field(
        "id", description="Field with the utterance's id; rows without it are named by their path in `data.root` and offset."
    )
    speaker_field: str = Field("speaker", description="Field with the speaker.")
    translations: dict[str, str] = Field({}, description="Target language -> field with its text, for rows that hold several.")
    tag_fields: dict[str, str] = Field({}, description="Axis of the recipe's `axes` -> field with its value.")
    label_fields: dict[str, str] = Field({}, description="Label, e.g. `intent` -> field with its value.")
    bandwidth_field: str | None = Field(None, description="Field with what the recording carries, `nb` or `wb`, where it says so.")

    def sources(self) -> list[Path]:
        return list(self.manifests.values())


class AudioFolderCorpus(FolderCorpus):
    """Audio folders of Hugging Face: in the folder of each split audio files, and a table that names them."""

    reader = "smoe_cli.corpora.audiofolder"
    type: Literal["audiofolder"] = "audiofolder"
    metadata: Literal["metadata.csv", "metadata.jsonl"] = Field(
        "metadata.csv", description="The table; its `file_name` starts from its folder."
    )
    transcript_column: str = Field("transcription", description="Column with what is said.")
    id_column: str | None = Field(None, description="Column with the utterance's id; null: its path in `path`, e.g. `train-001`.")
    speaker_column: str | None = Field(None, description="Column with the speaker; null: nobody knows who speaks, whatever the table has.")
    language_column: str | None = Field(None, description="Column with the spoken language, when it differs by row.")
    subset_column: str | None = Field(None, description="Column whose value names the subset scored apart.")
    translations: dict[str, str] = Field({}, description="Target language -> column.")
    tag_columns: dict[str, str] = Field({}, description="Axis of the recipe's `axes` -> column with its value.")
    label_columns: dict[str, str] = Field({}, description="Label, e.g. `intent` -> column with its value; empty: the utterance has none.")
    bandwidth_column: str | None = Field(None, description="Column with what each recording carries, `nb` or `wb`; empty: it does not say.")

    def sources(self) -> list[Path]:
        return self.inside(self.metadata)


class SharCorpus(FolderCorpus, SupervisedCorpus):
    """Lhotse Shar: in the folder of each split `cuts.*.jsonl.gz` and `recording.*.tar`; audio is taken out of the archives once."""

    reader = "smoe_cli.corpora.shar"
    type: Literal["shar"] = "shar"

    def sources(self) -> list[Path]:
        return self.inside("cuts.*jsonl*")


# --- corpora as their makers publish them ------------------------------------------------------------------


def _parts(**splits: str) -> dict[str, str | None]:
    """Split as a corpus names it -> split of the recipe."""
    return {part: split for split, parts in splits.items() for part in parts.split()}


class PublishedCorpus(CorpusSettings):
    """A corpus in the tree that its archives unpack to, its parts under their own names, which `splits` renames or leaves out."""

    parts: ClassVar[dict[str, str | None]] = _parts(train="train", dev="dev", test="test")

    train_within_s: tuple[float, float] | None = Field(
        None,
        description="Shortest and longest segment of the train split; others are left out of it, and counted in a note. null: all are "
        "taken, and those outside `data.min_duration_s` and `data.max_duration_s` are errors, as they always are in dev and test.",
    )

    @model_validator(mode="after")
    def _check_parts(self) -> PublishedCorpus:
        unknown = [part for part in self.splits if part not in self.parts]
        if unknown:
            raise ValueError(f"`splits` names `{unknown[0]}`; this corpus has: {', '.join(self.parts)}")
        if self.train_within_s and not 0 <= self.train_within_s[0] < self.train_within_s[1]:
            raise ValueError(f"`train_within_s` is a shortest and a longest segment, in seconds, not {list(self.train_within_s)}")
        return self

    def kept_parts(self) -> list[str]:
        """Its own splits that the recipe does not leave out, in a stable order."""
        return [part for part in self.parts if self.split_of(part) is not None]


class LibrispeechCorpus(PublishedCorpus):
    """LibriSpeech: audio books, English; `clean` and `other` are scored apart."""

    reader = "smoe_cli.corpora.librispeech"
    parts = _parts(train="train-clean-100 train-clean-360 train-other-500", dev="dev-clean dev-other", test="test-clean test-other")
    type: Literal["librispeech"] = "librispeech"
    path: Path = Field(Path("LibriSpeech"), description="Folder with one folder per part, e.g. `train-clean-100`.")


class MiniLibrispeechCorpus(PublishedCorpus):
    """Mini LibriSpeech: five hours of LibriSpeech to learn from and two to validate with."""

    reader = "smoe_cli.corpora.librispeech"
    parts = _parts(train="train-clean-5", dev="dev-clean-2")
    type: Literal["mini-librispeech"] = "mini-librispeech"
    path: Path = Field(Path("LibriSpeech"), description="Folder with the folders `train-clean-5` and `dev-clean-2`.")


class MustcCorpus(PublishedCorpus):
    """MuST-C: English TED talks with translations; a segment that several language pairs have is one utterance."""

    reader = "smoe_cli.corpora.mustc"
    parts = _parts(train="train", dev="dev", test="tst-COMMON tst-HE")
    type: Literal["mustc"] = "mustc"
    path: Path = Field(Path(), description="Folder with one folder per language pair, e.g. `en-de`.")
    targets: list[str] = Field(min_length=1, description="Target languages, e.g. `[de, fr]`.")

    def sources(self) -> list[Path]:
        return [self.path / f"en-{lang}" / "data" / part / "txt" / f"{part}.yaml" for lang in self.targets for part in self.kept_parts()]


class CovostCorpus(PublishedCorpus):
    """CoVoST 2: the recordings of Common Voice in one language, with translations; `language` names what is spoken."""

    reader = "smoe_cli.corpora.covost"
    type: Literal["covost"] = "covost"
    path: Path = Field(description="Common Voice in that language: the folder with `validated.tsv` and `clips/`.")
    translations: dict[str, Path] = Field(
        min_length=1, description="Target language -> table of CoVoST 2, from `data.root`, e.g. `{de: covost_v2.en_de.tsv}`."
    )

    def sources(self) -> list[Path]:
        return [self.path / "validated.tsv", *self.translations.values()]


class MtedxCorpus(PublishedCorpus):
    """Multilingual TEDx: talks in one language; a segment that several language pairs have is one utterance."""

    reader = "smoe_cli.corpora.mtedx"
    parts = _parts(train="train", dev="valid", test="test")
    type: Literal["mtedx"] = "mtedx"
    path: Path = Field(Path(), description="Folder with one folder per language pair, e.g. `es-es` (transcripts only) and `es-en`.")
    spoken: str = Field(description="Language of the talks, e.g. `es`.")
    targets: list[str] = Field([], description="Target languages, e.g. `[en, fr]`.")
    transcripts: bool = Field(True, description="Whether to take the pair without translation too, e.g. `es-es`, which has more talks.")

    def pairs(self) -> list[tuple[str, str | None]]:
        """(folder, target language or None) of each language pair."""
        own: list[tuple[str, str | None]] = [(f"{self.spoken}-{self.spoken}", None)] if self.transcripts else []
        return own + [(f"{self.spoken}-{target}", target) for target in self.targets]

    def sources(self) -> list[Path]:
        return [self.path / pair / "data" / part / "txt" / f"{part}.yaml" for pair, _ in self.pairs() for part in self.kept_parts()]


class FleursCorpus(PublishedCorpus):
    """FLEURS: the same sentences read in many languages; a translation is what readers of another language read."""

    reader = "smoe_cli.corpora.fleurs"
    type: Literal["fleurs"] = "fleurs"
    path: Path = Field(Path(), description="Folder with one folder per language, e.g. `en_us`.")
    spoken: str = Field(description="Folder of the spoken language, e.g. `en_us`; `language` names it, by default as the folder begins.")
    translations: dict[str, str] = Field({}, description="Target language -> its folder, e.g. `{de: de_de}`.")


class EuroparlStCorpus(PublishedCorpus):
    """Europarl-ST: debates of the European Parliament; a segment that several language pairs have is one utterance.

    `train-noisy`, whose texts fit the audio less well, is left out unless `splits` says `{train-noisy: train}`.
    """

    reader = "smoe_cli.corpora.europarl_st"
    parts = _parts(train="train", dev="dev", test="test") | {"train-noisy": None}
    type: Literal["europarl-st"] = "europarl-st"
    path: Path = Field(Path("v1.1"), description="Folder with one folder per spoken language, e.g. `en`.")
    spoken: str = Field(description="Spoken language, e.g. `en`.")
    targets: list[str] = Field(min_length=1, description="Target languages, e.g. `[de, fr]`.")

    def sources(self) -> list[Path]:
        return [self.path / self.spoken / lang / part / "segments.lst" for lang in self.targets for part in self.kept_parts()]


class VoxpopuliCorpus(PublishedCorpus):
    """VoxPopuli, transcribed: debates of the European Parliament in one language."""

    reader = "smoe_cli.corpora.voxpopuli"
    type: Literal["voxpopuli"] = "voxpopuli"
    path: Path = Field(Path("transcribed_data"), description="Folder with one folder per language, e.g. `en`.")
    spoken: str = Field(description="Folder of the spoken language, e.g. `en`.")

    def sources(self) -> list[Path]:
        return [self.path / self.spoken / f"asr_{part}.tsv" for part in self.kept_parts()]


class FisherCallhomeCorpus(PublishedCorpus):
    """Fisher and CALLHOME Spanish with English translations: telephone calls at 8 kHz; the two are scored apart."""

    reader = "smoe_cli.corpora.fisher_callhome"
    parts = _parts(
        train="fisher_train callhome_train",
        dev="fisher_dev fisher_dev2 callhome_devtest",
        test="fisher_test callhome_evltest",
    )
    type: Literal["fisher-callhome"] = "fisher-callhome"
    path: Path = Field(Path("fisher-callhome-corpus"), description="Folder with the translations: `mapping/` and `corpus/ldc/`.")
    fisher_speech: Path = Field(Path("LDC2010S01"), description="Folder that holds Fisher's calls, however deep.")
    fisher_transcripts: Path = Field(Path("LDC2010T04"), description="Folder that holds Fisher's transcripts, however deep.")
    callhome_speech: Path = Field(Path("LDC96S35"), description="Folder that holds CALLHOME's calls, however deep.")
    callhome_transcripts: Path = Field(Path("LDC96T17"), description="Folder that holds CALLHOME's transcripts, however deep.")

    def sources(self) -> list[Path]:
        return [self.path / "mapping" / part for part in self.kept_parts()]


class SwitchboardCorpus(PublishedCorpus):
    """Switchboard-1: English telephone calls at 8 kHz; which of them are dev and test is said here, as the corpus has no splits."""

    reader = "smoe_cli.corpora.switchboard"
    type: Literal["switchboard"] = "switchboard"
    path: Path = Field(Path("LDC97S62"), description="Folder that holds the calls, however deep.")
    transcripts: Path = Field(Path("swb_ms98_transcriptions"), description="Folder that holds the transcripts, however deep.")
    dev_calls: int = Field(20, ge=0, description="Calls with the lowest numbers, which are the dev split.")
    test_calls: int = Field(20, ge=0, description="Calls with the next numbers, which are the test split.")


Corpus = Annotated[
    TsvCorpus
    | LhotseCorpus
    | LhotseRecipeCorpus
    | SynthCorpus
    | KaldiCorpus
    | NemoCorpus
    | AudioFolderCorpus
    | SharCorpus
    | LibrispeechCorpus
    | MiniLibrispeechCorpus
    | MustcCorpus
    | CovostCorpus
    | MtedxCorpus
    | FleursCorpus
    | EuroparlStCorpus
    | VoxpopuliCorpus
    | FisherCallhomeCorpus
    | SwitchboardCorpus,
    Field(discriminator="type"),
]
"""Every kind of corpus."""
