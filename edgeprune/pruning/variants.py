"""Plans of one predicted time: the same problem, with the loss of one group weighed otherwise. Pure.

What a plan loses tells bad plans from good ones, and hardly those apart that lose nearly the same: `gtsrb_net_adv` kept
half of its first layer or all of it for a difference in loss that importance cannot vouch for. So the neighbours of the
best plan are made, for a short training to choose among (`edgeprune.trying`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass

from edgeprune.errors import PruningError
from edgeprune.pruning.block_allocation import Choice
from edgeprune.pruning.timed import TimedChoices

_FACTORS = 4.0, 0.25
_MOST_SOLVED = 16
_SECONDS = 15.0  # for all problems: large networks, whose problems take seconds each, have fewer variants
_NEARLY = 0.9  # of the time that may be spent: what takes less gives up something for nothing


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """A choice, and who proposes it. `lost`: what it loses, nothing weighed otherwise."""

    proposer: TimedChoices
    choice: Choice
    lost: float


def variants(timed: TimedChoices, choice: Choice, share: float, count: int) -> tuple[Variant, ...]:
    """Up to `count` choices for this share of the dense network's time: `choice`, then those that lose least.

    Among them are those that are known to be fast enough (`TimedChoices.known`), each as it is.
    """
    found, until = [Variant(timed, choice, timed.loss(choice))], time.monotonic() + _SECONDS
    for proposer in _proposers(timed):
        if time.monotonic() > until:
            break
        try:
            other = proposer.propose(share)
        except PruningError:
            continue
        spent = timed.share(other) / share
        if _NEARLY <= spent <= 1 and all(other != each.choice for each in found):
            found.append(Variant(proposer, other, timed.loss(other)))
    for other in timed.known:
        if timed.share(other) <= share and all(other != each.choice for each in found):
            found.append(Variant(dataclasses.replace(timed, fixed=other), other, timed.loss(other)))
    return (found[0], *sorted(found[1:], key=lambda each: each.lost)[: count - 1])


def _proposers(timed: TimedChoices) -> Iterator[TimedChoices]:
    """One group weighed otherwise at a time, or all blocks; where there are many groups, some all over the network."""
    if timed.importance.blocks:
        for factor in _FACTORS:
            yield dataclasses.replace(timed, block_emphasis=factor)
    if timed.importance.scope == "blocks" or timed.rules.ranking in ("local", "isomorphic"):
        return  # their widths come from an order of moves, which no loss decides
    names = [group.name for group in timed.graph.groups if group.width > timed.multiple]
    apart = -(-len(names) * len(_FACTORS) // _MOST_SOLVED) or 1
    for factor in _FACTORS:
        for name in names[::apart]:
            yield dataclasses.replace(timed, emphasis={name: factor})
