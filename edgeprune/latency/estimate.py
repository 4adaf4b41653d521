"""Latency estimated from operator classes, where no device is at hand: a fit to anchors that were measured.

Promise: an estimate is called one, with its method and the error that was found on networks that the fit had not seen;
it never stands in the place of a measurement. There is none without a calibration of the very runtime and threads.

The model is linear in what a network does: multiply-accumulates of pointwise, depthwise and other convolutions and of
linear layers, bytes that operators read and write, and a constant an operator. Classes differ because kernels do: a
depthwise convolution reaches a tenth of the rate of a pointwise one (nn-Meter, Zhang et al. 2021, predicts a kernel at
a time for that reason). Coefficients are fitted to *relative* errors, so that small networks count as much as large
ones, are never negative (Lawson and Hanson 1974), and a ridge shares the time between classes that the few anchors
cannot tell apart. Its strength was chosen by leaving out one anchor at a time on the 32 sets of
`benchmarks/estimator.py`, without a look at the networks that they are tested on. MACs alone are far off: it prints by
how much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

import numpy as np
from pydantic import Field

from edgeprune.errors import UsageError
from edgeprune.records import Record

CLASSES = ("pointwise", "depthwise", "convolution", "linear", "bytes", "operators")
RIDGE = 0.3
LEAST_ANCHORS = 4
METHOD = "non-negative ridge regression of relative errors on operator classes"

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Work(Record):
    """What one inference of one image does: MACs by class, bytes read and written, operators."""

    pointwise: float = 0.0
    depthwise: float = 0.0
    convolution: float = 0.0
    linear: float = 0.0
    bytes: float = 0.0
    operators: float = 0.0

    @property
    def macs(self) -> float:
        return self.pointwise + self.depthwise + self.convolution + self.linear

    def plus(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(**{name: getattr(self, name) + getattr(other, name) for name in CLASSES})


class Anchor(Record):
    """A network that was measured."""

    name: str
    work: Work
    p50_ms: float = Field(gt=0)


class Calibration(Record):
    """A fit to anchors: ms a unit of each class, and how far off it was on networks left out of the fit.

    `error` is the median of the relative errors there, `largest` the largest, `within_10` the share of them up to 10 %,
    `tested` how many.
    """

    runtime: str
    threads: int = Field(gt=0)
    kind: Literal["estimated"] = "estimated"
    method: str
    source: str = Field(min_length=1)
    coefficients: dict[str, float]
    anchors: tuple[str, ...]
    error: float = Field(ge=0)
    largest: float = Field(ge=0)
    within_10: float = Field(ge=0, le=1)
    tested: int = Field(gt=0)


def fit(anchors: Sequence[Anchor]) -> dict[str, float]:
    """ms a unit of each class. UsageError with fewer than four anchors."""
    if len(anchors) < LEAST_ANCHORS:
        raise UsageError(f"{len(anchors)} anchors are too few to fit", hint=f"measure at least {LEAST_ANCHORS}")
    from scipy.optimize import nnls

    work = _matrix([anchor.work for anchor in anchors])
    relative = work / np.array([[anchor.p50_ms] for anchor in anchors])
    scale = np.maximum(relative.mean(axis=0), np.finfo(float).tiny)
    ridge = np.sqrt(RIDGE) * np.eye(len(CLASSES))
    wanted = np.concatenate([np.ones(len(anchors)), np.zeros(len(CLASSES))])
    found, _ = nnls(np.vstack([relative / scale, ridge]), wanted)
    used = relative.max(axis=0) > 0
    return {name: float(value) for name, value, there in zip(CLASSES, found / scale, used, strict=True) if there}


def predict(coefficients: Mapping[str, float], work: Work) -> float:
    """The estimate in ms. UsageError when the network does what no anchor did."""
    unknown = [name for name in CLASSES if getattr(work, name) > 0 and name not in coefficients]
    if unknown:
        raise UsageError(f"the calibration knows nothing of {' and '.join(unknown)}: no anchor has any")
    return float(sum(value * getattr(work, name) for name, value in coefficients.items()))


def errors(coefficients: Mapping[str, float], tests: Sequence[Anchor]) -> tuple[float, ...]:
    """Relative errors |estimate / measured - 1| on networks that were not fitted."""
    return tuple(abs(predict(coefficients, test.work) / test.p50_ms - 1) for test in tests)


def calibrate(
    anchors: Sequence[Anchor], tests: Sequence[Anchor], runtime: str, threads: int, source: str
) -> Calibration:
    """Fit the anchors and find the error on `tests`, which are none of them."""
    seen = {anchor.name for anchor in anchors}
    if not tests or seen & {test.name for test in tests}:
        raise UsageError("an estimate is validated on networks that were not fitted", hint="measure others, too")
    coefficients = fit(anchors)
    off = errors(coefficients, tests)
    return Calibration(
        runtime=runtime,
        threads=threads,
        method=METHOD,
        source=source,
        coefficients=coefficients,
        anchors=tuple(anchor.name for anchor in anchors),
        error=median(off),
        largest=max(off),
        within_10=sum(one <= 0.1 for one in off) / len(off),
        tested=len(off),
    )


def choose_anchors(names: Sequence[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """Six of the (width, resolution) of a family: the narrowest and the widest that come in three resolutions or more,
    each at the lowest, the middle and the highest that they share. Looks at no time; fewer when the family is small.
    """
    at: dict[float, set[int]] = {}
    for width, resolution in names:
        at.setdefault(width, set()).add(resolution)
    widths = sorted(width for width, resolutions in at.items() if len(resolutions) >= 3)
    if not widths:
        return ()
    low, high = widths[0], widths[-1]
    shared = sorted(at[low] & at[high])
    picked = dict.fromkeys((shared[0], shared[len(shared) // 2], shared[-1])) if shared else {}
    return tuple((width, resolution) for width in dict.fromkeys((low, high)) for resolution in picked)


def _matrix(works: Sequence[Work]) -> Floats:
    return np.array([[getattr(work, name) for name in CLASSES] for work in works], dtype=np.float64)
