"""How many channels each group keeps. Pure: no network, no file, no clock.

Widths end on a channel multiple, never below one, and a goal is met within one step of one group. A plan that
removes nothing is an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from edgeprune.errors import PruningError
from edgeprune.types import ChannelGraph, Group, Scores

Widths = dict[str, int]


def macs_of(graph: ChannelGraph, widths: Mapping[str, int]) -> int:
    """Multiply-accumulates an image when each group keeps `widths[name]` units (absent: all)."""
    lost: dict[tuple[str, str], int] = defaultdict(int)
    for group in graph.groups:
        gone = group.width - widths.get(group.name, group.width)
        for member in group.members:
            lost[member.name, member.role] += gone * len(member.channels[0])
    total = 0.0
    for layer in graph.layers:
        out = 1 - lost[layer.name, "out"] / layer.out_channels
        into = 1 - lost[layer.name, "in"] / layer.in_channels
        total += layer.macs * out * into
    return round(total)


def steps_of(group: Group, multiple: int) -> tuple[int, ...]:
    """Widths a group may have, widest first: its own, then every multiple below it, at least one multiple.

    The multiple counts channels; a unit of a grouped convolution holds several.
    """
    channels = max((len(m.channels[0]) for m in group.members if m.role == "out"), default=1)
    unit_step = max(1, -(-multiple // channels))
    below = range((group.width - 1) // unit_step * unit_step, 0, -unit_step)
    return (group.width, *below)


def uniform(graph: ChannelGraph, ratio: float, multiple: int) -> Widths:
    """Remove the same share of every group, to the nearest width that the multiple allows."""
    widths = {}
    for group in graph.groups:
        wanted = group.width * (1 - ratio)
        widths[group.name] = min(steps_of(group, multiple), key=lambda width: (abs(width - wanted), -width))
    return _something(graph, widths, multiple)


def by_macs(graph: ChannelGraph, scores: Scores, macs_ratio: float, multiple: int) -> Widths:
    """Keep the most importance under a MACs budget: at each step, the cut that costs least importance a MAC saved.

    The greedy rule for a separable knapsack (Fox 1966), with the savings priced again after every step since the
    layers of two groups share their product. Ends within one step of the goal, on the nearer side.
    """
    goal = graph.macs * macs_ratio
    widths = {group.name: group.width for group in graph.groups}
    steps = {group.name: steps_of(group, multiple) for group in graph.groups}
    ascending = {name: np.sort(values) for name, values in scores.values.items()}
    now = graph.macs
    while now > goal:
        best: tuple[float, str, int, int] | None = None
        for group in graph.groups:
            lower = [width for width in steps[group.name] if width < widths[group.name]]
            if not lower:
                continue
            gone, then = group.width - widths[group.name], group.width - lower[0]
            lost = float(ascending[group.name][gone:then].sum())
            macs = macs_of(graph, {**widths, group.name: lower[0]})
            price = lost / max(now - macs, 1)
            if best is None or price < best[0]:
                best = (price, group.name, lower[0], macs)
        if best is None:
            break
        _, name, width, macs = best
        if macs < goal and goal - macs > now - goal and any(widths[g.name] < g.width for g in graph.groups):
            break  # stopping here is nearer to the goal than one step further
        widths[name], now = width, macs
    return _something(graph, widths, multiple)


def kept_units(scores: Scores, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The most important units of each group, ascending; the earlier one wins a tie."""
    kept = {}
    for name, width in widths.items():
        order = np.argsort(-scores.values[name], kind="stable")[:width]
        kept[name] = tuple(sorted(int(unit) for unit in order))
    return kept


def _something(graph: ChannelGraph, widths: Widths, multiple: int) -> Widths:
    if all(widths[group.name] == group.width for group in graph.groups):
        widest = max((group.width for group in graph.groups), default=0)
        raise PruningError(
            "the plan removes nothing",
            where=f"{len(graph.groups)} groups can be pruned, the widest has {widest} channels; widths end on multiples of {multiple}",
            hint="ask for more, or allow finer widths with --channel-multiple",
        )
    return widths
