"""Batches of one route or of several, interleaved over routes by their size, and collation into tensors.

The order is a pure function of the manifest, the seed and the step: to resume is to count.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice, repeat
from typing import TypeVar

import numpy as np
import torch
from lhotse import CutSet, MonoCut
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.sampling.base import TimeConstraint
from torch import Tensor

from smoe_cli.augmentation import Augmentation, Masking
from smoe_cli.cut_table import corpus_of, letters_of, route_of, whole
from smoe_cli.cuts import tags_of
from smoe_cli.errors import DataError, RouteError
from smoe_cli.features import FrontEnd
from smoe_cli.routing import RoutingPlan
from smoe_cli.tags import Choice, Route
from smoe_cli.tokenizer import Tokenizer
from smoe_cli.train_settings import moves_until, value_at

K = TypeVar("K", bound=Hashable)
MOVED = ("features", "feature_lengths", "tokens_in", "targets", "ctc_targets", "ctc_lengths")
"""Tensors of a batch that go to the device."""
IGNORE_ID = -100
"""Target at positions that carry no loss: padding, and the guiding tokens, which are given."""
MOST_BUCKETS = 60
BOTH_LENGTHS = 30
"""From so many buckets on, half of them are for the shorter texts of a duration: less padding of texts is worth the coarser durations."""
# N utterances, T frames, F mel bins, U tokens, L transcript tokens


@dataclass(frozen=True)
class Batch:
    """Utterances ready for the model.

    Attributes:
        features: (N,T,F) float32, zero-padded.
        feature_lengths: (N,) int64.
        tokens_in: (N,U) guiding tokens and text.
        targets: (N,U) text and end; `IGNORE_ID` where there is no loss.
        ctc_targets: (N,L) transcript tokens, zero-padded.
        ctc_lengths: (N,) int64.
        encoder_expert, decoder_expert: (N,) int64, on the CPU always.
        routes, cuts: Per utterance.
    """

    features: Tensor
    feature_lengths: Tensor
    tokens_in: Tensor
    targets: Tensor
    ctc_targets: Tensor
    ctc_lengths: Tensor
    encoder_expert: Tensor
    decoder_expert: Tensor
    routes: list[Route]
    cuts: list[MonoCut]

    def to(self, device: torch.device) -> Batch:
        """The batch on another device; expert indices stay on the CPU, where they decide control flow."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in MOVED})

    def pin_memory(self) -> Batch:
        """The batch in memory from which a GPU copies by itself, while this process goes on; torch's loader asks for it by this name."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in MOVED})

    @property
    def filling(self) -> tuple[int, int, int, int]:
        """Real frames, and all of them; real positions of the decoder, and all of them."""
        # The last token of each, as there is no loss at the first ones either.
        ends_N = ((self.targets != IGNORE_ID) * torch.arange(1, self.targets.shape[1] + 1, device=self.targets.device)).amax(1)
        return int(self.feature_lengths.sum()), self.features.shape[:2].numel(), int(ends_N.sum()), self.targets.numel()

    @property
    def routes_served(self) -> list[str]:
        """Its routes, each once."""
        return list(dict.fromkeys(map(str, self.routes)))

    def with_expert(self, stack: str, expert_N: Tensor) -> Batch:
        """The batch with one stack's experts replaced on purpose."""
        return replace(self, encoder_expert=expert_N) if stack == "encoder" else replace(self, decoder_expert=expert_N)


