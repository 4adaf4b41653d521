"""Divergence: images inside epsilon that the dense file gets right and the compressed one wrong.

Pruning is tested by agreement, so the images that break it are looked for with both files at hand: the smaller of
"right by so much in the dense file" and "wrong by so much in the compressed one" is climbed, each margin divided by its
clean size. (Pei et al. 2017, DeepXplore, look for differences between networks; Xie et al. 2019, DiffChaser, between a
network and its compressed copy.) Promise: both runtimes judge every iterate, and what is found is verified again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.robustness.attacks.descent import step_lengths
from edgeprune.robustness.attacks.run import batch_size
from edgeprune.robustness.gradients import at_rest, logits_of
from edgeprune.robustness.norms import ascend, box, distances, project, random_starts
from edgeprune.robustness.second_look import EPSILON_SLACK
from edgeprune.robustness.verdicts import checked_logits, margins
from edgeprune.types import AttackBudget, Progress, Victim

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Divergent:
    """Of N images: `tried`, both files get them right when clean; `found`; `replayed`, found among `known`.

    points: float32 (N, C, H, W), the image that divides them, the clean one where none was found.
    """

    tried: Bools
    found: Bools
    replayed: Bools
    points: Floats
    finished: bool


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """The dense file and the compressed one, on the same images of the same classes."""

    dense: Victim
    compressed: Victim

    def judged(self, points: Floats, labels: Ints) -> tuple[Reals, Reals]:
        """The margins of both, float64 (N,) each: above 0 is right, below 0 wrong, and 0 is neither."""
        sides = [checked_logits(side.logits, points) for side in (self.dense, self.compressed)]
        return margins(sides[0], labels), margins(sides[1], labels)


def diverge(
    pair: Pair,
    images: Floats,
    labels: Ints,
    known: Floats,
    budget: AttackBudget,
    *,
    progress: Progress,
) -> Divergent:
    """Look for divergence on images (N, C, H, W) of the classes `labels`; `known` are adversarials to try first.

    `budget.course.seconds` bounds the time. A known point that is outside the ball or the bounds is passed over.
    """
    began, size, finished = time.monotonic(), batch_size(images.shape[1:]), True
    none = np.zeros(len(images), np.bool_)
    result = Divergent(none, none.copy(), none.copy(), images.copy(), True)
    search = _Search(pair, images, labels, budget, result)
    with torch.inference_mode(False), torch.no_grad(), at_rest(pair.dense.module), at_rest(pair.compressed.module):
        for start in range(0, len(images), size):
            rows = np.arange(start, min(start + size, len(images)))
            scales = search.replay(known, rows)
            for restart in range(budget.restarts):
                seconds = budget.course.seconds
                if seconds is not None and time.monotonic() - began >= seconds:
                    finished = False
                    break
                search.climb(rows, restart, scales)
                progress(f"divergence: {int(result.found.sum())} found", (start + len(rows)) / len(images))
    return replace(result, finished=finished)


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """What is looked for, and the result that is written into."""

    pair: Pair
    images: Floats
    labels: Ints
    budget: AttackBudget
    result: Divergent

    def replay(self, known: Floats, rows: Ints) -> tuple[Reals, Reals]:
        """Judge the clean images and the known adversarials; the clean margins."""
        result, (low, high) = self.result, (np.float32(bound) for bound in self.pair.dense.bounds)
        clean = self.pair.judged(self.images[rows], self.labels[rows])
        result.tried[rows] = (clean[0] > 0) & (clean[1] > 0)
        near = distances(known[rows], self.images[rows], self.budget.norm) <= self.budget.epsilon + EPSILON_SLACK
        flat = known[rows].reshape(len(rows), -1)
        usable = result.tried[rows] & near & ((flat >= low) & (flat <= high)).all(axis=1)
        if usable.any():
            self._enter(known[rows[usable]], rows[usable])
            result.replayed[rows] = result.found[rows]
        return clean

    def climb(self, rows: Ints, restart: int, scales: tuple[Reals, Reals]) -> None:
        """One pass of `budget.steps` steps over what is not found yet."""
        left = np.flatnonzero(self.result.tried[rows] & ~self.result.found[rows])
        pair, budget, device = self.pair, self.budget, _device(self.pair.dense.module)
        origins = torch.from_numpy(self.images[rows[left]]).to(device)
        points = project(
            origins + random_starts(origins, budget, restart), origins, box(origins, budget, pair.dense.bounds), budget
        )
        for step in range(budget.steps + 1 if len(left) else 0):
            self._enter(points.cpu().numpy(), rows[left])
            stays = ~self.result.found[rows[left]]
            if not stays.any() or step == budget.steps:
                return
            kept = torch.from_numpy(stays).to(device)
            left, points, origins = left[stays], points[kept], origins[kept]
            truth = torch.from_numpy(self.labels[rows[left]]).to(device)
            dense, compressed = (torch.from_numpy(np.maximum(each[left], 1e-6)).to(points) for each in scales)
            gradients = _uphill(pair, points, truth, (dense, compressed))
            lengths = step_lengths(torch.full((len(points),), float(step)), budget).to(device)
            moved = ascend(points, gradients, lengths, budget.norm)
            points = project(moved, origins, box(origins, budget, pair.dense.bounds), budget)

    def _enter(self, points: Floats, rows: Ints) -> None:
        """Judge points of the images `rows`; a file that changes its mind at the second look is not believed."""
        found = self._divided(points, rows)
        if found.any():
            found[found] = self._divided(points[found], rows[found])
        self.result.found[rows[found]] = True
        self.result.points[rows[found]] = points[found]

    def _divided(self, points: Floats, rows: Ints) -> Bools:
        dense, compressed = self.pair.judged(points, self.labels[rows])
        return np.asarray((dense > 0) & (compressed < 0))


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _uphill(pair: Pair, points: Tensor, labels: Tensor, sizes: tuple[Tensor, Tensor]) -> Tensor:
    """The gradient of the smaller of both margins over their clean sizes, the compressed one with its sign turned."""
    with torch.enable_grad():
        points = points.detach().requires_grad_(True)
        dense = _margin(pair.dense.module, points, labels) / sizes[0]
        compressed = -_margin(pair.compressed.module, points, labels) / sizes[1]
        total = torch.minimum(dense, compressed).sum()
        (gradients,) = torch.autograd.grad(total, points, allow_unused=True, materialize_grads=True)
    return torch.where(gradients.isfinite(), gradients, 0.0)


def _margin(module: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    logits = logits_of(module, points)
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return logits.gather(1, labels[:, None]).squeeze(1) - others
