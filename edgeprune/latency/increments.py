"""The time of one more copy of a layer: a file with more copies of it is set against one with fewer.

Promise: needs nothing but Python 3.8's standard library, since this very module also runs on a device that is reached
over ssh. The smallest of several medians of short blocks is taken, since neighbours only ever add time, and only where
a second block comes near to it: a file that was disturbed in all blocks would make the layer cost too little, for good.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COPIES = 1, 4
_BLOCKS, _MOST_BLOCKS, _BLOCK_MS, _LEAST_RUNS = 3, 12, 4.0, 3
_AGREE = 1.03
_LEAST_MS = 1e-5


def one_more_ms(runs: Sequence[Callable[[], object]]) -> float:
    """Milliseconds of one more copy; `runs` infer the files with `COPIES` copies, in this order."""
    blocks: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    while len(blocks[0]) < _BLOCKS or (len(blocks[0]) < _MOST_BLOCKS and not all(map(_agreed, blocks))):
        for position, run in enumerate(runs):
            blocks[position].append(_block_ms(run))
    fewer, more = (min(each) for each in blocks)
    return max((more - fewer) / (COPIES[1] - COPIES[0]), _LEAST_MS)


def _agreed(blocks: Sequence[float]) -> bool:
    """Whether the two smallest figures are nearly the same."""
    first, second = sorted(blocks)[:2]
    return second <= _AGREE * first


def _block_ms(run: Callable[[], object]) -> float:
    run()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < _LEAST_RUNS or (time.perf_counter() - start) * 1e3 < _BLOCK_MS:
        before = time.perf_counter()
        run()
        times.append((time.perf_counter() - before) * 1e3)
    return statistics.median(times)
