"""APGD: projected gradient ascent with momentum whose step halves where the loss no longer rises.

F. Croce and M. Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks,
ICML 2020 (arXiv 2003.01690), algorithm 1, with its schedule: first step 2 epsilon, momentum 0.75, checkpoints after 22
% of the steps and then at intervals that shrink by 3 % to 6 %. At a checkpoint the step halves, and the best point is
taken up again, where less than 75 % of the steps raised the loss, or where nothing was gained since the last one. For
l1 it is another algorithm (`edgeprune.robustness.attacks.apgd_l1`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeprune.robustness.attacks.apgd_l1 import l1_passes
from edgeprune.robustness.attacks.ascents import objective, start
from edgeprune.robustness.attacks.losses import Loss
from edgeprune.robustness.attacks.pool import passes, per_image, put_rows, rows_of
from edgeprune.robustness.attacks.run import Part, Run, Seen, attack_with
from edgeprune.robustness.norms import ascend, project
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim

FIRST_STEP, MOMENTUM, RISING = 2.0, 0.75, 0.75
_FIRST_CHECK, _SHRINK, _SHORTEST = 0.22, 0.03, 0.06


def apgd_ce(
    victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
) -> AttackOutcome:
    """APGD on cross-entropy of rescaled logits; `budget.restarts` random starts, `budget.steps` each."""
    part = apgd_part("ce", budget.steps, budget.restarts)
    return attack_with((part,), victim, images, labels, budget, progress)


def apgd_dlr(
    victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
) -> AttackOutcome:
    """APGD on the difference of logits ratio (of two classes: the margin)."""
    part = apgd_part("dlr", budget.steps, budget.restarts)
    return attack_with((part,), victim, images, labels, budget, progress)


def apgd_t(
    victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
) -> AttackOutcome:
    """APGD on the targeted ratio (below four classes: the margin), one class after the other, nearest first.

    `budget.targets` classes, or all others where there are fewer.
    """
    part = apgd_part("targeted", budget.steps, budget.restarts, budget.targets)
    return attack_with((part,), victim, images, labels, budget, progress)


def apgd_part(loss: Loss, steps: int, restarts: int, targets: int = 1) -> Part:
    """The part of a suite; `targets` counts for the targeted loss only."""
    name = {"ce": "apgd-ce", "dlr": "apgd-dlr", "targeted": "apgd-t"}[loss]
    repeats = restarts * (targets if loss == "targeted" else 1)

    def go(run: Run) -> Iterator[float]:
        count = min(targets, run.rivals.shape[1]) if loss == "targeted" else 1
        if run.budget.norm == "l1":
            return l1_passes(run, loss, steps, restarts, count)
        return passes(run, _Rule(loss, steps, restarts, checkpoints(steps)), restarts * count)

    return Part(name, 3.0 * steps * repeats, True, go)


def checkpoints(steps: int) -> dict[int, int]:
    """Steps after which the length of a step is checked, and how many steps lie before each since the last."""
    length, at, found = max(int(_FIRST_CHECK * steps), 1), 0, {}
    shrink, shortest = max(int(_SHRINK * steps), 1), max(int(_SHORTEST * steps), 1)
    while at + length <= steps:
        at += length
        found[at] = length
        length = max(length - shrink, shortest)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """`lengths` of the next step; `rises` of the loss since the last check; `halved` at the last one."""

    ids: Tensor
    steps: Tensor
    origins: Tensor
    points: Tensor
    lower: Tensor
    upper: Tensor
    previous: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    last_loss: Tensor
    checked_loss: Tensor
    lengths: Tensor
    rises: Tensor
    halved: Tensor
    scales: Tensor
    targets: Tensor

    @property
    def limits(self) -> tuple[Tensor, Tensor]:
        return self.lower, self.upper


@dataclass(frozen=True, slots=True)
class _Rule:
    loss: Loss
    steps: int
    restarts: int
    checks: dict[int, int]
    inside: bool = True

    def enter(self, run: Run, ids: Tensor, turn: int) -> _Pool:
        origins, limits, points, scales, targets = start(run, ids, turn, self.restarts, self.loss)
        zeros, none = torch.zeros_like(scales), torch.zeros_like(ids)
        lengths = torch.full_like(scales, FIRST_STEP * run.budget.epsilon)
        kept = (points, points, torch.zeros_like(points), zeros - torch.inf, zeros, zeros)
        halved = torch.ones_like(scales, dtype=torch.bool)
        return _Pool(ids, none, origins, points, *limits, *kept, lengths, zeros, halved, scales, targets)

    def advance(self, run: Run, pool: _Pool, seen: Seen) -> _Pool:
        found, gradients, usable = run.climb(pool.points, seen, objective(run, pool, self.loss))
        first = (pool.steps == 0).to(run.device)
        if first.any():
            run.note_gradients(pool.ids[first.cpu()], usable[first.cpu()])
        pool = _record(pool, found, gradients, first)
        points, gradients, pool = self._check(pool, gradients)
        target = project(
            ascend(points, gradients, pool.lengths, run.budget.norm), pool.origins, pool.limits, run.budget
        )
        if bool(first.all()):
            moved = target
        else:
            share = per_image(torch.where(first, 1.0, MOMENTUM), points)
            moved = torch.lerp(points, target, share).addcmul_(points - pool.previous, 1 - share)
        moved = project(moved, pool.origins, pool.limits, run.budget)
        return replace(pool, points=moved, previous=pool.points, steps=pool.steps + 1)

    def _check(self, pool: _Pool, gradients: Tensor) -> tuple[Tensor, Tensor, _Pool]:
        """Where to step from and along what, after the checkpoint where there is one."""
        lengths = [self.checks.get(step, 0) for step in pool.steps.tolist()]
        if not any(lengths):
            return pool.points, gradients, pool
        spans = torch.tensor(lengths, device=pool.rises.device)
        due = spans > 0
        stuck = ~pool.halved & (pool.checked_loss >= pool.best_loss)
        halve = due & ((pool.rises <= RISING * spans) | stuck)
        changed = replace(
            pool,
            lengths=torch.where(halve, pool.lengths / 2, pool.lengths),
            rises=torch.where(due, 0.0, pool.rises),
            halved=torch.where(due, halve, pool.halved),
            checked_loss=torch.where(due, pool.best_loss, pool.checked_loss),
        )
        back = per_image(halve, pool.points)
        return torch.where(back, pool.best, pool.points), torch.where(back, pool.best_gradient, gradients), changed


def _record(pool: _Pool, found: Tensor, gradients: Tensor, first: Tensor) -> _Pool:
    """The losses at the present points, entered; the best point so far is written in place."""
    better = found > pool.best_loss
    best, best_gradient = pool.best, pool.best_gradient
    if bool(first.any()):  # at a start, `best` is the start itself, shared with `points`
        best, best_gradient = best.clone(), best_gradient.clone()
    for kept, found_now in ((best, pool.points), (best_gradient, gradients)):
        put_rows(kept, better, rows_of(found_now, better))
    return replace(
        pool,
        best=best,
        best_gradient=best_gradient,
        best_loss=torch.where(better, found, pool.best_loss),
        last_loss=found,
        checked_loss=torch.where(first, found, pool.checked_loss),
        rises=pool.rises + ((found > pool.last_loss) & ~first),
    )
