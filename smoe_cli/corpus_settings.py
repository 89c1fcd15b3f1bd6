"""What a recipe says of each corpus, one class per kind: `data.corpora.NAME` with its `type`. The readers are in `corpora/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from smoe_cli.tags import Bandwidth


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusSettings(Settings):
    """What every corpus may say."""

    reader: ClassVar[str]
    """Module with `read(settings, work) -> Iterator[Utterance]`."""
    made: ClassVar[bool] = False
    """Whether it is made here: it then has no files that `data.root` could say the place of."""

    language: str = Field(
        "", description="Spoken language, unless the corpus names one per utterance; where neither does, `en`, and `smoe prepare` says so."
    )
    bandwidth: Bandwidth | Literal["auto"] | None = Field(
        None,
        description="What the recordings carry where their sampling rate does not tell, e.g. `nb` for telephone speech at 16 kHz; "
        "`auto`: estimated from each one's spectrum; null: as `data.bandwidth` says.",
    )
    subset: str = Field("", description="Name under which this corpus is scored apart; empty: with the others.")
    tags: dict[str, str] = Field({}, description="Axis of the recipe's `axes` -> value, unless the corpus has one per utterance.")
    labels: dict[str, str] = Field({}, description="Label, e.g. `intent` -> value, unless the corpus has one per utterance.")
    splits: dict[str, str | None] = Field({}, description="Rename splits, e.g. `{dev: test}`; null leaves a split out.")
    weight: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Factor on how often its cuts are drawn in training, beside those of other corpora."
    )
    untrusted: bool = Field(
        False, description="Whether somebody else made it: its files must then lie in `data.root`, symbolic links followed."
    )

    def sources(self) -> list[Path]:
        """The tables or manifests that it starts from, relative to `data.root`: when one changes, it must be prepared again."""
        return []


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
    segments_column: str | None = Field(None, description="Column with several audio paths, joined with `gaps_ms` between them.")
    where: dict[str, list[str]] = Field({}, description="Keep rows whose column has one of these values.")
    minimum: dict[str, float] = Field({}, description="Keep rows whose column is a number of at least this, e.g. `{age: 18}`.")

    def sources(self) -> list[Path]:
        return [self.path]


class LhotseCorpus(CorpusSettings):
    """Existing Lhotse cut manifests, one per split."""

    reader = "smoe_cli.corpora.lhotse_cuts"
    type: Literal["lhotse"] = "lhotse"
    cuts: dict[str, Path] = Field(description="Split -> cut manifest (`.jsonl` or `.jsonl.gz`); audio paths in it start from `data.root`.")
    translations: dict[str, str] = Field({}, description="Target language -> custom field of the supervision that holds its text.")
    tag_fields: dict[str, str] = Field({}, description="Axis of the recipe's `axes` -> custom field of the supervision.")
    label_fields: dict[str, str] = Field({}, description="Label, e.g. `intent` -> custom field of the supervision.")

    def sources(self) -> list[Path]:
        return list(self.cuts.values())


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
        kept = [folder for split, folder in self.folders.items() if self.splits.get(split, split) is not None]
        return [self.path / folder / name for folder in kept for name in names]


class KaldiCorpus(FolderCorpus):
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
    speaker_column: str | None = Field(None, description="Column with the speaker.")
    language_column: str | None = Field(None, description="Column with the spoken language, when it differs by row.")
    subset_column: str | None = Field(None, description="Column whose value names the subset scored apart.")
    translations: dict[str, str] = Field({}, description="Target language -> column.")
    tag_columns: dict[str, str] = Field({}, description="Axis of the recipe's `axes` -> column with its value.")
    label_columns: dict[str, str] = Field({}, description="Label, e.g. `intent` -> column with its value; empty: the utterance has none.")

    def sources(self) -> list[Path]:
        return self.inside(self.metadata)


class SharCorpus(FolderCorpus):
    """Lhotse Shar: in the folder of each split `cuts.*.jsonl.gz` and `recording.*.tar`; audio is taken out of the archives once."""

    reader = "smoe_cli.corpora.shar"
    type: Literal["shar"] = "shar"
    translations: dict[str, str] = Field({}, description="Target language -> custom field of the supervision that holds its text.")
    tag_fields: dict[str, str] = Field({}, description="Axis of the recipe's `axes` -> custom field of the supervision.")
    label_fields: dict[str, str] = Field({}, description="Label, e.g. `intent` -> custom field of the supervision.")

    def sources(self) -> list[Path]:
        return self.inside("cuts.*jsonl*")


Corpus = Annotated[
    TsvCorpus
    | LhotseCorpus
    | SynthCorpus
    | KaldiCorpus
    | NemoCorpus
    | AudioFolderCorpus
    | SharCorpus,
    Field(discriminator="type"),
]  # fmt: skip
"""Every kind of corpus."""
