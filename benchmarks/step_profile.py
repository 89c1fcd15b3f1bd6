"""Where the time of a training step goes: that of benchmarks/peers.py, kernel by kernel.

    python benchmarks/step_profile.py                         S-MoE without a CTC head, paper scale; a minute, 5 GB of memory
    python benchmarks/step_profile.py --system transformers
    python benchmarks/step_profile.py --ctc --json

The third step of part `equal` is recorded by torch's profiler on one thread; each kernel's own time, without that of the kernels it
calls, counts for the first kind in `KINDS` that its name fits.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from peer_worker import PEERS, SCALES, Trained, Variant
from peers import shapes_of
from torch.profiler import ProfilerActivity, profile

from smoe_cli.model.speech_to_text import Dimensions
from smoe_cli.training.precision import choose_precision

KINDS = {
    "loss over the vocabulary": "log_softmax|nll_loss|logsumexp|ctc_loss|cross_entropy|gather|scatter",
    "attention": "scaled_dot_product|flash_attention|bmm|_softmax$|_softmax_backward",
    "convolutions": "conv|glu",
    "matrix products": "addmm|::mm|linear",
    "AdamW and clipping": "adam|norm_|_foreach|linalg",
    "layer norm": "layer_norm",
    "dropout": "dropout|random_|bernoulli",
}
"""Kind -> what the names of its kernels have in them."""
OTHER = "additions, copies and the rest"


def measure(variant: Variant, scale: str) -> dict[str, Any]:
    """CPU seconds and memory of the second step, and the share of each kind in the third."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision(variant.matmul)
    trained = Trained(variant, Dimensions(**SCALES[scale], ctc=False))
    (shape,) = shapes_of("equal", 1, [])
    taken = [trained.step(shape) for _ in range(2)][-1]
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        trained.step(shape)
    spent: Counter[str] = Counter()
    for event in recorded.key_averages():
        kind = next((kind for kind, names in KINDS.items() if re.search(names, event.key)), OTHER)
        spent[kind] += event.self_cpu_time_total
    total = spent.total()
    return {
        "system": variant.label,
        "seconds": taken["cpu"],
        "memory_mb": taken["memory_mb"],
        "shares": {kind: microseconds / total for kind, microseconds in spent.most_common()},
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--system", choices=("ours", *PEERS), default="ours", help="default: %(default)s")
    parser.add_argument("--ctc", action="store_true", help="with S-MoE's CTC head")
    parser.add_argument("--scale", choices=SCALES, default="paper", help="default: %(default)s")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    chosen = choose_precision("auto", torch.device("cpu"))
    found = measure(Variant(given.system, given.system, chosen.dtype, chosen.matmul, ctc=given.ctc), given.scale)
    if given.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['system']}, {chosen}, {found['seconds']:.1f} CPU seconds, {found['memory_mb']:,.0f} MB\n")
    print("| kind | share |\n| --- | ---: |")
    for kind, share in found["shares"].items():
        print(f"| {kind} | {share:.1%} |")


if __name__ == "__main__":
    main()
