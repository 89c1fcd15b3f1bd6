"""Every setting of a recipe: one typed field, one sentence, one check; unknown keys are refused.

`recipe.py` reads them. The merged configuration is saved with every checkpoint, so that `decode` needs nothing repeated.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from smoe_cli.corpus_settings import Corpus, Settings, SynthCorpus
from smoe_cli.errors import RouteError
from smoe_cli.presets import PRESETS, SINGLE_TASK, apply_preset
from smoe_cli.tags import ANY, AXES, TAG_PATTERN, TASK_KINDS, TELEPHONE_HZ, VALUE_PATTERN, Bandwidth, Choice, Route, TaskKind, experts_of
from smoe_cli.text import TextPolicy
from smoe_cli.train_settings import TrainSettings

RECIPE_FILE, CHECKPOINT_CONFIG = "smoe.yaml", "config.json"
MODEL, FINAL, CHECKPOINTS = "model", "final", "checkpoints"
"""In `exp_dir`, the folder of the model; in that, the result, and what a stopped training goes on from."""
FRAMES_PER_S = 100
"""Feature frames: all kinds of features have one every 10 ms."""
ROUTING_KEYS = ("_experts_by", "_expert_groups", "_routed_layers")
"""Ends of the names of settings that say which experts a model has, and where: each recipe's own."""
FEATURE_HANDLING = {"cache_mb", "stored"}
"""Settings of `features` that change nothing of what they are."""
SPLITS = ("train", "dev", "test")
CONFORMER_KERNEL = 31
LOWEST_HZ, HIGHEST_HZ = 4000, 192_000
"""Sampling rates of audio: below is no speech, above no microphone."""
LineCodec = Literal["plain", "mulaw", "alaw", "gsm"]
"""Codecs of simulated telephone lines."""
Tag = Annotated[str, Field(pattern=TAG_PATTERN)]
TagValue = Annotated[str, Field(pattern=VALUE_PATTERN)]


class NarrowbandSettings(Settings):
    """How telephone speech is simulated. By default as in arXiv:2508.10009: down to 8 kHz and back, nothing else."""

    codecs: list[LineCodec] = Field(
        ["plain"],
        min_length=1,
        description="One is drawn for each utterance: G.711 mu-law or A-law, GSM 06.10, or plain down-sampling; one named twice is drawn "
        "twice as often.",
    )
    telephone_band: float = Field(0.0, ge=0, le=1, description="Share of the utterances of which only 300 to 3400 Hz are left.")
    pairing: Literal["both", "one"] = Field(
        "both",
        description="`both`: the narrowband twin beside the wideband utterance; `one`: each training utterance in one band, drawn "
        "evenly; dev and test have both.",
    )
    seed: int = Field(0, ge=0, description="Same seed, same codec, line and band for each utterance.")
    write: bool = Field(False, description="Write simulated audio as FLAC under `exp_dir`, instead of making it whenever it is read.")


class DataSettings(Settings):
    """Which speech, in which bands."""

    root: Path | None = Field(
        None, description="Folder that relative corpus paths start from, by default the recipe's; `$NAME` is read from the environment."
    )
    corpora: dict[str, Corpus] = Field({"synth": SynthCorpus()}, description="Name -> corpus.")
    bandwidth: Literal["rate", "auto"] = Field(
        "rate",
        description="Where the band of recordings is taken from: their sampling rate, or an estimate from the spectrum; what a corpus "
        "says stays its tag, and with `auto` is compared with the estimate.",
    )
    nb_downsample: bool = Field(
        False,
        description="Add a narrowband twin of every wideband utterance, made as `nb_simulation` says; where the model "
        "hears at 8 kHz (`features.sample_rate_hz`), it takes the utterance's place.",
    )
    nb_simulation: NarrowbandSettings = NarrowbandSettings()
    lowercase: bool = Field(
        False, description="Lower-case all text: what is trained on, the references, and hypotheses before they are scored."
    )
    strip_punctuation: bool = Field(
        False, description="Remove punctuation except inside words (`it's`, `rendez-vous`), wherever `lowercase` would lower-case."
    )
    foreign_texts: Literal["error", "note"] = Field(
        "error",
        description="What it is when more than a tenth of the texts of a task and language read like another language; `note` where names, "
        "jargon or mixed speech do.",
    )
    min_duration_s: float = Field(0.1, gt=0, description="Shorter recordings are errors.")
    max_duration_s: float = Field(30.0, gt=0, description="Longer recordings are errors.")


