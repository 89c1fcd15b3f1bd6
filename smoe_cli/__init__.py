"""Train and audit speech-to-text models whose experts are chosen by supervision.

Source: Supervised Mixture of Experts (S-MoE), arXiv:2508.10009.
"""

import os

__version__ = "0.1.0"

# OpenMP threads wait for each other thousands of times in a training step. Left alone they spin so long that one other
# busy program makes a step ten times slower and more; told not to spin at all they pay for waking up, and a step takes 1.8 times as
# long on two cores. A short spin is fast in both cases. Read once, when torch first loads; an earlier choice is kept.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
