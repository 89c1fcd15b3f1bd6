"""Manifests of others are data: reading one runs nothing, reaches nothing, leaves no folder and fills no memory."""

from __future__ import annotations

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment

from smoe_cli import manifests, pipeline
from smoe_cli.audio import listen
from smoe_cli.cuts import open_manifest
from smoe_cli.errors import DataError
from smoe_cli.manifests import read_manifest, read_object
from tests.conftest import tiny_config


@pytest.fixture
def folder(tmp_path) -> Path:
    """A corpus folder with one tone."""
    (tmp_path / "corpus").mkdir()
    soundfile.write(tmp_path / "corpus" / "a.flac", 0.3 * np.sin(np.arange(16000) / 5), 16000)
    return tmp_path / "corpus"


def entry(folder: Path, **recording: object) -> dict:
    """One cut as a manifest has it, its audio named relative to the folder."""
    sound = Recording.from_file(folder / "a.flac", recording_id="r")
    segment = SupervisionSegment("c", "r", 0, sound.duration, text="one", language="en", custom={"german": "eins"})
    tree = MonoCut("c", 0, sound.duration, 0, supervisions=[segment], recording=sound).to_dict()
    tree["recording"]["sources"][0]["source"] = "a.flac"
    tree["recording"] |= recording
    return tree


def config_of(folder: Path, tree: dict, untrusted: bool = False):
    (folder / "cuts.jsonl").write_text(json.dumps(tree) + "\n", encoding="utf-8")
    corpus = {"type": "lhotse", "cuts": {"train": "cuts.jsonl"}, "translations": {"de": "german"}, "untrusted": untrusted}
    return tiny_config(folder.parent / "exp", data={"root": str(folder), "corpora": {"theirs": corpus}})


def source(kind: str, named: str) -> list[dict]:
    return [{"type": kind, "channels": [0], "source": named}]


