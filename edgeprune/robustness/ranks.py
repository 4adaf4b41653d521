"""Does nearness to the boundary tell which images flip? A rank statistic, its interval and its exact test.

Promise: pure functions of two groups of distances. Infinite distances (nothing was found) are the farthest and tie with
each other, so an image that no attack reached is counted, never dropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, stats

if TYPE_CHECKING:
    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_LARGEST_TABLE = 4_000_000  # cells of the exact test's table: a second or two
_NEAR_END = 1e-9
_LARGEST_GROUPS = 1000  # counts of subsets stay inside float64


@dataclass(frozen=True, slots=True)
class RankTest:
    """`auroc`: the probability that a random image of the first group is nearer than one of the second (ties: half).

    `low`, `high`: its interval at `confidence`. `p_value`: two-sided, of no difference; `exact`: by all rearrangements
    of the groups, else by the normal approximation with ties (large groups only).
    """

    auroc: float
    low: float
    high: float
    confidence: float
    p_value: float
    exact: bool


def rank_test(flipped: Reals, kept: Reals, confidence: float = 0.95) -> RankTest | None:
    """The Mann-Whitney test of two groups of distances, float64 (M,) and (N,); None when one of them is empty.

    AUROC is U / (M N). ValueError for a distance that is not a number.
    """
    if np.isnan(flipped).any() or np.isnan(kept).any():
        raise ValueError("a distance is not a number")
    if not len(flipped) or not len(kept):
        return None
    ranks = stats.rankdata(np.concatenate([flipped, kept]))
    wins = len(flipped) * len(kept) - (ranks[: len(flipped)].sum() - len(flipped) * (len(flipped) + 1) / 2)
    auroc = float(wins / (len(flipped) * len(kept)))
    low, high = auroc_interval(auroc, len(flipped), len(kept), confidence)
    p_value = _exact_p(ranks, len(flipped))
    if p_value is None:
        approximate = stats.mannwhitneyu(flipped, kept, method="asymptotic")
        return RankTest(auroc, low, high, confidence, float(approximate.pvalue), False)
    return RankTest(auroc, low, high, confidence, p_value, True)


def auroc_interval(auroc: float, flipped: int, kept: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of an AUROC from groups of these sizes, inside [0, 1] and never of no width.

    R. G. Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2,
    Statistics in Medicine 25 (2006), method 5: the score interval of Hanley and McNeil's variance, with the sizes of
    both groups at their mean. DeLong's interval has no width at an AUROC of 1 and covers too little where few images
    flip, which is the case here (docs/decisions/interval-of-the-rank-statistic.md).
    """
    critical = float(stats.norm.ppf((1 + confidence) / 2))
    mean = (flipped + kept) / 2 - 1

    def excess(true: float) -> float:
        spread = 1 + mean * (1 - true) / (2 - true) + mean * true / (1 + true)
        return abs(true - auroc) - critical * math.sqrt(true * (1 - true) * spread / (flipped * kept))

    inside = min(max(auroc, _NEAR_END), 1 - _NEAR_END)  # at 0 and 1 the equation has a root that is no bound
    low = 0.0 if auroc <= 0 else float(optimize.brentq(excess, 0.0, inside))
    high = 1.0 if auroc >= 1 else float(optimize.brentq(excess, inside, 1.0))
    return low, high


def _exact_p(ranks: Reals, first: int) -> float | None:
    """Two-sided p of the first group's rank sum over all groups of that size; None where they are too many.

    With ties the ranks are halves, so doubled ranks are whole numbers, and the distribution is that of the sum of
    `first` of them drawn without replacement (a table of counts, filled image by image).
    """
    doubled = np.rint(2 * ranks).astype(np.int64)
    group, drawn = doubled[:first], first
    if 2 * first > len(ranks):
        group, drawn = doubled[first:], len(ranks) - first
    largest = int(np.sort(doubled)[-drawn:].sum())
    if len(ranks) > _LARGEST_GROUPS or (drawn + 1) * (largest + 1) > _LARGEST_TABLE:
        return None
    ways = np.zeros((drawn + 1, largest + 1))
    ways[0, 0] = 1.0
    for seen, rank in enumerate(doubled, start=1):
        most = min(seen, drawn)
        ways[1 : most + 1, rank:] += ways[:most, : largest + 1 - rank].copy()
    chances = ways[drawn] / ways[drawn].sum()
    observed = int(group.sum())
    lower, upper = float(chances[: observed + 1].sum()), float(chances[observed:].sum())
    return min(1.0, 2 * min(lower, upper))
