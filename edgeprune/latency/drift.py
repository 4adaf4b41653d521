"""Did the machine change while it was timed: times that rise or fall, heat, throttling. Pure.

Promise: the ratio of two files is safe from a slow change, since neighbouring blocks share it; a median is not. So
what changed is said beside the figures, and never corrected for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from edgeprune.records import BlockSamples, Drift, Warmth

LEAST_DRIFT = 0.05
CHANCE = 0.01  # p of Mann and Kendall's test below which a trend is no chance
LEAST_PROCESSES = 4
SLOWED = 0.9  # a core below this share of its highest clock while it is busy


def drift_of(blocks: Mapping[int, Mapping[int, float]]) -> Drift | None:
    """The trend of `blocks[process][round]` (medians, ms), None where there are fewer than four rounds.

    Inside a process: the median over processes of the last third of the rounds over the first third. Across: the last
    process over the first, along the median of all pairwise slopes (Theil 1950, Sen 1968), which one odd process
    does not bend. Trends are tested by Mann (1945) and Kendall: the rank correlation of times with their order.
    """
    from scipy.stats import kendalltau

    rounds = [[times[number] for number in sorted(times)] for _, times in sorted(blocks.items())]
    rounds = [times for times in rounds if len(times) >= LEAST_PROCESSES]
    if not rounds:
        return None
    within = median(_last_over_first(times) for times in rounds) - 1
    relative = [(number, time / median(times)) for times in rounds for number, time in enumerate(times)]
    order, values = zip(*relative, strict=True)
    p_within = kendalltau(order, values).pvalue if len(set(values)) > 1 else 1.0
    levels = [median(times) for times in rounds]
    across, p_across = None, 1.0
    if len(levels) >= LEAST_PROCESSES:
        pairs = [(i, j) for i in range(len(levels)) for j in range(i + 1, len(levels))]
        slope = median((levels[j] - levels[i]) / (j - i) for i, j in pairs)
        across = slope * (len(levels) - 1) / median(levels)
        p_across = kendalltau(range(len(levels)), levels).pvalue if len(set(levels)) > 1 else 1.0
    moving = (abs(within) > LEAST_DRIFT and p_within < CHANCE) or (
        across is not None and abs(across) > LEAST_DRIFT and p_across < CHANCE
    )
    return Drift(within=within, across=across, moving=bool(moving))


def warmth_of(samples: Sequence[BlockSamples]) -> Warmth | None:
    """Heat over all processes; None where the machine told nothing."""
    told = list({block.process: block.heat for block in samples if block.heat is not None}.values())
    celsius = [one.celsius for pair in told for one in pair if one.celsius is not None]
    mhz = [one.mhz for pair in told for one in pair if one.mhz is not None]
    most = [one.most_mhz for pair in told for one in pair if one.most_mhz is not None]
    now = [one.throttled for pair in told for one in pair if one.throttled is not None]
    counted = [
        after.throttles > before.throttles
        for before, after in told
        if before.throttles is not None and after.throttles is not None
    ]
    if not (celsius or mhz or now or counted):
        return None
    return Warmth(
        celsius_first=celsius[0] if celsius else None,
        celsius_most=max(celsius, default=None),
        mhz_least=min(mhz, default=None),
        mhz_most=max(most, default=None),
        throttled=any(now + counted) if now or counted else None,
    )


def said(drift: Drift | None, warmth: Warmth | None) -> Iterator[str]:
    """What is worth a note."""
    if drift is not None and drift.moving:
        across = "" if drift.across is None else f", {drift.across:+.0%} from the first process to the last"
        yield (
            f"the dense file's times drifted, {drift.within:+.0%} within a process{across}: heat, or a clock that "
            "changes; the ratio is of neighbouring blocks and stands, the medians are of all of them"
        )
    if warmth is not None and warmth.throttled:
        heat = "" if warmth.celsius_most is None else f" (up to {warmth.celsius_most:.0f} C)"
        yield f"the machine was throttled while it was timed{heat}: cool it, or feed it better, and measure again"
    elif warmth is not None and warmth.mhz_least and warmth.mhz_least < SLOWED * (warmth.mhz_most or 0):
        yield f"a core in use ran at {warmth.mhz_least:.0f} of {warmth.mhz_most:.0f} MHz beside the blocks"


def _last_over_first(times: Sequence[float]) -> float:
    third = max(1, len(times) // 3)
    return median(times[-third:]) / median(times[:third])