class Collator:
    """Tagged cuts -> `Batch`; the route of each cut decides its experts and its guiding tokens.

    Args:
        max_tokens: Guiding tokens and text of one utterance, if the model has a limit.
        augmentation, masking: What is done to the audio, and to the features, of batches that have a number.
    """

    def __init__(
        self,
        front_end: FrontEnd,
        tokenizer: Tokenizer,
        plan: RoutingPlan,
        max_tokens: int | None = None,
        augmentation: Augmentation | None = None,
        masking: Masking | None = None,
    ) -> None:
        self.front_end, self.tokenizer, self.plan, self.max_tokens = front_end, tokenizer, plan, max_tokens
        self.augmentation, self.masking = augmentation, masking

    def __call__(self, cuts: Sequence[MonoCut], batch: int | None = None) -> Batch:
        """Read, compute and pad.

        Args:
            cuts: Of the batch.
            batch: Its number in training, which augmentation and masks are drawn for; None: the audio as it is.

        Raises:
            DataError: If audio cannot be read, tags are missing, or a text has more tokens than the model takes.
            RouteError: If the plan has no such route.
        """
        cuts = [whole(cut) for cut in cuts]
        routes = [route_of(cut, self.plan) for cut in cuts]
        features = [self._features(cut, route, batch) for cut, route in zip(cuts, routes, strict=True)]
        texts = [self.tokenizer.encode(str(cut.supervisions[0].text)) for cut in cuts]
        end = self.tokenizer.end_id
        prefixes = [self.tokenizer.guiding_ids(route) for route in routes]
        transcripts = [torch.tensor(self.tokenizer.encode(tags_of(cut).transcript), dtype=torch.int64) for cut in cuts]
        tokens = [torch.tensor(prefix + text) for prefix, text in zip(prefixes, texts, strict=True)]
        targets = [torch.tensor([IGNORE_ID] * (len(prefix) - 1) + text + [end]) for prefix, text in zip(prefixes, texts, strict=True)]
        for cut, item in zip(cuts, tokens, strict=True):
            check_tokens(f"cut `{cut.id}`", len(item), self.max_tokens)
        pad = torch.nn.utils.rnn.pad_sequence
        return Batch(
            features=pad(features, batch_first=True),
            feature_lengths=torch.tensor([len(item) for item in features]),
            tokens_in=pad(tokens, batch_first=True, padding_value=self.tokenizer.blank_id),
            targets=pad(targets, batch_first=True, padding_value=IGNORE_ID),
            ctc_targets=pad(transcripts, batch_first=True, padding_value=self.tokenizer.blank_id),
            ctc_lengths=torch.tensor([len(item) for item in transcripts]),
            encoder_expert=torch.tensor([self.plan.encoder.index(route) for route in routes]),
            decoder_expert=torch.tensor([self.plan.decoder.index(route) for route in routes]),
            routes=routes,
            cuts=cuts,
        )

    def _features(self, cut: MonoCut, route: Route, batch: int | None) -> Tensor:
        if batch is None:
            return self.front_end(cut)
        if self.augmentation is None:
            features = self.front_end(cut)
        else:
            samples = self.augmentation(cut, self.front_end.read(cut), route.bandwidth, batch)
            features = self.front_end.of_samples(torch.from_numpy(samples[0]))
        return features if self.masking is None else self.masking(cut, features, batch)


def check_tokens(what: str, tokens: int, most: int | None) -> None:
    """Refuse a text that is longer than the model takes.

    Args:
        what: Has that text.
        tokens: Of it, guiding tokens included.
        most: `model.max_tokens`.

    Raises:
        DataError: If it is so.
    """
    if most is not None and tokens > most:
        raise DataError(
            f"the text of {what} has {tokens} tokens, guiding tokens included; the model takes {most}",
            "split the utterance, or leave it out",
        )


def by_route(cuts: CutSet, plan: RoutingPlan) -> dict[Route, CutSet]:
    """Cuts grouped by route, in the plan's order.

    Raises:
        RouteError: If a cut's route is not in the plan.
    """
    groups: dict[Route, list[MonoCut]] = defaultdict(list)
    for cut in cuts:
        groups[route_of(cut, plan)].append(cut)
    return {Route.parse(name): CutSet.from_cuts(groups[Route.parse(name)]) for name in plan.routes if Route.parse(name) in groups}