def reverb(kind: str, named: str) -> dict:
    """A transform that Lhotse would load audio for."""
    impulse = {"id": "i", "sources": source(kind, named), "sampling_rate": 16000, "num_samples": 9, "duration": 0.1, "channel_ids": [0]}
    return {"transforms": [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": impulse}}]}


ATTACKS = {
    "a program": lambda marker: {"sources": source("command", f"touch {marker}; cat a.flac")},
    "an address": lambda marker: {"sources": source("url", "http://127.0.0.1:9/a.flac")},
    "an address that calls itself a file": lambda marker: {"sources": source("file", "http://127.0.0.1:9/a.flac")},
    "a program that calls itself a file": lambda marker: {"sources": source("file", f"pipe:touch {marker}")},
    "audio inside the manifest": lambda marker: {"sources": source("memory", "fLaC")},
    "no kind at all": lambda marker: {"sources": [{"source": "a.flac", "channels": [0]}]},
    "a program in a transform": lambda marker: reverb("command", f"touch {marker}"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_source_that_is_no_file_is_refused_wherever_it_is_read_and_never_opened(folder, tmp_path, attack):
    marker = tmp_path / "it-ran"
    config = config_of(folder, entry(folder, **ATTACKS[attack](marker)))
    with pytest.raises(DataError, match="line 1: cut `c` takes audio from a source of type"):
        pipeline.prepare(config)
    with pytest.raises(DataError, match="could run a program or reach the network"):
        open_manifest(folder / "cuts.jsonl")
    (finding,) = pipeline.validate(None, cuts=[folder / "cuts.jsonl"]).findings
    assert (finding.check, finding.severity) == ("manifest", "error")
    assert not marker.exists()
    assert [path.name for path in (tmp_path / "exp").rglob("*")] == ["refused.theirs.txt"]


def test_without_the_check_that_program_would_have_run(folder, tmp_path):
    """The attack of the tests above is a real one."""
    tree = entry(folder, sources=source("command", f"touch {tmp_path / 'it-ran'}; cat {folder / 'a.flac'}"))
    MonoCut.from_dict(tree).load_audio()
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("way", ["..", "absolute", "a link", "a zero byte", "a folder that is a link"])
def test_audio_of_an_untrusted_corpus_may_not_leave_its_folder(folder, tmp_path, way):
    secret = tmp_path / "secret.flac"
    (folder / "a.flac").rename(secret)
    (folder / "a.flac").symlink_to(secret)
    (folder / "out").symlink_to(tmp_path)
    named = {"..": "../secret.flac", "absolute": str(secret), "a link": "a.flac", "a zero byte": "a\0.flac"}.get(way, "out/secret.flac")
    tree = entry(folder, sources=source("file", named))
    with pytest.raises(DataError, match=r"leads out of `.*corpus`, and what is marked untrusted may not"):
        pipeline.prepare(config_of(folder, tree, untrusted=True))
    (finding,) = pipeline.validate(None, cuts=[folder / "cuts.jsonl"], within=folder).findings
    assert "leads out of" in finding.message
    if "\0" not in named:
        pipeline.prepare(config_of(folder, tree))


def test_a_folder_is_left_by_what_lhotse_would_open_not_by_what_lies_in_it(folder, monkeypatch):
    """A relative path starts from the working folder, where a file of the same name is another one."""
    (folder / "cuts.jsonl").write_text(json.dumps(entry(folder)), encoding="utf-8")
    (folder.parent / "a.flac").write_bytes((folder / "a.flac").read_bytes())
    monkeypatch.chdir(folder.parent)
    (finding,) = pipeline.validate(None, cuts=[folder / "cuts.jsonl"], within=folder).findings
    assert "`a.flac` leads out of" in finding.message
    monkeypatch.chdir(folder)
    (item,) = read_manifest(folder / "cuts.jsonl", folder)
    assert item.problem is None


def step(name: str, **fields: object) -> list[dict]:
    return [{"name": name, "kwargs": fields}]


def resampling(*rates: int) -> list[dict]:
    return [step("Resample", source_sampling_rate=a, target_sampling_rate=b)[0] for a, b in pairwise(rates)]


NARROW = {"source_sampling_rate": 16000, "restore_orig_sr": True}
TRANSFORMS = {
    "an impulse response": (
        lambda: reverb("file", "a.flac")["transforms"],
        "the transform `ReverbWithImpulseResponse`; a manifest may have",
    ),
    "a program of sox": (lambda: step("Tempo", factor=1.1), "the transform `Tempo`; a manifest may have"),
    "no name": (lambda: [{"kwargs": {}}], "the transform `None`"),
    "no list": (lambda: {"name": "Volume"}, "no list of at most 16"),
    "very many": (lambda: 20 * step("Volume", factor=1.0), "no list of at most 16"),
    "a speed that nobody speaks at": (lambda: step("Speed", factor=0.001), "`factor`: input should be greater than or equal to 0.5"),
    "a speed that is no number": (lambda: step("Speed", factor="fast"), "`factor`: input should be a valid number"),
    "a speed of many phases": (lambda: step("Speed", factor=0.9123), "filter of"),
    "infinitely loud": (lambda: step("Volume", factor=float("inf")), "`factor`"),
    "an unknown codec": (lambda: step("TelephoneLine", codec="zzz", telephone_band=False), "`codec`: input should be 'plain'"),
    "a line at 16 kHz": (lambda: step("TelephoneLine", codec="gsm", telephone_band=False), "end at 8,000 Hz, but is said to be at 16,000"),
    "a codec of a library": (lambda: step("Narrowband", codec="lpc10", **NARROW), "`codec`: input should be 'mulaw'"),
    "a field too many": (lambda: step("Volume", factor=1.0, path="a.flac"), "`path`: extra inputs are not permitted"),
    "no fields": (lambda: [{"name": "Volume"}], "not a sound one"),
    "a rate that shares no divisor": (lambda: resampling(16000, 44101, 16000), "it would take a filter of"),
    "a rate beyond all hearing": (lambda: resampling(16000, 9999991, 16000), "less than or equal to 192000"),
    "rates that do not meet": (lambda: resampling(16000, 8000) + resampling(16000, 16000), "of audio at 16,000 Hz, but it is at 8,000 Hz"),
    "another rate at the end": (lambda: resampling(16000, 8000), "end at 8,000 Hz, but is said to be at 16,000 Hz"),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_is_one_of_a_few_and_sound_or_refused_unread_wherever_it_stands(folder, name, monkeypatch):
    monkeypatch.setattr("lhotse.augmentation.torchaudio.CDLL", lambda *args: pytest.fail("a library was loaded"))
    harm, said = TRANSFORMS[name]
    tree = entry(folder, transforms=harm())
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        pipeline.prepare(config_of(folder, tree))
    assert caught.value.hint
    other = entry(folder)
    other["supervisions"][0]["custom"]["noise"] = entry(folder, transforms=harm())["recording"]
    for inside in (tree, other):
        (folder / "cuts.jsonl").write_text(json.dumps(inside), encoding="utf-8")
        (item,) = read_manifest(folder / "cuts.jsonl")
        assert said in item.problem.message


def test_usual_transforms_are_read_and_what_they_make_is_as_promised(folder):
    plain = Recording.from_file(folder / "a.flac")
    for some in (
        plain.resample(8000),
        plain.resample(11025).resample(16000),
        plain.perturb_speed(0.9),
        plain.perturb_speed(1.1).perturb_volume(0.5),
        plain.narrowband("mulaw"),
        plain.narrowband("mulaw", restore_orig_sr=False),
    ):
        cut = MonoCut("c", 0, some.duration, 0, recording=some)
        (folder / "cuts.jsonl").write_text(json.dumps(cut.to_dict()), encoding="utf-8")
        (read,) = open_manifest(folder / "cuts.jsonl")
        assert listen(read.recording).problem is None
        assert read.load_audio().shape == (1, some.num_samples)


@pytest.mark.parametrize(
    ("rate", "said"), [(44101, "it would take a filter of"), (3999, "outside 4,000 to 192,000 Hz"), (400000, "outside")]
)
def test_a_file_at_a_rate_that_no_memory_could_resample_is_refused_unread(folder, rate, said, monkeypatch):
    soundfile.write(folder / "a.wav", 0.3 * np.sin(np.arange(rate) / 5), rate)
    (folder / "t.tsv").write_text("id\tpath\tsplit\ttranscript\tde\na\ta.wav\ttrain\tone\teins\n", encoding="utf-8")
    corpus = {"type": "tsv", "path": "t.tsv", "translations": {"de": "de"}}
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **kwargs: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match=said) as caught:
        pipeline.prepare(tiny_config(folder.parent / "exp", data={"root": str(folder), "corpora": {"theirs": corpus}}))
    assert "sox" in caught.value.hint
    if rate != 44101:
        recording = Recording("r", [AudioSource("file", [0], str(folder / "a.wav"))], rate, rate, 1.0)
        assert "outside 4,000" in listen(recording).problem.message
        (folder / "cuts.jsonl").write_text(json.dumps(MonoCut("c", 0, 1.0, 0, recording=recording).to_dict()), encoding="utf-8")
        (item,) = read_manifest(folder / "cuts.jsonl")
        assert "`recording.sampling_rate`" in item.problem.message


def test_an_untrusted_corpus_that_stays_in_its_folder_is_prepared(folder):
    report = pipeline.prepare(config_of(folder, entry(folder), untrusted=True))
    assert sum(row.cuts for row in report.rows) == 2


def test_rows_of_an_untrusted_table_may_not_leave_the_folder_either(folder, tmp_path):
    (folder / "a.flac").rename(tmp_path / "a.flac")
    (folder / "t.tsv").write_text("id\tpath\tsplit\ttranscript\tde\na\t../a.flac\ttrain\tone\teins\n", encoding="utf-8")
    corpus = {"type": "tsv", "path": "t.tsv", "translations": {"de": "de"}, "untrusted": True}
    with pytest.raises(DataError, match=r"t.tsv` line 2: `.*a.flac` leads out of"):
        pipeline.prepare(tiny_config(tmp_path / "exp", data={"root": str(folder), "corpora": {"theirs": corpus}}))


def test_archives_of_features_are_refused_of_strangers_and_never_opened_of_friends(folder):
    tree = entry(folder)
    tree["features"] = {
        "type": "fbank",
        "num_frames": 100,
        "num_features": 80,
        "frame_shift": 0.01,
        "sampling_rate": 16000,
        "start": 0,
        "duration": 1.0,
        "storage_type": "numpy_files",
        "storage_path": "nowhere",
        "storage_key": "evil.pkl",
        "channels": 0,
    }
    with pytest.raises(DataError, match="names an archive of arrays, `nowhere`"):
        pipeline.prepare(config_of(folder, tree, untrusted=True))
    with pytest.raises(DataError, match="names an archive of arrays"):
        open_manifest(folder / "cuts.jsonl")
    pipeline.prepare(config_of(folder, tree))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"type": "MonoCut", "id": "c"' + b" " * 5_000_000 + b"}\n", "line 1 is longer than 4,194,304 bytes"),
        (b'{"id": "c", "x": "' + b"x" * 1_000_000 + b'"}\n', "unpacks to more than 67,108,864 bytes"),
    ],
    ids=["one line", "many lines"],
)
def test_a_packed_manifest_that_would_fill_the_memory_is_refused(tmp_path, content, said):
    path = tmp_path / "cuts.train.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(80_000_000 // len(content)):
            file.write(content)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=said) as caught:
        for _ in read_manifest(path):
            pass
    assert caught.value.hint


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"no json\n", "line 1 is not JSON"),
        (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        (b"\xe9\n", "line 1 is not UTF-8: byte 0xe9 at 1"),
        (b'{"id": "\\ud800"}\n', "line 1 is not UTF-8: it has half a character, '\\ud800'"),
        (b'{"id": "c", "x": [{"text": "a\\uDFFF\\ud83d\\ude00"}]}\n', "line 1 is not UTF-8: it has half a character, '\\udfff'"),
        (b'{"id": "\xed\xa0\x80"}\n', "line 1 is not UTF-8: byte 0xed at 9"),
        (b"3\n", "line 1 is no JSON object"),
        (b'{"id": "c", "type": "MixedCut"}\n', "cut `c` is not one channel of one recording"),
        (b'{"id": "c", "recording": {}}\n', "line 1: cut `c` is no sound cut: `start`: field required"),
    ],
)
def test_a_line_that_is_no_cut_is_named_by_its_number(tmp_path, raw, said):
    (tmp_path / "cuts.jsonl").write_bytes(raw)
    (item,) = read_manifest(tmp_path / "cuts.jsonl")
    assert item.cut is None and said in item.problem.message and item.problem.hint


