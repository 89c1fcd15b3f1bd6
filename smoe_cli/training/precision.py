"""Which arithmetic is fastest on this machine: measured, not assumed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

ROUNDS = 5


@dataclass(frozen=True)
class Precision:
    """How a run computes; a continued run must compute the same way.

    Attributes:
        dtype: `fp32`, or `bf16` (autocast).
        matmul: Torch's float32 matmul precision. On CPUs without reduced-precision units "medium" still computes in
            float32, through oneDNN, which on AMD processors is faster than the default.
        reason: Why it was chosen.
    """

    dtype: str
    matmul: str
    reason: str

    def __str__(self) -> str:
        return f"precision {self.dtype}, matmul {self.matmul} ({self.reason})"

    def apply(self) -> None:
        """Set it for this process."""
        torch.set_float32_matmul_precision(self.matmul)


def gemm_seconds(dtype: torch.dtype, device: torch.device, matmul: str = "highest", rows: int = 1024, width: int = 512) -> float:
    """Seconds of one matrix product (rows, width) x (width, 4 width)."""
    torch.set_float32_matmul_precision(matmul)
    x = torch.randn(rows, width, device=device, dtype=dtype)
    weight = torch.randn(4 * width, width, device=device, dtype=dtype)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    F.linear(x, weight)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def keeps_float32(matmul: str) -> bool:
    """Whether a CPU's matrix products are as exact as by default: bfloat16 has a precision of 2^-8, float32 of 2^-24."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 512, generator=generator), torch.randn(64, 512, generator=generator)
    found = []
    for way in ("highest", matmul):
        torch.set_float32_matmul_precision(way)
        found.append(F.linear(x, weight))
    return bool((found[1] - found[0]).abs().max() <= 1e-5 * found[0].abs().max())


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """Measure what is faster, and resolve `auto`; the process then computes that way.

    What is called float32 is float32: "medium" is not taken where it rounds to bfloat16 within, as on CPUs with units for that.
    """
    ways = [(torch.float32, "highest")]
    if device.type == "cpu" and keeps_float32("medium"):
        ways.append((torch.float32, "medium"))
    if wanted == "auto":
        ways += [(torch.bfloat16, "highest")]
    # In turns, and the fastest of each: another process that is busy for a moment then slows all ways, or none.
    rounds = [[gemm_seconds(dtype, device, matmul) for dtype, matmul in ways] for _ in range(ROUNDS)]
    seconds = {way: min(times) for way, times in zip(ways, zip(*rounds, strict=True), strict=True)}
    fp32 = min((way for way in ways if way[0] is torch.float32), key=lambda way: seconds[way])
    torch.set_float32_matmul_precision(fp32[1])
    if wanted != "auto":
        return Precision(wanted, fp32[1], "as configured")
    bf16_s = seconds[torch.bfloat16, "highest"]
    # bf16 pays for its casts: it must win clearly.
    chosen = "bf16" if bf16_s < 0.7 * seconds[fp32] else "fp32"
    return Precision(chosen, fp32[1], f"matrix product {seconds[fp32] * 1e3:.1f} ms in fp32, {bf16_s * 1e3:.1f} ms in bf16")