class RouteBatches:
    """An endless, exactly resumable stream of batches of cuts.

    Each route has its own shuffled epochs, bucketed by duration and text (Lhotse's sampler); routes take turns in proportion
    to ``share ** (1 / temperature)`` of their audio, times the weights of their tags, which may change from step to step. Turns are
    dealt evenly rather than drawn, so that even a short run keeps the proportions. A batch is of one turn, or made of equal parts from
    several consecutive ones.

    Where corpora are blended, each corpus of a route has epochs of its own, and the route's turns are dealt among them likewise: a
    batch holds one corpus, buckets stay as tight as without blending, and to resume is still to count. Where they are not, a route's
    corpora are shuffled together, as if they were one.

    Args:
        groups: Route -> its training cuts.
        batch_s: Seconds of audio per batch, padding included.
        max_utterances: Utterances per batch at most.
        seed: Of all shuffling.
        temperature: 1 keeps the data's proportions, larger evens them out; as text, it moves: `1 to 5 over 20000 steps`.
        route_weights: Part of a route's name -> factor on the share of such routes; as text, it moves likewise.
        corpus_weights: Corpus -> factor on how often its cuts are drawn, within each route.
        corpus_temperature: 1 keeps the proportions of a route's corpora, larger evens them out.
        turns_per_batch: Turns that share a batch.

    Attributes:
        epochs: Name of a stream of epochs -> batches in each that it has been through. Who knows them gets beyond them without sampling:
            what is in an epoch depends on its number, not on those before.

    Raises:
        DataError: If a cut alone is longer than its part of a batch, or a weight is of a route or a corpus without cuts.
    """

    def __init__(
        self,
        groups: dict[Route, CutSet],
        batch_s: float,
        max_utterances: int,
        seed: int,
        temperature: float | str = 1.0,
        route_weights: Mapping[str, float | str] | None = None,
        corpus_weights: Mapping[str, float] | None = None,
        corpus_temperature: float = 1.0,
        turns_per_batch: int = 1,
    ) -> None:
        self.groups, self.seed, self.turns_per_batch = groups, seed, turns_per_batch
        self.batch_s, self.max_utterances = batch_s / turns_per_batch, max_utterances // turns_per_batch
        part = "a batch" if turns_per_batch == 1 else f"one of {turns_per_batch} parts of a batch"
        longest = max((cut for cuts in groups.values() for cut in cuts), key=lambda cut: cut.duration)
        if longest.duration > self.batch_s:
            # A little more, as the parts of a batch are rounded.
            needed_s = (math.floor(10 * longest.duration * turns_per_batch) + 1) / 10
            raise DataError(
                f"cut `{whole(longest).id}` lasts {longest.duration:.1f} s, longer than {part} of {batch_s:g} s, and no cut is longer",
                f"raise `train.batch_s` to {needed_s:g} or more, or leave long cuts out",
            )
        self.epochs: dict[str, list[int]] = {}
        self._seconds = {route: sum(cut.duration for cut in cuts) for route, cuts in groups.items()}
        self._temperature, self._weights = temperature, chosen_weights(route_weights or {}, groups)
        self._moves_until = max(map(moves_until, (temperature, *(weight for _, weight in self._weights))))
        self.corpora: dict[Route, dict[str, CutSet]] = {}
        self.corpus_shares: dict[Route, dict[str, float]] = {}
        if blends(corpus_weights or {}, corpus_temperature):
            self.corpora = {route: by_corpus(cuts) for route, cuts in groups.items()}
            check_weights(corpus_weights or {}, {name for corpora in self.corpora.values() for name in corpora})
            for route, corpora in self.corpora.items():
                self.corpus_shares[route] = self._corpus_shares(corpora, corpus_weights or {}, corpus_temperature)

    def _corpus_shares(self, corpora: Mapping[str, CutSet], factors: Mapping[str, float], temperature: float) -> dict[str, float]:
        """Corpus -> its share of a route's batches."""
        # In batches, not in seconds: short cuts fill a batch by their number.
        sizes = {name: Limits.of(list(cuts), self.batch_s, self.max_utterances).batches for name, cuts in corpora.items()}
        weights = {name: size ** (1.0 / temperature) * factors.get(name, 1.0) for name, size in sizes.items()}
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    def shares_at(self, step: int) -> dict[Route, float]:
        """Route -> its share of the turns of a step."""
        temperature = value_at(self._temperature, step)
        factors = [(choice, value_at(weight, step)) for choice, weight in self._weights]
        weights = {
            route: seconds ** (1.0 / temperature) * math.prod((factor for choice, factor in factors if choice.has(route)), start=1.0)
            for route, seconds in self._seconds.items()
        }
        return {route: weight / sum(weights.values()) for route, weight in weights.items()}

    def turns(self) -> Iterator[Route]:
        """Whose turn is first, second, third, ..."""
        moving = (self.shares_at(step) for step in range(self._moves_until) for _ in range(self.turns_per_batch))
        return deal(chain(moving, repeat(self.shares_at(self._moves_until))))

    def stream(self, start_step: int = 0, per_step: int = 1) -> Iterator[list[MonoCut]]:
        """Batches from ``start_step`` on, ``per_step`` of the same turns for each step; only metadata is read for those before it."""
        turns = self.turns()
        before = Counter(islice(turns, start_step * self.turns_per_batch))
        routes = {route: self._batches(route, before[route] * per_step) for route in self.groups}
        while True:
            served = list(islice(turns, self.turns_per_batch))
            for _ in range(per_step):
                yield [cut for route in served for cut in next(routes[route])]

    def _batches(self, route: Route, skipped: int = 0) -> Iterator[list[MonoCut]]:
        """Those of a route, but for the first ones."""
        if route not in self.corpora:
            yield from self._epochs(str(route), self.groups[route], skipped)
            return
        names = deal(repeat(self.corpus_shares[route]))
        before = Counter(islice(names, skipped))
        streams = {name: self._epochs(f"{route} {name}", cuts, before[name]) for name, cuts in self.corpora[route].items()}
        for name in names:
            yield next(streams[name])

    def _epochs(self, name: str, cuts: CutSet, skipped: int) -> Iterator[list[MonoCut]]:
        whole_cuts, known = list(cuts), self.epochs.setdefault(name, [])
        limits = Limits.of(whole_cuts, self.batch_s, self.max_utterances)
        for epoch in count():
            if epoch < len(known) and known[epoch] <= skipped:
                skipped -= known[epoch]
                continue
            number = 0
            for number, batch in enumerate(self._epoch(whole_cuts, limits, epoch), start=1):
                if number > skipped:
                    yield batch
            skipped = max(0, skipped - number)
            if epoch == len(known):
                known.append(number)

    def _epoch(self, whole_cuts: list[MonoCut], limits: Limits, epoch: int) -> Iterator[list[MonoCut]]:
        # A new sampler per epoch: its order then depends on nothing but seed and epoch. All cuts are in its buckets at once, so that
        # they are shuffled however they are sorted.
        sampler = DynamicBucketingSampler(
            whole_cuts,
            constraint=limits,
            duration_bins=list(range(limits.buckets - 1)),
            buffer_size=len(whole_cuts),
            drop_last=True,
            shuffle=True,
            seed=self.seed,
            rank=0,
            world_size=1,
        )
        sampler.set_epoch(epoch)
        served: set[str] = set()
        for batch in sampler:
            served.update(cut.id for cut in batch)
            yield list(batch)
        # What does not fill a batch of its bucket is put together: a step of one utterance would count as much as one of thirty.
        left = sorted((cut for cut in whole_cuts if cut.id not in served), key=lambda cut: cut.duration)
        batches = list(chunk(left, self.batch_s, self.max_utterances))
        random.Random(f"{self.seed} {epoch}").shuffle(batches)
        yield from batches


