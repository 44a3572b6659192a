"""Time a surrogate fit of the size that the imaging stage meets: 22 dimensions, 300 points, one thread.

python benchmarks/surrogate_fit.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from qhrtem.optimise import surrogate


def main() -> None:
    torch.set_num_threads(1)
    x = np.random.default_rng(0).random((300, 22))
    y = -((x - 0.4) ** 2 @ np.linspace(0.1, 3, 22))
    y = (y - y.mean()) / y.std()
    surrogate.fit(x, y, None, steps=1)
    spent = []
    for _ in range(7):
        began = time.process_time()
        surrogate.fit(x, y, None, steps=50)
        spent.append(time.process_time() - began)
    print(f"surrogate fit, 22 dimensions x 300 points: median {statistics.median(spent):.2f} s of CPU time")


if __name__ == "__main__":
    main()
