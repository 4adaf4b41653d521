"""The time of one more copy of a layer: a file with more copies of it is set against one with fewer.

Promise: needs nothing but Python 3.8's standard library, since this very module also runs on a device that is reached
over ssh. The smaller of several medians of short blocks is taken: neighbours only ever add time.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COPIES = 1, 4
_BLOCKS, _BLOCK_MS, _LEAST_RUNS = 3, 4.0, 3
_LEAST_MS = 1e-5


def one_more_ms(runs: Sequence[Callable[[], object]]) -> float:
    """Milliseconds of one more copy; `runs` infer the files with `COPIES` copies, in this order."""
    best = [float("inf")] * len(runs)
    for run in runs:
        run()
    for _ in range(_BLOCKS):
        for position, run in enumerate(runs):
            best[position] = min(best[position], _block_ms(run))
    return max((best[1] - best[0]) / (COPIES[1] - COPIES[0]), _LEAST_MS)


def _block_ms(run: Callable[[], object]) -> float:
    run()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < _LEAST_RUNS or (time.perf_counter() - start) * 1e3 < _BLOCK_MS:
        before = time.perf_counter()
        run()
        times.append((time.perf_counter() - before) * 1e3)
    return statistics.median(times)
