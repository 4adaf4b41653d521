"""How many channels each group keeps. Pure: no network, no file, no clock.

Widths end on a channel multiple, never below one, inside the limits that were set, and a goal is met within one step
of one group; `edgeprune.pruning.shortfall` says where that cannot be. A plan that removes nothing is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeprune.errors import PruningError
from edgeprune.pruning.limits import Bounds, within
from edgeprune.pruning.ranking import Move, Ranking, moves
from edgeprune.types import ChannelGraph, Group, Scores

Widths = dict[str, int]
_WEIGHTED = frozenset({"CONV", "LINEAR", "DEPTHWISE_CONV"})
_Table = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class NothingLeftError(PruningError):
    """No group can be cut for the goal."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What allocation obeys beside the goal.

    `ranking` None: what measures best for the goal (`edgeprune.pruning.plan.allocate`). `bounds`: the groups whose
    width is limited. `dense`: the widths that a share is counted from, where the network was pruned before.
    """

    ranking: Ranking | None = None
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    dense: Mapping[str, int] = field(default_factory=dict)


FREE = Rules()


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """MACs as a function of the units that go: macs . outputs left . inputs left, layer by layer.

    `out[l, g]` is the share of layer l's outputs that goes with one unit of group g, `into` the same of its inputs;
    `macs[l]` the layer's MACs uncut. Of outputs left there are two factors, `out` and `out_across`, since a row of an
    attention goes with its head or with its channel of every head: groups of the second kind cross those of the first.
    """

    macs: _Table
    out: _Table
    into: _Table
    out_across: _Table
    into_across: _Table

    @classmethod
    def of(cls, graph: ChannelGraph) -> Costs:
        rows = {layer.name: row for row, layer in enumerate(graph.layers)}
        out, into, out_across, into_across = (np.zeros((len(graph.layers), len(graph.groups))) for _ in range(4))
        taken: dict[tuple[str, str], set[int]] = {}
        for column, group in enumerate(graph.groups):
            for member in group.members:
                if member.name not in rows or member.kind not in _WEIGHTED:
                    continue
                layer = graph.layers[row := rows[member.name]]
                known = taken.setdefault((member.name, member.role), set())
                own = {channel for unit in member.channels for channel in unit}
                outward, across = member.role == "out", bool(known & own)
                known |= own
                first, second = (out, out_across) if outward else (into, into_across)
                channels = layer.out_channels if outward else layer.in_channels
                (second if across else first)[row, column] += len(member.channels[0]) / channels
        return cls(
            np.array([layer.macs for layer in graph.layers], dtype=np.float64), out, into, out_across, into_across
        )

    def total(self, gone: _Table) -> float:
        """MACs an image without `gone[g]` units of each group."""
        outputs = (1 - self.out @ gone) * (1 - self.out_across @ gone)
        return float(self.macs @ (outputs * (1 - self.into @ gone) * (1 - self.into_across @ gone)))

    def savings(self, gone: _Table, step: _Table) -> _Table:
        """MACs that each group alone would save by losing `step[g]` units more."""
        out = self.out * (1 - self.out_across @ gone)[:, None] + self.out_across * (1 - self.out @ gone)[:, None]
        into = self.into * (1 - self.into_across @ gone)[:, None] + self.into_across * (1 - self.into @ gone)[:, None]
        outputs = self.macs * (1 - self.out @ gone) * (1 - self.out_across @ gone)
        inputs = self.macs * (1 - self.into @ gone) * (1 - self.into_across @ gone)
        saved: _Table = step * (inputs @ out + outputs @ into) - step**2 * (self.macs @ (out * into))
        return saved


def macs_of(graph: ChannelGraph, widths: Mapping[str, int]) -> int:
    """Multiply-accumulates an image when each group keeps `widths[name]` units (absent: all)."""
    return round(Costs.of(graph).total(_gone(graph, widths)))


def steps_of(group: Group, multiple: int) -> tuple[int, ...]:
    """Widths a group may have, widest first: its own, then those that end every layer on the multiple.

    The multiple counts channels; a unit may hold several (of a grouped convolution, of the halves of a split). No
    layer is left with less than one multiple.
    """
    makers = [member for member in group.members if member.role == "out" and member.kind in _WEIGHTED]
    counts = {len(member.channels[0]) for member in makers}
    if counts and max(counts) >= multiple:  # a whole head: whatever else has one entry a head is no concern
        counts = {max(counts)}
    step = math.lcm(*(multiple // math.gcd(multiple, count) for count in counts if count))
    return (group.width, *range((group.width - 1) // step * step, 0, -step))


def choices_of(graph: ChannelGraph, multiple: int, rules: Rules = FREE) -> list[tuple[int, ...]]:
    """The widths that each group may have, widest first. UsageError when a limit leaves a group none."""
    return [within(group, steps_of(group, multiple), rules.bounds.get(group.name)) for group in graph.groups]


def by_share(
    graph: ChannelGraph, scores: Scores, ratio: float, ranking: Ranking, multiple: int, rules: Rules = FREE
) -> Widths:
    """Remove the share `ratio` of the channels of every group, or of all that compete (`edgeprune.pruning.ranking`).

    Each group ends on the width nearest to what is asked of it; a tie keeps more.
    """
    choices = choices_of(graph, multiple, rules)
    level = [0] * len(choices)
    for move in moves(graph, scores, ranking, choices, rules.dense):
        if move.share < ratio - 1e-12:
            level[move.group] = move.level
    return widths_at(graph, choices, level, multiple)


def by_macs(graph: ChannelGraph, scores: Scores, macs_ratio: float, multiple: int, rules: Rules = FREE) -> Widths:
    """Keep the share `macs_ratio` of the MACs, or the nearest to it that one step of one group can reach.

    Local and isomorphic rankings go down their order of moves. Where all channels compete (the default), each step is
    the cut that costs least importance a MAC saved: the greedy rule for a separable knapsack (Fox 1966), with the
    savings priced again after every step since the layers of two groups share their product.
    """
    choices = choices_of(graph, multiple, rules)
    if rules.ranking in ("local", "isomorphic"):
        ordered = moves(graph, scores, rules.ranking, choices, rules.dense)
        level = _in_order(graph, choices, ordered, graph.macs * macs_ratio)
    else:
        level = _by_price(graph, scores, choices, graph.macs * macs_ratio)
    return widths_at(graph, choices, level, multiple)


def _in_order(
    graph: ChannelGraph, choices: Sequence[tuple[int, ...]], ordered: Sequence[Move], goal: float
) -> list[int]:
    """Levels after as many moves as the goal takes; the last one only if it ends nearer to it."""
    costs, gone = Costs.of(graph), _gone_at_first(graph, choices)
    level, now = [0] * len(choices), costs.total(gone)
    for move in ordered:
        if now <= goal:
            break
        before = gone[move.group]
        gone[move.group] = graph.groups[move.group].width - choices[move.group][move.level]
        after = costs.total(gone)
        if after < goal and goal - after >= now - goal and _cuts(graph, choices, level):
            gone[move.group] = before
            break
        level[move.group], now = move.level, after
    return level


def _by_price(graph: ChannelGraph, scores: Scores, choices: Sequence[tuple[int, ...]], goal: float) -> list[int]:
    """Levels with the most importance that the greedy rule finds under a MACs budget."""
    costs = Costs.of(graph)
    lost = [importance_lost(scores.values[group.name], choices[i]) for i, group in enumerate(graph.groups)]
    level = [0] * len(choices)  # how many steps down each group stands
    gone = _gone_at_first(graph, choices)
    now = costs.total(gone)
    while now > goal:
        open_groups = [i for i in range(len(choices)) if level[i] + 1 < len(choices[i])]
        if not open_groups:
            break
        step = np.zeros(len(choices))
        for i in open_groups:
            step[i] = choices[i][level[i]] - choices[i][level[i] + 1]
        saved = costs.savings(gone, step)
        price = {i: (lost[i][level[i] + 1] - lost[i][level[i]]) / max(float(saved[i]), 1.0) for i in open_groups}
        best = min(open_groups, key=price.__getitem__)
        if now - saved[best] < goal:  # the last step: the one that ends nearest to the goal, or none
            best = min(open_groups, key=lambda i: abs(now - saved[i] - goal))
            if _cuts(graph, choices, level) and abs(now - saved[best] - goal) >= now - goal:
                break
        gone[best] += step[best]
        level[best], now = level[best] + 1, costs.total(gone)
    return level


def kept_units(scores: Scores, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The most important units of each group, ascending; the earlier one wins a tie."""
    kept = {}
    for name, width in widths.items():
        order = np.argsort(-scores.values[name], kind="stable")[:width]
        kept[name] = tuple(sorted(int(unit) for unit in order))
    return kept


