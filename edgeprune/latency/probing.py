"""What a processor can do, found by doing it: the rate of a float32 matrix product and of copying memory.

Promise: needs Python 3.8 and numpy, since this very module also runs on a device. A measured peak is what numpy's BLAS
reached with one thread, not what a data sheet promises: a floor of the real one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

SIDE = 512
COPIED_BYTES = 64 * 2**20
SECONDS = 1.0
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def caches() -> dict[str, int]:
    """Bytes of the first core's caches by name ("L1 data", "L2", "L3"); empty where the system does not tell."""
    found = {}
    for folder in sorted(CACHES.glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            unit = {"K": 1024, "M": 1024**2}.get(size[-1:], 1)
            found[f"L{level}" + (" data" if kind == "Data" else "")] = int(size.rstrip("KM")) * unit
    return found


def product_gflops(numpy: Any) -> float:
    """Best rate of a float32 matrix product: 2 * n^3 operations over the shortest time."""
    left, right = (numpy.random.default_rng(seed).random((SIDE, SIDE), dtype="float32") for seed in (0, 1))
    out = numpy.empty((SIDE, SIDE), dtype="float32")
    return 2.0 * SIDE**3 / _shortest(lambda: numpy.matmul(left, right, out=out)) / 1e9


def copy_gb_s(numpy: Any) -> float:
    """Best rate of copying memory, in bytes copied (each is read once and written once)."""
    source = numpy.ones(COPIED_BYTES, dtype="uint8")
    target = numpy.empty_like(source)
    return COPIED_BYTES / _shortest(lambda: numpy.copyto(target, source)) / 1e9


def _shortest(work: Any) -> float:
    """Seconds of the fastest of many runs; the first warms up."""
    work()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