@dataclass
class Limits(TimeConstraint):  # type: ignore[misc]  # Lhotse has no type hints that are exported
    """What a batch may hold, and which cuts may share one: those of similar duration and, where there are enough, similar text.

    Attributes:
        starts_s: Where the bands of duration begin, but for the first; each has about the same amount of audio.
        ends_s: The longest duration in each.
        long_texts: Letters up to which a text is a short one, for each band; None: texts are not told apart.
        batches: How many an epoch has, about.
    """

    starts_s: Sequence[float] = ()
    ends_s: Sequence[float] = ()
    long_texts: Sequence[int] | None = None
    batches: int = 0

    @classmethod
    def of(cls, cuts: Sequence[MonoCut], batch_s: float, max_utterances: int) -> Limits:
        """Limits with buckets for these cuts, in the mean of at least one batch each: fewer would be looser, and pad more."""
        seconds = np.sort([cut.duration for cut in cuts])
        wanted = min(MOST_BUCKETS, int(max(seconds.sum() / batch_s, len(cuts) / max_utterances)))
        by_text = wanted >= BOTH_LENGTHS
        bands = wanted // 2 if by_text else wanted
        heard = np.cumsum(seconds)
        places = np.searchsorted(heard, heard[-1] * np.arange(1, bands) / max(1, bands))
        starts_s = sorted({float(seconds[place]) for place in places} - {float(seconds[0])})
        ends_s = [float(seconds[place - 1]) for place in np.searchsorted(seconds, [*starts_s, np.inf])]
        found = cls(max_duration=batch_s, max_cuts=max_utterances, starts_s=starts_s, ends_s=ends_s)
        if by_text:
            letters: list[list[int]] = [[] for _ in ends_s]
            for cut in cuts:
                letters[bisect_right(starts_s, cut.duration)].append(letters_of(cut))
            found.long_texts = [int(np.median(some)) for some in letters]
        of_bucket = Counter(found.select_bucket(None, cut) for cut in cuts)
        per_band = found.buckets // len(ends_s)
        full = {bucket: found.utterances(ends_s[bucket // per_band]) for bucket in of_bucket}
        left = sum(count % full[bucket] / full[bucket] for bucket, count in of_bucket.items())
        found.batches = sum(count // full[bucket] for bucket, count in of_bucket.items()) + math.ceil(left)
        return found

    @property
    def buckets(self) -> int:
        """How many there are."""
        return len(self.ends_s) * (1 if self.long_texts is None else 2)

    def utterances(self, longest_s: float) -> int:
        """How many utterances a batch holds, if the longest lasts so long."""
        return max(1, min(self.max_cuts, int(self.max_duration / longest_s + 1e-9)))

    def close_to_exceeding(self) -> bool:
        """Whether one cut more of the same bucket could be too much; Lhotse takes the longest so far, which the next one may exceed."""
        return bool(self.num_cuts >= self.utterances(self.ends_s[bisect_right(self.starts_s, self.longest_seen)]))

    def select_bucket(self, buckets: object, example: MonoCut | None = None, example_len: float | None = None) -> int:
        """Which bucket a cut goes into, as Lhotse asks."""
        del buckets, example_len
        if example is None:
            raise ValueError("buckets are chosen for cuts, not for durations")
        band = bisect_right(self.starts_s, example.duration)
        return band if self.long_texts is None else 2 * band + int(letters_of(example) > self.long_texts[band])


def by_corpus(cuts: Iterable[MonoCut]) -> dict[str, CutSet]:
    """Cuts grouped by corpus, in the order of the names.

    Raises:
        DataError: If a cut lacks a tag.
    """
    groups: dict[str, list[MonoCut]] = defaultdict(list)
    for cut in cuts:
        groups[corpus_of(cut)].append(cut)
    return {name: CutSet.from_cuts(groups[name]) for name in sorted(groups)}


def chosen_weights(weights: Mapping[str, float | str], routes: Collection[Route]) -> list[tuple[Choice, float | str]]:
    """What each weight of routes chooses, and the weight.

    Raises:
        DataError: If one would do nothing: no training cut is of such a route.
    """
    found = []
    for name, weight in weights.items():
        try:
            found.append((Choice.among(name, routes), weight))
        except RouteError as error:
            raise DataError(
                f"`train.route_weights` has `{name}: {weight}`, and of the routes with training cuts {error.message}",
                "take the weight away, or give the train split such cuts",
            ) from error
    return found


def blends(corpus_weights: Mapping[str, float], corpus_temperature: float) -> bool:
    """Whether corpora are drawn otherwise than the data has them."""
    return corpus_temperature != 1.0 or any(weight != 1.0 for weight in corpus_weights.values())


def check_weights(corpus_weights: Mapping[str, float], there: Collection[str]) -> None:
    """Refuse a weight that would do nothing.

    Raises:
        DataError: If it is of a corpus that no training cut is tagged with.
    """
    for name in corpus_weights.keys() - there:
        raise DataError(
            f"`data.corpora.{name}.weight` is {corpus_weights[name]:g}, and no training cut is tagged with that corpus; "
            f"there are: {', '.join(sorted(there))}",
            "take the weight away, or prepare that corpus; packed cuts keep the name of the corpus that they were prepared from",
        )


def deal(shares: Iterable[Mapping[K, float]]) -> Iterator[K]:
    """Turns in proportion to shares that add up to 1, given for each turn: smooth weighted round robin."""
    credit: dict[K, float] = {}
    for of_turn in shares:
        for key, share in of_turn.items():
            credit[key] = credit.get(key, 0.0) + share
        chosen = max(credit, key=lambda key: credit[key])
        credit[chosen] -= 1.0
        yield chosen


def chunk(cuts: Sequence[MonoCut], batch_s: float, max_utterances: int) -> Iterator[list[MonoCut]]:
    """Cut a sequence, in its order, into batches whose padded length stays within ``batch_s``."""
    batch: list[MonoCut] = []
    longest = 0.0
    for cut in cuts:
        longest = max(longest, cut.duration)
        if batch and (longest * (len(batch) + 1) > batch_s or len(batch) == max_utterances):
            yield batch
            batch, longest = [], cut.duration
        batch.append(cut)
    if batch:
        yield batch
