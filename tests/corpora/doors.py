"""Tiny trees of corpora that other toolkits wrote, and of a table: what the recipes to copy expect, with tones instead of speech.

Each has three splits, and English speech with a German translation here and there.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.shar import SharWriter

from tests.corpora.writing import text, tone

SPLITS = ("train", "dev", "test")


def table(root: Path) -> None:
    """Of the second recording nobody knows the German."""
    rows = []
    for split in SPLITS:
        for name in ("a", "b"):
            tone(root / "mine" / "audio" / f"{split}-{name}.wav")
        rows.append(f"{split}-a\taudio/{split}-a.wav\t{split}\tanna-{split}\tThank you, Chris.\tDanke, Chris. ||| Vielen Dank, Chris.")
        rows.append(f"{split}-b\taudio/{split}-b.wav\t{split}\t\tGood evening.\t")
    text(root / "mine" / "mine.tsv", "id\tpath\tsplit\tspeaker\ttranscript\tgerman", *rows)


def audiofolder(root: Path) -> None:
    for split in ("train", "validation", "test"):
        folder = root / "clips" / split
        tone(folder / "0001.wav")
        tone(folder / "more" / "0002.flac", rate=44100)
        rows = [f'0001.wav,"Thank you, Chris.",anna-{split},"Danke, Chris."', "more/0002.flac,Good evening.,,"]
        text(folder / "metadata.csv", "file_name,transcription,speaker,translation_de", *rows)


def kaldi(root: Path) -> None:
    """A recording at 16 kHz in two segments, the second of which nobody translated; a telephone call at 8 kHz."""
    for split in SPLITS:
        folder = root / "data" / split
        tone(root / "wav" / f"meeting-{split}.wav", 4.0)
        tone(root / "wav" / f"phone-{split}.flac", 2.0, 8000)
        first, second, third = (f"{one}-{split}" for one in ("anna-meeting-1", "anna-meeting-2", "luis-phone-1"))
        text(folder / "wav.scp", f"meeting-{split} wav/meeting-{split}.wav", f"phone-{split} wav/phone-{split}.flac")
        text(
            folder / "segments",
            f"{first} meeting-{split} 0.25 1.75",
            f"{second} meeting-{split} 2.00 3.50",
            f"{third} phone-{split} 0.50 -1",
        )
        text(folder / "text.tc.en", f"{first} Thank you, Chris.", f"{second} Good evening.", f"{third} Call me back.")
        text(folder / "text.tc.de", f"{first} Danke, Chris.", f"{third} Ruf mich zurück.")
        text(folder / "utt2spk", f"{first} anna-{split}", f"{second} anna-{split}", f"{third} luis-{split}")


def nemo(root: Path) -> None:
    """A talk with a row for each task; two parts of another one, the second with both texts in a row."""
    for split in SPLITS:
        for name in ("a", "b"):
            tone(root / "nemo" / "wavs" / f"{split}-{name}.wav", 3.0)
        whole = {"audio_filepath": f"wavs/{split}-a.wav", "duration": 3.0, "speaker": f"anna-{split}"}
        part = {"audio_filepath": f"wavs/{split}-b.wav", "duration": 1.25, "speaker": f"luis-{split}"}
        german = {"taskname": "ast", "source_lang": "en-US", "target_lang": "de-DE"}
        rows = [
            whole | {"text": "Thank you, Chris.", "taskname": "asr", "source_lang": "en-US", "target_lang": "en-US"},
            whole | {"text": "Danke, Chris."} | german,
            part | {"offset": 0.25, "text": "Good evening."},
            part | {"offset": 1.5, "text": "Call me back.", "answer": "Ruf mich zurück."} | german,
        ]
        text(root / "nemo" / f"{split}_manifest.json", *map(json.dumps, rows))


def _cut(path: Path, name: str, said: str, channel: int = 0, **custom: str) -> MonoCut:
    """A cut of a whole recording."""
    recording = Recording.from_file(path, recording_id=path.stem)
    segment = SupervisionSegment(
        name, recording.id, 0.0, recording.duration, channel, said, speaker=name.rpartition("-")[0], custom=dict(custom)
    )
    return MonoCut(name, 0.0, recording.duration, channel, supervisions=[segment], recording=recording)


def _from(root: Path, tree: Mapping[str, Any]) -> dict[str, Any]:
    """A cut as a manifest has it, with the path of its audio from `root`."""
    (source,) = tree["recording"]["sources"]
    named = source | {"source": str(Path(source["source"]).relative_to(root))}
    return {**tree, "recording": tree["recording"] | {"sources": [named]}}


def lhotse(root: Path) -> None:
    """A call at 8 kHz, of which two cuts hear a side each; nobody translated the second. A talk at 16 kHz."""
    for split in SPLITS:
        call, talk = root / "audio" / f"call-{split}.wav", root / "audio" / f"talk-{split}.flac"
        tone(call, 2.0, 8000, (0.2, 0.6))
        tone(talk, 1.5)
        cuts = [
            _cut(call, f"anna-{split}-1", "Call me back.", 0, text_de="Ruf mich zurück."),
            _cut(call, f"luis-{split}-1", "Good evening.", 1),
            _cut(talk, f"vera-{split}-1", "Thank you, Chris.", text_de="Danke, Chris."),
        ]
        path = root / "manifests" / f"cuts.{split}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress("".join(f"{json.dumps(_from(root, cut.to_dict()))}\n" for cut in cuts).encode()))


def shar(root: Path) -> None:
    """Three cuts in two shards, as Lhotse writes them; the last one has no translation."""
    for split in SPLITS:
        folder = root / "shar" / split
        folder.mkdir(parents=True)
        said = {"Thank you, Chris.": {"text_de": "Danke, Chris."}, "Call me back.": {"text_de": "Ruf mich zurück."}, "Good evening.": {}}
        with SharWriter(str(folder), {"recording": "flac"}, shard_size=2) as writer:
            for number, (english, german) in enumerate(said.items()):
                path = root / f"{split}-{number}.wav"
                tone(path, 1.0 + number / 4)
                writer.write(_cut(path, f"anna-{split}-{number}", english, **german))
                path.unlink()


def tedlium(root: Path) -> None:
    """TED-LIUM 3, which Lhotse has a recipe for: a talk in two segments, with one between them that nobody scores."""
    for split in SPLITS:
        folder, talk = root / "TEDLIUM_release-3" / "legacy" / split, f"AnnaLee_{split}"
        tone(folder / "sph" / f"{talk}.sph", 4.0, format="NIST", subtype="PCM_16")
        segments = ["0.25 1.75 <o,f0,female> thank you so much chris", "2.00 3.50 <o,f0,female> it 's a great <unk> honor"]
        unscored = "1.75 2.00 <o,,unknown> ignore_time_segment_in_scoring"
        text(folder / "stm" / f"{talk}.stm", *(f"{talk} 1 {talk} {line}" for line in (segments[0], unscored, segments[1])))


DOORS: dict[str, Callable[[Path], None]] = {
    "table": table,
    "audiofolder": audiofolder,
    "kaldi": kaldi,
    "nemo": nemo,
    "lhotse": lhotse,
    "lhotse-recipe": tedlium,
    "shar": shar,
}
"""Recipe to copy -> what writes a corpus as it expects one."""
