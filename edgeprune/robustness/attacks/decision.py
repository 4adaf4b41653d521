"""The decision attack: labels only. It walks to the boundary along rays and asks for nothing but right or wrong.

linf: RayS (J. Chen and Q. Gu, RayS: a ray searching method for hard-label adversarial attack, KDD 2020, arXiv
2006.12792, algorithm 3): of all directions of signs the one whose ray meets a misclassified point first, by flipping
blocks that halve. l2 and l1: HopSkipJump (J. Chen, M. Jordan and M. Wainwright, HopSkipJumpAttack, IEEE S&P 2020, arXiv
1904.02144): the boundary point nearest so far, a normal estimated from labels around it, a step, and back to the
boundary. Neither sees a margin, a logit or a gradient, so nothing that hides those helps a file.

Every draw belongs to the image, the seed and the restart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from edgeprune.robustness.attacks.run import Part, Run, attack_with
from edgeprune.robustness.norms import distances
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

T = TypeVar("T")
Walk: TypeAlias = "Generator[Floats, Bools, T]"
"""Asks about points (M, C, H, W) of one image, and is sent which of them are misclassified."""

_CLOSE = 1e-3  # of the pixel range: a ray's length is known when it is bracketed this closely
_ROUNDING = 2.0**-23  # what float32 may add to a length; twice what it can
_FIRST_PROBES, _MOST_PROBES = 24, 192  # directions that estimate a normal; more as the walk goes on
_START_TRIALS = 20


def decision(
    victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
) -> AttackOutcome:
    """The decision attack with `budget.queries` questions an image and restart; the victim's network is not used."""
    part = decision_part(budget.queries, budget.restarts)
    return attack_with((part,), victim, images, labels, budget, progress)


def decision_part(queries: int, restarts: int) -> Part:
    """The part of a suite."""

    def go(run: Run) -> Iterator[float]:
        search = _rays if run.budget.norm == "linf" else _hops
        for restart in range(restarts):
            waiting = run.waiting(restart)
            for start in range(0, len(waiting), run.places):
                ids = waiting[start : start + run.places]
                for asked in search(run, ids, restart, queries):
                    share = (start + len(ids) * min(asked / queries, 1.0)) / len(waiting)
                    yield (restart + share) / restarts
                run.finish(ids)

    return Part("decision", float(queries * restarts), False, go)


# ------------------------------------------------------------------------------------------------- rays (linf)


@dataclass(slots=True, eq=False)
class _Rays:
    """The images of one search. `signs`: int8 (N, D), the best ray of each, of length `radius` (N,), inf where it meets
    nothing. `tried`: the ray that is asked about, its length between `low` and `high`; `halving`: it is the new best
    one, and its length is being found. `block` of `blocks` was turned round last."""

    ids: Tensor
    signs: np.ndarray[tuple[int, ...], np.dtype[np.int8]]
    radius: Reals
    tried: np.ndarray[tuple[int, ...], np.dtype[np.int8]]
    low: Reals
    high: Reals
    halving: Bools
    block: Ints
    blocks: Ints

    def keep(self, mask: Bools) -> _Rays:
        if mask.all():
            return self
        ids = self.ids[torch.from_numpy(mask)]
        signs, radius, tried = self.signs[mask], self.radius[mask], self.tried[mask]
        low, high, halving = self.low[mask], self.high[mask], self.halving[mask]
        return _Rays(ids, signs, radius, tried, low, high, halving, self.block[mask], self.blocks[mask])


def _rays(run: Run, ids: Tensor, restart: int, queries: int) -> Iterator[int]:
    """RayS on the images `ids`; yields after each question.

    A ray that beats the best one is asked just inside epsilon first, where a wrong answer is a fall; then its length is
    halved in on.
    """
    low, high = (np.float32(bound) for bound in run.victim.bounds)
    span, largest = float(high - low), float(max(abs(low), abs(high)))
    near = max(run.budget.epsilon - _ROUNDING * max(largest, 1.0), 0.0)
    found = _first_rays(run, ids, restart, span)
    for asked in range(queries):
        if not len(found.ids):
            return
        middle = np.where(found.low > 0, (found.low + found.high) / 2, near)
        lengths = np.where(found.halving, middle, found.high)
        origins = run.images[found.ids].numpy()
        steps = (lengths[:, None] * found.tried).astype(np.float32).reshape(origins.shape)
        seen = run.judge(found.ids, np.clip(origins + steps, low, high), inside=False)
        _learn(found, seen.wrong, lengths, span)
        found = found.keep(seen.standing)
        yield asked + 1


