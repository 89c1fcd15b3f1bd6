"""A trained system and tagged cuts -> hypotheses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from lhotse import MonoCut, SupervisionSegment

from smoe_cli.audio import check_readable, describe
from smoe_cli.batching import Batch, Collator, chunk
from smoe_cli.checkpoint import System
from smoe_cli.config import DecodeSettings
from smoe_cli.cuts import NARROWBAND_HZ, WIDEBAND_HZ, Tags, route_of, tags_of
from smoe_cli.decoding.beam import Beam, beam_search
from smoe_cli.errors import DataError
from smoe_cli.features import FrontEnd
from smoe_cli.records import Hypothesis
from smoe_cli.tags import Bandwidth, Route
from smoe_cli.watch import Silent, Watcher


class Decoder:
    """Decodes cuts with one system, batch by batch, each batch of one route.

    Args:
        system: As `checkpoint.load` gives it.
        settings: Beam search; by default as the checkpoint's recipe says.
        cache_mb: Memory for features, when the same cuts are decoded again and again.
    """

    def __init__(self, system: System, settings: DecodeSettings | None = None, cache_mb: int = 0) -> None:
        self.system, self.settings = system, settings or system.config.decode
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        system.model.to(self.device).eval()
        features = system.config.features
        self.collator = Collator(FrontEnd(features.sample_rate_hz, features.mel_bins, cache_mb), system.tokenizer, system.plan)

    def decode(self, cuts: Iterable[MonoCut], watcher: Watcher | None = None) -> list[Hypothesis]:
        """One hypothesis per cut, in the order of the cuts.

        Raises:
            RouteError: If the model has no such route; before anything is computed.
            DataError: If audio cannot be read.
        """
        watcher = watcher or Silent()
        ordered = list(cuts)
        for cut in ordered:
            self.system.plan.check(route_of(cut))
        found: dict[str, Hypothesis] = {}
        for batch_cuts in self.batches(ordered):
            for hypothesis in self.decode_batch(self.collator(batch_cuts)):
                found[hypothesis.id] = hypothesis
            watcher.progress("decode", len(found), len(ordered))
        return [found[cut.id] for cut in ordered]

    def batches(self, cuts: Sequence[MonoCut]) -> Iterator[list[MonoCut]]:
        """Batches of one route and of similar length."""
        groups: dict[Route, list[MonoCut]] = {}
        for cut in cuts:
            groups.setdefault(route_of(cut), []).append(cut)
        for route in sorted(groups):
            yield from chunk(sorted(groups[route], key=lambda cut: -cut.duration), self.settings.batch_s, max_utterances=64)

    @torch.inference_mode()
    def decode_batch(self, batch: Batch) -> list[Hypothesis]:
        """Hypotheses of one batch, whose expert indices may have been changed on purpose (the swap test)."""
        batch = batch.to(self.device)
        memory = self.system.model.encoder(batch.features, batch.feature_lengths, batch.encoder_expert)
        monotonic = all(self.system.config.kind(route.task).monotonic for route in batch.routes)
        prefix = torch.tensor([self.system.tokenizer.guiding_ids(route) for route in batch.routes])
        limits = [max(self.settings.min_max_tokens, round(cut.duration * self.settings.max_tokens_per_s)) for cut in batch.cuts]
        weight = self.settings.ctc_weight if monotonic else 0.0
        results = beam_search(self.system.model, memory, prefix, batch.decoder_expert, limits, self.settings, weight)
        return [self._hypothesis(cut, route, beams[0]) for cut, route, beams in zip(batch.cuts, batch.routes, results, strict=True)]

    def _hypothesis(self, cut: MonoCut, route: Route, beam: Beam) -> Hypothesis:
        tags = tags_of(cut)
        return Hypothesis(
            id=cut.id,
            utterance=tags.utterance,
            task=route.task,
            lang=route.lang,
            bandwidth=str(route.bandwidth),
            text=self.system.tokenizer.decode(beam.tokens),
            references=tags.references,
            corpus=tags.corpus,
            subset=tags.subset,
            speaker=cut.supervisions[0].speaker or "",
            source_lang=tags.source_lang,
            duration_s=cut.duration,
            score=beam.score,
            stopped="end" if beam.ended else "length",
        )


def cut_of_file(
    path: Path, task: str, lang: str, bandwidth: Bandwidth | None, sample_rate_hz: int, limits_s: tuple[float, float]
) -> MonoCut:
    """A tagged cut over a bare audio file.

    Args:
        bandwidth: What the audio carries; None: what its sampling rate says (8 kHz or less is narrowband).
        sample_rate_hz: The model's rate, to which the audio is brought.
        limits_s: Shortest and longest audio the model was made for.

    Raises:
        DataError: If the file is missing, damaged, too long, or sampled between telephone and wideband rates.
    """
    recording = describe(path, path.stem)
    check_readable(recording)
    if not limits_s[0] <= recording.duration <= limits_s[1]:
        raise DataError(
            f"audio `{path}` lasts {recording.duration:.2f} s; the model takes {limits_s[0]:g} to {limits_s[1]:g} s",
            "split long audio at pauses",
        )
    if bandwidth is None:
        if NARROWBAND_HZ < recording.sampling_rate < WIDEBAND_HZ:
            raise DataError(
                f"audio `{path}` at {recording.sampling_rate} Hz is neither telephone nor wideband", "say which with --bandwidth nb or wb"
            )
        bandwidth = Bandwidth.NB if recording.sampling_rate <= NARROWBAND_HZ else Bandwidth.WB
    recording = recording.resample(sample_rate_hz)
    tags = Tags(
        utterance=str(path),
        corpus="",
        task=task,
        bandwidth=str(bandwidth),
        source_lang="",
        transcript="",
        references=[],
        subset="",
        synthetic=False,
    )
    supervision = SupervisionSegment(
        id=str(path), recording_id=recording.id, start=0.0, duration=recording.duration, text="", language=lang, custom=tags.model_dump()
    )
    return MonoCut(id=str(path), start=0.0, duration=recording.duration, channel=0, supervisions=[supervision], recording=recording)
