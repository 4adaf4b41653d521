"""Steps along the gradient with a fixed schedule: PGD and FGSM."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeprune.robustness.attacks.pool import passes
from edgeprune.robustness.attacks.run import Part, Run, Seen, attack_with
from edgeprune.robustness.gradients import rescaled_cross_entropy
from edgeprune.robustness.norms import ascend, box, project, random_starts
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim

FIRST_STEP = 2.0  # in epsilons


def pgd(victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress) -> AttackOutcome:
    """Projected gradient descent (Madry et al. 2018), linf or l2, untargeted.

    images: float32 (N, C, H, W) inside the victim's bounds; labels: int64 (N,). The clean image, every random start
    and every iterate are judged by `victim.logits`. The loss is `rescaled_cross_entropy`, the steps are those of
    `step_lengths`. DataError for images or labels that cannot be attacked, MeasurementError for broken logits.
    """

    def go(run: Run) -> Iterator[float]:
        return passes(run, Descent(budget.steps), budget.restarts)

    part = Part("pgd", 2.0 * budget.steps * budget.restarts, True, go)
    return attack_with((part,), victim, images, labels, budget, progress)


def fgsm(victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress) -> AttackOutcome:
    """The fast gradient sign method (Goodfellow et al. 2015): one step of epsilon from the clean image.

    For l2 the step goes along the gradient. Steps and restarts of the budget are not used. It shows what a single
    gradient does; it is no evidence of robustness, and its result says so (the loss is still moving).
    """
    part = Part("fgsm", 2.0, True, lambda run: passes(run, Descent(1, single=True), 1))
    return attack_with((part,), victim, images, labels, budget, progress)


def step_lengths(steps: Tensor, budget: AttackBudget) -> Tensor:
    """Length of step t (counted from 0) of T: epsilon (1 + cos(pi t / T)), from 2 epsilon down to almost nothing.

    Long steps leave a poor start, short ones find the boundary. Measured with 40 steps and 2 starts on the ONNX files
    of four networks (traffic signs standard and adversarial; VNN-COMP's resnet_2b and sri_resnet_a) at two epsilons
    each, 2,800 attacks in all: 1,255 stood; with constant steps of 2.5 epsilon / T and plain cross-entropy 1,339 did.
    """
    return budget.epsilon * FIRST_STEP / 2 * (1 + torch.cos(math.pi * steps / budget.steps))


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    ids: Tensor
    steps: Tensor
    origins: Tensor
    points: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True, slots=True)
class Descent:
    """Steps of a given length; `single`: one of epsilon, from the clean image."""

    steps: int
    single: bool = False
    inside: bool = True

    def enter(self, run: Run, ids: Tensor, turn: int) -> _Pool:
        origins = run.images[ids].to(run.device)
        limits = box(origins, run.budget, run.victim.bounds)
        points = origins if self.single else origins + random_starts(origins, run.budget, turn)
        return _Pool(ids, torch.zeros_like(ids), origins, project(points, origins, limits, run.budget), *limits)

    def advance(self, run: Run, pool: _Pool, seen: Seen) -> _Pool:
        labels = run.labels[pool.ids].to(run.device)
        _, gradients, usable = run.climb(pool.points, seen, lambda logits: rescaled_cross_entropy(logits, labels))
        first = pool.steps == 0
        if first.any():
            run.note_gradients(pool.ids[first], usable[first])
        lengths = torch.full(pool.steps.shape, run.budget.epsilon)
        if not self.single:
            lengths = step_lengths(pool.steps, run.budget)
        points = ascend(pool.points, gradients, lengths, run.budget.norm)
        points = project(points, pool.origins, (pool.lower, pool.upper), run.budget)
        return replace(pool, points=points, steps=pool.steps + 1)
