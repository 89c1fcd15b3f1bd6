"""Published corpora, from their true trees: what is read of each, and what is left out."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import soundfile
from lhotse import MonoCut

from smoe_cli.corpora.segments import Segment, Source, merged
from smoe_cli.corpora.switchboard import plain
from smoe_cli.corpora.utterance import Work
from smoe_cli.corpus_settings import MustcCorpus
from smoe_cli.cuts import tags_of
from smoe_cli.features import FrontEnd
from tests.corpora.trees import TREES, prepared, recipe, text


def by_utterance(cuts: list[MonoCut], task: str, band: str) -> dict[str, MonoCut]:
    found = {tags_of(cut).utterance: cut for cut in cuts if (tags_of(cut).task, tags_of(cut).bandwidth) == (task, band)}
    return {name.partition("/")[2]: cut for name, cut in found.items()}


def test_librispeech_scores_clean_and_other_apart(tmp_path):
    TREES["librispeech"](tmp_path)
    report, cuts = prepared("librispeech", tmp_path, "data.corpora.librispeech.splits={train-clean-360: null, train-other-500: null}")
    assert {(row.split, row.subset) for row in report.rows} == {
        ("train", "clean"), ("dev", "clean"), ("dev", "other"), ("test", "clean"), ("test", "other"),
    }  # fmt: skip
    cut = by_utterance(cuts, "transcribe", "wb")["10-100-0001"]
    assert (cut.supervisions[0].text, cut.supervisions[0].speaker) == ("he said nothing", "10")


def test_language_pairs_of_must_c_meet_where_their_segments_are_the_same(tmp_path):
    TREES["mustc"](tmp_path)
    report, cuts = prepared("mustc", tmp_path)
    train = [cut for cut in cuts if tags_of(cut).utterance.startswith("mustc/train-") and tags_of(cut).bandwidth == "wb"]
    assert sorted((cut.start, round(cut.duration, 2), tags_of(cut).task, str(cut.supervisions[0].language)) for cut in train) == [
        (0.25, 1.5, "transcribe", "en"),
        (0.25, 1.5, "translate", "de"),
        (0.25, 1.5, "translate", "fr"),
        (2.0, 1.0, "transcribe", "en"),
        (2.0, 1.0, "translate", "de"),
        (2.0, 1.1, "transcribe", "en"),
        (2.0, 1.1, "translate", "fr"),
    ]
    assert {cut.supervisions[0].speaker for cut in train} == {"spk.1"}
    assert {row.subset for row in report.rows if row.split == "test"} == {"tst-COMMON", "tst-HE"}
    assert "`mustc`: 4 segments without a word left out" in report.notes
    first = by_utterance(cuts, "transcribe", "wb")["train-ted_1-00000250-00001750"]
    assert first.supervisions[0].text == "thank you so much chris"


def test_segments_of_train_that_the_recipe_finds_too_long_are_counted(tmp_path):
    TREES["mustc"](tmp_path)
    report, _ = prepared("mustc", tmp_path, "data.corpora.mustc.train_within_s=[0.2, 1.05]")
    assert "`mustc`: 2 train segments outside 0.2 to 1.05 s left out" in report.notes
    assert report.utterances == {"train": 1, "dev": 3, "test": 6}


def test_transcripts_that_differ_stay_apart():
    def one(target: str, said: str) -> Segment:
        return Segment("t-1", "", "train", Path(target) / "t.wav", said, "en", {target: ["x"]}, span_s=(0.0, 1.0))

    source = Source(MustcCorpus(targets=["de", "fr", "it"]), Work("talks", Path(), Path()))
    found = merged(source, [one("de", "one"), one("fr", "one"), one("it", "two")])
    assert [(item.id, sorted(item.translations)) for item in found] == [("t-1", ["de", "fr"]), ("t-1-it", ["it"])]


def test_of_a_segment_that_one_pair_has_twice_the_first_stays_wherever_the_second_comes():
    def one(target: str, said: str = "one", wrote: str = "x") -> Segment:
        translations = {target: [wrote]} if target else {}
        return Segment("t-1", target or "own", "train", Path("t.wav"), said, "en", translations, span_s=(0.0, 1.0))

    work = Work("talks", Path(), Path())
    found = merged(
        Source(MustcCorpus(targets=["de", "fr"]), work),
        [one(""), one("de"), one("de", wrote="y"), one("fr"), one("de", "two"), one("")],
    )
    assert [(item.id, item.transcript, item.translations) for item in found] == [("t-1", "one", {"de": ["x"], "fr": ["x"]})]
    assert [problem.message for problem in work.problems] == [f"{where}: segment `t-1` occurs before" for where in ("de", "de", "own")]


def test_multilingual_tedx_takes_transcripts_from_all_talks_and_translations_where_they_are(tmp_path):
    TREES["mtedx"](tmp_path)
    _, cuts = prepared("mtedx", tmp_path)
    said, written = by_utterance(cuts, "transcribe", "wb"), by_utterance(cuts, "translate", "wb")
    assert [cut.supervisions[0].text for cut in said.values()] == ["buenos días", "muchas gracias"] * 3
    assert list(written) == ["train-0123e5-00000500-00001500", "valid--ab_9-00000500-00001500", "test-xYz-00000500-00001500"]
    assert {cut.supervisions[0].text for cut in written.values()} == {"Good morning."}


def test_covost_joins_common_voice_by_clip_and_extends_its_train_split(tmp_path):
    TREES["covost"](tmp_path)
    report, cuts = prepared("covost", tmp_path)
    assert report.utterances == {"train": 2, "dev": 1, "test": 1}
    assert "`en`: 1 translations into `de` of split `dev_covost`, which CoVoST 2 does not use, left out" in report.notes
    assert "`en`: 1 translations into `de` that say `REMOVE` left out" in report.notes
    cut = by_utterance(cuts, "translate", "wb")["common_voice_en_1"]
    assert (cut.supervisions[0].text, cut.supervisions[0].speaker) == ('Er sagte "nein".', "speaker1")
    assert cut.recording.sources[0].source.endswith("clips/common_voice_en_1.mp3")


def test_a_sentence_of_fleurs_is_translated_by_what_others_read(tmp_path):
    TREES["fleurs"](tmp_path)
    _, cuts = prepared("fleurs", tmp_path)
    german = [cut for cut in cuts if cut.supervisions[0].language == "de" and tags_of(cut).bandwidth == "wb"]
    assert [tags_of(cut).utterance for cut in german if "train" in cut.recording.sources[0].source] == ["en/7-100", "en/7-102"]
    assert {cut.supervisions[0].text for cut in german} == {"Eine Katze, zwei Hunde."}


def test_fleurs_may_lie_where_lhotse_puts_it(tmp_path):
    TREES["fleurs"](tmp_path)
    for code in ("en_us", "de_de", "fr_fr"):
        folder = tmp_path / "fleurs" / code
        (tmp_path / "fleurs" / "metadata" / code).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            (folder / f"{split}.tsv").rename(tmp_path / "fleurs" / "metadata" / code / f"{split}.tsv")
            (folder / "audio" / split).rename(folder / split)
    assert prepared("fleurs", tmp_path)[0].utterances == {"train": 3, "dev": 3, "test": 3}


def test_europarl_st_is_read_from_converted_speeches(tmp_path):
    TREES["europarl-st"](tmp_path)
    _, cuts = prepared("europarl-st", tmp_path)
    cut = by_utterance(cuts, "transcribe", "wb")["train-en.20080924.31.3-001-00001250-00002750"]
    assert (cut.start, cut.duration, cut.supervisions[0].text) == (1.25, 1.5, "that is all")
    assert cut.supervisions[0].speaker == "MEP_1"
    french = [cut for cut in cuts if cut.supervisions[0].language == "fr"]
    assert {cut.supervisions[0].text for cut in french} == {"Monsieur le Président,", "C'est tout."}


def test_noisy_speeches_are_taken_only_where_the_recipe_says_so(tmp_path):
    TREES["europarl-st"](tmp_path)
    for lang in ("de", "fr"):
        folder = tmp_path / "europarl-st" / "v1.1" / "en" / lang
        shutil.copytree(folder / "train", folder / "train-noisy")
    assert prepared("europarl-st", tmp_path)[0].utterances["train"] == 2
    assert prepared("europarl-st", tmp_path, "data.corpora.en.splits={train-noisy: train}")[0].utterances["train"] == 4


def test_voxpopuli_names_language_and_speaker(tmp_path):
    TREES["voxpopuli"](tmp_path)
    report, cuts = prepared("voxpopuli", tmp_path)
    assert {(row.lang, row.split) for row in report.rows} == {(lang, split) for lang in ("en", "de") for split in ("train", "dev", "test")}
    assert {cut.supervisions[0].speaker for cut in cuts} == {"965", "963", "964"}


def test_each_side_of_a_telephone_call_is_heard_on_its_own_channel(tmp_path):
    """And the calls are narrowband, by their rate alone."""
    TREES["fisher-callhome"](tmp_path)
    report, cuts = prepared("fisher-callhome", tmp_path)
    assert {row.bandwidth for row in report.rows} == {"nb"}
    assert "`calls`: 7 segments without a word left out" in report.notes
    said = by_utterance(cuts, "transcribe", "nb")
    ana, luis = said["20050908_182943_20_fsp-A-1_3"], said["20050908_182943_20_fsp-B-2"]
    assert [cut.supervisions[0].text for cut in (ana, luis)] == ["aló ana cómo estás", "buenas tardes"]
    assert [cut.supervisions[0].speaker for cut in (ana, luis)] == ["fsp-120", "fsp-220"]
    assert (ana.start, ana.duration, luis.start, luis.duration) == (0.0, 3.0, 1.0, 1.0)
    woman, man = said["sp_0085-A-1_3"], said["sp_0085-B-2"]
    assert [cut.supervisions[0].text for cut in (woman, man)] == ["ah señora adiós", "sí dime"]
    loudest = [float(abs(cut.load_audio()).max()) for cut in (woman, man)]
    assert loudest == pytest.approx([0.2, 0.6], abs=0.05)


def test_no_program_is_needed_to_read_telephone_calls(tmp_path, monkeypatch):
    """Lhotse would ask `sph2pipe` for them, in a line of shell with the file's name in it."""
    TREES["fisher-callhome"](tmp_path)
    _, cuts = prepared("fisher-callhome", tmp_path)
    monkeypatch.setattr("subprocess.run", Mock(side_effect=AssertionError))
    monkeypatch.setattr("subprocess.Popen", Mock(side_effect=AssertionError))
    front_end = FrontEnd(recipe("fisher-callhome", tmp_path).features)
    assert all(len(front_end(cut)) > 70 for cut in cuts if cut.recording.sources[0].source.lower().endswith(".sph"))


