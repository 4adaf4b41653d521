"""Aims at milliseconds: MACs are moved until the measured figure meets the goal.

Pure but for the `measure` that it is given: propose widths, have them measured, correct the MACs budget by what all of
them say (a line in logarithms, which kernels' steps are scattered about), stop within 2 %, so that a second measurement
lies within 3 %. A candidate that is neither known nor likely not the one (`settled`) is measured longer by whoever
measures; a figure that stays inconclusive weighs little, and brackets nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from edgeprune.errors import PruningError
from edgeprune.pruning.allocation import FREE, Rules, Widths, by_macs, check_scores, macs_of
from edgeprune.pruning.shortfall import obstacles
from edgeprune.types import GOAL_TOLERANCE, ChannelGraph, Goal, Progress, Scores

MEASURED = "aimed on candidates before recovery"
_MIDDLE = 1 + GOAL_TOLERANCE / 4  # what is aimed at: a hair faster than the goal
_MOST_MET = 1 + 2 * GOAL_TOLERANCE / 3  # up to here nothing nearer is looked for: a second measurement has room left
_LEAST_MET = 2 - _MOST_MET  # a speed-up may be short by so much, where that is worth it: likewise
_TRIES = 7
_SLOPES = 0.3, 4.0  # how fast a speed-up may rise as MACs fall, in logarithms: what tries are held to
_SLOPE = 0.9, 0.5  # what it is before anything was seen, and how far it may be off
_STEP, _STEPS = 0.015, 0.05  # how far widths are off the line, as a rule and at most, in logarithms: kernels have steps
_CLOSE = 0.2  # of the logarithm: from here, there is a trail to follow, though the other side was not seen
_LIKELY = 0.5  # of a 95 % interval's arms: two thirds; a candidate that is likely not the one is left for the next
_CURVED = 0.25  # of its distance from the goal, a try may be off the line
_CLEARLY = 0.95  # of the loss: less of it is worth more than to be nearer to the goal
_LEAST, _MOST = 0.01, 0.999  # MACs ratios that make sense

C = TypeVar("C")
"""A candidate: widths, or widths and blocks."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What a candidate reached: speed-up over the dense file, and its own p50; with their 95 % intervals where the
    clock is a noisy one (None: the figures are exact). `dense_ms` is the dense file's p50 beside it, where it ran."""

    speedup: float
    latency_ms: float
    speedup_interval: tuple[float, float] | None = None
    latency_interval: tuple[float, float] | None = None
    dense_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Aimed(Generic[C]):
    """The widths (or the candidate) that were chosen, what they measured, and notes for the plan."""

    widths: C
    timing: Timing
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Try(Generic[C]):
    """`met` is the share of the goal that was reached (1 and more: it is met), `macs` the share of MACs left.

    `sure`: the timing says on which side of the goal it is. `error`: standard error of the logarithm of `met`.
    """

    met: float
    macs: float
    widths: C
    timing: Timing
    sure: bool
    error: float

    @property
    def meets(self) -> bool:
        """Nothing nearer is looked for, as seen."""
        return 1 <= self.met <= _MOST_MET

    @property
    def off(self) -> float:
        """How far from what is aimed at, in logarithms: above 0 is faster."""
        return math.log(self.met / _MIDDLE)


@dataclass(frozen=True, slots=True)
class Proposals(Generic[C]):
    """Candidates by a ratio of what they cost. `propose` makes one for a ratio, `share_of` is the ratio that one has.

    `share_is_of`: what the ratio is of. `loss`: what a candidate loses, where more is known than its ratio. `first`:
    the ratio to begin with, where one is known; `most`: how many candidates are measured.
    """

    propose: Callable[[float], C]
    share_of: Callable[[C], float]
    share_is_of: str = "MACs"
    loss: Callable[[C], float] | None = None
    first: float | None = None
    most: int = _TRIES