def test_a_manifest_in_utf_16_is_one_error(tmp_path):
    (tmp_path / "cuts.jsonl").write_bytes(('{"id": "c"}\n' * 20).encode("utf-16"))
    with pytest.raises(DataError, match=r"cuts.jsonl` is UTF-16\n\nhint: convert the file to UTF-8"):
        next(read_manifest(tmp_path / "cuts.jsonl"))
    nemo = {"type": "nemo", "manifests": {"train": "cuts.jsonl"}}
    with pytest.raises(DataError, match=r"cuts.jsonl` is UTF-16\n\nhint: convert the file to UTF-8"):
        pipeline.prepare(tiny_config(tmp_path / "exp", data={"root": str(tmp_path), "corpora": {"theirs": nemo}}))


OTHERS = {
    "another recording": ({"recording_id": "q"}, "its supervision `c` is of recording `q`, the cut of `r`"),
    "another channel": ({"channel": 1}, "its supervision `c` is of channel 1, the cut of 0"),
    "other channels": ({"channel": [1, 2]}, "its supervision `c` is of channel 1, 2, the cut of 0"),
    "behind the cut": ({"start": 100.0}, "its supervision `c` goes from 100.00 to 101.00 s of the cut, which lasts 1.00 s"),
    "before the cut": ({"start": -1.0}, "its supervision `c` goes from -1.00 to 0.00 s of the cut"),
    "backwards": ({"duration": -1.0}, "`supervisions.0.duration`: input should be greater than 0"),
    "without length": ({"duration": 0.0}, "`supervisions.0.duration`: input should be greater than 0"),
    "at no time": ({"start": float("nan")}, "`supervisions.0.start`: input should be a finite number"),
}
"""What a supervision says of itself -> what is said of its cut."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_supervision_of_something_else_than_its_cut_is_refused(folder, name):
    other, said = OTHERS[name]
    tree = entry(folder, channel_ids=[0, 1], sources=[{"type": "file", "channels": [0, 1], "source": "a.flac"}])
    tree["supervisions"][0] |= other
    with pytest.raises(DataError, match=f"line 1: cut `c`.*{re.escape(said)}"):
        pipeline.prepare(config_of(folder, tree))
    (finding,) = pipeline.validate(None, cuts=[folder / "cuts.jsonl"], audio=False).findings
    assert (finding.check, finding.severity) == ("manifest", "error")
    assert said in finding.message and "cut `c`" in finding.message


def test_a_supervision_may_leave_its_cut_and_there_may_be_several(folder):
    tree = entry(folder)
    (one,) = tree["supervisions"]
    tree["supervisions"] = [one | span for span in ({"start": -0.5}, {"start": 0.9, "duration": 3.0}, {"channel": [0, 1]})]
    (folder / "cuts.jsonl").write_text(json.dumps(tree), encoding="utf-8")
    (item,) = read_manifest(folder / "cuts.jsonl")
    assert item.problem is None and len(item.cut.supervisions) == 3


def test_cuts_that_lhotse_saved_as_audio_are_read_though_their_supervisions_name_the_audio_before(tmp_path):
    wave = np.sin(np.arange(32000) / 5)
    soundfile.write(tmp_path / "call.wav", np.stack([0.3 * wave, 0.6 * wave], axis=1), 16000)
    call = Recording.from_file(tmp_path / "call.wav")
    segment = SupervisionSegment("s", call.id, 0.0, 1.0, 1, "one")
    cuts = CutSet.from_cuts([MonoCut("luis-1.0", 0.5, 1.0, 1, supervisions=[segment], recording=call)])
    (saved,) = cuts.save_audios(tmp_path / "saved")
    (one,) = saved.supervisions
    assert (saved.recording.id, saved.channel, one.recording_id, one.channel) == ("luis-1.0", 0, "call", 1)
    CutSet.from_cuts([saved, *CutSet.from_cuts([saved]).trim_to_supervisions(), saved.with_id("other")]).to_file(tmp_path / "cuts.jsonl")
    assert [item.problem for item in read_manifest(tmp_path / "cuts.jsonl")] == [None] * 3
    saved.supervisions[0].recording_id = saved.recording.id
    CutSet.from_cuts([saved]).to_file(tmp_path / "cuts.jsonl")
    (item,) = read_manifest(tmp_path / "cuts.jsonl")
    assert "is of channel 1, the cut of 0" in item.problem.message


@pytest.mark.parametrize("part", ["recordings", "supervisions"])
def test_what_cuts_are_made_of_is_called_what_it_is_once(folder, part):
    tree = entry(folder)
    one = tree["recording"] if part == "recordings" else tree["supervisions"][0]
    (folder / "cuts.jsonl").write_text(3 * (json.dumps(one) + "\n"), encoding="utf-8")
    said = f"cuts.jsonl` is a manifest of {part}, not of cuts"
    with pytest.raises(DataError, match=said) as caught:
        pipeline.validate(None, cuts=[folder / "cuts.jsonl"])
    assert "lhotse cut simple -r RECORDINGS -s SUPERVISIONS CUTS" in caught.value.hint
    with pytest.raises(DataError, match=said) as caught:
        pipeline.prepare(config_of(folder, one))
    assert caught.value.message.count("is a manifest of") == 1


def test_escaped_characters_are_whole_ones_too():
    assert read_object(b'{"id": "\\ud83d\\ude00 \\u00fc"}', "here") == {"id": "\U0001f600 ü"}


@pytest.mark.parametrize("field", ["start", "duration", "channel", "id"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "x" * 0, [], {}])
def test_a_field_of_a_wrong_shape_is_refused_before_anything_is_computed_with_it(folder, field, value):
    (folder / "cuts.jsonl").write_text(json.dumps(entry(folder) | {field: value}), encoding="utf-8")
    (item,) = read_manifest(folder / "cuts.jsonl")
    assert f"is no sound cut: `{field}`" in item.problem.message


@pytest.mark.parametrize("channels", [0, True, [0.5], "0", None])
def test_channels_that_are_no_numbers_are_refused_before_anything_looks_at_them(folder, channels):
    tree = entry(folder)
    tree["recording"]["sources"][0]["channels"] = channels
    (folder / "cuts.jsonl").write_text(json.dumps(tree), encoding="utf-8")
    (item,) = read_manifest(folder / "cuts.jsonl")
    assert "is no sound cut: `recording.sources.0.channels" in item.problem.message


def test_manifests_of_other_formats_are_not_guessed_at(tmp_path):
    (tmp_path / "cuts.pkl").touch()
    with pytest.raises(DataError, match="is no manifest"):
        open_manifest(tmp_path / "cuts.pkl")


def test_a_header_that_claims_hours_is_believed_by_nobody(folder, monkeypatch):
    """The first bytes of a FLAC file say how many samples follow: 36 bits, at the end of its description."""
    raw = bytearray((folder / "a.flac").read_bytes())
    raw[21] |= 0x0F  # the upper four bits of the number of samples
    (folder / "a.flac").write_bytes(raw)
    claimed = soundfile.info(folder / "a.flac")
    assert claimed.frames / claimed.samplerate > 12 * 3600
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **kwargs: pytest.fail("it was decoded"))
    recording = Recording.from_dict(entry(folder)["recording"] | {"sources": source("file", str(folder / "a.flac"))})
    assert "claims to last" in listen(recording).problem.message
    (folder / "t.tsv").write_text("id\tpath\tsplit\ttranscript\tde\na\ta.flac\ttrain\tone\teins\n", encoding="utf-8")
    corpus = {"type": "tsv", "path": "t.tsv", "translations": {"de": "de"}}
    with pytest.raises(DataError, match="utterance `a` lasts"):
        pipeline.prepare(tiny_config(folder.parent / "exp", data={"root": str(folder), "corpora": {"theirs": corpus}}))


def test_audio_that_is_longer_than_its_manifest_says_is_not_decoded(folder, monkeypatch):
    tree = entry(folder, num_samples=1600, duration=0.1, sources=source("file", str(folder / "a.flac")))
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **kwargs: pytest.fail("it was decoded"))
    recording = Recording.from_dict(tree["recording"])
    for promised in (recording, recording.resample(8000), recording.perturb_speed(1.1)):
        assert "16000 samples at 16000 Hz where" in listen(promised).problem.message


def test_a_manifest_is_read_line_by_line(folder, monkeypatch):
    """The second line is not looked at before the first one was handed out."""
    seen = []
    parse = manifests.read_object
    monkeypatch.setattr(manifests, "read_object", lambda raw, where: (seen.append(raw), parse(raw, where))[1])
    (folder / "cuts.jsonl").write_text(2 * (json.dumps(entry(folder)) + "\n"), encoding="utf-8")
    next(read_manifest(folder / "cuts.jsonl"))
    assert len(seen) == 1


def test_hypotheses_are_no_manifest_and_are_called_what_they_are(tmp_path):
    (tmp_path / "h.jsonl").write_text('{"id": "a", "task": "transcribe", "text": "one", "references": ["one"]}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: cut `a` is a hypothesis, no cut") as caught:
        open_manifest(tmp_path / "h.jsonl")
    assert "smoe score" in caught.value.hint
