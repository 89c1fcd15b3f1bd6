"""Opening audio files: lazily described, fully read once when checked. Writing those that a corpus makes."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from math import ceil
from pathlib import Path

import numpy as np
import soundfile
from lhotse import AudioSource, MonoCut, Recording
from lhotse.audio.backend import set_current_audio_backend
from numpy.typing import NDArray

from smoe_cli.containers import cut_off
from smoe_cli.errors import DataError, MissingAudio
from smoe_cli.manifests import cure_of
from smoe_cli.records import write_atomically
from smoe_cli.transforms import chain_of, check_rate

TOLERANCE_S = 0.05
"""A table or a manifest may round; more than this and the audio is not the one that was listed."""
RIGHTS = "give yourself the right to enter and read it, for example with `chmod -R u+rX`, or ask whom it belongs to"
LONGEST_S = 12 * 3600.0
"""No recording of speech is longer; a small file can claim to be, and would take hours to decode."""
LONGEST_PATH = 1000
"""Characters of a path or an id that are printed; a text in the wrong column can have thousands."""
BLOCK = 2**20
"""Samples, of all channels together, that are decoded at once, whatever a header claims."""
FULL_SCALE, FULL_SCALES = 0.9999, {"ULAW": 32124 / 2**15, "ALAW": 32256 / 2**15}
"""What counts as full scale, and what decoders put out at most where that is less: libsndfile's name of the codec -> sample."""
MOST_CLIPPED = 0.001
"""Share of samples at full scale above which a recording counts as clipped: one in a thousand is heard as a crackle."""
SOUNDFILE_RAISES = (soundfile.LibsndfileError, OSError, TypeError, UnicodeError)
"""What it raises on files that are no audio; a `TypeError` for any `.raw`, of which it wants to be told the rate, and a `UnicodeError`
for names that are not UTF-8."""
FAINT = 0.001
"""Half the way from the lowest to the highest sample (-60 dBFS), below which speech is lost in the noise of 16 bits."""
STILL, FRAME_S = 2.0**-16, 0.01
"""From lowest to highest sample, half a step of 16 bits: a frame of no more is one value, also where a lossy codec decodes zeros."""
LONG_S, MOST_STRETCHES = 0.5, 1000
"""A stretch of such frames is remembered from this length on; of a file the longest ones."""


def describe(path: Path, recording_id: str, channels: int | None = 1) -> Recording:
    """A Recording from a file's header, not yet read.

    Args:
        channels: How many it must have; None: any number.

    Raises:
        DataError: If the file is missing, unreadable, empty, or has another number of channels or a rate that no speech has.
    """
    if not os.path.isfile(path):  # unlike Path's own, it answers for impossible names too
        what = f"`{_short(str(path))}` (utterance `{_short(recording_id)}`)"
        if os.path.exists(path):
            raise DataError(f"audio {what} is no plain file", "name a file of audio: no folder, no pipe, no device")
        raise MissingAudio(f"no audio file {what}", "correct the path, or bring the file back")
    try:
        info = soundfile.info(str(path))
    except SOUNDFILE_RAISES as error:
        _check_rights(path, f"audio `{path}` (utterance `{recording_id}`)")
        raise DataError(
            f"cannot open audio `{path}` (utterance `{recording_id}`): {error}", "convert it to FLAC or WAV, or remove it"
        ) from error
    if info.frames <= 0:
        raise DataError(f"audio `{path}` (utterance `{recording_id}`) holds no samples", "remove it, or bring back the whole file")
    check_rate(f"audio `{path}` (utterance `{recording_id}`)", info.samplerate)
    if channels is not None and info.channels != channels:
        expected = "one is" if channels == 1 else f"{channels} are"
        raise DataError(
            f"audio `{path}` (utterance `{recording_id}`) has {info.channels} channels; {expected} expected",
            "split it into one file per channel, for example with `sox in.wav out.wav remix 1`"
            if channels == 1
            else "bring back the whole call, one speaker on each channel",
        )
    _check_whole(path, f"audio `{path}` (utterance `{recording_id}`)")
    source = AudioSource(type="file", channels=list(range(info.channels)), source=str(path.resolve()))
    return Recording(recording_id, [source], sampling_rate=info.samplerate, num_samples=info.frames, duration=info.frames / info.samplerate)


def _short(name: str) -> str:
    """A name as it is, or the beginning of one that no file can have."""
    return name if len(name) <= LONGEST_PATH else f"{name[:60]}…"


