"""What widths cost, layer by layer: in MACs, or in milliseconds of the runtime on the target.

A price is a sum over layers, each a function of how many channels it makes and reads, so that the widths of two
neighbours are priced together. Pure, once the tables are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgeprune.pruning.allocation import Costs
from edgeprune.types import ChannelGraph

Table = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
_BETWEEN = 0.05


class LayerPrice(Protocol):
    """The price of one layer at numbers of channels; the two arrays are of one shape, and so is the result."""

    def __call__(self, outputs: Table, inputs: Table) -> Table: ...


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """The price of a network as a function of the units that go from each group.

    `layers[l]` prices layer l of the graph; `unit` says of what the price is a number ("MACs", "ms"); `fixed` is what
    no width saves; `touched[g]` are the layers that group g makes or feeds.
    """

    costs: Costs
    widths: Table
    layers: tuple[LayerPrice, ...]
    unit: str
    touched: tuple[tuple[int, ...], ...]
    fixed: float = 0.0

    def total(self, gone: Table) -> float:
        """The price without `gone[g]` units of each group."""
        return float(self.of_layers(gone).sum()) + self.fixed

    def of_layers(self, gone: Table) -> Table:
        """The price of each layer without `gone[g]` units of each group, float64 (layers,)."""
        outputs, inputs = self.channels(gone)
        each = [price(outputs[i], inputs[i]) for i, price in enumerate(self.layers)]
        return np.array(each, dtype=np.float64)

    def alternatives(self, gone: Table, group: int, instead: Table) -> Table:
        """Prices of the layers that the group touches, summed, when it loses `instead[k]` units and not gone[group].

        float64 (len(instead),). What the other layers cost is the same for all k.
        """
        total = np.zeros(len(instead))
        others = gone.copy()
        others[group] = 0.0
        for row in self.touched[group]:
            sides = []
            for side, (first, second) in enumerate(self._sides()):
                one = 1 - first[row] @ others - first[row, group] * instead
                other = 1 - second[row] @ others - second[row, group] * instead
                sides.append(self.widths[row, side] * one * other)
            total += self.layers[row](sides[0], sides[1])
        return total

    def channels(self, gone: Table) -> tuple[Table, Table]:
        """Outputs and inputs of each layer without `gone[g]` units of each group, float64 (layers,) both."""
        outputs, inputs = (
            self.widths[:, side] * (1 - first @ gone) * (1 - second @ gone)
            for side, (first, second) in enumerate(self._sides())
        )
        return outputs, inputs

    def _sides(self) -> tuple[tuple[Table, Table], tuple[Table, Table]]:
        return (self.costs.out, self.costs.out_across), (self.costs.into, self.costs.into_across)


@dataclass(frozen=True, slots=True, eq=False)
class Macs:
    """A layer's MACs."""

    macs: float
    outputs: float
    inputs: float

    def __call__(self, outputs: Table, inputs: Table) -> Table:
        return self.macs * (outputs / self.outputs) * (inputs / self.inputs)


@dataclass(frozen=True, slots=True, eq=False)
class Tabled:
    """A layer's price: a table's, straight between its entries."""

    outputs: Table
    inputs: Table
    table: Table

    def __call__(self, outputs: Table, inputs: Table) -> Table:
        row, up = _place(self.outputs, outputs)
        column, right = _place(self.inputs, inputs)
        rows, columns = np.minimum(row + 1, len(self.outputs) - 1), np.minimum(column + 1, len(self.inputs) - 1)
        low = self.table[row, column] * (1 - right) + self.table[row, columns] * right
        high = self.table[rows, column] * (1 - right) + self.table[rows, columns] * right
        price: Table = low * (1 - up) + high * up
        return price


def by_macs(graph: ChannelGraph) -> Prices:
    """MACs as a price."""
    return _prices(graph, [Macs(layer.macs, layer.out_channels, layer.in_channels) for layer in graph.layers], "MACs")


def by_time(
    graph: ChannelGraph,
    tables: Mapping[str, tuple[Sequence[int], Sequence[int], Table]],
    between_ms: float | None = None,
) -> Prices:
    """Milliseconds as a price, from tables of (outputs, inputs, ms of each pair) by layer name.

    A layer without a table costs its MACs at the mean rate of those that have one. What runs between layers no width
    saves; where `between_ms` does not say it, it is a twentieth of the layers' sum. On four networks and runtimes the
    layers made up 78 to 98 % of the measured time; the goal is met by measuring candidates, so that only ratios matter.
    """
    rated = [layer for layer in graph.layers if layer.name in tables]
    timed = sum(float(tables[layer.name][2][-1, -1]) for layer in rated)
    rate = timed / max(sum(layer.macs for layer in rated), 1)
    known = timed + rate * sum(layer.macs for layer in graph.layers if layer.name not in tables)
    layers: list[LayerPrice] = []
    for layer in graph.layers:
        if layer.name in tables:
            outputs, inputs, table = tables[layer.name]
        else:
            outputs, inputs = (0, layer.out_channels), (0, layer.in_channels)
            table = np.array([[0.0, 0.0], [0.0, rate * layer.macs]])
        axes = np.array(outputs, dtype=np.float64), np.array(inputs, dtype=np.float64)
        layers.append(Tabled(*axes, table))
    return _prices(graph, layers, "ms", _BETWEEN * known if between_ms is None else between_ms)


def _prices(graph: ChannelGraph, layers: Sequence[LayerPrice], unit: str, fixed: float = 0.0) -> Prices:
    costs = Costs.of(graph)
    every = costs.out + costs.into + costs.out_across + costs.into_across
    touched = tuple(tuple(map(int, np.flatnonzero(every[:, group]))) for group in range(len(graph.groups)))
    return Prices(costs, _widths(graph), tuple(layers), unit, touched, fixed)


def _widths(graph: ChannelGraph) -> Table:
    return np.array([(layer.out_channels, layer.in_channels) for layer in graph.layers], dtype=np.float64).reshape(
        -1, 2
    )


def _place(axis: Table, at: Table) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int64]], Table]:
    """The entry at or below each value, and how far it is to the next, in [0, 1]."""
    values = np.clip(np.asarray(at, dtype=np.float64), axis[0], axis[-1])
    row = np.clip(np.searchsorted(axis, values + 1e-6, side="right") - 1, 0, len(axis) - 1)
    above = np.minimum(row + 1, len(axis) - 1)
    gap = axis[above] - axis[row]
    return row, np.where(gap > 0, np.clip((values - axis[row]) / np.where(gap > 0, gap, 1), 0, 1), 0.0)
