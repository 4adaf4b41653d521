"""Which networks are timed whole, so that layers can be priced in their place. Pure.

First, networks around the plans of many predicted times; then, as prices are learnt, those that promise most: what a
network is expected to lose less than the best that is known to be fast enough, weighed by how likely it is that it is
fast enough, too (constrained expected improvement: Schonlau, Welch, Jones 1998; Gardner et al., ICML 2014; the loss is
known here, the time is not). A search that timed only what it thinks best would time what only looks cheap, again and
again, and never what looks a little too dear.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import ndtr

from edgeprune.errors import PruningError
from edgeprune.pruning.allocation import choices_of
from edgeprune.pruning.block_allocation import Choice
from edgeprune.pruning.in_place import Placed, Seen
from edgeprune.pruning.timed import TimedChoices

_FAR, _NEAR = (-0.3, 0.15), (-0.05, 0.08)
"""Between which times plans are drawn around, from the one that is asked for, in logarithms: before prices are known,
and after."""
_CENTRES, _SECONDS = 6, 8.0  # plans of networks with many groups take seconds each: fewer then
_MOVED, _FURTHEST = 0.6, 2  # share of groups that move, and by how many of the widths that they may have
_POOL, _TURNS = 1500, 3
_KNOWN = 8
_NOTHING = 1e-12


def around(timed: TimedChoices, share: float, count: int, draw: np.random.Generator) -> tuple[Choice, ...]:
    """Up to `count` different choices near plans of about a share of the dense time, no block removed."""
    return _moved(timed, _centres(timed, share, _FAR), count, draw)


def promising(
    learnt: Placed, seen: Sequence[Seen], share: float, count: int, draw: np.random.Generator
) -> tuple[Choice, ...]:
    """Up to `count` choices, none of them seen, that may lose less than what is known to keep to the share."""
    timed = learnt.timed
    fast = fast_enough(learnt, [one.choice for one in seen], share)
    centres = [*_centres(timed, share, _NEAR), *(choice.widths for choice in fast)]
    known = {tuple(one.choice.widths.values()) for one in seen}
    pool = [each for each in _moved(timed, centres, _POOL, draw) if tuple(each.widths.values()) not in known]
    least = timed.plain_loss(fast[0]) if fast else math.inf
    return tuple(pool[at] for at in _best(learnt, pool, share, least)[:count])


def fast_enough(learnt: Placed, choices: Sequence[Choice], share: float) -> tuple[Choice, ...]:
    """Those that should keep to the share of the reference's time and cut something, what loses least first; a few."""
    groups = learnt.timed.graph.groups
    mean, _ = learnt.expected(choices)
    kept = [c for c, takes in zip(choices, mean, strict=True) if takes <= share]
    cut = [c for c in kept if any(c.widths[group.name] < group.width for group in groups)]
    return tuple(sorted(cut, key=learnt.timed.plain_loss)[:_KNOWN])


def _best(learnt: Placed, pool: Sequence[Choice], share: float, least: float) -> list[int]:
    """Positions in the pool, what promises most first."""
    if not pool:
        return []
    losses = [learnt.timed.plain_loss(choice) for choice in pool]
    bar = least if math.isfinite(least) else max(losses)
    gains = np.log(bar / np.maximum(losses, _NOTHING))
    mean, spread = learnt.expected(pool)
    promise = np.maximum(gains, 0.0) * ndtr((math.log(share) - np.log(mean)) / np.maximum(spread, _NOTHING))
    return [int(at) for at in np.argsort(-promise, kind="stable") if promise[at] > 0]


def _centres(timed: TimedChoices, share: float, between: tuple[float, float]) -> list[Mapping[str, int]]:
    """Widths of plans for times around this one, the nearest first; uncut where there is none."""
    found: list[Mapping[str, int]] = []
    until = time.monotonic() + _SECONDS
    for at in sorted(np.linspace(*between, _CENTRES), key=abs):
        if found and time.monotonic() > until:
            break
        try:
            found.append(timed.propose(min(share * math.exp(at), 0.99)).widths)
        except PruningError:
            found.append({})
    return found


def _moved(
    timed: TimedChoices, centres: Sequence[Mapping[str, int]], count: int, draw: np.random.Generator
) -> tuple[Choice, ...]:
    """Up to `count` different choices, each with some groups of one of the centres moved."""
    groups, choices = timed.graph.groups, choices_of(timed.graph, timed.multiple, timed.rules)
    found: dict[tuple[int, ...], Choice] = {}
    for _ in range(_TURNS * count):
        if len(found) == count:
            break
        centre, widths = centres[int(draw.integers(len(centres)))], dict[str, int]()
        for group, allowed in zip(groups, choices, strict=True):
            at = allowed.index(centre[group.name]) if centre.get(group.name) in allowed else 0
            if draw.random() < _MOVED:
                at += int(draw.integers(-_FURTHEST, _FURTHEST + 1))
            widths[group.name] = allowed[min(max(at, 0), len(allowed) - 1)]
        found.setdefault(tuple(widths.values()), Choice(widths))
    return tuple(found.values())
