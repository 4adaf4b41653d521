"""Prices of layers in their place: whole networks are timed, and one law is drawn through all of them. Pure.

A layer that is timed alone knows nothing of its neighbours: where one ends on a width that the next cannot read in the
runtime's layout, a conversion runs between them that belongs to neither. In networks of microseconds such things, and
the start of every operator, are a third of the time. So networks of many widths are timed as they are, and one of them
is taken to take

    start + scale * sum of its layers' times alone + sum over layers of a correction (outputs, inputs)

where the corrections are a Gaussian process, near 0 unless the networks say otherwise, alike for like widths: an
additive Gaussian process (Duvenaud, Nickisch, Rasmussen, NIPS 2011) whose mean is the cost model. How large corrections
are and how noisy a figure is are those under which the figures are likeliest (Rasmussen and Williams 2006, 5.4.1).
`docs/decisions/layers-in-their-place.md` has what it told apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeprune.pruning.block_allocation import Choice
from edgeprune.pruning.prices import Prices, Table
from edgeprune.pruning.timed import TimedChoices

FEWEST = 24
"""Networks below which nothing is learnt."""
_BLOCK = 16  # channels of the largest block of a kernel: widths that fill as much of their last one are alike
_REACH = 0.7  # in logarithms of widths, how far apart two are that say little of each other
_START, _SCALE = (0.1, 0.2), (0.9, 0.3)  # mean and spread, before anything was seen, of shares of the dense time
_SIZES = (0.0025, 0.005, 0.01, 0.02, 0.04)  # of a correction, as a share of the dense time
_NOISES = (0.005, 0.01, 0.02, 0.04, 0.08)  # of a figure, relative
_EXACT = 0.05  # of the noise, where the network is the reference itself
_OUTLIER = 4.0  # standard deviations; a figure beyond was disturbed
_LEAST_SHARE = 0.02  # of a layer's own figure: no correction makes it free


@dataclass(frozen=True, slots=True)
class Seen:
    """Widths that were timed (no block removed), and their time as a share of a reference's; 1: it is the reference."""

    choice: Choice
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Choices priced by what whole networks took.

    `before` and `error`: what prices miss the timed networks by, relative, standard deviation; before, of layers alone,
    a start and a factor fitted; for `error` each network was left out of what it is set against.
    """

    timed: TimedChoices
    law: Law
    before: float
    error: float

    @property
    def networks(self) -> int:
        """How many the prices rest on."""
        return len(self.law.shares)

    def expected(self, choices: Sequence[Choice]) -> tuple[Table, Table]:
        """What networks should take, in shares of the reference's time, and how far that may be off (standard
        deviation of the logarithm), float64 (len(choices),) both. No block is removed."""
        mean, spread = self.law.expected(self.law.ruler.measured(choices))
        mean = np.maximum(mean, 1e-3)
        return mean, spread / mean


def placed(timed: TimedChoices, seen: Sequence[Seen]) -> Placed:
    """The same choices with the prices that the networks teach; ValueError for fewer than `FEWEST`."""
    if len(seen) < FEWEST:
        raise ValueError(f"{len(seen)} networks are too few")
    law = _likeliest(Law.of(timed, seen))
    kept = (np.abs(law.left_out()) <= _OUTLIER * law.spread()) | (law.shares == 1)
    if not kept.all() and kept.sum() >= FEWEST:
        law = _likeliest(law.of_some(kept))
    start, scale = law.trend()
    tables, dense = dict(timed.tables), law.ruler.dense_ms
    for place, name in enumerate(law.ruler.names):
        outputs, inputs, table = tables[name]
        learnt = scale * table + dense * law.correction(place, outputs, inputs)
        tables[name] = outputs, inputs, np.maximum(learnt, _LEAST_SHARE * table)
    found = replace(timed, tables=tables, between_ms=max(0.0, start) * dense, whole_ms=dense)
    return Placed(found, law, *law.errors())


@dataclass(frozen=True, slots=True, eq=False)
class Ruler:
    """What networks are to the law: the widths of the layers that have a table, and their time alone."""

    timed: TimedChoices
    prices: Prices
    names: tuple[str, ...]
    rows: tuple[int, ...]
    dense_ms: float

    @classmethod
    def of(cls, timed: TimedChoices) -> Ruler:
        """For the choices of this network."""
        prices = timed.prices(timed.graph)
        named = [(row, layer.name) for row, layer in enumerate(timed.graph.layers) if layer.name in timed.tables]
        dense_ms = float(prices.of_layers(np.zeros(len(timed.graph.groups))).sum())
        return cls(timed, prices, tuple(name for _, name in named), tuple(row for row, _ in named), dense_ms)

    def measured(self, choices: Sequence[Choice]) -> tuple[Table, Table]:
        """Outputs and inputs of the layers (n, layers, 2), and what all layers take alone (n,), in shares of the dense
        ones' time; float64."""
        widths, alone = [], []
        for choice in choices:
            gone = [group.width - choice.widths.get(group.name, group.width) for group in self.timed.graph.groups]
            units = np.array(gone, dtype=np.float64)
            widths.append(np.stack(self.prices.channels(units), axis=1)[list(self.rows)])
            alone.append(self.prices.of_layers(units).sum() / self.dense_ms)
        return np.maximum(np.array(widths).round(), 1), np.array(alone)


