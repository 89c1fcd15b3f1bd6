"""Which arithmetic is fastest on this machine: measured, not assumed."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F


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


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """Resolve `auto`, set float32 matrix products to the faster path, and say why.

    On CPUs without reduced-precision units "medium" still computes in float32, through oneDNN, which on AMD
    processors is faster than the default. Returns (`fp32` or `bf16`, reason).
    """
    timings = {}
    if device.type == "cpu":
        for path in ("highest", "medium"):
            torch.set_float32_matmul_precision(path)
            timings[path] = gemm_seconds(torch.float32, device)
        torch.set_float32_matmul_precision(min(timings, key=lambda path: timings[path]))
    if wanted != "auto":
        return wanted, "as configured"
    fp32, bf16 = gemm_seconds(torch.float32, device), gemm_seconds(torch.bfloat16, device)
    # bf16 pays for its casts: it must win clearly.
    chosen = "bf16" if bf16 < 0.7 * fp32 else "fp32"
    return chosen, f"matrix product {fp32 * 1e3:.1f} ms in fp32, {bf16 * 1e3:.1f} ms in bf16"