def test_fisher_has_four_translations_where_it_is_scored(tmp_path):
    TREES["fisher-callhome"](tmp_path)
    _, cuts = prepared("fisher-callhome", tmp_path)
    right = {name: tags_of(cut).references for name, cut in by_utterance(cuts, "translate", "nb").items()}
    assert right["20050908_182943_20_fsp-A-1_3"] == ["hello how are you 0"]
    assert right["20050908_182943_23_fsp-A-1_3"] == [f"hello how are you {translator}" for translator in range(4)]


def test_one_of_the_two_telephone_corpora_is_enough(tmp_path):
    TREES["fisher-callhome"](tmp_path)
    for folder in ("LDC96S35", "LDC96T17"):
        shutil.rmtree(tmp_path / folder)
    left_out = "{callhome_train: null, callhome_devtest: null, callhome_evltest: null}"
    report, _ = prepared("fisher-callhome", tmp_path, f"data.corpora.calls.splits={left_out}")
    assert {row.subset for row in report.rows} == {"fisher"}


def test_switchboard_is_split_by_call_and_its_marks_are_read(tmp_path):
    TREES["switchboard"](tmp_path)
    report, cuts = prepared("switchboard", tmp_path)
    assert (report.utterances, {row.bandwidth for row in report.rows}) == ({"train": 2, "dev": 40, "test": 40}, {"nb"})
    cut = by_utterance(cuts, "transcribe", "nb")["sw2041B-ms98-a-0002"]
    assert (cut.supervisions[0].text, cut.supervisions[0].speaker, cut.channel) == ("yeah them ab y it'n yup", "sw2041-B", 1)
    assert "`switchboard`: 82 segments without a word left out" in report.notes


