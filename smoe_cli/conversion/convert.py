"""A transformers folder -> a checkpoint (`smoe convert`)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from smoe_cli import checkpoint
from smoe_cli.checkpoint import System
from smoe_cli.conversion.families import FAMILIES, Wish
from smoe_cli.conversion.source import Source
from smoe_cli.errors import CheckpointError
from smoe_cli.layout import DIGESTS, MODEL_DIGITS, model_digest
from smoe_cli.model.speech_to_text import count_parameters
from smoe_cli.recipe import parse_config
from smoe_cli.records import ConvertReport, Origin
from smoe_cli.routing import make_plan


def convert(folder: Path, out: Path, task: str, langs: Sequence[str], source_lang: str | None) -> ConvertReport:
    """Write a checkpoint that computes what the model of a transformers folder computes.

    Args:
        folder: What transformers' `save_pretrained` wrote: `WhisperForConditionalGeneration` or `Speech2TextForConditionalGeneration`.
        out: Folder to write; what an earlier conversion left there is replaced, nothing else.
        task: What the model does: `transcribe` or `translate`.
        langs: Languages that it writes; may be empty where the folder says.
        source_lang: Language that is spoken, for Whisper's translation only.

    Raises:
        CheckpointError: If the folder is incomplete, damaged, or a model that has no counterpart here.
        RouteError: If the model has no such task or language.
        ConfigError: If something else lies at `out`, or a language must be named, or changes nothing.
        DataError: If `out` cannot be written.
    """
    source = Source.open(folder)
    kind = source.config.get("model_type")
    if (folder / DIGESTS).exists():
        raise CheckpointError(
            f"`{folder}` is a checkpoint of smoe already", "use it as it is: `smoe decode --checkpoint`, `smoe train --init-from`"
        )
    if kind not in FAMILIES:
        raise CheckpointError(f"`{folder}` is a model of type `{kind}`; can be converted: {', '.join(FAMILIES)}", "name another folder")
    checkpoint.check_free(out, "convert")
    with tempfile.TemporaryDirectory() as scratch:
        converted = FAMILIES[kind](source, Wish(task, list(dict.fromkeys(langs)), source_lang), Path(scratch))
        window_s = converted.features.get("window_s")
        config = parse_config(
            {
                "name": re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-") or kind,
                "tasks": {task: {"languages": list(converted.langs)}},
                "features": converted.features,
                "model": converted.model,
                "decode": {"ctc_weight": 0.0},
                **({"data": {"max_duration_s": window_s}} if window_s else {}),
            },
            str(folder),
        )
        plan = make_plan(config)
        model = checkpoint.on_meta(config, plan, converted.tokenizer.vocab_size)
        checkpoint.load_weights(model, converted.weights, config.model.tie_embeddings, str(folder))
        origin = Origin(how="convert", model=source.digest()[:MODEL_DIGITS])
        checkpoint.save(out, System(model.eval(), config, plan, converted.tokenizer, origin=origin))
    return ConvertReport(
        checkpoint=out,
        model=model_digest(out),
        family=config.model.family,
        routes=list(plan.routes),
        parameters=count_parameters(model)["total"],
        window_s=window_s,
    )
