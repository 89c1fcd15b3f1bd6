"""Train and audit speech-to-text models whose experts are chosen by supervision.

Source: Supervised Mixture of Experts (S-MoE), arXiv:2508.10009.
"""

import os

__version__ = "0.1.0"

# Threads that wait in a busy loop for a core that another program has: a step took five times as long beside one other
# busy process. Read once, when torch first loads; whoever sets it before keeps their choice.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
