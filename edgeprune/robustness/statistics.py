"""What a count of images supports: intervals, paired tests, and how many images a claim needs.

Promise: pure functions of counts. Both files are judged on the same images, so every comparison is paired, and
the bound that a gate judges has at least the coverage that it states, whatever the true rates are.

Refusal: no image, no statement. An interval over nothing is an error, not [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, stats

from edgeprune.errors import DataError
from edgeprune.records import Interval, PairedDrop, Proportion

if TYPE_CHECKING:
    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_NUISANCE_LEVEL = 0.002  # share of the allowed error spent on confining the nuisance rate (Berger and Boos 1994)
_NUISANCE_POINTS = 65
_TOLERANCE = 1e-7


def proportion(count: int, total: int, confidence: float = 0.95) -> Proportion:
    """`count` of `total` with its exact two-sided interval (Clopper and Pearson 1934).

    DataError when `total` is 0; ValueError when the count does not fit the total.
    """
    _require_images(total)
    if not 0 <= count <= total:
        raise ValueError(f"count {count} of total {total}")
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(stats.beta.ppf(tail, count, total - count + 1))
    high = 1.0 if count == total else float(stats.beta.ppf(1 - tail, count + 1, total - count))
    return Proportion(count=count, total=total, interval=Interval(low=low, high=high, confidence=confidence))


def paired_drop(dense_right: Bools, compressed_right: Bools, confidence: float = 0.95) -> PairedDrop:
    """Dense minus compressed on the same images: bool (N,) each, True where that file was right.

    `p_value` is McNemar's exact two-sided test: a binomial test of the discordant pairs (1 where there are none).
    `upper` is the one-sided bound of `upper_bound`. DataError when there is no image.
    """
    if dense_right.shape != compressed_right.shape or dense_right.ndim != 1:
        raise ValueError(f"not paired: {dense_right.shape} and {compressed_right.shape}")
    total = len(dense_right)
    _require_images(total)
    dense_only = int(np.sum(dense_right & ~compressed_right))
    compressed_only = int(np.sum(compressed_right & ~dense_right))
    discordant = dense_only + compressed_only
    p_value = float(stats.binomtest(dense_only, discordant, 0.5).pvalue) if discordant else 1.0
    return PairedDrop(
        total=total,
        dense_only=dense_only,
        compressed_only=compressed_only,
        upper=upper_bound(dense_only, compressed_only, total, confidence),
        confidence=confidence,
        p_value=p_value,
    )


def smallest_supported_drop(total: int, confidence: float = 0.95) -> float:
    """The bound when both files agree on every one of `total` images.

    A gate with a smaller tolerance cannot pass with that many images, whatever the files do.
    """
    return upper_bound(0, 0, total, confidence)


def samples_needed(
    tolerance: float, discordant_rate: float = 0.05, confidence: float = 0.95, power: float = 0.8
) -> int:
    """Images needed to show, with probability `power`, that the drop stays below `tolerance` when there is none.

    The normal approximation for paired proportions whose pairs disagree at `discordant_rate` (Nam 1997; Liu et al.
    2002): n = (z_confidence + z_power)^2 discordant_rate / tolerance^2, and never fewer than even perfect agreement
    needs. ValueError when the tolerance is not inside (0, 1).
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"a tolerance of {tolerance}")
    quantiles = float(stats.norm.ppf(confidence) + stats.norm.ppf(power))
    approximate = math.ceil(quantiles**2 * discordant_rate / tolerance**2)
    agreeing = math.ceil(math.log((1 - _NUISANCE_LEVEL) * (1 - confidence)) / math.log1p(-tolerance))
    return max(approximate, agreeing)