def _first_rays(run: Run, ids: Tensor, restart: int, span: float) -> _Rays:
    """All signs up (a further restart: signs drawn for the image), of unknown length."""
    count, size = len(ids), math.prod(run.images.shape[1:])
    signs = np.ones((count, size), np.int8)
    if restart:
        images = run.images[ids].numpy()
        drawn = [_generator("rays", run, restart, image).integers(0, 2, size, np.int8) for image in images]
        signs = (2 * np.stack(drawn) - 1).astype(np.int8)
    endless, none, whole = np.full(count, np.inf), np.zeros(count), np.full(count, span)
    idle, first = np.zeros(count, np.bool_), np.zeros(count, np.int64)
    return _Rays(ids, signs, endless, signs.copy(), none, whole, idle, first, np.ones_like(first))


def _learn(found: _Rays, wrong: Bools, lengths: Reals, span: float) -> None:
    """What the answers mean for the ray of each image, and which ray is tried next. In place."""
    refused = ~found.halving & ~wrong
    found.high = np.where(wrong, lengths, found.high)
    found.low = np.where(found.halving & ~wrong, lengths, found.low)
    found.halving |= wrong
    known = found.halving & (found.high - found.low <= _CLOSE * span)
    found.radius = np.where(known, found.high, found.radius)
    found.signs[known] = found.tried[known]
    for row in np.flatnonzero(refused | known):
        _next_ray(found, int(row), span)


def _next_ray(found: _Rays, row: int, span: float) -> None:
    """The best ray of one image with the signs of the next block turned round; after the last, blocks half as long."""
    size, number, blocks = found.signs.shape[1], int(found.block[row]), int(found.blocks[row])
    width = math.ceil(size / blocks)
    found.tried[row] = found.signs[row]
    found.tried[row, number * width : (number + 1) * width] *= -1
    found.block[row] = number + 1
    if (number + 1) * width >= size:
        found.block[row], found.blocks[row] = 0, 2 * blocks if blocks < size else 1
    found.low[row], found.high[row], found.halving[row] = 0.0, min(span, float(found.radius[row])), False


# --------------------------------------------------------------------------------------------- hops (l2, l1)


def _hops(run: Run, ids: Tensor, restart: int, queries: int) -> Iterator[int]:
    """HopSkipJump on the images `ids`; yields after each round of questions.

    Each image walks for itself, and only asks when it needs to: what all of them ask at one time goes to the runtime
    together.
    """
    walks = {place: _hop(run, ids[place : place + 1], restart, queries) for place in range(len(ids))}
    spent = np.zeros(len(ids), np.int64)
    asked = {place: next(walk) for place, walk in walks.items()}
    while asked:
        answers = _answers(run, ids, asked)
        for place, wrong in answers.items():
            spent[place] += len(wrong)
            try:
                asked[place] = walks[place].send(wrong)
            except StopIteration:
                del asked[place]
                spent[place] = queries
        yield int(spent.mean())


def _answers(run: Run, ids: Tensor, asked: dict[int, Floats]) -> dict[int, Bools]:
    """Which of the points of each image are misclassified, wherever they are: `run.places` at a time."""
    counts = [len(points) for points in asked.values()]
    points, owners = np.concatenate(list(asked.values())), np.repeat(np.array(list(asked), np.int64), counts)
    wrong = [
        run.judge(ids[torch.from_numpy(owners[part])], points[part], inside=False).wrong
        for part in (slice(start, start + run.places) for start in range(0, len(points), run.places))
    ]
    return dict(zip(asked, np.split(np.concatenate(wrong), np.cumsum(counts)[:-1]), strict=True))


