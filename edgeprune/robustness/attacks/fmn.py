"""FMN: the nearest adversarial, by gradient steps inside a ball that shrinks while the image is fooled.

M. Pintor, F. Roli, W. Brendel and B. Biggio, Fast minimum-norm adversarial attacks through adaptive norm constraints,
NeurIPS 2021 (arXiv 2102.12827), algorithm 1, linf, l2 and l1, with its cosine schedules (step 1 to 0.01, change of
radius 5 % to 0.1 %). Ours: the first jumps go that share beyond the linearised boundary, on which they would come to
lie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgeprune.robustness.attacks.pool import passes, per_image
from edgeprune.robustness.attacks.run import Part, Run, Seen, attack_with
from edgeprune.robustness.norms import Norm, random_starts, row_sizes
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim

if TYPE_CHECKING:
    from edgeprune.robustness.attacks.nearest import Nearest

FIRST_STEP, LAST_STEP = 1.0, 0.01
FIRST_CHANGE, LAST_CHANGE = 0.05, 0.001
_DUAL: Mapping[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


def fmn(victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress) -> AttackOutcome:
    """FMN as an attack: an image falls, and leaves, once an adversarial within epsilon is found."""
    part = fmn_part(budget.steps, budget.restarts)
    return attack_with((part,), victim, images, labels, budget, progress)


def fmn_part(steps: int, restarts: int) -> Part:
    """The part of a suite."""
    return Part("fmn", 2.0 * steps * restarts, True, lambda run: passes(run, FmnRule(steps), restarts))


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """`radii` of the balls and the `smallest` distance so far (inf: not fooled yet)."""

    ids: Tensor
    steps: Tensor
    origins: Tensor
    points: Tensor
    radii: Tensor
    smallest: Tensor


@dataclass(frozen=True, slots=True)
class FmnRule:
    """`found`: where the nearest adversarials are written, or None where only epsilon matters."""

    steps: int
    found: Nearest | None = None
    inside: bool = False

    def enter(self, run: Run, ids: Tensor, turn: int) -> _Pool:
        origins = run.images[ids].to(run.device)
        points = origins
        if turn:
            around = replace(run.budget, epsilon=run.budget.epsilon or FIRST_CHANGE)
            points = (origins + random_starts(origins, around, turn)).clamp(*run.victim.bounds)
        endless = torch.full((len(ids),), torch.inf, device=run.device)
        return _Pool(ids, torch.zeros_like(ids), origins, points, endless, endless)

    def advance(self, run: Run, pool: _Pool, seen: Seen) -> _Pool:
        norm = run.budget.norm
        wrong = torch.from_numpy(seen.wrong).to(run.device)
        sizes = row_sizes(pool.points - pool.origins, norm)
        smallest = torch.where(wrong & (sizes < pool.smallest), sizes, pool.smallest)
        if self.found is not None:
            self.found.enter(pool, seen, norm)
        labels = run.labels[pool.ids].to(run.device)
        margins, gradients, usable = run.climb(pool.points, seen, lambda logits: -_lead(logits, labels))
        first = pool.steps == 0
        if first.any():
            run.note_gradients(pool.ids[first], usable[first])
        cosine = (1 + torch.cos(math.pi * pool.steps / self.steps)).to(run.device) / 2
        change = LAST_CHANGE + (FIRST_CHANGE - LAST_CHANGE) * cosine
        ahead = sizes + margins.abs() / row_sizes(gradients, _DUAL[norm]).clamp_min(1e-12)
        seeking = torch.where(smallest.isfinite(), pool.radii, ahead) * (1 + change)
        radii = torch.where(wrong, torch.minimum(pool.radii * (1 - change), smallest), seeking)
        span = run.victim.bounds[1] - run.victim.bounds[0]
        length = span * (LAST_STEP + (FIRST_STEP - LAST_STEP) * cosine)
        steepest = gradients / per_image(row_sizes(gradients, "l2").clamp_min(1e-12), gradients)
        delta = pool.points - pool.origins + per_image(length, gradients) * steepest
        points = (pool.origins + _shrink(delta, radii, norm)).clamp(*run.victim.bounds)
        return replace(pool, points=points, radii=radii, smallest=smallest, steps=pool.steps + 1)


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """True logit minus the best other one, (N,)."""
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return logits.gather(1, labels[:, None]).squeeze(1) - others


def _shrink(delta: Tensor, radii: Tensor, norm: Norm) -> Tensor:
    """The nearest perturbation of at most that size."""
    limit = per_image(radii, delta)
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -limit), limit)
    if norm == "l1":
        return _shrink_l1(delta, radii)
    size = per_image(row_sizes(delta, "l2"), delta)
    return delta * torch.clamp(limit / size.clamp_min(1e-12), max=1.0)


def _shrink_l1(delta: Tensor, radii: Tensor) -> Tensor:
    """The projection onto the l1 ball: every size less one threshold, which follows from the sorted sizes."""
    sizes = delta.flatten(1).abs()
    sums = sizes.sort(1, descending=True).values
    counts = torch.arange(1, sizes.shape[1] + 1, device=sizes.device)
    thresholds = (sums.cumsum(1) - radii[:, None]) / counts
    used = (sums > thresholds).sum(1, keepdim=True).clamp_min(1)
    threshold = thresholds.gather(1, used - 1).clamp_min(0.0)
    shorter = torch.where(sizes.sum(1, keepdim=True) > radii[:, None], sizes - threshold, sizes).clamp_min(0.0)
    return shorter.view_as(delta) * delta.sign()
