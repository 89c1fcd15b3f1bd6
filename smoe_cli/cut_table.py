"""The cuts of a large manifest: what sampling needs of each is in memory, the rest is read from disk when it is asked for.

A whole cut takes kilobytes of memory, a stub a quarter of one: a million of them fit beside torch.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut
from lhotse.augmentation import AudioTransform

from smoe_cli import cuts
from smoe_cli.config import Config
from smoe_cli.cuts import read_cuts, tags_of
from smoe_cli.errors import DataError
from smoe_cli.manifests import LONGEST_LINE, MEMBER_LINES, make_cut, read_object
from smoe_cli.routing import RoutingPlan
from smoe_cli.tags import Route

WHOLE_CUTS = 20_000
"""Manifests with as many cuts are read into memory: looking a cut up costs a thousandth of a second."""
BLOCK = 2**20
GZIP = 16 + zlib.MAX_WBITS
LONGEST_MEMBER = 64 * LONGEST_LINE
CURE = "bring back the whole file, or prepare it again"
MOST_BYTES = 2**16 - 1
ACCOUNTS = json.JSONEncoder(default=AudioTransform.to_dict)
KEPT_MEMBERS = 256
"""Of the manifest's members, unpacked: 20 MB."""


class Stub(MonoCut):  # type: ignore[misc]  # Lhotse has no type hints that are exported
    """A cut of which only duration and place are known; `whole` gives the cut."""

    table: CutTable


class CutTable:
    """The cuts of a manifest that `smoe prepare` wrote, by their number.

    Args:
        path: The manifest, packed in members of `MEMBER_LINES` lines.

    Attributes:
        routes, corpora: Those that there are, in the order in which they come.
        blank: Numbers of the cuts without a text.
        digests: Route -> digest of the ids, durations and texts of its cuts.

    Raises:
        DataError: If the manifest is missing, damaged, empty, packed otherwise, or a cut lacks a tag.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.routes: list[Route] = []
        self.corpora: list[str] = []
        self._offsets, self._durations = array("q"), array("d")
        self._route, self._corpus, self._letters, self._text_bytes = array("H"), array("H"), array("I"), array("H")
        self._unpacked: OrderedDict[int, list[bytes]] = OrderedDict()
        self.blank: set[int] = set()
        digests: dict[Route, Any] = {}
        for offset, lines in members(path):
            if len(self._durations) != len(self._offsets) * MEMBER_LINES:
                raise DataError(f"manifest `{path}` is not packed as `smoe prepare` does it", "prepare it again with `smoe prepare`")
            self._offsets.append(offset)
            for line in lines:
                cut = self._parse(line, len(self._durations))
                tags = tags_of(cut)
                route, corpus = cuts.route_of(cut, tags=tags), tags.corpus
                if route not in digests:
                    digests[route] = hashlib.sha256()
                    self.routes.append(route)
                if corpus not in self.corpora:
                    self.corpora.append(corpus)
                if not has_text(cut):
                    self.blank.add(len(self._durations))
                self._route.append(self.routes.index(route))
                self._corpus.append(self.corpora.index(corpus))
                self._durations.append(cut.duration)
                self._letters.append(letters_of(cut))
                self._text_bytes.append(min(text_bytes_of(cut), MOST_BYTES))
                digests[route].update(account_of(cut))
        if not self._durations:
            raise DataError(f"manifest `{path}` is empty", "prepare it again with `smoe prepare`")
        self.digests: dict[Route, str] = {route: digest.hexdigest() for route, digest in digests.items()}

    def __len__(self) -> int:
        return len(self._durations)

    def __getitem__(self, number: int) -> MonoCut:
        """The whole cut.

        Raises:
            DataError: If the manifest is not the one that was opened any more.
        """
        member, line = divmod(number, MEMBER_LINES)
        lines = self._unpacked.get(member)
        if lines is None:
            try:
                with self.path.open("rb") as file:
                    file.seek(self._offsets[member])
                    lines = next(_members(file.read, self.path, self._offsets[member]))[1]
            except (OSError, StopIteration) as error:
                raise DataError(f"manifest `{self.path}` was changed while it was in use", "run the command again") from error
            self._unpacked[member] = lines
            if len(self._unpacked) > KEPT_MEMBERS:
                self._unpacked.popitem(last=False)
        if line >= len(lines):
            raise DataError(f"manifest `{self.path}` was changed while it was in use", "run the command again")
        return self._parse(lines[line], number)

    def stubs(self) -> CutSet:
        """All cuts, in the order of the manifest."""
        nothing: list[object] = []
        same: dict[float, float] = {}
        found = []
        for number, duration in enumerate(self._durations):
            # Numbers instead of ids, equal durations and the empty list shared: that is what makes a stub small.
            stub = Stub(id=number, start=0.0, duration=same.setdefault(duration, duration), channel=0, supervisions=nothing)
            object.__setattr__(stub, "table", self)  # Lhotse's own would take it for a custom field
            found.append(stub)
        return CutSet.from_cuts(found)

    def route(self, number: int) -> Route:
        """The route of a cut."""
        return self.routes[self._route[number]]

    def corpus(self, number: int) -> str:
        """The corpus of a cut."""
        return self.corpora[self._corpus[number]]

    def letters(self, number: int) -> int:
        """Letters of a cut's text."""
        return self._letters[number]

    def text_bytes(self, number: int) -> int:
        """Bytes of a cut's text in UTF-8, `MOST_BYTES` at most."""
        return self._text_bytes[number]

    def _parse(self, line: bytes, number: int) -> MonoCut:
        where = f"`{self.path}` line {number + 1}"
        return make_cut(read_object(line, where), where, None, archives=False)


