"""Whether a file of audio is whole, as its container tells: libsndfile takes most files that were cut off for short ones."""

from __future__ import annotations

import io
import re
from typing import IO

HEAD = 4096
"""Bytes in which a header says how long its file is."""
UNKNOWN_32, UNKNOWN_64 = 0x7F000000, 2**62
"""A program that writes into a pipe does not know the length, and says 0, or about as much as can be said; sox writes 0x7F000000."""
W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
OGG_PAGE, OGG_HEADER, OGG_LAST = 2**16, 27, 4
"""A page of Ogg has at most 65,307 bytes, its header 27; a flag says that it is the last one of its stream."""


def cut_off(file: IO[bytes]) -> str:
    """How a file ends before it should; empty: it is whole, or its container does not tell. Only its two ends are read.

    FLAC and MP3 are not looked at: decoding them to their end shows it.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(HEAD)
    if head.startswith(b"OggS"):
        file.seek(max(0, size - OGG_PAGE))
        return "" if _ends_ogg(file.read()) else f"after {size:,} bytes, no last page of its Ogg stream has come"
    promised = _promised(head)
    return f"{size:,} bytes where its header promises {promised:,}" if size < promised else ""


def _promised(head: bytes) -> int:
    """How many bytes a file has, as its header says; 0: it does not say."""
    kind, form = head[:4], head[8:12]
    if kind == b"RIFF":
        return _known(8, head[4:8], "little")
    if kind in (b"RF64", b"BW64") and head[12:16] == b"ds64":
        return _known(8, head[20:28], "little", UNKNOWN_64)
    if head.startswith(W64):
        return _known(0, head[16:24], "little", UNKNOWN_64)
    if kind == b"FORM" and form in (b"AIFF", b"AIFC"):
        return _known(8, head[4:8], "big")
    if kind == b".snd":
        return _known(int.from_bytes(head[4:8], "big"), head[8:12], "big")
    return _promised_nist(head) if head.startswith(b"NIST_1A") else 0


def _known(before: int, field: bytes, order: str, unknown: int = UNKNOWN_32) -> int:
    """What a field says comes after some bytes, with these; 0: it says that nobody knew."""
    said = int.from_bytes(field, "big" if order == "big" else "little")
    return before + said if 0 < said < unknown else 0


def _promised_nist(head: bytes) -> int:
    """Its header is text, a field a line: `sample_count -i 64000`. Samples are counted in each channel."""
    fields = dict(re.findall(rb"^(\w+) -\w+ (\S+)", head.partition(b"\nend_head")[0], re.MULTILINE))
    if re.fullmatch(rb"(pcm|u-?law|mu-?law|a-?law)?", fields.get(b"sample_coding", b"")) is None:
        return 0  # packed: nobody knows how small
    try:
        samples, channels, width = (int(fields[name]) for name in (b"sample_count", b"channel_count", b"sample_n_bytes"))
        return int(head.split(maxsplit=2)[1]) + samples * channels * width
    except (KeyError, ValueError):
        return 0


def _ends_ogg(tail: bytes) -> bool:
    """Whether the last page that begins in the end of a file is whole, and the last one of its stream."""
    start = len(tail)
    while (start := tail.rfind(b"OggS", 0, start)) >= 0:
        page = tail[start:]
        if len(page) < OGG_HEADER:
            return False
        # Else sound that happens to read like one.
        if page[4] == 0 and page[5] < 2 * OGG_LAST:
            lengths = page[OGG_HEADER : OGG_HEADER + page[26]]
            return bool(page[5] & OGG_LAST) and OGG_HEADER + page[26] + sum(lengths) <= len(page)
    return False
