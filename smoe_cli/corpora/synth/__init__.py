"""Synthetic speech over a built-in parallel text: sentences from `grammar`, voices from `voices`, audio from `speak`.

Every choice depends only on the settings' seed and the utterance's id, so neither the order of work nor the number of
processes shows in the audio.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from hashlib import sha256
from pathlib import Path

from lhotse import Recording

from smoe_cli.config import SPLITS
from smoe_cli.corpora.synth.plan import Planned, plan
from smoe_cli.corpora.synth.speak import Saying, speak_all
from smoe_cli.corpora.synth.voices import versions
from smoe_cli.corpora.utterance import Utterance, Work
from smoe_cli.corpus_settings import SynthCorpus
from smoe_cli.errors import DataError
from smoe_cli.records import write_text_atomically

STAMP = "settings.json"
CHUNK = 16
"""Sayings handed over at once: about a second of work, so that progress moves and Ctrl-C is soon obeyed."""


def read(settings: SynthCorpus, work: Work) -> Iterator[Utterance]:
    """Speak the corpus and yield it, split by split; a split that the recipe leaves out is not spoken.

    Audio lies in `work.audio_dir/<split>/<id>.flac`. What an interrupted run with the same settings has finished is
    kept; what other settings made is replaced.

    Raises:
        DataError: For an unknown split, more sentences or renditions than there can be, an engine that is not
            installed, or one that is silent or clips, or a folder that cannot be written.
    """
    installed = versions(dict.fromkeys(settings.engines))
    planned = plan(settings, work.audio_dir)
    if work.dry_run:
        return
    _clear_stale(planned, installed, work.audio_dir)
    # Planned nonetheless: to leave a split out changes nothing in the others.
    kept = [item for item in planned if settings.split_of(item.split) is not None]
    _speak_missing([item.saying for item in kept], work)
    for item in kept:
        yield Utterance(
            id=item.id,
            recording=Recording.from_file(item.saying.path.resolve(), recording_id=item.id),
            split=item.split,
            speaker=f"synth-{item.saying.voice.name}",
            language="en",
            transcript=item.sentence.en,
            translations={"de": [item.sentence.de], "fr": [item.sentence.fr]},
            subset=item.subset,
            synthetic=True,
            labels={"subject": item.sentence.kind},
        )


def _clear_stale(planned: list[Planned], installed: dict[str, str], audio_dir: Path) -> None:
    """Remove audio that other settings, voices or engine versions made; the stamp in the folder tells."""
    digest = sha256()
    for item in planned:
        saying = item.saying
        digest.update(f"{item.id}\t{saying.text}\t{saying.voice}\t{saying.seed}\n".encode())
    stamp = json.dumps({"engines": installed, "utterances": len(planned), "digest": digest.hexdigest()}, indent=2) + "\n"
    path = audio_dir / STAMP
    if path.is_file() and path.read_text(encoding="utf-8") == stamp:
        return
    for split in SPLITS:
        for old in (audio_dir / split).glob(f"{split}-*.flac"):
            old.unlink()
    # Last: until here the old stamp told the truth about the files that are left.
    write_text_atomically(path, stamp)


def _speak_missing(sayings: list[Saying], work: Work) -> None:
    missing = [saying for saying in sayings if not saying.path.is_file()]
    done = len(sayings) - len(missing)
    work.progress(done, len(sayings), "speech synthesized")
    chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
    with closing(_spoken(chunks, min(work.jobs, len(chunks)))) as spoken:
        for finished in spoken:
            done += finished
            work.progress(done, len(sayings), "speech synthesized")


def _spoken(chunks: list[list[Saying]], jobs: int) -> Generator[int, None, None]:
    """Speak chunks, in other processes if more than one may run; yields the number of sayings of each finished chunk."""
    if jobs <= 1:
        yield from map(speak_all, chunks)
        return
    # Spawned, not forked: a fork copies the locks of torch's and onnxruntime's threads but not the threads.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        for future in as_completed([pool.submit(speak_all, chunk) for chunk in chunks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a speech synthesis process ended before its work was done (killed, or out of memory)",
            "run the command again, it keeps the finished audio; fewer jobs need less memory",
        ) from error
    finally:
        # On an error or Ctrl-C the chunks not yet begun are dropped; those at work end within a second or two.
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which stops the workers in order; and never outlive it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers have a parent"

    def follow_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