def power_at(total: int, tolerance: float, discordant_rate: float = 0.05, confidence: float = 0.95) -> float:
    """The chance that `total` images show a drop below `tolerance` when there is none: the other way to ask
    `samples_needed`, by the same approximation. ValueError when the tolerance is not inside (0, 1).
    """
    _require_images(total)
    if not 0 < tolerance < 1:
        raise ValueError(f"a tolerance of {tolerance}")
    return float(stats.norm.cdf(tolerance * math.sqrt(total / discordant_rate) - stats.norm.ppf(confidence)))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """The p-values of several tests, adjusted so that the chance of any false finding stays at the level that they are
    compared with, in their order.

    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979): the
    smallest times their number, the next times one less, never falling, at most 1. No assumption about dependence,
    which several epsilons on the same images have.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        largest = max(largest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = largest
    return tuple(adjusted)


# ------------------------------------------------------------------------------- the bound on the difference


def score_statistic(dense_only: Reals | float, compressed_only: Reals | float, total: int, drop: float) -> Reals:
    """Tango's score statistic of the hypothesis that the true drop is `drop`, elementwise (standard normal).

    T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17 (1998): the difference over its standard error, with the nuisance rate
    (compressed alone right) at its maximum-likelihood value under the hypothesis. Negative: the data show less.
    """
    linear = np.asarray(-dense_only - compressed_only + (2 * total - dense_only + compressed_only) * drop)
    constant = -np.asarray(compressed_only) * drop * (1 - drop)
    root = np.sqrt(np.maximum(linear**2 - 8 * total * constant, 0.0))
    # The textbook root cancels when `linear` is positive; this form of the same root does not.
    nuisance = np.where(linear > 0, -2 * constant / np.maximum(root + linear, 1e-300), (root - linear) / (4 * total))
    variance = total * (2 * nuisance + drop * (1 - drop))
    return np.asarray((dense_only - compressed_only - total * drop) / np.sqrt(np.maximum(variance, 1e-300)))


def score_bound(dense_only: int, compressed_only: int, total: int, confidence: float = 0.95) -> float:
    """Tango's one-sided upper bound on the drop: the largest drop whose score is not rejected.

    It is asymptotic. Where hardly a pair is discordant, which is where a gate works, its coverage at 95 % falls to
    92 % (20 images) and 93.5 % (200 images), so `upper_bound` uses the statistic but not this bound.
    """
    critical = float(stats.norm.ppf(confidence))

    def excess(drop: float) -> float:
        return float(score_statistic(dense_only, compressed_only, total, drop)) + critical

    low, high = (dense_only - compressed_only) / total + 1e-9, 1.0 - 1e-9
    if low >= high or excess(high) > 0:
        return 1.0
    return float(optimize.brentq(excess, low, high, xtol=1e-10))


@lru_cache(maxsize=1024)
def upper_bound(dense_only: int, compressed_only: int, total: int, confidence: float = 0.95) -> float:
    """One-sided upper bound on the true drop; its coverage is at least `confidence` for every sample size.

    Exact and unconditional: the set of drops that an exact test does not reject. The test orders outcomes by
    Tango's score and takes the worst case over the nuisance rate (Hsueh, Liu and Chen 2001, Unconditional exact
    tests for equivalence or noninferiority for paired binary endpoints), which is confined to a confidence set
    first (Berger and Boos 1994). Where the score bound is right the two agree closely. DataError without images.
    """
    _require_images(total)
    if min(dense_only, compressed_only) < 0 or dense_only + compressed_only > total:
        raise ValueError(f"{dense_only} + {compressed_only} discordant of {total}")
    allowed = 1 - confidence
    low, high = (dense_only - compressed_only) / total, 1.0
    if dense_only == total:
        return 1.0
    guess = score_bound(dense_only, compressed_only, total, confidence)
    step = max(guess - low, 1e-3)
    while guess < high and _tail(dense_only, compressed_only, total, guess, confidence) > allowed:
        low, guess, step = guess, min(guess + step, high), 2 * step
    high = guess
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        if _tail(dense_only, compressed_only, total, middle, confidence) > allowed:
            low = middle
        else:
            high = middle
    return high


def _tail(dense_only: int, compressed_only: int, total: int, drop: float, confidence: float) -> float:
    """Largest probability, over the nuisance rate, of an outcome that speaks as strongly against `drop`."""
    spent = _NUISANCE_LEVEL * (1 - confidence)
    rates = _nuisance_rates(compressed_only, total, drop, spent)
    counts = _likely_counts(rates, total)
    observed = float(score_statistic(dense_only, compressed_only, total, drop))
    limits = _largest_not_above(observed + 1e-9, counts, total, drop)
    column, row = rates[:, None], counts[None, :]
    mass = stats.binom.pmf(row, total, column)
    given = np.minimum((column + drop) / np.maximum(1 - column, 1e-300), 1.0)
    inside = np.sum(mass * stats.binom.cdf(limits[None, :], total - row, given), axis=1)
    unlikely = np.maximum(1 - np.sum(mass, axis=1), 0.0)
    return float(np.max(inside + unlikely)) + spent


def _nuisance_rates(compressed_only: int, total: int, drop: float, level: float) -> Reals:
    """Rates at which the compressed file alone is right: the (1 - level) interval, as far as `drop` allows."""
    tail = level / 2
    low = 0.0 if compressed_only == 0 else stats.beta.ppf(tail, compressed_only, total - compressed_only + 1)
    high = 1.0 if compressed_only == total else stats.beta.ppf(1 - tail, compressed_only + 1, total - compressed_only)
    ceiling = (1 - drop) / 2
    low = max(low, -drop, 0.0)
    return np.linspace(min(low, ceiling), min(max(high, low), ceiling), _NUISANCE_POINTS)


def _likely_counts(rates: Reals, total: int) -> Reals:
    """Counts that the compressed file alone may be right on; what is left out has a mass below 1e-9."""
    low = stats.binom.ppf(5e-10, total, rates.min())
    high = stats.binom.isf(5e-10, total, rates.max())
    return np.arange(max(low, 0), min(high, total) + 1)


def _largest_not_above(observed: float, compressed_only: Reals, total: int, drop: float) -> Reals:
    """For each count: the most images that dense alone may be right on with a score of at most `observed` (-1: none).

    The score rises with that number, so bisection finds it.
    """
    low, high = np.full(len(compressed_only), -1.0), total - compressed_only
    while np.any(low < high):
        middle = np.ceil((low + high) / 2)
        below = score_statistic(middle, compressed_only, total, drop) <= observed
        low, high = np.where(below, middle, low), np.where(below, high, middle - 1)
    return low


def _require_images(total: int) -> None:
    if total <= 0:
        raise DataError(
            "no images: nothing can be said about none", hint="give test data, or a larger --attack-samples"
        )
