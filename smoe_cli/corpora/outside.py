"""Audio for which a manifest names a shell command or an address: where the recipe allows it, brought in once and kept as a file."""

from __future__ import annotations

import hashlib
import http.client
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from smoe_cli.audio import BLOCK, LONGEST_S
from smoe_cli.containers import cut_off
from smoe_cli.corpora.archive import LARGEST_AUDIO, Unwritable
from smoe_cli.corpora.utterance import Work
from smoe_cli.errors import DataError
from smoe_cli.records import whole_file

COMMAND, URL = "command", "url"
"""The kinds of source that can be allowed, by Lhotse's names."""
CALLED = {COMMAND: "command", URL: "address"}
TIME_LIMIT_S = 600.0
"""Longest that a command may run, or a download may take."""
SILENCE_S = 30.0
"""Longest that a server may say nothing."""
POLL_S = 0.2
"""How soon a command is ended once nobody waits for it any more."""
READ, AHEAD = 2**16, 1024
SHOWN = 200
"""Characters of a command, or of its complaint, that a message shows."""
MOST_CHANNELS = 8
"""FLAC has no more."""
ROUNDED = ("FLOAT", "DOUBLE", "VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
"""What libsndfile decodes to numbers that are not whole."""
FINE = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAC_20", "ALAC_24", "ALAC_32")
"""What has more than 16 bits."""
WRITABLE = "check the folder's rights and the free disk space"
CURE = "run it yourself to see why; or write its audio to a file, and name that"


class Named(NamedTuple):
    """A source that is no file.

    Attributes:
        kind: `command` or `url`.
        source: The line of shell, or the address.
        promised: (sampling rate, samples) of its audio, if that was said.
    """

    kind: str
    source: str
    promised: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{CALLED[self.kind]} `{_short(self.source)}`"


class _Stopped(Exception):
    """Nobody waits for this audio any more."""


class Outside:
    """Brings in the audio of commands and addresses, each once: what an earlier call kept is found, and a failure is remembered.

    A command is run by the shell, with the rights and the environment of whoever called smoe; it has no input, and after
    `TIME_LIMIT_S` it is ended with all that it started. What is brought in goes to disk, up to `LARGEST_AUDIO` bytes, is read to its
    end, and is kept as FLAC under a name made from the source: of 16 bits, or 24 where it has more.

    Args:
        allowed: Kinds that the recipe allows.
        work: The corpus; its `audio_dir` keeps the audio.
        folder: Where commands run.
    """

    def __init__(self, allowed: Iterable[str], work: Work, folder: Path) -> None:
        self.allowed = frozenset(allowed)
        self._work, self._folder = work, folder.resolve()
        self._failed: dict[Named, DataError] = {}

    def bring(self, named: Iterable[Named]) -> None:
        """Bring in several at once, by `work.jobs` threads; what fails is said by `file_of`.

        Raises:
            Unwritable: If audio cannot be written.
        """
        new: dict[Path, Named] = {}  # one by one what is promised differently of the same source
        for one in named:
            if one not in self._failed and self._kept(one) is None:
                new.setdefault(self._target(one), one)
        if not new:
            return
        stop, done, waiting = threading.Event(), 0, iter(new.values())
        pool = ThreadPoolExecutor(max(1, min(self._work.jobs, len(new))))
        try:
            while some := list(islice(waiting, AHEAD)):
                for one, error in zip(some, pool.map(lambda one: self._try(one, stop), some), strict=True):
                    if error is not None:
                        self._failed[one] = error
                    done += 1
                    self._work.progress(done, len(new), f"{self._work.name}: commands and addresses")
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def file_of(self, named: Named) -> Path:
        """The file that holds the audio of a source.

        Raises:
            DataError: If a command fails, an address does not answer, or what they give is no sound audio.
            Unwritable: If the audio cannot be written.
        """
        self.bring([named])
        if named in self._failed:
            raise self._failed[named]
        return self._target(named)

    def _target(self, named: Named) -> Path:
        place = f"{self._folder}\t" if named.kind == COMMAND else ""
        name = hashlib.sha256(f"{named.kind}\t{place}{named.source}".encode(errors="surrogatepass")).hexdigest()[:32]
        return self._work.audio_dir / name[:2] / f"{name}.flac"

    def _kept(self, named: Named) -> Path | None:
        """What was brought in before, if it is what is promised now."""
        target = self._target(named)
        if not target.is_file():
            return None
        try:
            info = soundfile.info(str(target))
        except soundfile.LibsndfileError:
            return None
        return target if named.promised in (None, (info.samplerate, info.frames)) else None

    def _try(self, named: Named, stop: threading.Event) -> DataError | None:
        target = self._target(named)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Without a name: a stopped call leaves nothing behind, and no suffix says how it is to be read.
            with (
                tempfile.TemporaryFile(dir=target.parent) as raw,
                closing(_run(named, self._folder, stop) if named.kind == COMMAND else _fetch(named, stop)) as chunks,
            ):
                for chunk in chunks:
                    raw.write(chunk)
                    if raw.tell() > LARGEST_AUDIO:
                        raise DataError(f"{named} gives more than {LARGEST_AUDIO:,} bytes", "split the recording, or leave it out")
                _keep(raw, named, target)
        except OSError as error:
            raise Unwritable(f"cannot write `{target}`: {error.strerror or error}", WRITABLE) from error
        except DataError as error:
            if isinstance(error.__cause__, OSError):
                raise Unwritable(error.message, error.hint) from error
            return error
        return None


def _run(named: Named, folder: Path, stop: threading.Event) -> Generator[bytes, None, None]:
    """Yield what a command writes to its standard output.

    Raises:
        DataError: If it cannot be started, ends badly, or takes too long.
    """
    until = time.monotonic() + TIME_LIMIT_S
    complaint = b""
    try:
        # In a session of its own, so that all that it starts can be ended with it.
        process = subprocess.Popen(
            named.source,
            shell=True,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{named} cannot be started: {error}", CURE) from None
    try:
        with process, selectors.DefaultSelector() as selector:
            try:
                for stream in (process.stdout, process.stderr):
                    assert stream is not None
                    os.set_blocking(stream.fileno(), False)
                    selector.register(stream, selectors.EVENT_READ)
                while selector.get_map():
                    _check_time(named, until, stop)
                    for key, _ in selector.select(POLL_S):
                        chunk = os.read(key.fd, READ)
                        if not chunk:
                            selector.unregister(key.fileobj)
                        elif key.fileobj is process.stdout:
                            yield chunk
                        else:
                            complaint = (complaint + chunk)[-READ:]
                while process.poll() is None:
                    _check_time(named, until, stop)
                    stop.wait(0.01)
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
    except _Stopped:
        raise DataError(f"{named} was stopped", CURE) from None
    if process.returncode:
        how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        lines = [line.strip() for line in complaint.decode(errors="replace").splitlines() if line.strip()]
        raise DataError(f"{named} ended with {how}{f': {_short(lines[-1])}' if lines else ''}", CURE)


def _fetch(named: Named, stop: threading.Event) -> Generator[bytes, None, None]:
    """Yield what an address gives.

    Raises:
        DataError: If it is none of http or https, does not answer, breaks off, or takes too long.
    """
    until = time.monotonic() + TIME_LIMIT_S
    if not named.source.startswith(("http://", "https://")):
        raise DataError(f"{named} is neither http nor https", "download the audio, and name the file")
    try:
        with _opener().open(named.source, timeout=min(SILENCE_S, TIME_LIMIT_S)) as answer:
            while chunk := answer.read1(READ):
                _check_time(named, until, stop)
                yield chunk
            if answer.length:
                raise DataError(f"{named} breaks off: {answer.length:,} bytes are missing", "try again later")
    except _Stopped:
        raise DataError(f"{named} was stopped", CURE) from None
    except urllib.error.HTTPError as error:
        raise DataError(
            f"{named} answers {error.code} {error.reason}", "correct the address, or download the audio and name the file"
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{named} cannot be fetched: {reason}", "correct the address, or download the audio and name the file") from None


def _opener() -> urllib.request.OpenerDirector:
    """What opens addresses of the web, and no others, to which one may also lead on: not files of this machine."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _check_time(named: Named, until: float, stop: threading.Event) -> None:
    if stop.is_set():
        raise _Stopped
    if time.monotonic() > until:
        raise DataError(f"{named} takes longer than {TIME_LIMIT_S:g} s", CURE)


class _Sink:
    """A file that remembers why it could not be written: libsndfile does not say."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            return 0


def _keep(raw: IO[bytes], named: Named, target: Path) -> None:
    """Write audio as FLAC, whole or not at all.

    Raises:
        DataError: If it is no audio, not whole, not as promised, or longer than any speech; or if it cannot be written.
    """
    size = raw.tell()
    if not size:
        raise DataError(f"{named} gives nothing", CURE)
    if how := cut_off(raw):
        raise DataError(f"{named} breaks off: {how}", CURE)
    raw.seek(0)
    try:
        with soundfile.SoundFile(raw) as sound:
            if sound.channels > MOST_CHANNELS:
                raise DataError(f"{named} gives {sound.channels} channels; at most {MOST_CHANNELS} are kept", "take it apart first")
            if named.promised not in (None, (sound.samplerate, sound.frames)):
                rate, frames = named.promised
                raise DataError(
                    f"{named} gives {sound.frames} samples at {sound.samplerate} Hz where {frames} at {rate} Hz are promised",
                    "correct the manifest, or bring back the right audio",
                )
            _write_flac(sound, named, target)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{named} gives {size:,} bytes that are no sound audio: {error.error_string}", CURE) from None


def _write_flac(sound: soundfile.SoundFile, named: Named, target: Path) -> None:
    bits = 24 if sound.subtype in FINE else 16
    frames, peak = 0, 0
    with whole_file(target) as file:
        sink = _Sink(file)
        try:
            with soundfile.SoundFile(sink, "w", sound.samplerate, sound.channels, f"PCM_{bits}", format="FLAC") as flac:
                while len(block_NC := _block(sound, bits, named)):
                    frames += len(block_NC)
                    if frames > LONGEST_S * sound.samplerate:
                        raise DataError(f"{named} gives more than {LONGEST_S / 3600:g} hours", "split it, or leave it out")
                    peak = max(peak, int(block_NC.max()), -int(block_NC.min()))
                    flac.write(block_NC)
        finally:
            if sink.error is not None:
                raise sink.error
        if frames != sound.frames:
            raise DataError(f"{named} breaks off: {frames} samples where its header promises {sound.frames}", CURE)
        if not peak:
            raise DataError(f"{named} gives {'nothing but silence (all zeros)' if frames else 'no samples'}", CURE)


def _block(sound: soundfile.SoundFile, bits: int, named: Named) -> NDArray[np.int32]:
    """Samples in the upper bits of 32, so that whole numbers stay what they are."""
    many = BLOCK // sound.channels
    if sound.subtype not in ROUNDED:
        return np.asarray(sound.read(many, dtype="int32", always_2d=True))
    block_NC = sound.read(many, dtype="float64", always_2d=True)
    if not np.isfinite(block_NC).all():
        raise DataError(f"{named} gives values that are not numbers", CURE)
    full = 2 ** (bits - 1)
    return np.clip(np.rint(block_NC * full), -full, full - 1).astype(np.int32) << (32 - bits)


def _short(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} ..."