def _hop(run: Run, one: Tensor, restart: int, queries: int) -> Walk[None]:
    """One image."""
    image, norm, left = run.images[one].numpy(), run.budget.norm, queries
    draw = _generator("hops", run, restart, image[0])
    point, left = yield from _start(run, draw, left)
    if point is None or not _stands(run, one):
        return
    size, rounds = image[0].size, 0
    width = 1.0 / (size if norm == "l2" else size**1.5)
    while left > 0 and _stands(run, one):
        point, left = yield from _to_boundary(run, one, point, max(width, 1e-4), left)
        rounds += 1
        if left <= 0 or not _stands(run, one):
            break
        count = min(int(_FIRST_PROBES * math.sqrt(rounds)), _MOST_PROBES, left)
        distance = float(distances(point, image, norm)[0])
        normal = yield from _normal(run, point, draw, count, distance * math.sqrt(size) * width)
        left -= count
        point, left = yield from _step(run, one, point, normal, distance / math.sqrt(rounds), left)


def _start(run: Run, draw: np.random.Generator, left: int) -> Walk[tuple[Floats | None, int]]:
    """A misclassified point: a random image; None where `_START_TRIALS` of them are classified as this one is."""
    low, high = run.victim.bounds
    shape = tuple(run.images.shape[1:])
    noise = (low + draw.random((_START_TRIALS, *shape)) * (high - low)).astype(np.float32)
    extremes = [np.full(shape, bound, np.float32) for bound in (low, high)]
    points = np.stack([*extremes, *noise])[: max(left, 1)]
    wrong = np.flatnonzero((yield points))
    return (points[wrong[:1]] if len(wrong) else None), left - len(points)


def _to_boundary(run: Run, one: Tensor, point: Floats, width: float, left: int) -> Walk[tuple[Floats, int]]:
    """Halve the way to the image until the last right and the first wrong point are `width` of it apart."""
    image, low, high = run.images[one].numpy(), 0.0, 1.0
    best = point
    while high - low > width and left > 0 and _stands(run, one):
        middle = (low + high) / 2
        tried = (image + np.float32(middle) * (point - image)).astype(np.float32)
        left -= 1
        if (yield tried)[0]:
            best, high = tried, middle
        else:
            low = middle
    return best, left


def _normal(run: Run, point: Floats, draw: np.random.Generator, count: int, length: float) -> Walk[Floats]:
    """The direction of more wrong answers, estimated from `count` labels around a boundary point (eq. 16 there)."""
    directions = draw.standard_normal((count, *point.shape[1:])).astype(np.float32)
    sizes = np.sqrt((directions.reshape(count, -1) ** 2).sum(1)).reshape(-1, *[1] * (point.ndim - 1))
    directions /= sizes
    low, high = (np.float32(bound) for bound in run.victim.bounds)
    probes = np.clip(point + np.float32(length) * directions, low, high)
    answers = np.where((yield probes), 1.0, -1.0)
    weights = answers if abs(answers.mean()) == 1 else answers - answers.mean()
    normal = np.tensordot(weights.astype(np.float32), directions, 1)
    return np.asarray(normal / max(float(np.linalg.norm(normal)), 1e-12), np.float32)


def _step(run: Run, one: Tensor, point: Floats, normal: Floats, length: float, left: int) -> Walk[tuple[Floats, int]]:
    """Along the normal, halving the step until the point is misclassified; the point itself where no step is."""
    low, high = (np.float32(bound) for bound in run.victim.bounds)
    for _ in range(12):
        if left <= 0 or not _stands(run, one):
            break
        tried = np.clip(point + np.float32(length) * normal, low, high).astype(np.float32)
        left -= 1
        if (yield tried)[0]:
            return tried, left
        length /= 2
    return point, left


def _stands(run: Run, one: Tensor) -> bool:
    return not bool(run.ledger.fell[int(one[0])])


def _generator(what: str, run: Run, restart: int, image: Floats) -> np.random.Generator:
    name = hashlib.blake2b(f"{what}/{run.budget.seed}/{restart}/".encode() + image.tobytes(), digest_size=16)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(name.digest(), "little")))