# --- the parts of the system -----------------------------------------------------------------------------


class TaskSettings(Settings):
    """One task of the recipe."""

    kind: str = Field("", description=f"Kind of task ({', '.join(TASK_KINDS)}); by default the task's own name.")
    languages: list[Tag] = Field(
        [],
        description=f"Languages of the written text; not for kinds that answer with a label, whose routes say `{ANY}` instead.",
    )
    label: str = Field("", description="Kind `classify`: which label of the utterances is the answer; by default the task's own name.")
    lowercase: bool | None = Field(None, description="Whether its texts are lower-cased; null: as `data.lowercase` says.")
    strip_punctuation: bool | None = Field(None, description="Whether its texts lose punctuation; null: as `data.strip_punctuation` says.")


MAX_SIZE, MAX_LAYERS = 2**20, 1000
"""Of what a number can say of a model: more is a slip of the keyboard, and no machine could hold it."""
MOST_HEADS_NAMED = 64


class TokenizerSettings(Settings):
    """Byte-level BPE."""

    vocab_size: int = Field(
        1000, ge=260, le=MAX_SIZE, description="Pieces, the 256 byte symbols and the special tokens included; 40,000 at paper scale."
    )


class FeatureSettings(Settings):
    """Log-mel filterbanks."""

    kind: Literal["kaldi", "speech2text", "whisper"] = Field(
        "kaldi", description="How they are computed; the others are those of converted models."
    )
    window_s: float | None = Field(None, gt=0, le=3600, description="Longest audio that the model takes; null: any.")
    pad_to_window: bool = Field(False, description="Extend all audio with silence to `window_s`, as Whisper does.")
    sample_rate_hz: int = Field(16000, ge=LOWEST_HZ, le=HIGHEST_HZ, description="Rate to which all audio is brought.")
    mel_bins: int = Field(80, gt=0, le=MAX_SIZE, description="Number of mel filters.")
    cache_mb: int = Field(0, ge=0, description="Memory for computed features (float16), kept between epochs; 0 computes anew.")
    stored: bool = Field(
        False, description="Keep features of training (float16) in `exp_dir/features`; `smoe features` computes them ahead, in parallel."
    )

    @model_validator(mode="after")
    def _check(self) -> FeatureSettings:
        if self.pad_to_window and (self.window_s is None or self.kind != "whisper"):
            raise ValueError("pad_to_window is for features of kind `whisper`, and needs window_s")
        if self.kind == "whisper" and self.sample_rate_hz != 16000:
            raise ValueError(f"features of kind `whisper` are of audio at 16,000 Hz, not {self.sample_rate_hz}")
        return self


BY_MEANING = (
    f"Axis of supervision that chooses the {{stack}}'s expert: {', '.join(AXES)}, one of the recipe's `axes`, or several joined by `+`, "
    "e.g. `task+lang`; null: one dense FFN."
)
GROUPS_MEANING = (
    "Expert -> tag values that share it, e.g. `{romance: [fr, es]}`; a value that no group names has an expert of its own name."
)
LAYERS_MEANING = (
    "Layers of the {stack} that choose among its experts: a list of numbers from 0, or `every N` for every N-th; null: all. "
    "The others have one dense FFN each."
)
SHARED_MEANING = (
    "Hidden width of a shared expert in every {stack} layer, which runs beside the chosen one and is added to it; null: there is none."
)