def check_scores(graph: ChannelGraph, scores: Scores) -> None:
    """PruningError unless there is one finite score for every unit of every group: a criterion may be a plugin."""
    for group in graph.groups:
        values = scores.values.get(group.name)
        if values is None or values.shape != (group.width,) or not np.isfinite(values).all():
            raise PruningError(
                f"the criterion {scores.criterion} does not score {group.name}",
                where=f"it needs {group.width} finite numbers",
                hint="use another --criterion; of training data, look for images or labels that are odd",
            )


def importance_lost(values: np.ndarray[tuple[int], np.dtype[np.float64]], steps: tuple[int, ...]) -> list[float]:
    """What each of a group's widths costs, the least important units first: -log of the share of importance that stays.

    Half of a narrow layer costs as much as half of a wide one. Plain sums made narrow early layers, whose channels
    have many MACs, the cheapest of all: gtsrb_net_std at 27 % of its MACs recovered to 88.7 %, with shares to 90.5 %.
    """
    total = np.concatenate([[0.0], np.cumsum(np.sort(values))])
    gone = np.array([total[len(values) - width] for width in steps]) / max(total[-1], np.finfo(np.float64).tiny)
    cost: list[float] = (-np.log1p(-np.minimum(gone, 1 - 1e-12))).tolist()
    return cost


def _gone(graph: ChannelGraph, widths: Mapping[str, int]) -> _Table:
    return np.array([group.width - widths.get(group.name, group.width) for group in graph.groups], dtype=np.float64)


def _gone_at_first(graph: ChannelGraph, choices: Sequence[tuple[int, ...]]) -> _Table:
    """What limits take of each group before the goal asks for anything."""
    return np.array([group.width - choices[i][0] for i, group in enumerate(graph.groups)], dtype=np.float64)


def _cuts(graph: ChannelGraph, choices: Sequence[tuple[int, ...]], level: Sequence[int]) -> bool:
    return any(choices[i][level[i]] < group.width for i, group in enumerate(graph.groups))


def widths_at(graph: ChannelGraph, choices: Sequence[tuple[int, ...]], level: Sequence[int], multiple: int) -> Widths:
    """The widths at these levels of the choices; NothingLeftError when nothing is cut."""
    if not _cuts(graph, choices, level):
        widest = max((group.width for group in graph.groups), default=0)
        raise NothingLeftError(
            "the plan removes nothing",
            where=f"groups that can be pruned: {len(graph.groups)}, the widest with {widest} channels; "
            f"widths end on multiples of {multiple}",
            hint="ask for more, or allow finer widths with --channel-multiple",
        )
    return {group.name: choices[i][level[i]] for i, group in enumerate(graph.groups)}
