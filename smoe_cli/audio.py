"""Opening audio files: lazily described, fully read once when checked. Writing those that a corpus makes."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import soundfile
from lhotse import AudioSource, Recording
from numpy.typing import NDArray

from smoe_cli.errors import DataError
from smoe_cli.records import write_atomically

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, AssertionError, OSError, EOFError, zlib.error)
"""What Lhotse and gzip raise on a damaged manifest."""
LONGEST_RIFF = 0x7FFFFFFF
TOLERANCE_S = 0.05
"""A table or a manifest may round; more than this and the audio is not the one that was listed."""


def describe(path: Path, recording_id: str) -> Recording:
    """A Recording from a file's header, not yet read.

    Raises:
        DataError: If the file is missing, unreadable, empty or has several channels.
    """
    if not path.is_file():
        raise DataError(f"no audio file `{path}` (utterance `{recording_id}`)", "correct the path, or bring the file back")
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(
            f"cannot open audio `{path}` (utterance `{recording_id}`): {error}", "convert it to FLAC or WAV, or remove it"
        ) from error
    if info.frames <= 0:
        raise DataError(f"audio `{path}` (utterance `{recording_id}`) holds no samples", "remove it, or bring back the whole file")
    if info.channels != 1:
        raise DataError(
            f"audio `{path}` (utterance `{recording_id}`) has {info.channels} channels; one is expected",
            "split it into one file per channel, for example with `sox in.wav out.wav remix 1`",
        )
    _check_wav_length(path, recording_id)
    source = AudioSource(type="file", channels=[0], source=str(path.resolve()))
    return Recording(recording_id, [source], sampling_rate=info.samplerate, num_samples=info.frames, duration=info.frames / info.samplerate)


def _check_wav_length(path: Path, recording_id: str) -> None:
    """Libsndfile takes a WAV file that was cut off for a short one; its header tells.

    Raises:
        DataError: If the file is shorter than its header says.
    """
    with path.open("rb") as file:
        head = file.read(8)
    promised = int.from_bytes(head[4:8], "little") + len(head)
    # A program that writes into a pipe does not know the length: its header says 0, or as much as can be said.
    if head[:4] == b"RIFF" and len(head) < promised < LONGEST_RIFF and path.stat().st_size < promised:
        raise DataError(
            f"audio `{path}` (utterance `{recording_id}`) breaks off: {path.stat().st_size:,} bytes where its header promises {promised:,}",
            "bring back the whole file, or remove it",
        )


def check_readable(recording: Recording) -> None:
    """Read a recording to its end.

    Raises:
        DataError: If it breaks off, or holds a value that is not finite, or nothing but zeros.
    """
    for source in recording.sources:
        where = f"audio `{source.source}` (recording `{recording.id}`)"
        if source.type != "file":
            raise DataError(
                f"{where} is of type `{source.type}`: a manifest could run a program or reach the network that way",
                "save the audio as a file and name that",
            )
        if not Path(source.source).is_file():
            raise DataError(f"{where} does not exist", "correct the path in the manifest, or bring the file back")
        try:
            samples, rate = soundfile.read(source.source, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            raise DataError(f"{where} cannot be read to its end: {error}", "bring back the whole file, or remove it") from error
        if recording.transforms is None and (len(samples) != recording.num_samples or rate != recording.sampling_rate):
            raise DataError(
                f"{where} breaks off: {len(samples)} samples at {rate} Hz "
                f"where {recording.num_samples} at {recording.sampling_rate} Hz are promised",
                "bring back the whole file, or remove it",
            )
        if not np.isfinite(samples).all():
            raise DataError(f"{where} holds values that are not numbers", "convert it again from the original")
        if not samples.any():
            raise DataError(f"{where} is nothing but silence (all zeros)", "remove it, or bring back the right file")


def write_flac(path: Path, samples_N: NDArray[np.int16], rate_hz: int) -> None:
    """Write a whole file, 16-bit mono FLAC, or nothing.

    Raises:
        DataError: If the folder cannot be written or the disk is full.
    """
    # In memory first: libsndfile does not say why it cannot write to a disk.
    encoded = io.BytesIO()
    soundfile.write(encoded, samples_N, rate_hz, format="FLAC", subtype="PCM_16")
    write_atomically(path, encoded.getvalue())