class ModelSettings(Settings):
    """The encoder-decoder. A preset states its differences from `base`; the recipe states its own from the preset."""

    preset: str = Field("encdec-smoe", description=f"Model variant: {', '.join(PRESETS)}.")
    family: Literal["smoe", "speech2text", "whisper"] = Field(
        "smoe", description="Whose subsampling, positions and activations the model has; the others are those of converted models."
    )
    d_model: int = Field(512, ge=4, le=MAX_SIZE, description="Width of the residual stream.")
    heads: int = Field(8, gt=0, le=MAX_SIZE, description="Attention heads.")
    encoder_layers: int = Field(12, gt=0, le=MAX_LAYERS, description="Encoder layers.")
    decoder_layers: int = Field(6, gt=0, le=MAX_LAYERS, description="Decoder layers.")
    ffn_dim: int = Field(2048, gt=0, le=MAX_SIZE, description="Hidden width of a feed-forward network, and of each expert.")
    decoder_ffn_scale: int = Field(
        1,
        gt=0,
        le=MAX_LAYERS,
        description="Widen the decoder's feed-forward networks by this factor (the width-matched control): a second one runs beside each, "
        "so that the parameters are those of as many experts.",
    )
    subsampling: Literal[2, 4, 8] = Field(4, description="Feature frames per encoder frame.")
    subsampling_channels: int = Field(1024, gt=0, le=MAX_SIZE, description="Inner channels of the convolutional subsampler.")
    encoder: Literal["transformer", "conformer"] = Field(
        "transformer",
        description="Kind of encoder layer; the paper's is the Transformer's, and a Conformer's has two routed half-step FFNs.",
    )
    conv_kernel: int | None = Field(
        None,
        gt=0,
        le=MAX_SIZE,
        description="Odd width of a depthwise convolution in every encoder layer, in frames; null: none, as in the paper, "
        "and 31 in a Conformer (the paper has 32; an odd width keeps frames in place).",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on residual branches.")
    max_tokens: int | None = Field(
        None,
        gt=0,
        le=MAX_SIZE,
        description="Most tokens of one text, guiding tokens included, in a family whose decoder has a table of positions.",
    )
    tie_embeddings: bool = Field(False, description="Share the decoder's input embedding with its output projection.")
    ctc: bool = Field(True, description="Auxiliary CTC head on the encoder, over the transcript.")
    encoder_experts_by: str | None = Field(None, description=BY_MEANING.format(stack="encoder"))
    decoder_experts_by: str | None = Field(None, description=BY_MEANING.format(stack="decoder"))
    encoder_expert_groups: dict[Tag, Annotated[list[str], Field(min_length=1)]] = Field({}, description=GROUPS_MEANING)
    decoder_expert_groups: dict[Tag, Annotated[list[str], Field(min_length=1)]] = Field({}, description=GROUPS_MEANING)
    encoder_routed_layers: list[int] | str | None = Field(None, description=LAYERS_MEANING.format(stack="encoder"))
    decoder_routed_layers: list[int] | str | None = Field(None, description=LAYERS_MEANING.format(stack="decoder"))
    encoder_shared_ffn_dim: int | None = Field(None, gt=0, le=MAX_SIZE, description=SHARED_MEANING.format(stack="encoder"))
    decoder_shared_ffn_dim: int | None = Field(None, gt=0, le=MAX_SIZE, description=SHARED_MEANING.format(stack="decoder"))

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = apply_preset(values)
        if filled.get("encoder") == "conformer" and filled.get("conv_kernel") is None:
            filled["conv_kernel"] = CONFORMER_KERNEL
        return filled

    @field_validator("encoder_experts_by", "decoder_experts_by", mode="before")
    @classmethod
    def _check_one_choice(cls, value: Any) -> Any:
        if isinstance(value, list | dict):
            raise ValueError(f"`{value}`: there is one choice a stack; to choose by several axes at once, join them: `bandwidth+task`")
        return value

    @field_validator("encoder_routed_layers", "decoder_routed_layers", mode="before")
    @classmethod
    def _check_form(cls, value: Any) -> Any:
        numbers = isinstance(value, list) and all(type(layer) is int for layer in value)
        words = isinstance(value, str) and re.fullmatch(r"every [1-9][0-9]*", value)
        if not (value is None or numbers or words):
            raise ValueError(f"`{value}` names no layers; write for example `[6, 7, 8]` or `every 2`")
        return value

    def routed_layers(self, stack: str) -> tuple[int, ...] | None:
        """Numbers of the layers of a stack (`encoder` or `decoder`) that choose among its experts; None: all of them."""
        chosen = self.encoder_routed_layers if stack == "encoder" else self.decoder_routed_layers
        if isinstance(chosen, str):
            # The last of every N, as where Switch and GLaM have their experts.
            every = int(chosen.removeprefix("every "))
            return tuple(range(every - 1, self.encoder_layers if stack == "encoder" else self.decoder_layers, every))
        return chosen if chosen is None else tuple(sorted(chosen))

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if self.d_model % self.heads:
            fitting = [str(count) for count in range(1, MOST_HEADS_NAMED + 1) if self.d_model % count == 0]
            raise ValueError(f"heads ({self.heads}) must divide d_model ({self.d_model}), as {', '.join(fitting)} do")
        if self.conv_kernel is not None and self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel ({self.conv_kernel}) must be odd, so that frames keep their place")
        if (self.family == "whisper") != (self.max_tokens is not None):
            raise ValueError(
                f"family `{self.family}` and max_tokens {self.max_tokens} do not go together: those of the family `whisper` have such "
                "a limit, and no others; both come from the converted model that `train.init_from` names"
            )
        if self.decoder_ffn_scale > 1 and self.decoder_shared_ffn_dim is not None:
            raise ValueError("decoder_ffn_scale widens with a shared expert, and decoder_shared_ffn_dim names another; set one of them")
        if self.family != "whisper" and self.subsampling_channels % 2:
            raise ValueError(f"subsampling_channels ({self.subsampling_channels}) must be even: half of them are gates of the others")
        if self.d_model % 2:
            raise ValueError(f"d_model ({self.d_model}) must be even: positions are pairs of sine and cosine")
        for stack, count in (("encoder", self.encoder_layers), ("decoder", self.decoder_layers)):
            layers = self.routed_layers(stack)
            if layers is None:
                continue
            if not layers:
                raise ValueError(
                    f"{stack}_routed_layers names none of the {count} layers, so no route would reach an expert; "
                    f"name layers, or set {stack}_experts_by to null"
                )
            if len(set(layers)) != len(layers):
                raise ValueError(f"{stack}_routed_layers names a layer twice: {list(layers)}")
            if not 0 <= layers[0] <= layers[-1] < count:
                raise ValueError(f"{stack}_routed_layers {list(layers)}: the {stack} has layers 0 to {count - 1}")
        return self


class DecodeSettings(Settings):
    """Beam search."""

    beam: int = Field(5, gt=0, description="Beams per utterance; 1 is greedy search.")
    ctc_weight: float = Field(0.3, ge=0, lt=1, description="Share of CTC prefix scores (transcription only).")
    length_penalty: float = Field(1.0, ge=0, description="Exponent on the length that divides a beam's score.")
    max_tokens_per_s: float = Field(20.0, gt=0, description="Longest output, in tokens per second of audio.")
    min_max_tokens: int = Field(20, gt=0, description="Longest output allowed for the shortest audio.")
    batch_s: float = Field(200.0, gt=0, description="Seconds of audio decoded together.")


class Config(Settings):
    """A recipe: `smoe.yaml`."""

    name: str = Field("smoe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the system in reports.")
    exp_dir: Path = Field(Path("exp"), description="Folder for everything the steps write; `$NAME` is read from the environment.")
    data: DataSettings = DataSettings()
    tasks: dict[Tag, TaskSettings] = Field(min_length=1, description="Task name -> what it writes.")
    axes: dict[Tag, Annotated[list[TagValue], Field(min_length=1)]] = Field(
        {}, description="Further axes of supervision -> their values, e.g. `{accent: [us, uk]}`; every cut must have a value on each."
    )
    tokenizer: TokenizerSettings = TokenizerSettings()
    features: FeatureSettings = FeatureSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    decode: DecodeSettings = DecodeSettings()
    _folder: Path | None = PrivateAttr(None)

    @property
    def folder(self) -> Path | None:
        """Where the recipe's file lies; None: the settings are from no file."""
        return self._folder

    def lies_in(self, folder: Path | None) -> None:
        """Note where the recipe's file lies: no setting, so that it is neither compared nor saved with a model."""
        self._folder = folder

    @model_validator(mode="after")
    def _check(self) -> Config:
        for name, task in self.tasks.items():
            if (task.kind or name) not in TASK_KINDS:
                raise ValueError(f"task `{name}` is of unknown kind `{task.kind or name}`; known kinds: {', '.join(TASK_KINDS)}")
            kind = self.kind(name)
            if kind.closed and task.languages:
                raise ValueError(f"task `{name}` answers with a label, whatever is spoken: it takes no `languages`; leave them out")
            if not kind.closed and not task.languages:
                raise ValueError(f"task `{name}` writes text: name its `languages`, at least one")
            if ANY in task.languages:
                raise ValueError(f"task `{name}`: `{ANY}` stands for the language of tasks that answer with a label; rename the language")
            if len(set(task.languages)) != len(task.languages):
                raise ValueError(f"task `{name}` names a language twice: {', '.join(task.languages)}")
            if kind.closed and not (task.lowercase is None and task.strip_punctuation is None):
                raise ValueError(f"task `{name}` answers with a label, which stays as it is written: leave out case and punctuation")
            if task.label and kind.target != "label":
                raise ValueError(f"task `{name}`: only kind `classify` has a `label`; leave it out")
        if self.model.preset == SINGLE_TASK and len(self.targets()) > 1:
            named = ", ".join(f"{task}/{lang}" for task, lang in self.targets())
            raise ValueError(f"the preset `{SINGLE_TASK}` is for one task in one language, and there are {named}; leave out all but one")
        for key in self.train.route_weights:
            try:
                Choice.among(key, self.routes())
            except RouteError as error:
                raise ValueError(f"train.route_weights: {error.message}; {error.hint}") from None
        longest_s = self.data.max_duration_s / min(self.train.augment.speeds)
        if self.features.window_s is not None and min(self.train.augment.speeds) < 1 and longest_s > self.features.window_s:
            raise ValueError(
                f"train.augment.speeds can make audio of {longest_s:g} s, and the model takes {self.features.window_s:g} s; lower "
                "data.max_duration_s, or leave out the slow ones"
            )
        if self.model.family == "whisper" and self.features.window_s is None:
            raise ValueError("a model of the family `whisper` has as many positions as fit into `features.window_s`, which is not given")
        return self

    @model_validator(mode="after")
    def _check_bands(self) -> Config:
        if Bandwidth.WB in self.bands():
            return self
        if self.data.nb_downsample:
            if self.data.nb_simulation.pairing == "one":
                raise ValueError(
                    f"features.sample_rate_hz is {self.features.sample_rate_hz}, where there is one band, and "
                    "`data.nb_simulation.pairing: one` draws between two; leave it out: all goes through a line"
                )
            return self
        corpora = {f"data.corpora.{name}.bandwidth": corpus.bandwidth for name, corpus in self.data.corpora.items()}
        asked = [f"{key}: {value}" for key, value in corpora.items() if value in (Bandwidth.WB, "auto")]
        asked += ["data.bandwidth: auto"] if self.data.bandwidth == "auto" else []
        if asked:
            raise ValueError(
                f"features.sample_rate_hz is {self.features.sample_rate_hz}, where all audio is narrowband, and `{asked[0]}` is for "
                "wideband audio; leave that out, send such audio through a line (data.nb_downsample: true), or set "
                "features.sample_rate_hz to 16000"
            )
        return self

    @model_validator(mode="after")
    def _check_axes(self) -> Config:
        for axis, values in self.axes.items():
            if axis in AXES:
                raise ValueError(f"axis `{axis}` is built in ({', '.join(AXES)}); give yours another name")
            if len(set(values)) != len(values):
                raise ValueError(f"axis `{axis}` names a value twice: {', '.join(values)}")
        for name, corpus in self.data.corpora.items():
            for source in ("tags", "tag_columns", "tag_fields"):
                for axis in getattr(corpus, source, {}):
                    if axis not in self.axes:
                        known = ", ".join(self.axes) or "none"
                        raise ValueError(f"data.corpora.{name}.{source} names `{axis}`, no axis of the recipe; `axes` has: {known}")
            for axis, value in corpus.tags.items():
                if value not in self.axes[axis]:
                    raise ValueError(
                        f"data.corpora.{name}.tags: no value `{value}` on axis `{axis}`; `axes` has: {', '.join(self.axes[axis])}"
                    )
        for stack, by, groups in (
            ("encoder", self.model.encoder_experts_by, self.model.encoder_expert_groups),
            ("decoder", self.model.decoder_experts_by, self.model.decoder_expert_groups),
        ):
            # Groups without an axis are no mistake: the dense control of a recipe needs no other change.
            if by is not None:
                try:
                    experts_of(by, groups, self.routes())
                except RouteError as error:
                    raise ValueError(f"model.{stack}_experts_by `{by}`: {error.message}; {error.hint}") from None
        return self

    def corpus_weights(self) -> dict[str, float]:
        """Corpus -> factor on how often its cuts are drawn in training, where it is not 1."""
        return {name: corpus.weight for name, corpus in self.data.corpora.items() if corpus.weight != 1.0}

    def kind(self, task: str) -> TaskKind:
        """The kind of a task of this recipe.

        Raises:
            KeyError: If the recipe has no such task.
        """
        return TASK_KINDS[self.tasks[task].kind or task]

    def label(self, task: str) -> str:
        """Which label of the utterances a task of kind `classify` asks for."""
        return self.tasks[task].label or task

    def transcribed(self) -> set[str]:
        """Languages whose transcripts a task writes."""
        return {lang for task, lang in self.targets() if self.kind(task).target == "transcript"}

    def text_policy(self, task: str | None = None) -> TextPolicy:
        """What is done to the texts that a task writes; without a task, to those whose task says nothing of its own."""
        own = TaskSettings() if task is None else self.tasks[task]
        return TextPolicy(
            lowercase=self.data.lowercase if own.lowercase is None else own.lowercase,
            strip_punctuation=self.data.strip_punctuation if own.strip_punctuation is None else own.strip_punctuation,
        )

    def transcript_policy(self, task: str) -> TextPolicy:
        """What is done to the transcripts of a task's utterances: its own policy, or that of the first task that transcribes."""
        return self.text_policy(next((name for name in (task, *self.tasks) if self.kind(name).target == "transcript"), None))

    def languages(self, task: str) -> list[str]:
        """What stands for the language in a task's routes: its target languages, or `any` where the answer is a label."""
        return [ANY] if self.kind(task).closed else self.tasks[task].languages

    def targets(self) -> list[tuple[str, str]]:
        """Every (task, language) of the recipe, in a stable order."""
        return [(task, lang) for task in self.tasks for lang in self.languages(task)]

    def routes(self) -> list[Route]:
        """Every route of the recipe, in a stable order."""
        combinations = [tuple(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())]
        return [Route(task, lang, band, extra) for task, lang in self.targets() for band in self.bands() for extra in combinations]

    def asked_bands(self) -> dict[Bandwidth, str]:
        """Bands that a setting asks to train on -> that setting; others are there if there is such audio."""
        corpora = {
            corpus.bandwidth: f"data.corpora.{name}.bandwidth: {corpus.bandwidth}"
            for name, corpus in self.data.corpora.items()
            if corpus.splits.get("train", "train") is not None
        }
        said = {band: corpora[band] for band in Bandwidth if band in corpora}
        return said | (dict.fromkeys(Bandwidth, "data.nb_downsample: true") if self.data.nb_downsample else {})

    def bands(self) -> list[Bandwidth]:
        """The bands that there can be: at 8 kHz nothing is wideband."""
        return [Bandwidth.NB] if self.features.sample_rate_hz <= TELEPHONE_HZ else list(Bandwidth)


def differences(before: object, now: object, name: str = "") -> list[str]:
    """Every setting that differs, as `decode.beam: 5 -> 1`; a section that is not there is one without settings.

    Args:
        before, now: Settings, with those of sections inside, as `model_dump` gives them.
        name: Of the section that they are.
    """
    if before == now:
        return []
    old, new = (section if isinstance(section, dict) else {} for section in (before, now))
    if not old and not new:
        return [f"{name}: {before!r} -> {now!r}"]
    return [line for key in new | old for line in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
