"""Laws of audio files: written whole or not at all, read whole or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, Recording

from smoe_cli import audio
from smoe_cli.audio import check_readable, describe, listen, read_samples, write_flac
from smoe_cli.containers import cut_off
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
    # Whole frames of 10 ms.
    monkeypatch.setattr(audio, "BLOCK", 2 * 160 * 50)
    assert listen(recording) == audio.SOUND
    assert max(sizes) == 16_000 and sum(sizes) == 50_000


CONTAINERS = {
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "aiff": ("AIFF", "PCM_16"),
    "aifc": ("AIFF", "ULAW"),
    "sph": ("NIST", "PCM_16"),
    "mulaw.sph": ("NIST", "ULAW"),
    "wav": ("WAV", "PCM_24"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def tone(path, container: str, channels: int = 1) -> bytes:
    kind, subtype = CONTAINERS[container]
    noise = np.random.default_rng(0).normal(scale=0.1, size=(32000, channels)).cumsum(axis=0) / 50
    soundfile.write(path, noise.clip(-1, 1), 8000, format=kind, subtype=subtype)
    return path.read_bytes()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_that_was_cut_off_is_refused_whatever_its_container(tmp_path, container, channels):
    path = tmp_path / f"call.{container}"
    whole = tone(path, container, channels)
    assert listen(describe(path, "call", channels)).problem is None
    for left in (len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:left])
        with pytest.raises(DataError, match=r"breaks off|cannot be opened|cannot be read to its end|cannot open") as caught:
            recording = describe(path, "call", channels)
            raise listen(recording).problem or AssertionError("a cut-off file was taken")
        assert caught.value.hint


@pytest.mark.parametrize("container", ["ogg", "aiff", "sph", "au"])
def test_a_manifest_that_was_made_of_a_file_that_was_cut_off_is_refused_too(tmp_path, container):
    path = tmp_path / f"call.{container}"
    whole = tone(path, container)
    path.write_bytes(whole[: len(whole) // 2])
    problem = listen(Recording.from_file(path)).problem
    assert problem is not None and "breaks off" in problem.message


def test_joined_ogg_streams_padding_and_headers_of_unknown_length_are_no_damage(tmp_path):
    path = tmp_path / "joined.ogg"
    whole = tone(path, "ogg")
    for after in (whole, b"\0" * 500, b"OggS, which is no page, but text"):
        path.write_bytes(whole + after)
        describe(path, "joined")
    # The second stream lacks its end.
    path.write_bytes(whole + whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no last page of its Ogg stream"):
        describe(path, "joined")
    for container, place, unknown in [
        ("aiff", 4, b"\x7f\0\0\x2e"),  # as sox does
        ("au", 8, b"\xff\xff\xff\xff"),
        ("wav", 4, b"\x24\xf0\xff\x7f"),  # as sox does
    ]:
        path = tmp_path / f"piped.{container}"
        whole = tone(path, container)
        path.write_bytes(whole[:place] + unknown + whole[place + 4 :])
        assert describe(path, "piped").num_samples == 32000


def test_a_packed_call_of_the_ldc_has_no_length_to_compare(tmp_path):
    path = tmp_path / "call.sph"
    whole = tone(path, "sph")
    path.write_bytes(whole.replace(b"-s3 pcm\n", b"-s26 pcm,embedded-shorten-v2.00\n")[:20000])
    with path.open("rb") as file:
        assert cut_off(file) == ""
    path.write_bytes(whole[:20000])
    with path.open("rb") as file:
        assert cut_off(file) == "20,000 bytes where its header promises 65,024"


def test_what_is_no_plain_file_is_not_called_missing_and_no_name_fills_the_screen(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DataError, match="is no plain file"):
            describe(path, "a")
    with pytest.raises(DataError, match=r"no audio file `x{60}…` \(utterance `y{60}…`\)"):
        describe(Path("x" * 5000), "y" * 5000)


def test_each_channel_is_listened_to_for_itself(tmp_path):
    samples = np.random.default_rng(0).normal(scale=0.1, size=(16000, 4))
    samples[:100, 1], samples[:, 2], samples[:, 3] = 1.0, 0.25, 0.25 + samples[:, 3] / 1000
    soundfile.write(tmp_path / "call.wav", samples, 16000)
    heard = listen(describe(tmp_path / "call.wav", "call", None))
    assert [(note[:11], note.partition("is ")[2][:10]) for note in heard.notes[:1]] == [("channel 1 o", "clipped: 0")]
    assert [note[:11] for note in heard.notes] == ["channel 1 o", "channel 3 o"]
    problems = [heard.problem_of(describe(tmp_path / "call.wav", "call", None), channel, 0.0, None) for channel in range(4)]
    assert [channel for channel, problem in enumerate(problems) if problem is not None] == [2]
    assert "channel 2 of audio" in problems[2].message and "nothing but silence: one value" in problems[2].message
    soundfile.write(tmp_path / "call.wav", np.stack((np.zeros(16000), np.full(16000, 0.25)), 1), 16000)
    assert "nothing but silence" in listen(describe(tmp_path / "call.wav", "call", None)).problem.message


@pytest.mark.parametrize(("rate", "subtype"), [(8000, "ULAW"), (8000, "ALAW"), (16000, "PCM_16"), (44100, "PCM_24"), (22050, "FLOAT")])
def test_a_part_that_lies_in_silence_is_no_speech_whatever_is_around_it(tmp_path, monkeypatch, rate, subtype):
    # Stretches that go over blocks, and blocks without any.
    monkeypatch.setattr(audio, "BLOCK", 4 * rate)
    samples = np.random.default_rng(0).normal(scale=0.1, size=(30 * rate, 2))
    samples[round(10.0037 * rate) : 20 * rate, 1] = 0.0
    samples[25 * rate : round(25.4 * rate), 0] = samples[29 * rate :, 0] = 0.25
    soundfile.write(tmp_path / "talk.wav", samples, rate, subtype=subtype)
    recording = describe(tmp_path / "talk.wav", "talk", None)
    heard = listen(recording)
    assert (heard.problem, heard.notes, heard.dead) == (None, (), ())
    assert len(heard.still) == 24, "two stretches: a million recordings have some"

    def wrong(channel: int, start_s: float, duration_s: float | None) -> bool:
        return heard.problem_of(recording, channel, start_s, duration_s) is not None

    assert wrong(1, 12.0, 5.0) and wrong(1, 10.0037, 9.9963) and wrong(1, 19.5, 0.3) and wrong(0, 29.0, None)
    assert not any(wrong(1, *part) for part in [(0.0, None), (9.5, 5.0), (18.0, 5.0), (9.0, 12.0), (25.0, 0.4)])
    assert not any(wrong(0, *part) for part in [(12.0, 5.0), (25.0, 0.4), (28.5, None)])
    assert "channel 1 of audio" in (said := str(heard.problem_of(recording, 1, 12.0, 5.0)))
    assert "nothing but silence: one value or hardly more than one from 12.00 to 17.00 s" in said
    # A manifest's times are those after its transforms.
    fast = recording.perturb_speed(1.25)
    assert listen(fast, heard) is heard
    assert heard.problem_of(fast, 1, 8.2, 7.7) and not heard.problem_of(fast, 1, 12.0, 5.0)


def test_of_many_stretches_of_silence_the_longest_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MOST_STRETCHES", 3)
    monkeypatch.setattr(audio, "BLOCK", 16000)
    samples = np.random.default_rng(0).normal(scale=0.1, size=8 * 16000)
    for second, lasts in enumerate((0.6, 0.9, 0.5, 0.8, 0.6, 0.5, 0.7, 0.5)):
        samples[second * 16000 : second * 16000 + round(lasts * 16000)] = 0.0
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    assert sorted(round(first, 2) for _, first, _ in listen(describe(tmp_path / "a.wav", "a")).stretches) == [1.0, 3.0, 6.0]


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "ULAW"), ("WAV", "ALAW"), ("WAV", "GSM610"), ("NIST", "ULAW"), ("NIST", "ALAW"), ("AU", "ULAW")],
)
def test_clipping_is_found_at_the_most_that_a_codec_decodes_to(tmp_path, kind, subtype):
    tone = np.sin(np.arange(16000) * 0.2)
    soundfile.write(tmp_path / "loud.wav", np.clip(2 * tone, -1, 1), 8000, format=kind, subtype=subtype)
    soundfile.write(tmp_path / "fair.wav", 0.9 * tone, 8000, format=kind, subtype=subtype)
    (note,) = listen(describe(tmp_path / "loud.wav", "loud")).notes
    assert "is clipped: " in note and "% of its samples are at full scale" in note
    assert listen(describe(tmp_path / "fair.wav", "fair")) == audio.SOUND