def _check_rights(path: Path, what: str) -> None:
    """For a file that cannot be opened: libsndfile does not say that one has no right to.

    Raises:
        DataError: If it is so.
    """
    try:
        path.open("rb").close()
    except PermissionError:
        raise DataError(f"no right to read {what}", RIGHTS) from None
    except (OSError, ValueError):
        pass


def read_as_checked() -> None:
    """Let Lhotse read files with libsndfile, as they are checked here; for `.sph` it would run a program, in a line of shell."""
    set_current_audio_backend("LibsndfileBackend")


# On import: so every process that reads audio does it once, forked and spawned ones too.
read_as_checked()


def load(audio: MonoCut | Recording, channel: int | None = None) -> NDArray[np.float32]:
    """The samples (C,N) of a cut, or of one channel of a recording; raises whatever Lhotse does."""
    return np.asarray(audio.load_audio() if channel is None else audio.load_audio(channels=channel))


def read_samples(
    audio: MonoCut | Recording,
    what: str,
    channel: int | None = None,
    part_s: tuple[float, float] | None = None,
    cure: str = "bring back the file, or prepare the manifest again",
) -> NDArray[np.float32]:
    """The samples (C,N) of a cut or a recording.

    Args:
        audio: It.
        what: Names it, in an error.
        channel: Of a recording; None: all.
        part_s: Start and duration of a part of a recording; None: all of it.
        cure: What to do if it cannot be read.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        if part_s is None:
            return load(audio, channel)
        return np.asarray(audio.load_audio(channels=channel, offset=part_s[0], duration=part_s[1]))
    except Exception as error:  # Lhotse wraps every reader's own errors
        recording = audio if isinstance(audio, Recording) else audio.recording
        files = [source.source for source in recording.sources if source.type == "file"]
        gone = [file for file in files if not os.path.isfile(file)]
        if gone:
            raise DataError(f"cannot read {what}: there is no file `{gone[0]}`", cure) from error
        raise DataError(f"cannot read {what}: {_first_words(error)}", cure) from error


def _first_words(error: BaseException) -> str:
    """What the library itself said: Lhotse raises errors of libsndfile anew with a text for a number, and then nothing can print them."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    first = next((one for one in reversed(chain) if isinstance(one, soundfile.LibsndfileError)), error)
    return str(first.code if isinstance(first, soundfile.LibsndfileError) and isinstance(first.code, str) else first)


def resampled(recording: Recording, rate_hz: int) -> Recording:
    """A recording that is brought to another rate when it is read.

    Raises:
        DataError: If that would take a filter of a size that no memory holds.
    """
    check_rate(f"audio `{recording.sources[0].source}`", recording.sampling_rate, rate_hz)
    return recording.resample(rate_hz)


