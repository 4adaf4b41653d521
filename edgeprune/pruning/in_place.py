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

from edgeprune.errors import PruningError
from edgeprune.pruning.allocation import choices_of
from edgeprune.pruning.block_allocation import Choice
from edgeprune.pruning.prices import Prices, Table
from edgeprune.pruning.timed import TimedChoices
from edgeprune.pruning.variants import variants
from edgeprune.types import ChannelGraph

FEWEST = 24
"""Networks below which nothing is learnt."""
_BLOCK = 16  # channels of the largest block of a kernel: widths that fill as much of their last one are alike
_REACH = 0.7  # in logarithms of widths, how far apart two are that say little of each other
_START, _SCALE = (0.1, 0.2), (0.9, 0.3)  # mean and spread, before anything was seen, of shares of the dense time
_SIZES = (0.0025, 0.005, 0.01, 0.02, 0.04)  # of a correction, as a share of the dense time
_NOISES = (0.005, 0.01, 0.02, 0.04, 0.08)  # of a figure, relative
_EXACT = 0.05  # of the noise, where the network is the reference itself
_OUTLIER = 4.0  # standard deviations; a figure beyond was disturbed
_FAR, _NEAR = (0.3, 0.6, 2), (0.05, 0.4, 1)
"""How far the time that is drawn around is spread, in logarithms; the share of groups that move, and by how many of the
widths that they may have: before prices are known, and after."""
_LEAST_SHARE = 0.02  # of a layer's own figure: no correction makes it free


