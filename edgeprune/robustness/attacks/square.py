"""Square: random squares of the perturbation are redrawn, and kept where the runtime's margin falls. No gradient.

M. Andriushchenko, F. Croce, N. Flammarion and M. Hein, Square Attack: a query-efficient black-box adversarial attack
via random search, ECCV 2020 (arXiv 1912.00049), linf (algorithm 2) and l2 (algorithm 3; l1 likewise, with sums in place
of squares, as F. Croce and M. Hein, Mind the box, ICML 2021), with the schedule of the paper
and AutoAttack's first share of pixels, 0.8. A proposal that changes no pixel counts as a query, but is not asked again.
Every draw belongs to the image, the seed and the restart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import DataError
from edgeprune.robustness.attacks.recolouring import Recolouring
from edgeprune.robustness.attacks.run import Part, Run, Seen, attack_with
from edgeprune.robustness.norms import box, project
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

FIRST_SHARE = 0.8
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the share of pixels halves
_TILES = 5  # the first l2 perturbation has that many squares a side


def square(
    victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
) -> AttackOutcome:
    """Square attack with `budget.queries` questions an image and restart; the victim's network is not used.

    images: float32 (N, C, H, W); DataError for images of another form.
    """
    part = square_part(budget.queries, budget.restarts)
    return attack_with((part,), victim, images, labels, budget, progress)


def square_part(queries: int, restarts: int) -> Part:
    """The part of a suite."""

    def go(run: Run) -> Iterator[float]:
        if run.images.ndim != 4:
            raise DataError(f"the square attack needs images (N, C, H, W), not {tuple(run.images.shape)}")
        for restart in range(restarts):
            waiting = run.waiting(restart)
            for start in range(0, len(waiting), run.places):
                ids = waiting[start : start + run.places]
                for query in _search(run, ids, restart, queries):
                    share = (start + len(ids) * query / queries) / len(waiting)
                    yield (restart + share) / restarts
                run.finish(ids)

    return Part("square", float(queries * restarts), False, go)


def side_of(query: int, pixels: int, longest: int) -> int:
    """Side of the square that query `query` (from 0) redraws; `pixels` a channel, `longest` the image's short side."""
    share = FIRST_SHARE / 2 ** sum(query > after for after in _HALVINGS)
    return min(max(round(math.sqrt(share * pixels)), 1), longest)


