"""Which arithmetic is fastest on this machine: measured, not assumed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F


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


def gemm_seconds(dtype: torch.dtype, device: torch.device, rows: int = 1024, width: int = 512, repeats: int = 5) -> float:
    """Seconds of the fastest of a few matrix products (rows, width) x (width, 4 width)."""
    x = torch.randn(rows, width, device=device, dtype=dtype)
    weight = torch.randn(4 * width, width, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        F.linear(x, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """Measure what is faster, and resolve `auto`; the process then computes that way."""
    matmul = "highest"
    if device.type == "cpu":
        seconds = {}
        for path in ("highest", "medium"):
            torch.set_float32_matmul_precision(path)
            seconds[path] = gemm_seconds(torch.float32, device)
        matmul = min(seconds, key=lambda path: seconds[path])
    torch.set_float32_matmul_precision(matmul)
    if wanted != "auto":
        return Precision(wanted, matmul, "as configured")
    fp32, bf16 = gemm_seconds(torch.float32, device), gemm_seconds(torch.bfloat16, device)
    # bf16 pays for its casts: it must win clearly.
    chosen = "bf16" if bf16 < 0.7 * fp32 else "fp32"
    return Precision(chosen, matmul, f"matrix product {fp32 * 1e3:.1f} ms in fp32, {bf16 * 1e3:.1f} ms in bf16")