def aim(
    graph: ChannelGraph,
    scores: Scores,
    goal: Goal,
    multiple: int,
    measure: Callable[[Widths], Timing],
    *,
    rules: Rules = FREE,
    progress: Progress | None = None,
) -> Aimed[Widths]:
    """Widths with the most MACs left that meet a `speedup` or `latency_ms` goal as measured.

    Where no widths meet it, the fastest ones seen, with a note that says so. PruningError when nothing can go.
    """
    check_scores(graph, scores)

    def propose(ratio: float) -> Widths:
        return by_macs(graph, scores, ratio, multiple, rules)

    def share_of(widths: Widths) -> float:
        return macs_of(graph, widths) / graph.macs

    found = aim_among(goal, Proposals(propose, share_of), measure, progress=progress)
    if reached(goal, found.timing) < 1:
        return replace(found, notes=(*found.notes, *obstacles(graph, found.widths, multiple, rules)))
    return found


def aim_among(
    goal: Goal,
    proposals: Proposals[C],
    measure: Callable[[C], Timing],
    *,
    how: str = MEASURED,
    progress: Progress | None = None,
) -> Aimed[C]:
    """As `aim`, among these candidates. `how` they were told apart stands in the notes."""
    tries: list[_Try[C]] = []
    while len(tries) < proposals.most and not any(each.meets and each.sure for each in tries):
        widths = _next_candidate(goal, proposals, tries)
        if widths is None:
            break
        share = proposals.share_of(widths)
        if progress:
            said = f"candidate {len(tries) + 1}: {share:.0%} of the {proposals.share_is_of}"
            progress(said, len(tries) / proposals.most)
        timing = measure(widths)
        low, high = bounds(goal, timing)
        error = math.log(high / low) / 4
        tries.append(_Try(reached(goal, timing), share, widths, timing, sure(goal, timing), error))
    return _choose(goal, tries, how, proposals.loss)


def reached(goal: Goal, timing: Timing) -> float:
    """Share of the goal that a timing reaches: 1 is exactly met, above 1 is faster."""
    return goal.share(timing.speedup, timing.latency_ms)


def just_short(goal: Goal, timing: Timing) -> bool:
    """Whether a timing is known to lie below the goal by so little that it is met within the tolerance: speed-ups only.

    A latency is a limit, which nothing may exceed; a speed-up is a wish.
    """
    low, _ = bounds(goal, timing)
    share = reached(goal, timing)
    return goal.kind == "speedup" and _LEAST_MET <= share < 1 and low >= 1 - GOAL_TOLERANCE and sure(goal, timing)


def settled(goal: Goal, timing: Timing) -> bool:
    """Whether a candidate was timed for long enough: it is known (`sure`), or likely not the one.

    Where it was not, the same candidate is to be timed longer: another one would be compared with a rumour.
    """
    (low, high), share = bounds(goal, timing), reached(goal, timing)
    return share + _LIKELY * (high - share) < 1 or share - _LIKELY * (share - low) > _MOST_MET or sure(goal, timing)


def sure(goal: Goal, timing: Timing) -> bool:
    """Whether a timing allows a conclusion: the goal is missed, or exceeded, or the figure is known well enough."""
    low, high = bounds(goal, timing)
    width, share = high / low - 1, reached(goal, timing)
    if high < 1 or low > _MOST_MET or width <= GOAL_TOLERANCE / 2:
        return True
    if 1 <= share <= _MOST_MET:  # the last word: it must hold for what is true, not for what was seen
        return low >= 1 - GOAL_TOLERANCE and high <= 1 + GOAL_TOLERANCE
    return width <= GOAL_TOLERANCE


def bounds(goal: Goal, timing: Timing) -> tuple[float, float]:
    """The interval of the share of the goal that a timing reaches."""
    slowest, fastest = timing.speedup_interval or (timing.speedup, timing.speedup)
    least_ms, most_ms = timing.latency_interval or (timing.latency_ms, timing.latency_ms)
    return goal.share(slowest, most_ms), goal.share(fastest, least_ms)


def _next_candidate(goal: Goal, proposals: Proposals[C], tries: Sequence[_Try[C]]) -> C | None:
    """The first proposal that has not been measured; None when there is nothing new."""
    first = [proposals.first] if proposals.first and not tries else []
    for ratio in first + _proposals(goal, tries):
        try:
            widths = proposals.propose(ratio)
        except PruningError:
            if not tries and ratio == _LEAST:
                raise
            continue
        if all(widths != each.widths for each in tries):
            return widths
    return None