@dataclass(frozen=True, slots=True)
class Seen:
    """Widths that were timed (no block removed), and their time as a share of a reference's; 1: it is the reference."""

    choice: Choice
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Choices priced by what whole networks took.

    `before` and `error`: what prices miss the timed networks by, standard deviation of the logarithm; for `error` each
    network was left out of what it is set against.
    """

    timed: TimedChoices
    networks: int
    before: float
    error: float


def around(
    timed: TimedChoices, share: float, count: int, draw: np.random.Generator, *, near: bool
) -> tuple[Choice, ...]:
    """Up to `count` different choices near those of a share of the dense time, no block removed, some groups moved.

    `near`: prices are known, and the best of them, as they stand, are among the choices: what a search would pick is
    what looks too cheap.
    """
    groups, choices = timed.graph.groups, choices_of(timed.graph, timed.multiple, timed.rules)
    spread, moved, furthest = _NEAR if near else _FAR
    centres = [_centre(timed, share * float(np.exp(at))) for at in np.linspace(-spread, spread / 2, 7)]
    best = [*centres, *_variants(timed, share, count // 2)] if near else []
    found: dict[tuple[int, ...], Choice] = {}
    for turn in range(20 * count):
        if len(found) == count:
            break
        centre = best[turn] if turn < len(best) else centres[draw.integers(len(centres))]
        widths = {}
        for group, allowed in zip(groups, choices, strict=True):
            at = allowed.index(centre[group.name]) if centre.get(group.name) in allowed else 0
            if turn >= len(best) and draw.random() < moved:
                at += int(draw.integers(-furthest, furthest + 1))
            widths[group.name] = allowed[min(max(at, 0), len(allowed) - 1)]
        found.setdefault(tuple(widths.values()), Choice(widths))
    return tuple(found.values())


def _centre(timed: TimedChoices, share: float) -> dict[str, int]:
    try:
        return timed.propose(min(share, 0.99)).widths
    except PruningError:
        return {}


def _variants(timed: TimedChoices, share: float, count: int) -> list[dict[str, int]]:
    try:
        return [each.choice.widths for each in variants(timed, timed.propose(share), share, count)]
    except PruningError:
        return []


def placed(timed: TimedChoices, seen: Sequence[Seen]) -> Placed:
    """The same choices with the prices that the networks teach; ValueError for fewer than `FEWEST`."""
    if len(seen) < FEWEST:
        raise ValueError(f"{len(seen)} networks are too few")
    prices, names = timed.prices(timed.graph), [layer.name for layer in timed.graph.layers]
    rows = [row for row, name in enumerate(names) if name in timed.tables]
    dense = float(prices.of_layers(np.zeros(len(timed.graph.groups))).sum())
    law = _Law.of(timed.graph, prices, rows, dense, seen)
    law = _likeliest(law)
    kept = np.abs(law.left_out()) <= _OUTLIER * law.spread()
    if not kept.all() and kept.sum() >= FEWEST:
        law = _likeliest(law.of_some(kept))
    start, scale = law.trend()
    tables = dict(timed.tables)
    for place, row in enumerate(rows):
        outputs, inputs, table = tables[names[row]]
        learnt = scale * table + dense * law.correction(place, outputs, inputs)
        tables[names[row]] = outputs, inputs, np.maximum(learnt, _LEAST_SHARE * table)
    found = replace(timed, tables=tables, between_ms=max(0.0, start) * dense)
    return Placed(found, len(seen), *law.errors())


@dataclass(frozen=True, slots=True, eq=False)
class _Law:
    """Figures `shares` (n,) of networks whose layers alone took `alone` (n,) of the dense layers' time.

    `widths` (n, layers, 2): outputs and inputs of the layers that have a table; `alike` (n, n): how much two networks'
    corrections say of each other. `size`, `noise`: see `_SIZES`.
    """

    widths: Table
    alike: Table
    alone: Table
    shares: Table
    size: float = _SIZES[0]
    noise: float = _NOISES[0]

    @classmethod
    def of(cls, graph: ChannelGraph, prices: Prices, rows: Sequence[int], dense: float, seen: Sequence[Seen]) -> _Law:
        gone = [
            np.array([g.width - one.choice.widths.get(g.name, g.width) for g in graph.groups], dtype=np.float64)
            for one in seen
        ]
        widths = np.array([np.stack(prices.channels(each), axis=1)[rows] for each in gone])
        widths = np.maximum(widths.round(), 1)
        alike = np.zeros((len(seen), len(seen)))
        for place in range(len(rows)):
            makes, reads = (_alike(widths[:, place, side], widths[:, place, side]) for side in (0, 1))
            alike += (makes + reads + makes * reads) / 3
        alone = np.array([prices.of_layers(each).sum() / dense for each in gone])
        return cls(widths, alike, alone, np.array([one.share for one in seen]))

    def of_some(self, kept: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> _Law:
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
        start, scale = before + spread**2 * (self._basis().T @ self._weights())
        return float(start), float(scale)

    def correction(self, place: int, outputs: Sequence[int], inputs: Sequence[int]) -> Table:
        """Of a layer at widths, float64 (len(outputs), len(inputs)), in shares of the dense layers' time."""
        makes, reads = (
            _alike(np.array(axis, dtype=np.float64), self.widths[:, place, side])
            for side, axis in enumerate((outputs, inputs))
        )
        alike = (makes[:, None] + reads[None] + makes[:, None] * reads[None]) / 3
        found: Table = self.size**2 * (alike @ self._weights())
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
        before = np.log(self.alone / self.shares)
        return float(before.std()), float(self.left_out().std())

    def _surprise(self) -> Table:
        off: Table = self.shares - self._basis() @ np.array([_START[0], _SCALE[0]])
        return off

    def _weights(self) -> Table:
        return np.asarray(np.linalg.solve(self._covariance(), self._surprise()), dtype=np.float64)

    def _basis(self) -> Table:
        return np.stack([np.ones(len(self.alone)), self.alone], axis=1)

    def _covariance(self) -> Table:
        trend = self._basis() @ np.diag([_START[1] ** 2, _SCALE[1] ** 2]) @ self._basis().T
        noise = self.noise * self.shares * np.where(self.shares == 1, _EXACT, 1)
        found: Table = self.size**2 * self.alike + np.diag(noise**2) + trend
        return found


def _likeliest(law: _Law) -> _Law:
    laws = [replace(law, size=size, noise=noise) for size, noise in itertools.product(_SIZES, _NOISES)]
    likelihood: Callable[[_Law], float] = _Law.likelihood
    return max(laws, key=likelihood)


def _alike(these: Table, those: Table) -> Table:
    """How much the corrections at two widths say of each other, float64 (len(these), len(those)), at most 1.

    A third each for the same width, for near ones that fill their last block alike, and for near ones.
    """
    a, b = these[:, None], those[None]
    near = np.exp(-np.abs(np.log(a / b)) / _REACH)
    whole = [np.gcd(each.astype(np.int64), _BLOCK) for each in (a, b)]
    found: Table = ((a == b) + near * (whole[0] == whole[1]) + near) / 3
    return found
