"""Laws of audio files: written whole or not at all, read whole or not at all."""

import os

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, Recording

from smoe_cli import audio
from smoe_cli.audio import check_readable, describe, listen, read_samples, write_flac
from smoe_cli.errors import DataError

SAMPLES = np.arange(-800, 800, dtype=np.int16)


def test_samples_survive_writing_and_reading(tmp_path):
    write_flac(tmp_path / "new" / "a.flac", SAMPLES, 16000)
    read, rate_hz = soundfile.read(tmp_path / "new" / "a.flac", dtype="int16")
    assert rate_hz == 16000
    np.testing.assert_array_equal(read, SAMPLES)


def test_a_full_disk_leaves_what_was_there_and_says_so(tmp_path, monkeypatch):
    write_flac(tmp_path / "a.flac", SAMPLES, 16000)
    before = (tmp_path / "a.flac").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write `.*a.flac`: No space left") as caught:
        write_flac(tmp_path / "a.flac", -SAMPLES, 16000)
    assert caught.value.hint
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.flac": before}


@pytest.mark.parametrize("content", [None, b"no audio", b"RIFF"])
def test_whatever_a_reader_raises_is_an_error_that_can_be_printed(tmp_path, content):
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    recording = Recording("r", [AudioSource("file", [0], str(tmp_path / "a.wav"))], 16000, 9, 9 / 16000)
    with pytest.raises(DataError, match=r"cannot read audio `r`: \w") as caught:
        read_samples(recording, "audio `r`")
    assert caught.value.hint


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write `.*file/a.flac`"):
        write_flac(tmp_path / "file" / "a.flac", SAMPLES, 16000)


def test_a_wav_file_that_was_cut_off_is_refused_and_one_of_unknown_length_is_not(tmp_path):
    path = tmp_path / "call.wav"
    soundfile.write(path, SAMPLES, 8000, subtype="PCM_16")
    whole = path.read_bytes()
    assert describe(path, "call").num_samples == len(SAMPLES)
    path.write_bytes(whole[:-1000])
    with pytest.raises(DataError, match=f"breaks off: {len(whole) - 1000:,} bytes where its header promises {len(whole):,}"):
        describe(path, "call")
    # As a program leaves it that writes into a pipe.
    path.write_bytes(whole[:4] + b"\xff\xff\xff\xff" + whole[8:])
    assert describe(path, "call").num_samples == len(SAMPLES)


def test_what_a_reader_cannot_open_is_said_whatever_it_raises(tmp_path):
    """Of a `.raw` file libsndfile wants to be told the rate; a name that is not UTF-8 it cannot be given."""
    soundfile.write(tmp_path / "a.wav", SAMPLES, 16000)
    for name in ("a.raw", os.fsdecode(b"\xff.wav")):
        path = tmp_path / name
        path.write_bytes((tmp_path / "a.wav").read_bytes())
        recording = Recording("r", [AudioSource("file", [0], str(path))], 16000, 1600, 0.1)
        with pytest.raises(DataError, match="cannot open audio"):
            describe(path, "r")
        with pytest.raises(DataError, match="cannot be opened"):
            check_readable(recording)


def test_many_channels_are_not_decoded_at_once(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (1000, 50)), 16000)
    recording, sizes, read = describe(tmp_path / "a.wav", "r", None), [], soundfile.SoundFile.read

    def counted(file, *args, **kwargs):
        block = read(file, *args, **kwargs)
        sizes.append(block.size)
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    monkeypatch.setattr(audio, "BLOCK", 5000)
    assert listen(recording) == audio.SOUND
    assert max(sizes) == 5000 and sum(sizes) == 50_000
