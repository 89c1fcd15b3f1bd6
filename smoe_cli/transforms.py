"""What a manifest may do to audio when it is read, and at which sampling rates: all of it bounded, nothing of it runs or opens a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from smoe_cli.config import HIGHEST_HZ, LOWEST_HZ, LineCodec
from smoe_cli.errors import DataError
from smoe_cli.tags import TELEPHONE_HZ

if TYPE_CHECKING:
    from lhotse import Recording

LARGEST_KERNEL = 2**20
"""Numbers in a resampling filter, one row for each phase between two rates: 290,000 from 11,025 to 16,000 Hz, 706 million from 44,101."""
MOST_STEPS = 16
RATES = f"{LOWEST_HZ:,} to {HIGHEST_HZ:,} Hz"
RATE_CURE = "bring it to a usual rate, for example with `sox in.wav -r 16000 out.wav`"
Rate = Annotated[int, Field(ge=LOWEST_HZ, le=HIGHEST_HZ)]


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Resample(_Step):
    source_sampling_rate: Rate
    target_sampling_rate: Rate


class _Speed(_Step):
    factor: FiniteFloat = Field(ge=0.5, le=2.0)


class _Volume(_Step):
    factor: FiniteFloat = Field(gt=0.0, le=100.0)


class _Narrowband(_Step):
    codec: Literal["mulaw"]  # `lpc10` loads a library of the system when it is only read
    source_sampling_rate: Rate
    restore_orig_sr: bool


class _TelephoneLine(_Step):
    codec: LineCodec
    telephone_band: bool


TRANSFORMS: dict[str, type[_Step]] = {
    "Resample": _Resample,
    "Speed": _Speed,
    "Volume": _Volume,
    "Narrowband": _Narrowband,
    "TelephoneLine": _TelephoneLine,
}
"""Transforms that a manifest may have -> what may stand in them. All others of Lhotse open files or run libraries that nobody checks."""


class Chain(NamedTuple):
    """What a recording's transforms make of its file.

    Attributes:
        native_hz: Rate that the file must have.
        lowest_hz: Lowest rate on the way.
        speed: How many times as fast it gets.
    """

    native_hz: int
    lowest_hz: int
    speed: float


def resampled_too_finely(from_hz: int, to_hz: int) -> str:
    """Why one rate cannot be brought to another; empty: it can."""
    shared = gcd(from_hz, to_hz)
    # As many rows as the filter has phases; each spans one period of the input and twelve zero crossings.
    size = to_hz // shared * (from_hz // shared + 12 * max(1, from_hz // to_hz))
    if size <= LARGEST_KERNEL:
        return ""
    return (
        f"from {from_hz:,} to {to_hz:,} Hz it would take a filter of {size:,} numbers (at most {LARGEST_KERNEL:,}): they share no divisor"
    )


def check_rate(what: str, rate_hz: int, to_hz: int | None = None) -> None:
    """Refuse a sampling rate that no speech has, or that cannot be brought to another one.

    Raises:
        DataError: If it is so.
    """
    if not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
        raise DataError(f"{what} is sampled at {rate_hz:,} Hz, outside {RATES}", RATE_CURE)
    if to_hz is not None and (why := resampled_too_finely(rate_hz, to_hz)):
        raise DataError(f"{what} is sampled at {rate_hz:,} Hz: {why}", RATE_CURE)


def chain_of(recording: Recording) -> Chain:
    """What is done to a recording, from its file on."""
    return _follow([step if isinstance(step, dict) else step.to_dict() for step in recording.transforms or []], recording.sampling_rate)


def _follow(steps: Sequence[Mapping[str, Any]], rate_hz: int) -> Chain:
    rates = [rate for step in steps for rate in _rates(step)] or [rate_hz]
    speed = 1.0
    for step in steps:
        speed *= float(step["kwargs"]["factor"]) if step["name"] == "Speed" else 1.0
    return Chain(rates[0], min([*rates, rate_hz]), speed)


def _rates(step: Mapping[str, Any]) -> list[int]:
    """The rates before and after a step that says them; none: it keeps what comes."""
    fields = step["kwargs"]
    if step["name"] == "Resample":
        return [fields["source_sampling_rate"], fields["target_sampling_rate"]]
    if step["name"] == "Narrowband":
        source = fields["source_sampling_rate"]
        return [source, TELEPHONE_HZ, source if fields["restore_orig_sr"] else TELEPHONE_HZ]
    return [TELEPHONE_HZ, TELEPHONE_HZ] if step["name"] == "TelephoneLine" else []


def check_transforms(steps: object, rate_hz: object, where: str) -> None:
    """Refuse transforms that are not of the few that a manifest may have, or that do not fit together.

    Args:
        steps: As they stand in a manifest; nothing of them was looked at yet.
        rate_hz: Rate of the recording that has them.
        where: Names the cut.

    Raises:
        DataError: If it is so.
    """
    cure = "apply them, save the audio as a file and name that; rooms and noise for training are `train.augment`"
    if not isinstance(steps, list) or len(steps) > MOST_STEPS:
        raise DataError(f"{where} has transforms that are no list of at most {MOST_STEPS}", cure)
    if type(rate_hz) is not int or not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
        raise DataError(f"{where} has transforms that end at `{rate_hz}` Hz, outside {RATES}", RATE_CURE)
    for step in steps:
        name = step.get("name") if isinstance(step, dict) else None
        if not isinstance(name, str) or name not in TRANSFORMS:
            raise DataError(f"{where} has the transform `{name}`; a manifest may have: {', '.join(TRANSFORMS)}", cure)
        try:
            TRANSFORMS[name].model_validate(step.get("kwargs"))
        except ValidationError as error:
            wrong = "; ".join(f"`{'.'.join(map(str, item['loc']))}`: {item['msg'].lower()}" for item in error.errors())
            raise DataError(f"{where} has the transform `{name}`, but not a sound one: {wrong}", "correct the manifest") from None
    _check_rates(steps, rate_hz, where)


def _check_rates(steps: Sequence[Mapping[str, Any]], rate_hz: int, where: str) -> None:
    now = _follow(steps, rate_hz).native_hz
    pairs = []
    for step in steps:
        rates = _rates(step) or [now]
        if rates[0] != now:
            raise DataError(
                f"{where} has the transform `{step['name']}` of audio at {rates[0]:,} Hz, but it is at {now:,} Hz", "correct it"
            )
        pairs += list(pairwise(rates))
        if step["name"] == "Speed":
            # Lhotse computes with the rate at the end of all transforms.
            pairs.append((round(rate_hz * step["kwargs"]["factor"]), rate_hz))
        now = rates[-1]
    if now != rate_hz:
        raise DataError(f"{where} has transforms that end at {now:,} Hz, but is said to be at {rate_hz:,} Hz", "correct the manifest")
    for pair in pairs:
        if why := resampled_too_finely(*pair):
            raise DataError(f"{where} cannot be resampled as it says: {why}", "use usual rates, and speeds such as 0.9 and 1.1")