def state_of(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change: who has the same is the same file; None: there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _check_whole(path: Path, where: str) -> None:
    """Libsndfile takes a file that was cut off for a short one; its container tells.

    Raises:
        DataError: If the file ends before it should.
    """
    with path.open("rb") as file:
        how = cut_off(file)
    if how:
        raise DataError(f"{where} breaks off: {how}", "bring back the whole file, or remove it")


@dataclass(frozen=True, slots=True)
class Heard:
    """What reading a recording to its end showed.

    Attributes:
        problem: Why it cannot be used; None: it can.
        notes: What to know of it all the same.
        whole: Whether it was read; what is not as promised is not.
        dead: Channels that are nothing but one value, zero or another, where others are not.
        still: Stretches of other channels that are, as `packed`: there can be some in each of a million recordings.
    """

    problem: DataError | None = None
    notes: tuple[str, ...] = ()
    whole: bool = False
    dead: tuple[int, ...] = ()
    still: bytes = b""

    @property
    def stretches(self) -> list[list[float]]:
        """The stretches that are still: channel, from and to, in seconds of the file."""
        return [list(map(float, one)) for one in self._table]

    @property
    def _table(self) -> NDArray[np.float32]:
        return np.frombuffer(self.still, np.float32).reshape(-1, 3)

    def problem_of(self, recording: Recording, channel: int, start_s: float, duration_s: float | None) -> DataError | None:
        """Why a part of a channel of the recording cannot be used; None: it can.

        Args:
            duration_s: Of the part; None: to the end.
        """
        if self.problem is not None or not (self.dead or self.still):
            return self.problem
        end_s, speed = recording.duration if duration_s is None else start_s + duration_s, chain_of(recording).speed
        # Where a stretch begins and ends is known to a frame.
        first_s, last_s = start_s * speed + 2 * FRAME_S, end_s * speed - 2 * FRAME_S
        one_N, from_N, to_N = self._table.T
        inside = bool(((one_N == channel) & (from_N <= first_s) & (last_s <= to_N)).any())
        if not inside and channel not in self.dead:
            return None
        audio, several = next((one.source, len(one.channels) > 1) for one in recording.sources if channel in one.channels)
        where = f"audio `{audio}` (recording `{recording.id}`)"
        if inside:
            what = f"channel {channel} of {where}" if several else where
            return _silent(
                what,
                f"or hardly more than one from {start_s:.2f} to {end_s:.2f} s",
                "correct the times or the channel of this part, or leave it out",
            )
        return _silent(f"channel {channel} of {where}")


def packed(stretches: Iterable[Sequence[float]]) -> bytes:
    """What `Heard.stretches` unpacks."""
    return np.array(list(stretches), np.float32).tobytes()


SOUND = Heard(whole=True)
"""One object for all that is as it should be."""


def listen(recording: Recording, before: Heard | None = None) -> Heard:
    """Read a recording to its end, in blocks; nothing is raised, so that others can be read too.

    What is found: a file that is missing, unreadable, broken off or not as promised; values that are not finite, or nothing
    but one value, in all of it or in long stretches. To be noted of each channel: clipping, and a swing below -60 dBFS.

    Args:
        before: What was heard of the same files; they are then not read again, but only compared with what is promised.
    """
    named = {f"audio `{source.source}` (recording `{recording.id}`)": source for source in recording.sources}
    try:
        for where, source in named.items():
            _check_promise(recording, source, where)
    except DataError as error:
        return Heard(error)
    if before is not None:
        return before
    notes: list[str] = []
    dead: list[int] = []
    still: list[tuple[int, float, float]] = []
    try:
        for where, source in named.items():
            more, silent, stretches = _listen(source, where)
            notes, dead, still = notes + more, dead + silent, still + stretches
        if len(dead) == sum(len(source.channels) for source in recording.sources):
            raise _silent(next(iter(named)))
    except DataError as error:
        return Heard(error, whole=True)
    return Heard(notes=tuple(notes), whole=True, dead=tuple(dead), still=packed(still))


def check_readable(recording: Recording) -> None:
    """Read a recording to its end.

    Raises:
        DataError: The problem that `listen` finds.
    """
    if problem := listen(recording).problem:
        raise problem


def _check_promise(recording: Recording, source: AudioSource, where: str) -> None:
    """Compare a file's header with what was promised, before anything is decoded.

    Raises:
        DataError: If it is no file, of another length or rate, or longer than any speech or at a rate that none has.
    """
    if source.type != "file":
        raise DataError(
            f"{where} is of type `{source.type}`: a manifest could run a program or reach the network that way",
            cure_of(source.type),
        )
    if not os.path.isfile(source.source):
        raise MissingAudio(f"{where} does not exist", "correct the path in the manifest, or bring the file back")
    try:
        info = soundfile.info(source.source)
    except SOUNDFILE_RAISES as error:
        _check_rights(Path(source.source), where)
        raise DataError(f"{where} cannot be opened: {error}", "bring back the whole file, or remove it") from error
    check_rate(where, info.samplerate)
    lasts_s, chain = info.frames / info.samplerate, chain_of(recording)
    if lasts_s > LONGEST_S:
        raise DataError(
            f"{where} claims to last {lasts_s / 3600:,.0f} hours; at most {LONGEST_S / 3600:g} are read", "split it, or remove it"
        )
    promised = recording.num_samples, recording.sampling_rate
    kept = (info.frames, info.samplerate) == promised
    if recording.transforms is not None:
        promised = round(recording.duration * chain.speed * chain.native_hz), chain.native_hz
        kept = info.samplerate == chain.native_hz and abs(lasts_s / chain.speed - recording.duration) <= TOLERANCE_S
    if not kept:
        raise DataError(
            f"{where} {'breaks off' if lasts_s < recording.duration * chain.speed else 'is not as promised'}: {info.frames} samples at "
            f"{info.samplerate} Hz where {promised[0]} at {promised[1]} Hz are promised",
            "bring back the right file, whole, or remove it",
        )
    # Last: a manifest that was made of a whole file says better what is missing.
    _check_whole(Path(source.source), where)


def _listen(source: AudioSource, where: str) -> tuple[list[str], list[int], list[tuple[int, float, float]]]:
    """What to note of a file's channels, which of them are nothing but one value, and long stretches of others that are."""
    frames, finite, still = 0, True, list[tuple[int, int, int]]()
    clipped_C, lowest_C, highest_C = np.zeros(1, dtype=int), np.full(1, np.inf, np.float32), np.full(1, -np.inf, np.float32)
    try:
        with soundfile.SoundFile(source.source) as file:
            full, step, moved_C = FULL_SCALES.get(file.subtype, FULL_SCALE), ceil(FRAME_S * file.samplerate), np.full(file.channels, -1)
            size = max(1, BLOCK // file.channels // step) * step
            while len(block := file.read(size, dtype="float32", always_2d=True)):
                # Channel by channel in memory, which is the faster way through it.
                block_CN = np.ascontiguousarray(block.T)
                steps_CTN = np.pad(block_CN, ((0, 0), (0, -len(block) % step)), "edge").reshape(file.channels, -1, step)
                clipped_C = clipped_C + (np.abs(block_CN) >= full).sum(axis=1)
                low_CT, high_CT = steps_CTN.min(axis=2), steps_CTN.max(axis=2)
                still = _longest(still, high_CT > low_CT + STILL, frames // step, moved_C)
                lowest_C, highest_C = np.minimum(lowest_C, low_CT.min(axis=1)), np.maximum(highest_C, high_CT.max(axis=1))
                finite &= bool(np.isfinite(block).all())
                frames += len(block)
            promised, rate = file.frames, file.samplerate
    except SOUNDFILE_RAISES as error:
        raise DataError(f"{where} cannot be read to its end: {error}", "bring back the whole file, or remove it") from error
    if frames != promised:
        raise DataError(
            f"{where} breaks off: {frames} samples at {rate} Hz where its header promises {promised}",
            "bring back the whole file, or remove it",
        )
    if not finite:
        raise DataError(f"{where} holds values that are not numbers", "convert it again from the original")
    notes: list[str] = []
    dead: list[int] = []
    for channel, clipped, lowest, highest in zip(source.channels, clipped_C, lowest_C, highest_C, strict=False):
        what, swing = where if len(clipped_C) == 1 else f"channel {channel} of {where}", float(highest - lowest) / 2
        if swing == 0:
            dead.append(channel)
            continue
        if clipped > max(MOST_CLIPPED * frames, 1):
            notes.append(f"{what} is clipped: {100 * clipped / frames:.1f} % of its samples are at full scale")
        if swing < FAINT:
            notes.append(f"{what} is nearly silent: its peak is {20 * np.log10(swing):.0f} dBFS")
    # The end of the file moves.
    still, channels = _longest(still, np.ones((len(moved_C), 1), bool), ceil(frames / step), moved_C), dict(enumerate(source.channels))
    found = [(channels[place], first * step / rate, last * step / rate) for place, first, last in still if place in channels]
    return notes, dead, [one for one in found if one[0] not in dead]


def _longest(
    still: Iterable[tuple[int, int, int]], moving_CT: NDArray[np.bool_], before: int, moved_C: NDArray[np.int_]
) -> list[tuple[int, int, int]]:
    """The longest stretches that are still: channel, first frame and the one after the last.

    Args:
        still: Those that were found before.
        moving_CT: Which frames are not still.
        before: How many came before these.
        moved_C: The last of those that was not, in each channel; brought up to date.
    """
    found = list(still)
    for channel, moving_T in enumerate(moving_CT):
        moved = np.append(moved_C[channel], before + np.flatnonzero(moving_T))
        found += [(channel, int(moved[i]) + 1, int(moved[i + 1])) for i in np.flatnonzero(np.diff(moved) >= LONG_S / FRAME_S)]
        moved_C[channel] = moved[-1]
    return nlargest(MOST_STRETCHES, found, key=lambda one: one[2] - one[1])


def _silent(what: str, part: str = "from its beginning to its end", cure: str = "remove it, or bring back the right file") -> DataError:
    return DataError(f"{what} is nothing but silence: one value {part}", cure)


def write_flac(path: Path, samples_N: NDArray[np.int16], rate_hz: int) -> None:
    """Write a whole file, 16-bit mono FLAC, or nothing.

    Raises:
        DataError: If the folder cannot be written or the disk is full.
    """
    # In memory first: libsndfile does not say why it cannot write to a disk.
    encoded = io.BytesIO()
    soundfile.write(encoded, samples_N, rate_hz, format="FLAC", subtype="PCM_16")
    write_atomically(path, encoded.getvalue())
