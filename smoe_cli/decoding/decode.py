"""A trained system and tagged cuts -> hypotheses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from lhotse import MonoCut, SupervisionSegment

from smoe_cli import __version__
from smoe_cli.audio import check_readable, describe, resampled
from smoe_cli.batching import Batch, Collator, chunk
from smoe_cli.checkpoint import System
from smoe_cli.config import DecodeSettings
from smoe_cli.cuts import BARE, UNDETERMINED, Tags, band_of, route_of, tags_of
from smoe_cli.decoding.beam import beam_search
from smoe_cli.decoding.labels import label_log_probs
from smoe_cli.decoding.part import Header, open_part
from smoe_cli.errors import DataError, RouteError
from smoe_cli.features import FrontEnd
from smoe_cli.model.speech_to_text import Memory
from smoe_cli.records import Hypothesis
from smoe_cli.tags import HOW_TO_CHOOSE, Bandwidth, Route
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
        self.collator = Collator(FrontEnd(features, cache_mb), system.tokenizer, system.plan, system.config.model.max_tokens)
        # How much is decoded together changes no hypothesis.
        unused = {"batch_s"} if system.config.model.ctc else {"batch_s", "ctc_weight"}
        search = self.settings.model_dump(exclude=unused) | {"smoe": __version__}
        self.signature = "|".join(f"{name}:{value}" for name, value in search.items())

    def decode(self, cuts: Iterable[MonoCut], watcher: Watcher | None = None, part: Path | None = None) -> list[Hypothesis]:
        """One hypothesis per cut, in the order of the cuts.

        Args:
            cuts: Tagged cuts.
            watcher: Shown progress.
            part: File that keeps every finished batch, so that a call which was stopped goes on there, with the result of
                one that was not. Whoever has written the result removes it. None: nothing is kept.

        Raises:
            RouteError: If the model has no such route; before anything is computed.
            DataError: If a cut occurs twice, audio cannot be read, or the part file cannot be written.
            Interrupted: On Ctrl-C, if there is a part file.
        """
        watcher = watcher or Silent()
        ordered = list(cuts)
        ids: set[str] = set()
        for cut in ordered:
            if cut.id in ids:
                raise DataError(f"cut `{cut.id}` occurs twice", "name each input once, and decode manifests that share cuts apart")
            ids.add(cut.id)
            try:
                route_of(cut, self.system.plan)
            except RouteError as error:
                raise RouteError(error.message, f"{HOW_TO_CHOOSE}; or correct the cut's tags, if they are wrong") from None
        batches = list(self.batches(ordered))
        with open_part(part, self._header(batches), watcher) as done:
            # The same arithmetic as before, or the result would depend on where it was stopped.
            torch.set_float32_matmul_precision(done.header.matmul)
            for batch_cuts in batches[len(done.batches) :]:
                done.keep(self.decode_batch(self.collator(batch_cuts)))
                watcher.progress("decode", done.utterances, len(ordered))
        found = {hypothesis.id: hypothesis for batch in done.batches for hypothesis in batch}
        return [found[cut.id] for cut in ordered]

    def _header(self, batches: Sequence[Sequence[MonoCut]]) -> Header:
        digest = hashlib.sha256()
        for batch in batches:
            digest.update(json.dumps([cut.to_dict() for cut in batch]).encode())
        return Header(
            smoe=__version__,
            model=self.system.digest,
            texts=hashlib.sha256(f"{self.system.tokenizer.card} {self.system.plan.model_dump_json()}".encode()).hexdigest(),
            settings=self.settings,
            batches=digest.hexdigest(),
            utterances=sum(len(batch) for batch in batches),
            matmul=torch.get_float32_matmul_precision(),
        )

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
        prefix = torch.tensor([self.system.tokenizer.guiding_ids(route) for route in batch.routes])
        kinds = {self.system.config.kind(route.task) for route in batch.routes}
        if any(kind.closed for kind in kinds):
            return self._answers(batch, memory, prefix)
        monotonic = all(kind.monotonic for kind in kinds)
        limits = [max(self.settings.min_max_tokens, round(cut.duration * self.settings.max_tokens_per_s)) for cut in batch.cuts]
        weight = self.settings.ctc_weight if monotonic else 0.0
        if self.system.config.model.max_tokens is not None:
            limits = [min(limit, self.system.config.model.max_tokens - prefix.shape[1]) for limit in limits]
        results = beam_search(self.system.model, memory, prefix, batch.decoder_expert, limits, self.settings, weight, self.system.tokenizer)
        return [
            self._hypothesis(cut, route, self.system.tokenizer.decode(beams[0].tokens), beams[0].score, beams[0].ended)
            for cut, route, beams in zip(batch.cuts, batch.routes, results, strict=True)
        ]

    def _answers(self, batch: Batch, memory: Memory, prefix_NP: torch.Tensor) -> list[Hypothesis]:
        """The likeliest label for each utterance of a batch of one task, among those that training has seen."""
        (task,) = {route.task for route in batch.routes}
        labels = self.system.plan.labels_of(task)
        tokenizer = self.system.tokenizer
        spelled = [[*tokenizer.encode(label), tokenizer.end_id] for label in labels]
        log_probs_NL = label_log_probs(self.system.model, memory, prefix_NP, batch.decoder_expert, spelled)
        scores, best = log_probs_NL.log_softmax(-1).max(-1)
        return [
            self._hypothesis(cut, route, labels[index], score, True, labels)
            for cut, route, index, score in zip(batch.cuts, batch.routes, best.tolist(), scores.tolist(), strict=True)
        ]

    def _hypothesis(
        self, cut: MonoCut, route: Route, text: str, score: float, ended: bool, labels: Sequence[str] | None = None
    ) -> Hypothesis:
        """What was decoded of a cut; `labels` are all that could have been answered."""
        tags = tags_of(cut)
        return Hypothesis(
            id=cut.id,
            utterance=tags.utterance,
            task=route.task,
            lang=route.lang,
            bandwidth=str(route.bandwidth),
            text=text,
            references=tags.references,
            corpus=tags.corpus,
            subset=tags.subset,
            speaker=cut.supervisions[0].speaker or "",
            source_lang=tags.source_lang,
            duration_s=cut.duration,
            score=score,
            stopped="end" if ended else "length",
            synthetic=tags.synthetic,
            model=self.system.digest,
            decoding=self.signature,
            tags=dict(route.extra),
            unseen=labels is not None and bool(tags.references) and not set(tags.references) & set(labels),
        )


def cut_of_file(
    path: Path,
    task: str,
    lang: str,
    bandwidth: Bandwidth | None,
    tags: dict[str, str],
    sample_rate_hz: int,
    limits_s: tuple[float, float],
) -> MonoCut:
    """A tagged cut over a bare audio file.

    Args:
        bandwidth: What the audio carries; None: what its sampling rate says (8 kHz or less is narrowband).
        tags: Axis of the recipe's own -> value.
        sample_rate_hz: The model's rate, to which the audio is brought.
        limits_s: Shortest and longest audio the model was made for.

    Raises:
        DataError: If the file is missing, damaged, too long, sampled between telephone and wideband rates, or called
            wideband against its sampling rate.
    """
    recording = describe(path, path.stem)
    check_readable(recording)
    if not limits_s[0] <= recording.duration <= limits_s[1]:
        raise DataError(
            f"audio `{path}` lasts {recording.duration:.2f} s; the model takes {limits_s[0]:g} to {limits_s[1]:g} s",
            "split long audio at pauses",
        )
    bandwidth = band_of(recording, bandwidth, None, sample_rate_hz)
    recording = resampled(recording, sample_rate_hz)
    supervised = Tags(
        utterance=str(path),
        corpus=BARE,
        task=task,
        bandwidth=str(bandwidth),
        source_lang=UNDETERMINED,
        transcript="",
        references=[],
        subset="",
        synthetic=False,
        axes=tags,
    )
    supervision = SupervisionSegment(
        id=str(path),
        recording_id=recording.id,
        start=0.0,
        duration=recording.duration,
        text="",
        language=lang,
        custom=supervised.model_dump(exclude_none=True),
    )
    return MonoCut(id=str(path), start=0.0, duration=recording.duration, channel=0, supervisions=[supervision], recording=recording)
