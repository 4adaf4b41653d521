"""The plan as an explicit problem: keep the most importance under a budget of milliseconds (or MACs).

Each group has one variable, its width, among the widths that it may have. What a choice loses is separable; what it
costs is not, for the layers between two groups cost by both of their widths, and kernels make that cost a staircase.

It is solved by Lagrangian relaxation (a price on the budget turns it into the sum of loss and priced cost; Everett
1963), where each multiplier's problem is walked down group by group with exact costs, then by exchanges: one group
wider, another narrower, as long as that loses less inside the budget. An integer program was the other candidate: its
pair variables grow with the square of the widths and with every concatenation, where a layer reads many groups.
`docs/decisions/knapsack-without-a-solver.md` has the comparison.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from edgeprune.pruning.allocation import Rules, Widths, choices_of, importance_lost, widths_at
from edgeprune.pruning.prices import Prices, Table
from edgeprune.pruning.ranking import moves
from edgeprune.types import ChannelGraph, Scores

_MULTIPLIERS = 32
_SWEEPS = 20
_SECONDS = 5.0  # for exchanges; the relaxation alone takes a fraction of one
_NOTHING = 1e-12
_MOST_LOST = 12.0

NO_EMPHASIS: Mapping[str, float] = MappingProxyType({})
"""Every group's loss counts as it is."""

Levels = list[int]


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Groups, the units that each choice takes (`gone[g][k]`, ascending), what it loses (`lost[g][k]`), and prices."""

    graph: ChannelGraph
    choices: tuple[tuple[int, ...], ...]
    gone: tuple[Table, ...]
    lost: tuple[Table, ...]
    prices: Prices
    multiple: int

    @classmethod
    def of(
        cls,
        graph: ChannelGraph,
        scores: Scores,
        prices: Prices,
        multiple: int,
        rules: Rules,
        emphasis: Mapping[str, float] = NO_EMPHASIS,
    ) -> Problem:
        """The problem of a scored network; UsageError when limits leave a group no width.

        `emphasis`: what a group's loss is multiplied by, 1 unless it is named.
        """
        choices = tuple(choices_of(graph, multiple, rules))
        gone = tuple(np.array([g.width - w for w in choices[i]], dtype=np.float64) for i, g in enumerate(graph.groups))
        lost = tuple(
            emphasis.get(g.name, 1.0) * strain(importance_lost(scores.values[g.name], choices[i]))
            for i, g in enumerate(graph.groups)
        )
        return cls(graph, choices, gone, lost, prices, multiple)

    def loss(self, levels: Levels) -> float:
        """What a solution loses."""
        return float(sum(lost[level] for lost, level in zip(self.lost, levels, strict=True)))

    def vector(self, levels: Levels) -> Table:
        """Units gone of each group."""
        return np.array([gone[level] for gone, level in zip(self.gone, levels, strict=True)])

    def price(self, levels: Levels) -> float:
        """What a solution costs."""
        return self.prices.total(self.vector(levels))

    def widths(self, levels: Levels) -> Widths:
        """The solution as widths; NothingLeftError when it cuts nothing."""
        return widths_at(self.graph, self.choices, levels, self.multiple)


def strain(lost: Sequence[float]) -> Table:
    """What a group's choices lose: 1 / share^2 - 1 of the share of importance that stays; `lost` is -log of the share.

    The second power keeps groups together: importance says which channels of a group go first, and less of how far a
    group can go before recovery fails. See `docs/decisions/knapsack-without-a-solver.md`.
    """
    found: Table = np.expm1(2 * np.minimum(np.array(lost, dtype=np.float64), _MOST_LOST))
    return found


def solve(problem: Problem, budget: float) -> Levels:
    """The least loss that was found within the budget; the cheapest solution that was found where none fits."""
    widest, narrowest = [0] * len(problem.choices), [len(choices) - 1 for choices in problem.choices]
    if problem.price(widest) <= budget:
        return widest
    best: Levels | None = None
    cheapest = min((narrowest, _relaxed(problem, 1e12, narrowest)), key=problem.price)
    low, high = 1e-9, 1e9
    here = widest
    for _ in range(_MULTIPLIERS):
        multiplier = math.sqrt(low * high)
        here = min(
            (_relaxed(problem, multiplier, start) for start in (here, widest)),
            key=lambda levels: problem.loss(levels) + multiplier * problem.price(levels),
        )
        if problem.price(here) <= budget:
            high = multiplier
            if best is None or problem.loss(here) < problem.loss(best):
                best = here
        else:
            low = multiplier
    if best is None:
        return cheapest if problem.price(cheapest) > budget else _exchanged(problem, cheapest, budget)
    return _exchanged(problem, best, budget)


def in_order(problem: Problem, scores: Scores, rules: Rules, budget: float) -> Levels:
    """Down the order of moves of a local or isomorphic ranking, until the budget is met."""
    assert rules.ranking
    levels = [0] * len(problem.choices)
    for move in moves(problem.graph, scores, rules.ranking, problem.choices, rules.dense):
        if problem.price(levels) <= budget:
            break
        levels[move.group] = move.level
    return levels


def _relaxed(problem: Problem, multiplier: float, start: Levels) -> Levels:
    """Each group's best width for a price on the budget, given the others, until none changes."""
    levels, gone = list(start), problem.vector(start)
    for _ in range(_SWEEPS):
        changed = False
        for group, choices in enumerate(problem.gone):
            if len(choices) > 1:
                priced = problem.lost[group] + multiplier * problem.prices.alternatives(gone, group, choices)
                level = int(np.argmin(priced))
                if priced[level] < priced[levels[group]] - _NOTHING:
                    levels[group], gone[group], changed = level, choices[level], True
        if not changed:
            break
    return levels


