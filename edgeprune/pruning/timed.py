"""Candidates for a goal in time: what is kept when a share of the dense network's predicted milliseconds may be spent.

Widths of groups and the removal of blocks are variables of one problem: for every number of removed blocks, in the
order of importance lost a millisecond saved, the widths of what is left are solved for (`edgeprune.pruning.knapsack`),
and the cheapest of these wins. Pure, once the tables are there; `edgeprune.pruning.aim` has the candidates measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgeprune.errors import PruningError
from edgeprune.pruning.allocation import NothingLeftError, Rules
from edgeprune.pruning.block_allocation import BLOCK_PRICE, Choice, Importance, without
from edgeprune.pruning.knapsack import Problem, in_order, solve, strain
from edgeprune.pruning.prices import Prices, Table, by_time
from edgeprune.types import ChannelGraph

Tables = Mapping[str, tuple[Sequence[int], Sequence[int], Table]]
_NEAR = 0.02
_BLOCK_STRAIN = float(strain([BLOCK_PRICE])[0])
"""A block of average importance costs as much as one group at the share that `BLOCK_PRICE` is the logarithm of."""


@dataclass(frozen=True, slots=True, eq=False)
class TimedChoices:
    """Proposes choices by the time that they should take, from tables of each layer's milliseconds.

    `emphasis`: what the loss of a group is multiplied by, 1 unless it is named; `block_emphasis` likewise, of all
    blocks (`edgeprune.pruning.variants`). `between_ms`: what runs between the layers, where that is known.
    `whole_ms`: what shares are of, where that is not what the prices say of the dense network.
    `known`: choices that were seen to be as fast as is asked for. `fixed`: what is proposed, whatever is asked.
    """

    graph: ChannelGraph
    importance: Importance
    multiple: int
    rules: Rules
    tables: Tables
    emphasis: Mapping[str, float] = field(default_factory=dict)
    block_emphasis: float = 1.0
    between_ms: float | None = None
    whole_ms: float | None = None
    known: tuple[Choice, ...] = ()
    fixed: Choice | None = None

    def propose(self, share: float) -> Choice:
        """The least importance lost for this share of the dense network's time, or the fastest where none is so fast.

        Errors: NothingLeftError when nothing goes.
        """
        if self.fixed is not None:
            return self.fixed
        budget = share * self._whole_ms()
        order = self._order()
        best: Choice | None = None
        least = (math.inf, math.inf)
        for count in range(len(order) + 1):
            removed = order[:count]
            shorter = without(self.graph, removed)
            try:
                choice = self._widths(shorter, removed, budget)
            except NothingLeftError:
                if not removed:
                    continue
                choice = Choice({group.name: group.width for group in shorter.groups}, removed)
            price = self._price(choice)
            cost = (max(0.0, price / budget - 1 - _NEAR), self.loss(choice))
            if cost < least:
                best, least = choice, cost
            if removed and self._price(Choice({g.name: g.width for g in shorter.groups}, removed)) <= budget:
                break  # more blocks would only overshoot
        if best is None:
            raise NothingLeftError(
                "the plan removes nothing",
                where=f"widths end on multiples of {self.multiple}; blocks that can be removed: {len(order)}",
                hint="ask for more, or allow finer widths with --channel-multiple",
            )
        return best

    def share(self, choice: Choice) -> float:
        """The share of the dense network's predicted time that a choice takes."""
        return self._price(choice) / self._whole_ms()

    def _widths(self, shorter: ChannelGraph, removed: tuple[str, ...], budget: float) -> Choice:
        if self.importance.scope == "blocks":
            if not removed:
                raise NothingLeftError("no block is removed")
            return Choice({group.name: group.width for group in shorter.groups}, removed)
        problem = Problem.of(
            *(shorter, self.importance.channels, self.prices(shorter), self.multiple, self.rules, self.emphasis)
        )
        if self.rules.ranking in ("local", "isomorphic"):
            return Choice(problem.widths(in_order(problem, self.importance.channels, self.rules, budget)), removed)
        return Choice(problem.widths(solve(problem, budget)), removed)

    def _order(self) -> tuple[str, ...]:
        """Blocks by importance lost a millisecond saved, the cheapest first."""
        values = self.importance.blocks.values if self.importance.blocks else {}
        dense = self._dense_ms()
        saved = {name: dense - self._price(Choice({}, (name,))) for name in values}
        return tuple(sorted(values, key=lambda name: values[name] / max(saved[name], 1e-9)))

    def _price(self, choice: Choice) -> float:
        shorter = without(self.graph, choice.removed)
        gone = [group.width - choice.widths.get(group.name, group.width) for group in shorter.groups]
        return self.prices(shorter).total(np.array(gone, dtype=np.float64))

    def _whole_ms(self) -> float:
        return self._dense_ms() if self.whole_ms is None else self.whole_ms

    def _dense_ms(self) -> float:
        return self.prices(self.graph).total(np.zeros(len(self.graph.groups)))

    def prices(self, graph: ChannelGraph) -> Prices:
        """What the layers of this graph cost."""
        return by_time(graph, self.tables, self.between_ms)

    def plain_loss(self, choice: Choice) -> float:
        """What a choice loses, nothing weighed otherwise."""
        return replace(self, emphasis={}, block_emphasis=1.0).loss(choice)

    def loss(self, choice: Choice) -> float:
        """What a choice loses, blocks and channels in one currency."""
        values = self.importance.blocks.values if self.importance.blocks else {}
        lost = sum(self.block_emphasis * _BLOCK_STRAIN * values[name] for name in choice.removed)
        if self.importance.scope == "blocks":
            return lost
        for group in without(self.graph, choice.removed).groups:
            scores = np.sort(self.importance.channels.values[group.name])
            gone = float(scores[: group.width - choice.widths[group.name]].sum() / max(float(scores.sum()), 1e-300))
            lost += self.emphasis.get(group.name, 1.0) * float(strain([-math.log1p(-min(gone, 1 - 1e-12))])[0])
        return lost


def check_tables(tables: Tables) -> None:
    """PruningError unless every cost is finite and above zero: they may come from a foreign runtime."""
    for name, (outputs, inputs, table) in tables.items():
        if table.shape != (len(outputs), len(inputs)) or not (np.isfinite(table).all() and (table > 0).all()):
            raise PruningError(f"the cost model has no finite cost of {name}", hint="use --cost-model macs")