def _proposals(goal: Goal, tries: Sequence[_Try[C]]) -> list[float]:
    """MACs ratios to try, the best guess first."""
    if not tries:
        return [1 / (goal.value * _MIDDLE) if goal.kind == "speedup" else 0.5, 0.5, _LEAST]
    low = max((each.macs for each in tries if each.sure and each.off > _STEPS), default=_LEAST)
    high = min((each.macs for each in tries if each.sure and each.off < -_STEPS), default=_MOST)
    guess = _guess(tries)
    near = [guess * factor for factor in (1, 0.99, 1.01, 0.98, 1.02, 0.97, 1.03)]  # one may give widths that are known
    middle = [low**share * high ** (1 - share) for share in (0.5, 0.25, 0.75)]
    nearest, one_sided = min(abs(each.off) for each in tries), low == _LEAST or high == _MOST
    cliff = len(tries) >= _TRIES // 2 and nearest > (_CLOSE if one_sided else _STEPS)  # halve what is left
    both_near = len({each.off > 0 for each in tries if abs(each.off) <= _STEPS}) == 2  # what is further is no nearer
    ratios = [*middle, *near] if cliff else near if both_near else [*near, *middle]
    reachable = low > _LEAST or any(each.met >= 1 and abs(each.off) <= _STEPS for each in tries)
    return [ratio for ratio in ratios if low < ratio < high] + ([] if reachable else [_LEAST])


def _guess(tries: Sequence[_Try[C]]) -> float:
    """Where the goal should be met, on a straight line in logarithms.

    Weighed least squares: a try says the more, the nearer to the goal it is and the better its figure is known. Its
    widths are not on the line (kernels have steps), so that no pair of tries decides alone.
    """
    weights = [1 / (_STEP**2 + each.error**2 + (_CURVED * each.off) ** 2) for each in tries]
    logs = [-math.log(each.macs) for each in tries]
    centre, off = (
        sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
        for values in (logs, [each.off for each in tries])
    )
    spread = [(weight, x - centre, each.off - off) for weight, x, each in zip(weights, logs, tries, strict=True)]
    slope = sum(weight * x * y for weight, x, y in spread) + _SLOPE[0] / _SLOPE[1] ** 2
    slope /= sum(weight * x * x for weight, x, _ in spread) + 1 / _SLOPE[1] ** 2
    return math.exp(off / min(max(slope, _SLOPES[0]), _SLOPES[1]) - centre)


def _choose(goal: Goal, tries: Sequence[_Try[C]], how: str, loss: Callable[[C], float] | None) -> Aimed[C]:
    name = "speed-up" if goal.kind == "speedup" else "latency"
    met = [each for each in tries if each.met >= 1]
    kinds = (
        [each for each in met if each.meets and each.sure],
        [each for each in met if each.meets],
        [each for each in met if each.sure],
        met,
    )
    good = next((kind for kind in kinds if kind), [])
    chosen = max(good, key=lambda each: each.macs) if good else max(tries, key=lambda each: each.met)
    known = [each for each in met if each.sure]
    if good and known and loss:  # kernels have steps: what is faster than asked for may keep more, too
        least = min(known, key=lambda each: loss(each.widths))
        chosen = least if loss(least.widths) < _CLEARLY * loss(chosen.widths) else chosen
    notes = [f"{how}: {chosen.timing.speedup:.2f}x, p50 {chosen.timing.latency_ms:.3g} ms"]
    if not good:
        notes.insert(0, f"the {name} goal was not reached ({chosen.met:.0%} of it): this is the fastest plan seen")
    elif chosen.met > 1 + GOAL_TOLERANCE:
        wider = any(each.sure and each.met < 1 and each.macs > chosen.macs for each in tries)
        reason = "the wider plans that were tried miss it" if wider else "no wider plan was found"
        if any(each.sure and 1 <= each.met < chosen.met for each in tries):
            reason = "what is nearer to it loses more"
        notes.insert(0, f"the {name} goal is exceeded ({chosen.met:.0%} of it): {reason}")
    if not chosen.sure:
        low, high = bounds(goal, chosen.timing)
        told = f"the {name} is between {low:.0%} and {high:.0%} of the goal (95 % interval)"
        notes.insert(0, f"too noisy to say that the goal is met, however long candidates were timed: {told}")
    return Aimed(chosen.widths, chosen.timing, tuple(notes))