@dataclass(slots=True, eq=False)
class _Search:
    """The images of one search, each with its best point and every draw that it will need.

    ids: int64 (N,). origins, best, low, high: float32 (N, C, H, W). margins: float64 (N,). places: float32 (N, Q, 4),
    uniform: where the square lies and where the one that l2 takes from. signs: int8 (N, Q, C). `laid`: the proposals
    of some queries, for the images that are left.
    """

    ids: Ints
    origins: Floats
    best: Floats
    low: Floats
    high: Floats
    margins: Reals
    places: Floats
    signs: np.ndarray[tuple[int, ...], np.dtype[np.int8]]
    laid: Recolouring | None = None

    def recoloured(self, query: int, side: int) -> tuple[Ints, Floats]:
        """Places and colours of what a query proposes for linf."""
        found = None if self.laid is None else self.laid.of(query, side)
        if found is None:
            self.laid = Recolouring.drawn(query, side, self.places, self.signs, (self.low, self.high))
            found = self.laid.of(query, side)
        assert found is not None
        return found

    def keep(self, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> _Search:
        if mask.all():
            return self
        origins, best, low, high = (array[mask] for array in (self.origins, self.best, self.low, self.high))
        rest = (self.margins[mask], self.places[mask], self.signs[mask])
        return _Search(self.ids[mask], origins, best, low, high, *rest)

    def corners(self, query: int, side: int, which: int) -> tuple[Ints, Ints]:
        """Upper left corners (N,) of the first (0) or second (1) square of a query."""
        height, width = self.best.shape[2:]
        drawn = self.places[:, query, 2 * which : 2 * which + 2]
        free = (height - side + 1, width - side + 1)
        rows, columns = ((drawn[:, k] * free[k]).astype(np.int64) for k in (0, 1))
        return rows, columns


def _search(run: Run, ids: Tensor, restart: int, queries: int) -> Iterator[int]:
    """Attack the images `ids`; yields after each query how many were asked."""
    budget = run.budget
    found = _begin(run, ids, restart, queries)
    step, length = torch.zeros_like(ids), queries
    found.best = _inside(run, found, found.best)
    seen = run.ask(found.ids, found.best)
    run.note(ids, step, length, seen)
    found.margins = seen.margins
    found = found.keep(seen.standing)
    ask = _recoloured if budget.norm == "linf" else _moved
    pixels, shortest = found.best.shape[2] * found.best.shape[3], min(found.best.shape[2:])
    for query in range(1, queries):
        if not len(found.ids):
            return
        changed, said = ask(run, found, query, side_of(query - 1, pixels, shortest))
        if said is not None:
            better = said.margins < found.margins[changed]
            rows = changed[better]
            found.margins[rows] = said.margins[better]
            if len(rows):
                run.lowered(found.ids[rows], query, length, found.margins[rows])
            if not said.standing.all():
                standing = np.ones(len(found.ids), np.bool_)
                standing[changed] = said.standing
                found = found.keep(standing)
        yield query + 1


def _begin(run: Run, ids: Tensor, restart: int, queries: int) -> _Search:
    """Draw everything: the first perturbation (linf: stripes, one sign a column; l2: a grid of squares) too."""
    origins = run.images[ids]
    low, high = (limit.numpy() for limit in box(origins, run.budget, run.victim.bounds))
    images = origins.numpy()
    channels, height, width = images.shape[1:]
    places = np.empty((len(images), queries, 4), np.float32)
    signs = np.empty((len(images), queries, channels), np.int8)
    best = np.empty_like(images)
    for row, image in enumerate(images):
        name = hashlib.blake2b(f"square/{run.budget.seed}/{restart}/".encode() + image.tobytes(), digest_size=16)
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(name.digest(), "little")))
        generator.random(out=places[row], dtype=np.float32)
        signs[row] = 2 * generator.integers(0, 2, signs[row].shape, np.int8) - 1
        if run.budget.norm == "linf":
            stripes = 2.0 * generator.integers(0, 2, (channels, 1, width)) - 1
            best[row] = image + run.budget.epsilon * stripes
        else:
            grid = _grid(generator, channels, height, width)
            length = float(np.abs(grid).sum()) if run.budget.norm == "l1" else 1.0
            best[row] = image + run.budget.epsilon * grid / max(length, 1e-12)
    return _Search(ids.numpy(), images, best, low, high, np.zeros(len(ids)), places, signs)


def _inside(run: Run, found: _Search, points: Floats) -> Floats:
    """`points` (all of the search's images), brought into the ball and the pixel bounds as `project` does."""
    tensors = (torch.from_numpy(array) for array in (points, found.origins, found.low, found.high))
    moved, origins, low, high = tensors
    result: Floats = project(moved, origins, (low, high), run.budget).numpy()
    return result


# ------------------------------------------------------------------------------------------------- proposals
# Each asks the runtime about one proposal an image and takes up into `best` those that lower the margin: the rows that
# were asked about, and what was said of them (None: no pixel would have changed).


def _recoloured(run: Run, found: _Search, query: int, side: int) -> tuple[Ints, Seen | None]:
    """linf: one sign a channel for the whole square.

    The squares are painted into `best` itself, and painted over where they are refused: copies of whole images cost
    more than all the rest of a query here.
    """
    places, colours = found.recoloured(query, side)
    pixels = found.best.reshape(-1)
    before = pixels.take(places)
    changed = np.flatnonzero((colours != before).any(axis=1))
    if not len(changed):
        return changed, None
    pixels[places] = colours
    everyone = len(changed) == len(places)
    ids, points = (found.ids, found.best) if everyone else (found.ids[changed], found.best[changed])
    seen = run.ask(ids, points)
    accepted = changed[seen.margins < found.margins[changed]]
    before[accepted] = colours[accepted]
    pixels[places] = before
    return changed, seen


