"""Aims at milliseconds: MACs are moved until the measured figure meets the goal.

Pure but for the `measure` that it is given: propose widths, have them measured, correct the MACs budget by what was
seen (a secant in logarithms, kept inside what is already bracketed), stop within 3 %. A figure whose interval allows no
conclusion (`settled`) is measured longer by whoever measures; if it stays so, it brackets nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from edgeprune.errors import PruningError
from edgeprune.pruning.allocation import FREE, Rules, Widths, by_macs, check_scores, macs_of
from edgeprune.pruning.shortfall import obstacles
from edgeprune.types import ChannelGraph, Goal, Progress, Scores

TOLERANCE = 0.03
MEASURED = "aimed on candidates before recovery"
_MIDDLE = 1 + TOLERANCE / 2  # what is aimed at: a hair faster than the goal
_TRIES = 7
_SLOPES = 0.3, 2.0  # how fast a speed-up may rise as MACs fall, in logarithms: what a noisy pair is held to
_CLOSE = 0.2  # of the logarithm: from here, the next guess is a short step
_LEAST, _MOST = 0.01, 0.999  # MACs ratios that make sense

C = TypeVar("C")
"""A candidate: widths, or widths and blocks."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What a candidate reached: speed-up over the dense file, and its own p50; with their 95 % intervals where the
    clock is a noisy one (None: the figures are exact)."""

    speedup: float
    latency_ms: float
    speedup_interval: tuple[float, float] | None = None
    latency_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Aimed(Generic[C]):
    """The widths (or the candidate) that were chosen, what they measured, and notes for the plan."""

    widths: C
    timing: Timing
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Try(Generic[C]):
    """`met` is the share of the goal that was reached (1 and more: it is met), `macs` the share of MACs left.

    `sure`: the timing says on which side of the goal it is.
    """

    met: float
    macs: float
    widths: C
    timing: Timing
    sure: bool

    @property
    def meets(self) -> bool:
        """Within the tolerance, as seen."""
        return 1 <= self.met <= 1 + TOLERANCE


@dataclass(frozen=True, slots=True)
class Proposals(Generic[C]):
    """Candidates by a ratio of what they cost. `propose` makes one for a ratio, `share_of` is the ratio that one has.

    `share_is_of`: what the ratio is of. `first`: the ratio to begin with, where one is known; `most`: how many
    candidates are measured.
    """

    propose: Callable[[float], C]
    share_of: Callable[[C], float]
    share_is_of: str = "MACs"
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
        tries.append(_Try(reached(goal, timing), share, widths, timing, settled(goal, timing)))
    return _choose(goal, tries, how)


def reached(goal: Goal, timing: Timing) -> float:
    """Share of the goal that a timing reaches: 1 is exactly met, above 1 is faster."""
    return timing.speedup / goal.value if goal.kind == "speedup" else goal.value / timing.latency_ms


def settled(goal: Goal, timing: Timing) -> bool:
    """Whether a timing allows a conclusion: the goal is missed, or exceeded, or the figure is known well enough.

    Where it does not, the same candidate is to be timed longer: another one would be compared with a rumour.
    """
    low, high = bounds(goal, timing)
    width, share = high / low - 1, reached(goal, timing)
    if high < 1 or low > 1 + TOLERANCE or width <= TOLERANCE / 2:
        return True
    if 1 <= share <= 1 + TOLERANCE:  # the last word: it must hold for what is true, not for what was seen
        return low >= 1 - TOLERANCE and high <= 1 + TOLERANCE
    return width <= TOLERANCE


def bounds(goal: Goal, timing: Timing) -> tuple[float, float]:
    """The interval of the share of the goal that a timing reaches."""
    if goal.kind == "speedup":
        low, high = timing.speedup_interval or (timing.speedup, timing.speedup)
        return low / goal.value, high / goal.value
    low, high = timing.latency_interval or (timing.latency_ms, timing.latency_ms)
    return goal.value / high, goal.value / low


def _next_candidate(goal: Goal, proposals: Proposals[C], tries: Sequence[_Try[C]]) -> C | None:
    """The first proposal that has not been measured; None when the bracket holds nothing new."""
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
    sure = [each for each in tries if each.sure]
    fast = max((each for each in sure if each.met > 1), key=lambda each: each.macs, default=None)
    slow = min((each for each in sure if each.met < 1), key=lambda each: each.macs, default=None)
    low, high = fast.macs if fast else _LEAST, slow.macs if slow else _MOST
    guess = _guess(tries, fast, slow)
    near = [guess * factor for factor in (1, 0.99, 1.01, 0.97, 1.03)]  # a guess may lead to widths that are known
    middle = [low**share * high ** (1 - share) for share in (0.5, 0.25, 0.75)]
    close = not fast and any(abs(math.log(each.met)) < _CLOSE for each in tries)  # no bracket to halve, but a trail
    first = near if close or len(tries) < _TRIES // 2 else middle  # a cliff: halve what is left
    best_first = (*first, *near, *middle)
    return [ratio for ratio in best_first if low < ratio < high] + ([_LEAST] if not fast else [])


def _guess(tries: Sequence[_Try[C]], fast: _Try[C] | None, slow: _Try[C] | None) -> float:
    """Where the goal should be met, on a straight line in logarithms through the two tries that say most."""
    told = [each for each in tries if each.sure] or tries
    nearest = sorted(told, key=lambda each: abs(math.log(each.met)))[:2]
    one, other = (fast, slow) if fast and slow else (nearest[0], nearest[-1])
    slope = 1.0  # time follows MACs, until two tries say otherwise
    if one.macs != other.macs:
        slope = math.log(one.met / other.met) / math.log(other.macs / one.macs)
    return float(one.macs * (one.met / _MIDDLE) ** (1 / min(max(slope, _SLOPES[0]), _SLOPES[1])))


def _choose(goal: Goal, tries: Sequence[_Try[C]], how: str) -> Aimed[C]:
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
    notes = [f"{how}: {chosen.timing.speedup:.2f}x, p50 {chosen.timing.latency_ms:.3g} ms"]
    if not good:
        notes.insert(0, f"the {name} goal was not reached ({chosen.met:.0%} of it): this is the fastest plan seen")
    elif chosen.met > 1 + TOLERANCE:
        wider = any(each.sure and each.met < 1 and each.macs > chosen.macs for each in tries)
        reason = "the wider plans that were tried miss it" if wider else "no wider plan was found"
        notes.insert(0, f"the {name} goal is exceeded ({chosen.met:.0%} of it): {reason}")
    if not chosen.sure:
        low, high = bounds(goal, chosen.timing)
        told = f"the {name} is between {low:.0%} and {high:.0%} of the goal (95 % interval)"
        notes.insert(0, f"too noisy to say that the goal is met, however long candidates were timed: {told}")
    return Aimed(chosen.widths, chosen.timing, tuple(notes))
