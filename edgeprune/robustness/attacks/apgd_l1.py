"""APGD for l1: sparse steps in a ball that shrinks to epsilon, projected onto ball and box together.

F. Croce and M. Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers, ICML 2021 (arXiv
2103.01208), with the settings of the public code: a step goes along the signs of the largest gradients, as many as the
best point so far has changed pixels, over 1.5; every 4 % of the steps that number is renewed, the step goes back to
epsilon where the best point became sparser, and shrinks by 1.5 (at most tenfold) where it did not; radii of 3, 2 and 1
epsilon for 30, 30 and 40 % of the steps. A misclassified point counts where it is inside the ball of epsilon.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeprune.robustness.attacks.ascents import objective, start
from edgeprune.robustness.attacks.losses import Loss
from edgeprune.robustness.attacks.pool import passes, per_image
from edgeprune.robustness.attacks.run import Run, Seen
from edgeprune.robustness.norms import project, sparse_direction

FIRST_SHARE, SPARSER, SHRINK, MOST_SHRUNK, CHECK = 0.2, 0.95, 1.5, 10.0, 0.04
_RADII, _ENDS = (3.0, 2.0, 1.0), (0.3, 0.6, 1.0)


def l1_passes(run: Run, loss: Loss, steps: int, restarts: int, targets: int) -> Iterator[float]:
    """`restarts` passes, of the targeted loss as many towards each of the `targets` nearest classes."""
    return passes(run, _Rule(loss, steps, restarts), restarts * targets)


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """`shares`: of the pixels, how many a step changes. `sparsity`: pixels that the best point changed, as last
    seen."""

    ids: Tensor
    steps: Tensor
    origins: Tensor
    points: Tensor
    lower: Tensor
    upper: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    lengths: Tensor
    shares: Tensor
    sparsity: Tensor
    scales: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class _Rule:
    loss: Loss
    steps: int
    restarts: int
    inside: bool = False

    def enter(self, run: Run, ids: Tensor, turn: int) -> _Pool:
        origins, limits, points, scales, targets = start(run, ids, turn, self.restarts, self.loss)
        zeros = torch.zeros_like(scales)
        lengths = zeros + _RADII[0] * run.budget.epsilon
        kept = (points, torch.zeros_like(points), zeros - torch.inf, lengths)
        sparse = (zeros + FIRST_SHARE, zeros + FIRST_SHARE * origins[0].numel())
        return _Pool(ids, torch.zeros_like(ids), origins, points, *limits, *kept, *sparse, scales, targets)

    def advance(self, run: Run, pool: _Pool, seen: Seen) -> _Pool:
        found, gradients, usable = run.climb(pool.points, seen, objective(run, pool, self.loss))
        first = pool.steps == 0
        if first.any():
            run.note_gradients(pool.ids[first], usable[first])
        better = per_image(found > pool.best_loss, pool.points)
        pool = replace(
            pool,
            best=torch.where(better, pool.points, pool.best),
            best_gradient=torch.where(better, gradients, pool.best_gradient),
            best_loss=torch.maximum(found, pool.best_loss),
        )
        points, gradients, pool = self._checked(run, pool, gradients)
        moved = points + per_image(pool.lengths, points) * sparse_direction(gradients, pool.shares)
        return replace(pool, points=self._projected(run, pool, moved), steps=pool.steps + 1)

    def _projected(self, run: Run, pool: _Pool, moved: Tensor) -> Tensor:
        """Into the ball of the stage that each image is in."""
        stages = self._stages(pool.steps + 1)
        for stage in sorted(set(stages.tolist())):
            rows = (stages == stage).to(run.device)
            budget = replace(run.budget, epsilon=_RADII[stage] * run.budget.epsilon)
            inner = project(moved[rows], pool.origins[rows], (pool.lower[rows], pool.upper[rows]), budget)
            if bool(rows.all()):
                return inner
            moved[rows] = inner
        return moved

    def _stages(self, steps: Tensor) -> Tensor:
        """Index of the radius at these steps, int64 (N,); the last step is always in the ball itself."""
        ends = torch.tensor([int(end * self.steps) for end in _ENDS[:-1]])
        return (steps[:, None] >= ends).sum(1)

    def _checked(self, run: Run, pool: _Pool, gradients: Tensor) -> tuple[Tensor, Tensor, _Pool]:
        """Where to step from and along what; at a check, and where a smaller ball begins, from the best point."""
        every = max(int(CHECK * self.steps), 1)
        due = ((pool.steps > 0) & (pool.steps % every == 0)).to(run.device)
        entered = ((pool.steps > 0) & (self._stages(pool.steps) != self._stages(pool.steps - 1))).to(run.device)
        if not bool((due | entered).any()):
            return pool.points, gradients, pool
        changed = (pool.best != pool.origins).flatten(1).sum(1).to(pool.shares)
        sparser = due & (changed < SPARSER * pool.sparsity)
        radius = run.budget.epsilon * torch.tensor(_RADII)[self._stages(pool.steps)].to(pool.lengths)
        shorter = torch.where(sparser, radius, pool.lengths / SHRINK).clamp_min(0)
        shorter = torch.minimum(torch.maximum(shorter, radius / MOST_SHRUNK), radius)
        lengths = torch.where(entered, radius, torch.where(due, shorter, pool.lengths))
        pixels = float(pool.origins[0].numel())
        pool = replace(
            pool,
            lengths=lengths,
            shares=torch.where(due | entered, changed / pixels / SHRINK, pool.shares),
            sparsity=torch.where(due | entered, changed, pool.sparsity),
            best_loss=torch.where(entered, -torch.inf, pool.best_loss),
        )
        back = per_image(sparser | entered, pool.points)
        return torch.where(back, pool.best, pool.points), torch.where(back, pool.best_gradient, gradients), pool
