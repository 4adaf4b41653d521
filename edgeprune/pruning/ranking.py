"""Which channels compete with which, and in what order groups lose width. Pure.

- local: every group loses the same share of its channels.
- global: all channels of the network compete.
- isomorphic: groups of the same structure compete among themselves, and every structure loses the same share (Fang et
  al. 2024, "Isomorphic Pruning for Vision Models": importance of unlike structures cannot be compared). Groups are of
  one structure when the same kinds of operators make and read their channels, in the same numbers and with as many
  channels a unit; widths and depth do not matter.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeprune.types import ChannelGraph, Group, Scores

Ranking = Literal["local", "global", "isomorphic"]
_Shares = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Move:
    """Group number `group` goes to its width number `level` once more than `share` of its rivals' channels must go."""

    share: float
    group: int
    level: int


def structure(group: Group) -> tuple[tuple[tuple[str, str, int], int], ...]:
    """What groups of one structure have in common: kinds, roles and channels a unit of the members, and how many."""
    return tuple(sorted(Counter((m.kind, m.role, len(m.channels[0])) for m in group.members).items()))


def rivals(graph: ChannelGraph, ranking: Ranking) -> tuple[tuple[Group, ...], ...]:
    """The groups, sorted into those that compete with each other."""
    if ranking == "global":
        return (graph.groups,)
    if ranking == "local":
        return tuple((group,) for group in graph.groups)
    found: dict[object, list[Group]] = defaultdict(list)
    for group in graph.groups:
        found[structure(group)].append(group)
    return tuple(tuple(groups) for groups in found.values())


def moves(
    graph: ChannelGraph,
    scores: Scores,
    ranking: Ranking,
    choices: Sequence[Sequence[int]],
    dense: Mapping[str, int],
) -> tuple[Move, ...]:
    """Every step down from each group's first choice, in the order in which growing shares ask for it.

    `choices[i]` are the widths of group i, widest first. A step is due when the width that the ranking asks for is
    nearer to the narrower one. `dense` maps groups to the widths that shares are counted from (absent: their own).
    """
    asked: dict[str, _Shares] = {}
    for groups in rivals(graph, ranking):
        asked |= _shares(groups, scores, dense) if len(groups) > 1 else _own_shares(groups[0], dense)
    found = []
    for number, group in enumerate(graph.groups):
        widths, lost = choices[number], np.arange(group.width + 1)
        for level in range(1, len(widths)):
            middle = group.width - (widths[level - 1] + widths[level]) / 2
            found.append(Move(float(np.interp(middle, lost, asked[group.name])), number, level))
    return tuple(sorted(found, key=lambda move: (move.share, move.group, move.level)))


def _own_shares(group: Group, dense: Mapping[str, int]) -> dict[str, _Shares]:
    """[j]: the share of the dense width that is gone when the group has lost j units more."""
    width = dense.get(group.name, group.width)
    return {group.name: (width - group.width + np.arange(group.width + 1)) / width}


def _shares(groups: Sequence[Group], scores: Scores, dense: Mapping[str, int]) -> dict[str, _Shares]:
    """[j]: the share of all rivals' dense units that go first when the group has lost its j least important ones.

    Equal scores go in equal shares of each group, not group by group.
    """
    total = sum(dense.get(group.name, group.width) for group in groups)
    before = total - sum(group.width for group in groups)
    values = np.concatenate([np.sort(scores.values[group.name]) for group in groups])
    inside = np.concatenate([np.arange(1, group.width + 1) / group.width for group in groups])
    owner = np.repeat(np.arange(len(groups)), [group.width for group in groups])
    order = np.lexsort((owner, inside, values))
    found = {}
    for number, group in enumerate(groups):
        ranks = np.flatnonzero(owner[order] == number) + 1
        found[group.name] = (before + np.concatenate([[0], ranks])) / total
    return found