def _exchanged(problem: Problem, start: Levels, budget: float) -> Levels:
    """A solution inside the budget, improved by widening one group, with another one narrower where that pays."""
    levels, price = list(start), problem.price(start)
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        gain, better = _best_exchange(problem, levels, budget - price, until)
        if better is None or gain <= _NOTHING:
            break
        levels, price = better, problem.price(better)
    return levels


def _best_exchange(problem: Problem, levels: Levels, slack: float, until: float) -> tuple[float, Levels | None]:
    """The exchange that wins most importance: at most one group narrower by up to two steps, one wider."""
    best: tuple[float, Levels | None] = 0.0, None
    gone = problem.vector(levels)
    cuts: list[tuple[int | None, int]] = [(None, 0)]
    cuts += [(g, d) for g, c in enumerate(problem.choices) for d in (1, 2) if levels[g] + d < len(c)]
    for cut, deeper in cuts:
        if time.monotonic() > until:
            break
        now, room, paid = gone.copy(), slack, 0.0
        if cut is not None:
            level = levels[cut] + deeper
            options = problem.gone[cut][[levels[cut], level]]
            before, after = problem.prices.alternatives(gone, cut, options)
            now[cut], room = options[1], slack + before - after
            paid = problem.lost[cut][level] - problem.lost[cut][levels[cut]]
        for group in range(len(problem.choices)):
            if group == cut or levels[group] == 0:
                continue
            wider = problem.gone[group][: levels[group] + 1]
            prices = problem.prices.alternatives(now, group, wider)
            gains = problem.lost[group][levels[group]] - problem.lost[group][: levels[group]] - paid
            fits = prices[:-1] - prices[-1] <= room + _NOTHING
            gains = np.where(fits, gains, -np.inf)
            level = int(np.argmax(gains))
            if gains[level] > best[0]:
                better = list(levels)
                better[group] = level
                if cut is not None:
                    better[cut] += deeper
                best = float(gains[level]), better
    return best


def axes(graph: ChannelGraph, choices: Sequence[Sequence[int]]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Layer name -> the numbers of outputs and of inputs that it may have, ascending, the dense one last.

    Where several groups share a side (a concatenation) these are samples: all of them narrow alike.
    """
    found = {}
    sides: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for number, group in enumerate(graph.groups):
        for member in group.members:
            sides.setdefault((member.name, member.role), []).append((number, len(member.channels[0])))
    for layer in graph.layers:
        each = []
        for role, dense in (("out", layer.out_channels), ("in", layer.in_channels)):
            shared = sides.get((layer.name, role), [])
            steps = max((len(choices[number]) for number, _ in shared), default=1)
            widths = {dense}
            for step in range(steps):
                gone = 0
                for number, channels in shared:
                    at = round(step / max(steps - 1, 1) * (len(choices[number]) - 1))
                    gone += (graph.groups[number].width - choices[number][at]) * channels
                widths.add(dense - gone)
            each.append(tuple(sorted(width for width in widths if width > 0)))
        found[layer.name] = each[0], each[1]
    return found