def open_cuts(path: Path) -> CutSet:
    """The cuts of a prepared manifest: whole ones, or of a large manifest stubs.

    Raises:
        DataError: If the manifest is missing, damaged or empty, or a cut lacks a tag.
    """
    if path.name.endswith(".gz") and path.is_file() and _is_large(path):
        return CutTable(path).stubs()
    return read_cuts(path)


def _is_large(path: Path) -> bool:
    """Whether there are more than `WHOLE_CUTS` cuts, packed so that they can be looked up one by one."""
    count = 0
    for _, lines in members(path):
        if count % MEMBER_LINES or len(lines) > MEMBER_LINES:
            return False
        count += len(lines)
        if count > WHOLE_CUTS:
            return True
    return False


def members(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (place in the file, lines) of each member of a packed manifest.

    Raises:
        DataError: If it is missing or damaged, or a member is larger than those of any manifest.
    """
    try:
        with path.open("rb") as file:
            yield from _members(file.read, path, 0)
    except FileNotFoundError:
        raise DataError(f"no manifest `{path}`", "run `smoe prepare` first, or name an existing manifest") from None
    except OSError as error:
        raise DataError(f"cannot read manifest `{path}`: {error.strerror}", "check the file and its rights") from error


def _members(read: Callable[[int], bytes], path: Path, offset: int) -> Iterator[tuple[int, list[bytes]]]:
    """The members that a file has from a place on."""
    waiting = b""
    while waiting := waiting or read(BLOCK):
        unpack, content = zlib.decompressobj(GZIP), bytearray()
        used = 0
        while not unpack.eof:
            try:
                content += unpack.decompress(waiting, LONGEST_MEMBER - len(content) + 1)
            except zlib.error as error:
                raise DataError(f"cannot read manifest `{path}`: {error}", CURE) from error
            if len(content) > LONGEST_MEMBER:
                raise DataError(f"`{path}` unpacks to more than a manifest of cuts does", "prepare it again with `smoe prepare`")
            rest = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
            used += len(waiting) - len(rest)
            waiting = rest or (b"" if unpack.eof else read(BLOCK))
            if not waiting and not unpack.eof:
                raise DataError(f"cannot read manifest `{path}`: it ends in the middle", CURE)
        yield offset, bytes(content).splitlines(keepends=True)
        offset += used


def whole(cut: MonoCut) -> MonoCut:
    """The cut that a stub stands for; any other cut as it is.

    Raises:
        DataError: If the manifest is not the one that was opened any more.
    """
    return cut.table[number_of(cut)] if isinstance(cut, Stub) else cut


def number_of(stub: Stub) -> int:
    """The number of a stub's cut in its table."""
    return stub.id


def route_of(cut: MonoCut, plan: RoutingPlan | None = None) -> Route:
    """As `cuts.route_of`, which a stub need not be whole for."""
    if not isinstance(cut, Stub):
        return cuts.route_of(cut, plan)
    route = cut.table.route(number_of(cut))
    # A whole cut's error names it.
    return route if plan is None or str(route) in plan.routes else cuts.route_of(whole(cut), plan)


def letters_of(cut: MonoCut) -> int:
    """Letters of a cut's text, without reading it from disk."""
    return cut.table.letters(number_of(cut)) if isinstance(cut, Stub) else len(cut.supervisions[0].text or "")


def text_bytes_of(cut: MonoCut) -> int:
    """Bytes of a cut's text in UTF-8, or at least `MOST_BYTES`, without reading it from disk."""
    return cut.table.text_bytes(number_of(cut)) if isinstance(cut, Stub) else len((cut.supervisions[0].text or "").encode())


def has_text(cut: MonoCut) -> bool:
    """Whether there is anything to write, without reading it from disk."""
    return number_of(cut) not in cut.table.blank if isinstance(cut, Stub) else bool((cut.supervisions[0].text or "").strip())


def corpus_of(cut: MonoCut) -> str:
    """The corpus that a cut is tagged with."""
    return cut.table.corpus(number_of(cut)) if isinstance(cut, Stub) else tags_of(cut).corpus


def labels_of(some: Iterable[MonoCut], config: Config) -> dict[str, list[str]]:
    """Task that answers with a label -> the different right answers of its cuts, sorted."""
    found: dict[str, set[str]] = {}
    for cut in some:
        task = route_of(cut).task
        if task in config.tasks and config.kind(task).closed:
            found.setdefault(task, set()).add(str(whole(cut).supervisions[0].text))
    return {task: sorted(labels) for task, labels in found.items()}


def account_of(cut: MonoCut) -> bytes:
    """What makes a training cut the same as another: what is heard and what is written. Its audio may lie in another file."""
    said, audio = cut.supervisions[0], cut.recording if cut.has_recording else None
    custom = said.custom or {}
    heard = [cut.id, cut.start, cut.duration, cut.channel, custom.get("line")]
    heard += [audio.id, audio.num_samples, audio.transforms] if audio is not None else []
    return ACCOUNTS.encode([*heard, said.text, custom.get("transcript")]).encode()


def digest_of(route: Route, some: CutSet) -> str:
    """Digest over all training cuts of a route."""
    first = next(iter(some))
    if isinstance(first, Stub):
        return first.table.digests[route]
    digest = hashlib.sha256()
    for cut in some:
        digest.update(account_of(cut))
    return digest.hexdigest()