@pytest.mark.parametrize(
    ("marked", "spoken"),
    [
        ("[laughter] so [silence]", "so"),
        ("[laughter-[re]peat] <b_aside> no <e_aside>", "-peat no"),
        ("-[an]y ab[solute]- ammu[n]it-", "-y ab- ammu-it-"),
        ("[lem[guini]-/linguini] {yuppiedom} okay_1", "lem- yuppiedom okay"),
    ],
)
def test_marks_of_switchboard(marked, spoken):
    assert plain(marked) == spoken


def test_a_call_that_was_unpacked_beside_its_sph_file_is_taken(tmp_path):
    TREES["switchboard"](tmp_path)
    packed = tmp_path / "LDC97S62" / "swb1_d1" / "data" / "sw02041.sph"
    samples, rate = soundfile.read(packed)
    soundfile.write(packed.with_suffix(".wav"), samples, rate)
    packed.write_bytes(packed.read_bytes().replace(b"-s4 ulaw", b"-s26 ulaw,embedded-shorten-v2.00"))
    assert prepared("switchboard", tmp_path)[0].utterances["train"] == 2


def test_a_long_list_of_segments_is_read_piece_by_piece(tmp_path):
    TREES["mustc"](tmp_path)
    folder = tmp_path / "must-c" / "en-de" / "data" / "dev" / "txt"
    entry = "- {{duration: 0.5, offset: {:.3f},\n    speaker_id: spk.2, wav: ted_2.wav}}"
    text(folder / "dev.yaml", *(entry.format(number / 1000) for number in range(2345)))
    text(folder / "dev.en", *(f"word {number}" for number in range(2345)))
    text(folder / "dev.de", *(f"Wort {number}" for number in range(2345)))
    report, cuts = prepared(
        "mustc", tmp_path, "data.corpora.mustc.targets=[de]", "tasks.translate.languages=[de]", "data.nb_downsample=false"
    )
    assert report.utterances["dev"] == 2345
    last = by_utterance(cuts, "translate", "wb")["dev-ted_2-00002344-00002844"]
    assert last.supervisions[0].text == "Wort 2344"
