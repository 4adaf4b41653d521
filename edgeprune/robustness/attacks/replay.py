"""Replay: adversarials that were found elsewhere, on another file or in another run, judged on this one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from edgeprune.errors import DataError
from edgeprune.protocols import Attack
from edgeprune.robustness.attacks.run import Part, Run, attack_with
from edgeprune.robustness.norms import distances
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim


def replay(adversarials: Tensor) -> Attack:
    """An attack that asks about `adversarials`, float32 (N, C, H, W), one for each image it is given, in their order.

    An adversarial outside the ball or the pixel bounds of this threat model is passed over, not projected: replay shows
    what transfers as it is. DataError when the shapes differ.
    """

    def attack(
        victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
    ) -> AttackOutcome:
        return attack_with((replay_part(adversarials),), victim, images, labels, budget, progress)

    return attack


def replay_part(adversarials: Tensor) -> Part:
    """The part of a suite; it follows no gradient, but an image that falls to it was not left to a black box."""

    def go(run: Run) -> Iterator[float]:
        if adversarials.shape != run.images.shape:
            raise DataError(
                f"adversarials {tuple(adversarials.shape)} cannot be replayed on images {tuple(run.images.shape)}",
                hint="replay on the same images, in the same order",
            )
        low, high = (np.float32(bound) for bound in run.victim.bounds)
        standing = run.standing
        for start in range(0, len(standing), run.places):
            ids = standing[start : start + run.places]
            points = adversarials[ids].cpu().numpy()
            flat = points.reshape(len(points), -1)
            inside = (flat >= low).all(axis=1) & (flat <= high).all(axis=1)  # NaN is not inside
            near = distances(points, run.images[ids].numpy(), run.budget.norm) <= run.budget.epsilon
            usable = inside & near
            if usable.any():
                run.judge(ids[usable], np.ascontiguousarray(points[usable]))
            yield (start + len(ids)) / len(standing)

    return Part("replay", 1.0, False, go)
