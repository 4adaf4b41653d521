"""Runs something again and again for a profile: a warm-up, a time, and what a list of times comes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

WARM_UP = 5
_LEAST, _MOST = 10, 2000
_SLOWEST = 0.1


def repeat(run: Callable[[int], object], seconds: float) -> int:
    """Call `run(number)` for so long, at least ten and at most 2,000 times; how often."""
    end = time.perf_counter() + seconds
    count = 0
    while count < _LEAST + WARM_UP or (time.perf_counter() < end and count < _MOST):
        run(count)
        count += 1
    return count - WARM_UP


def typical(times: Sequence[float]) -> float:
    """The mean without the warm-up and the slowest tenth: profilers count whole microseconds, so a median is coarse."""
    counted = sorted(times[WARM_UP:] or times)
    kept = counted[: max(1, round(len(counted) * (1 - _SLOWEST)))]
    return sum(kept) / len(kept)
