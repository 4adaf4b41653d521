"""FAB: jumps to the linearised boundary, biased towards the clean image, and back when it has crossed.

F. Croce and M. Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack, ICML 2020 (arXiv
1907.02044), with the settings that AutoAttack uses: alpha at most 0.1, overshoot 1.05, backward step 0.9. The first
pass starts at the image itself, a further one in the ball of half the radius. It needs no epsilon to move; the image
falls when a misclassified iterate lies inside the ball.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeprune.robustness.attacks.hyperplane import onto
from edgeprune.robustness.attacks.pool import passes, put_rows, rows_of
from edgeprune.robustness.attacks.run import Part, Run, Seen, attack_with
from edgeprune.robustness.gradients import climb, judged, logits_of
from edgeprune.robustness.norms import Norm, random_starts, row_sizes
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim

if TYPE_CHECKING:
    from edgeprune.robustness.attacks.nearest import Nearest

LARGEST_BIAS, OVERSHOOT, BACKWARD = 0.1, 1.05, 0.9


def fab(victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress) -> AttackOutcome:
    """FAB against the nearest of all classes: one backward pass a class and step, so dear with many classes."""
    part = fab_part(budget.steps, budget.restarts, None)
    return attack_with((part,), victim, images, labels, budget, progress)


def fab_t(victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress) -> AttackOutcome:
    """FAB towards one class after the other, nearest first: `budget.targets` of them, or all where there are fewer."""
    part = fab_part(budget.steps, budget.restarts, budget.targets)
    return attack_with((part,), victim, images, labels, budget, progress)


def fab_part(steps: int, restarts: int, targets: int | None) -> Part:
    """The part of a suite; `targets` None: the nearest of all classes at every step."""

    def go(run: Run) -> Iterator[float]:
        count = 1 if targets is None else min(targets, run.rivals.shape[1])
        return passes(run, FabRule(steps, restarts, targets is not None), restarts * count)

    return Part("fab" if targets is None else "fab-t", 4.0 * steps * restarts * (targets or 1), True, go)


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    ids: Tensor
    steps: Tensor
    origins: Tensor
    points: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class FabRule:
    """`found`: where the nearest adversarials are written, or None where only epsilon matters."""

    steps: int
    restarts: int
    targeted: bool
    found: Nearest | None = None
    inside: bool = False

    def enter(self, run: Run, ids: Tensor, turn: int) -> _Pool:
        origins = run.images[ids].to(run.device)
        number, restart = divmod(turn, self.restarts) if self.targeted else (0, turn)
        targets = torch.from_numpy(run.rivals[ids.numpy(), number]).to(run.device)
        points = origins
        if restart:
            points = (origins + random_starts(origins, run.budget, turn) / 2).clamp(*run.victim.bounds)
        return _Pool(ids, torch.zeros_like(ids), origins, points, targets)

    def advance(self, run: Run, pool: _Pool, seen: Seen) -> _Pool:
        points = pool.points
        if self.found is not None:
            self.found.enter(pool, seen, run.budget.norm)
        if seen.wrong.any():  # crossed, but outside the ball: back towards the image
            crossed = torch.from_numpy(seen.wrong).to(points.device)
            origins, beyond, points = rows_of(pool.origins, crossed), rows_of(points, crossed), points.clone()
            put_rows(points, crossed, beyond.sub_(origins).mul_(BACKWARD).add_(origins))
        pool = replace(pool, points=points)
        gaps, normals, usable = self._linear(run, pool, seen)
        first = pool.steps == 0
        if first.any():
            run.note_gradients(pool.ids[first], usable[first])
        moved = _jump(pool, gaps, normals, run.victim.bounds, run.budget.norm)
        return replace(pool, points=moved, steps=pool.steps + 1)

    def _linear(self, run: Run, pool: _Pool, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """Rival minus true logit (N,), its gradient, and where that is usable."""
        labels = run.labels[pool.ids].to(run.device)
        if not self.targeted:
            return _nearest(run, pool.points, labels)

        if run.victim.pull is not None:  # what is climbed is linear in the logits: they need not be known
            seeds = torch.zeros(len(labels), run.rivals.shape[1] + 1)
            seeds.scatter_(1, pool.targets[:, None], 1.0).scatter_(1, labels[:, None], -1.0)
            logits, gradients = run.slopes(pool.points, seen, seeds, seen.wrong)
            return (logits * seeds).sum(1), *judged(gradients)

        def difference(logits: Tensor) -> Tensor:
            return (logits.gather(1, pool.targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)

        return climb(run.victim.module, pool.points, difference)


def _nearest(run: Run, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The difference of the class whose linearised boundary is nearest, in the dual norm."""
    with torch.enable_grad():
        points = points.detach().clone().requires_grad_(True)
        logits = logits_of(run.victim.module, points)
        if not logits.requires_grad:
            dead = torch.zeros(len(points), dtype=torch.bool)
            return logits.detach()[:, 0], torch.zeros_like(points), dead
        sums = [logits[:, k].sum() for k in range(logits.shape[1])]
        gradients = [
            torch.autograd.grad(each, points, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for each in sums
        ]
    stacked = torch.stack(gradients, 1).flatten(2)
    rows = torch.arange(len(points), device=points.device)
    differences = logits.detach() - logits.detach().gather(1, labels[:, None])
    normals = stacked - stacked[rows, labels][:, None]
    order = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[run.budget.norm]
    sizes = torch.linalg.vector_norm(normals, ord=order, dim=2)
    far = (differences.abs() / sizes.clamp_min(1e-12)).scatter(1, labels[:, None], torch.inf)
    nearest = far.argmin(1)
    chosen = normals[rows, nearest]
    finite = chosen.isfinite().all(1)
    usable = (finite & chosen.ne(0).any(1)).cpu()
    return differences[rows, nearest], torch.where(finite[:, None], chosen, 0.0).view_as(points), usable


def _jump(pool: _Pool, gaps: Tensor, normals: Tensor, bounds: tuple[float, float], norm: Norm) -> Tensor:
    """The next points: projections of the iterate and of the image, mixed by how far each is from the plane."""
    points, origins, normal = (tensor.flatten(1) for tensor in (pool.points, pool.origins, normals))
    at_origin = gaps + ((origins - points) * normal).sum(1)
    near, home = onto(points, normal, gaps, bounds, norm), onto(origins, normal, at_origin, bounds, norm)
    far, further = _length(near, norm), _length(home, norm)
    bias = (far / (far + further)).clamp(0.0, LARGEST_BIAS)[:, None]
    near.mul_(OVERSHOOT).add_(points)
    home.mul_(OVERSHOOT).add_(origins)
    return near.lerp_(home, bias).clamp_(*bounds).view_as(pool.points)


def _length(changes: Tensor, norm: Norm) -> Tensor:
    """Of each row, at least 1e-8."""
    return row_sizes(changes, norm).clamp_min(1e-8)