def _moved(run: Run, found: _Search, query: int, side: int) -> tuple[Ints, Seen | None]:
    """l2, l1: the energy of one square moves to another, as a bump with one sign a channel and half."""
    points = _inside(run, found, _bumped(found, query, side, run.budget))
    seen = run.ask(found.ids, points)
    better = seen.margins < found.margins
    found.best[better] = points[better]
    return np.arange(len(points)), seen


def _bumped(found: _Search, query: int, side: int, budget: AttackBudget) -> Floats:
    epsilon, order = budget.epsilon, 1 if budget.norm == "l1" else 2
    side = min(max(side + (side + 1) % 2, 3), *found.best.shape[2:])
    channels = found.best.shape[1]
    change = found.best.astype(np.float64) - found.origins
    to = _window(*found.corners(query, side, 0), side, channels)
    source = _window(*found.corners(query, side, 1), side, channels)
    total = _energy(change, order, (1, 2, 3))
    here = _energy(change[to], order, (2, 3))[:, :, None, None] ** (1 / order)
    emptied = change.copy()
    emptied[to] = 0
    emptied[source] = 0
    freed = _energy(change, order, (2, 3)) - _energy(emptied, order, (2, 3))
    spare = np.maximum(epsilon**order - total, 0) / channels
    bump = _bump(side)
    flipped = (found.places[:, query, 0] * 1e3) % 1 < 0.5  # a bit that the corner has no use for
    bumps = np.where(flipped[:, None, None], bump.T, bump)[:, None] * found.signs[:, query][:, :, None, None]
    drawn = bumps + change[to] / np.maximum(here, 1e-12)
    drawn /= np.maximum(_energy(drawn, order, (2, 3))[:, :, None, None] ** (1 / order), 1e-12)
    emptied[to] = drawn * (spare[:, None] + np.maximum(freed, 0))[:, :, None, None] ** (1 / order)
    length = _energy(emptied, order, (1, 2, 3))[:, None, None, None] ** (1 / order)
    points = found.origins + epsilon * emptied / np.maximum(length, 1e-12)
    return np.asarray(points, np.float32)


def _energy(change: Reals, order: int, axes: tuple[int, ...]) -> Reals:
    """Sum of squares (order 2) or of sizes (order 1) over these axes."""
    return np.asarray((np.abs(change) if order == 1 else change**2).sum(axis=axes))


def _window(rows: Ints, columns: Ints, side: int, channels: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Indices of squares with these corners (N,), one an image, in all channels."""
    image = np.arange(len(rows))[:, None, None, None]
    offsets = np.arange(side)
    row = rows[:, None, None, None] + offsets[:, None]
    column = columns[:, None, None, None] + offsets
    return image, np.arange(channels)[:, None, None], row, column


def _grid(generator: np.random.Generator, channels: int, height: int, width: int) -> Reals:
    """A grid of bumps with random signs, of length 1."""
    change, side = np.zeros((channels, height, width)), max(min(height, width) // _TILES, 1)
    for row in range(0, height - side + 1, side):
        for column in range(0, width - side + 1, side):
            signs = 2.0 * generator.integers(0, 2, (channels, 1, 1)) - 1
            bump = _bump(side) if generator.random() < 0.5 else _bump(side).T
            change[:, row : row + side, column : column + side] = signs * bump
    length = float(np.linalg.norm(change))
    return change / (length if length else 1.0)


@lru_cache(maxsize=64)
def _bump(side: int) -> Reals:
    """A square (side, side) of length 1: a hill in its upper half and its opposite in the lower one."""
    if side < 2:
        return np.ones((side, side))
    upper = side // 2
    bump = np.concatenate([_hill(upper, side), -_hill(side - upper, side)])
    return np.asarray(bump / np.linalg.norm(bump))


def _hill(height: int, width: int) -> Reals:
    """Rectangles around the middle, each a ring wider than the last, the k-th of height 1 / k^2; of length 1."""
    hill = np.zeros((height, width))
    middle = (height // 2, width // 2)
    for ring in range(max(height // 2, width // 2) + 1):
        top, left = max(middle[0] - ring, 0), max(middle[1] - ring, 0)
        hill[top : middle[0] + ring + 1, left : middle[1] + ring + 1] += 1 / (ring + 1) ** 2
    return np.asarray(hill / np.linalg.norm(hill))