Measured = tuple[Table, Table]
"""See `Ruler.measured`."""


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """Figures `shares` (n,) of networks (`Ruler.measured`: `widths`, `alone`).

    `alike` (n, n): how much two networks' corrections say of each other. `size`, `noise`: see `_SIZES`.
    """

    ruler: Ruler
    widths: Table
    alike: Table
    alone: Table
    shares: Table
    size: float = _SIZES[0]
    noise: float = _NOISES[0]

    @classmethod
    def of(cls, timed: TimedChoices, seen: Sequence[Seen]) -> Law:
        """Of networks that were timed."""
        ruler = Ruler.of(timed)
        widths, alone = ruler.measured([one.choice for one in seen])
        return cls(ruler, widths, _all_alike(widths, widths), alone, np.array([one.share for one in seen]))

    def expected(self, these: Measured) -> tuple[Table, Table]:
        """Mean and standard deviation of what networks take, in shares of the reference's time."""
        widths, alone = these
        basis, spread = _basis(alone), np.array([_START[1], _SCALE[1]])
        across = self.size**2 * _all_alike(widths, self.widths) + (basis * spread**2) @ _basis(self.alone).T
        own = self.size**2 * widths.shape[1] + ((basis * spread) ** 2).sum(1)
        mean = basis @ np.array([_START[0], _SCALE[0]]) + across @ self._weights()
        known = np.einsum("ij,ji->i", across, np.linalg.solve(self._covariance(), across.T))
        return mean, np.sqrt(np.maximum(own - known, 1e-12))

    def of_some(self, kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Law:
        """The law without some of its networks."""
        alike = self.alike[np.ix_(kept, kept)]
        return replace(self, widths=self.widths[kept], alike=alike, alone=self.alone[kept], shares=self.shares[kept])

    def likelihood(self) -> float:
        """Its logarithm, but for a constant."""
        _, size = np.linalg.slogdet(self._covariance())
        return float(-0.5 * self._surprise() @ self._weights() - 0.5 * size)

    def trend(self) -> tuple[float, float]:
        """Start and scale."""
        before, spread = np.array([_START[0], _SCALE[0]]), np.array([_START[1], _SCALE[1]])
        start, scale = before + spread**2 * (_basis(self.alone).T @ self._weights())
        return float(start), float(scale)

    def correction(self, place: int, outputs: Sequence[int], inputs: Sequence[int]) -> Table:
        """Of a layer at widths, float64 (len(outputs), len(inputs)), in shares of the dense layers' time."""
        makes, reads = (
            _alike(np.array(axis, dtype=np.float64), self.widths[:, place, side])
            for side, axis in enumerate((outputs, inputs))
        )
        weights = self._weights()
        apart = (makes @ weights)[:, None] + (reads @ weights)[None]
        found: Table = self.size**2 * (apart + (makes * weights) @ reads.T) / 3
        return found

    def left_out(self) -> Table:
        """What each figure is off by from what the others say of it, relative."""
        off: Table = self._weights() / np.diag(np.linalg.inv(self._covariance())) / self.shares
        return off

    def spread(self) -> float:
        """Standard deviation of `left_out`, hardly moved by a few that are far off."""
        return max(float(1.4826 * np.median(np.abs(self.left_out()))), 1e-9)

    def errors(self) -> tuple[float, float]:
        """Before and after, see `Placed`."""
        basis = _basis(self.alone) / self.shares[:, None]
        best, *_ = np.linalg.lstsq(basis, np.ones(len(self.shares)), rcond=None)
        return float((basis @ best).std()), float(self.left_out().std())

    def _surprise(self) -> Table:
        off: Table = self.shares - _basis(self.alone) @ np.array([_START[0], _SCALE[0]])
        return off

    def _weights(self) -> Table:
        return np.asarray(np.linalg.solve(self._covariance(), self._surprise()), dtype=np.float64)

    def _covariance(self) -> Table:
        trend = _basis(self.alone) @ np.diag([_START[1] ** 2, _SCALE[1] ** 2]) @ _basis(self.alone).T
        noise = self.noise * self.shares * np.where(self.shares == 1, _EXACT, 1)
        found: Table = self.size**2 * self.alike + np.diag(noise**2) + trend
        return found


def _likeliest(law: Law) -> Law:
    laws = [replace(law, size=size, noise=noise) for size, noise in itertools.product(_SIZES, _NOISES)]
    likelihood: Callable[[Law], float] = Law.likelihood
    return max(laws, key=likelihood)


def _basis(alone: Table) -> Table:
    return np.stack([np.ones(len(alone)), alone], axis=1)


def _all_alike(these: Table, those: Table) -> Table:
    """How much the corrections of networks say of each other, float64 (len(these), len(those)), at most one a layer."""
    found = np.zeros((len(these), len(those)))
    for place in range(these.shape[1]):
        makes, reads = (_alike(these[:, place, side], those[:, place, side]) for side in (0, 1))
        found += (makes + reads + makes * reads) / 3
    return found


def _alike(these: Table, those: Table) -> Table:
    """How much the corrections at two widths say of each other, float64 (len(these), len(those)), at most 1.

    A third each for the same width, for near ones that fill their last block alike, and for near ones.
    """
    a, b = these[:, None], those[None]
    near = np.exp(-np.abs(np.log(a / b)) / _REACH)
    whole = [np.gcd(each.astype(np.int64), _BLOCK) for each in (a, b)]
    found: Table = ((a == b) + near * (whole[0] == whole[1]) + near) / 3
    return found
