"""What a device loses: one route as ONNX graphs in float32 and int8, beside torch, on recordings of that route.

    python benchmarks/device.py CHECKPOINT CUTS --task translate --lang de --bandwidth nb
    python benchmarks/device.py CHECKPOINT CUTS --task translate --lang de --bandwidth nb --utterances 20 --json

Torch decodes with one beam and without CTC scores, as the runner does; utterances are the first ones of the route in the manifest, decoded
one by one, and with int8 also in batches of ten, as there a scale is chosen over the whole input. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from smoe_cli import checkpoint, pipeline
from smoe_cli.cuts import route_of, stream_manifest
from smoe_cli.decoding.decode import Decoder
from smoe_cli.decoding.onnx import OnnxModel
from smoe_cli.features import FrontEnd
from smoe_cli.scoring.metrics import find_metric
from smoe_cli.slimming import choose_route
from smoe_cli.tags import Choice

BATCH = 10


def measure(folder: Path, cuts: Path, choice: Choice, utterances: int) -> dict[str, Any]:
    """Texts of torch, float32 and int8.

    Returns:
        The `model`, its `route`, `utterances` and their `audio_s`, `metric`; `rows` with `name`, `equal` texts, `score` and `mb`; and
        `changed_in_batches`, texts of int8 that are others in batches of ten.
    """
    system = checkpoint.load(folder)
    route = choose_route(system.plan, choice)
    chosen = list(islice((cut for cut in stream_manifest(cuts) if route_of(cut) == route), utterances))
    if not chosen:
        raise SystemExit(f"error: `{cuts}` has no cut of the route {route}\n\nhint: name another manifest, or another route")
    greedy = system.config.decode.model_copy(update={"beam": 1, "ctc_weight": 0.0, "batch_s": 0.1})
    heard = Decoder(system, greedy).decode(chosen)
    front_end = FrontEnd(system.config.features)
    features, seconds = [front_end(cut).numpy() for cut in chosen], [cut.duration for cut in chosen]
    metric = find_metric(system.config.kind(route.task).metrics[0])

    def row(name: str, texts: Sequence[str], mb: float | None) -> dict[str, Any]:
        said = [one.model_copy(update={"text": text}) for one, text in zip(heard, texts, strict=True)]
        equal = sum(text == one.text for text, one in zip(texts, heard, strict=True))
        return {"name": name, "equal": equal, "score": metric(said).value, "mb": mb}

    rows, changed = [row("torch", [one.text for one in heard], None)], 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, int8 in (("float32", False), ("int8", True)):
            out = Path(scratch) / name
            pipeline.export(folder, out=out, choice=choice, int8=int8)
            model = OnnxModel(out)
            alone = [model.texts([one], [lasts])[0] for one, lasts in zip(features, seconds, strict=True)]
            rows.append(row(name, alone, sum((out / part.file).stat().st_size for part in (model.card.encoder, model.card.decoder)) / 1e6))
            if int8:
                parts = [slice(start, start + BATCH) for start in range(0, len(features), BATCH)]
                together = [text for part in parts for text in model.texts(features[part], seconds[part])]
                changed = sum(one != other for one, other in zip(alone, together, strict=True))
    return {
        "model": system.digest,
        "route": str(route),
        "utterances": len(chosen),
        "audio_s": sum(cut.duration for cut in chosen),
        "metric": metric.label,
        "rows": rows,
        "changed_in_batches": changed,
    }


def markdown(found: dict[str, Any]) -> str:
    """The table of docs/how-to/ship-to-a-device.md."""
    lines = [
        f"Model {found['model']}, route {found['route']}, {found['utterances']} utterances ({found['audio_s']:.0f} s):",
        "",
        f"| | texts equal to torch's | {found['metric']} | encoder + decoder |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        size = "" if row["mb"] is None else f"{row['mb']:.1f} MB"
        lines.append(f"| {row['name']} | {row['equal']} | {row['score']:.1f} | {size} |")
    return "\n".join([*lines, "", f"In batches of {BATCH}, {found['changed_in_batches']} texts of int8 are others."])


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("cuts", type=Path, help="manifest that `smoe prepare` wrote")
    for name in ("task", "lang", "bandwidth"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--utterances", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    found = measure(given.checkpoint, given.cuts, Choice(given.task, given.lang, given.bandwidth), given.utterances)
    print(json.dumps(found, indent=2) if given.json else markdown(found))


if __name__ == "__main__":
    main()
