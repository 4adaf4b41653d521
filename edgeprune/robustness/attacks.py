"""Attacks on an exported file: gradients from a twin, verdicts from the runtime.

Promise: an image counts as fallen only where the *runtime* misclassified a point inside the ball and the pixel
bounds; it leaves the loop there and then, and the survivors are packed together. Nothing here touches a global random
generator, leaves a gradient behind or changes the network.

Refusal: a logit that is not a number is an error of the file, never a success and never a survival.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from edgeprune.errors import DataError
from edgeprune.robustness.gradients import at_rest, input_gradients
from edgeprune.robustness.norms import ascend, box, project, random_starts
from edgeprune.robustness.verdicts import checked_logits, margins, predictions, require_known
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim

FIRST_STEP = 2.0  # in epsilons
_BATCH_PIXELS = 2**20
_SMALLEST_BATCH, _LARGEST_BATCH = 8, 256


def pgd(victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress) -> AttackOutcome:
    """Projected gradient descent (Madry et al. 2018), linf or l2, untargeted.

    images: float32 (N, C, H, W) inside the victim's bounds; labels: int64 (N,). The clean image, every random start
    and every iterate are judged by `victim.logits`. The loss is `rescaled_cross_entropy`, the steps are those of
    `step_lengths`. DataError for images or labels that cannot be attacked, MeasurementError for broken logits.
    """
    with torch.inference_mode(False), torch.no_grad(), at_rest(victim.module) as device:
        images, labels = images.to("cpu", torch.float32, copy=True), labels.to("cpu", torch.int64, copy=True)
        _require_fitting(images, labels, victim.bounds)
        run = _Run(victim, images, labels, budget, _Ledger.of(images), device)
        run.judge_clean()
        for restart in range(budget.restarts):
            standing = max(int((~run.ledger.fell).sum()), 1)
            for left in _restart(run, restart):
                share = (restart + 1 - left / standing) / budget.restarts
                fallen = int(run.ledger.fell.sum())
                progress(f"pgd start {restart + 1} of {budget.restarts}: {fallen} of {len(images)} wrong", share)
        return run.ledger.outcome()


def step_lengths(steps: Tensor, budget: AttackBudget) -> Tensor:
    """Length of step t (counted from 0) of T: epsilon (1 + cos(pi t / T)), from 2 epsilon down to almost nothing.

    Long steps leave a poor start, short ones find the boundary. Measured with 40 steps and 2 starts on the ONNX files
    of four networks (traffic signs standard and adversarial; VNN-COMP's resnet_2b and sri_resnet_a) at two epsilons
    each, 2,800 attacks in all: 1,255 stood; with constant steps of 2.5 epsilon / T and plain cross-entropy 1,339 did.
    """
    return budget.epsilon * FIRST_STEP / 2 * (1 + torch.cos(math.pi * steps / budget.steps))


def batch_size(shape: Sequence[int]) -> int:
    """How many images of this shape (C, H, W) go through network and runtime at once: fewer of larger ones."""
    return min(max(_BATCH_PIXELS // max(math.prod(shape), 1), _SMALLEST_BATCH), _LARGEST_BATCH)


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """Images under attack at this moment, each at a step of its own; tensors share their first dimension."""

    ids: Tensor
    steps: Tensor
    origins: Tensor
    points: Tensor
    lower: Tensor
    upper: Tensor

    def keep(self, mask: Tensor) -> _Pool:
        return _Pool(*(tensor[mask.to(tensor.device)] for tensor in self._tensors()))

    def join(self, other: _Pool) -> _Pool:
        return _Pool(*(torch.cat(pair) for pair in zip(self._tensors(), other._tensors(), strict=True)))

    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True, eq=False)
class _Ledger:
    """What is known so far of every image (N,): the only state that the loop writes.

    Margins are the runtime's: of the clean image, of the current start, and the largest fall from a start.
    """

    adversarials: Tensor
    fell: Tensor
    asked: Tensor
    usable: Tensor
    clean: Tensor
    start: Tensor
    gain: Tensor

    @classmethod
    def of(cls, images: Tensor) -> _Ledger:
        flags = [torch.zeros(len(images), dtype=torch.bool) for _ in range(3)]
        numbers = [torch.zeros(len(images), dtype=torch.float64) for _ in range(3)]
        return cls(images.clone(), *flags, *numbers)

    def outcome(self) -> AttackOutcome:
        scale = self.clean.clamp_min(torch.finfo(torch.float64).tiny)
        return AttackOutcome(self.adversarials, self.fell, ~self.asked | self.usable, (self.gain / scale).float())


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One call of the attack: what it was given, and its ledger."""

    victim: Victim
    images: Tensor
    labels: Tensor
    budget: AttackBudget
    ledger: _Ledger
    device: torch.device

    def judge(self, ids: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Ask the runtime about `points` of the images `ids`: bool, these still stand; float64, their margins."""
        pixels, labels = points.cpu(), self.labels[ids]
        logits = checked_logits(self.victim.logits, pixels.numpy())
        require_known(labels.numpy(), logits.shape[1])
        fell = torch.from_numpy(predictions(logits)) != labels
        self.ledger.fell[ids[fell]] = True
        self.ledger.adversarials[ids[fell]] = pixels[fell]
        return ~fell, torch.from_numpy(margins(logits, labels.numpy()))

    def judge_clean(self) -> None:
        """Ask about every clean image and enter its margin."""
        for start in range(0, len(self.images), self.places):
            ids = torch.arange(start, min(start + self.places, len(self.images)))
            _, self.ledger.clean[ids] = self.judge(ids, self.images[ids])

    @property
    def places(self) -> int:
        """How many images are under attack at once."""
        return batch_size(self.images.shape[1:])

    def enter(self, ids: Tensor, restart: int) -> _Pool:
        """Images at their random starts, on the network's device."""
        origins = self.images[ids].to(self.device)
        limits = box(origins, self.budget, self.victim.bounds)
        points = origins + random_starts(origins, self.budget, restart)
        steps = torch.zeros(len(ids), dtype=torch.int64)
        return _Pool(ids, steps, origins, project(points, origins, limits, self.budget), *limits)

    def advance(self, pool: _Pool) -> _Pool:
        """One gradient step of every image in the pool; notes whether the gradient at a start was usable."""
        gradients, usable = input_gradients(self.victim.module, pool.points, self.labels[pool.ids].to(self.device))
        first = pool.steps == 0
        self.ledger.asked[pool.ids[first]] = True
        self.ledger.usable[pool.ids[first & usable]] = True
        points = ascend(pool.points, gradients, step_lengths(pool.steps, self.budget), self.budget.norm)
        points = project(points, pool.origins, (pool.lower, pool.upper), self.budget)
        return replace(pool, points=points, steps=pool.steps + 1)


def _restart(run: _Run, restart: int) -> Iterator[int]:
    """Attack everything that stands once more; yields after each step how many images this restart has yet to do.

    A place that falls free is taken by the next image at once, so that batches stay full until the queue is empty.
    """
    waiting = (~run.ledger.fell).nonzero().flatten()
    if not len(waiting):
        return
    pool, waiting = run.enter(waiting[: run.places], restart), waiting[run.places :]
    while len(pool.ids):
        standing, margin = run.judge(pool.ids, pool.points)
        first = pool.steps == 0
        run.ledger.start[pool.ids[first]] = margin[first]
        gain = run.ledger.start[pool.ids] - margin
        run.ledger.gain[pool.ids] = torch.maximum(run.ledger.gain[pool.ids], gain)
        pool = pool.keep(standing & (pool.steps < run.budget.steps))
        yield len(pool.ids) + len(waiting)
        if len(pool.ids):
            pool = run.advance(pool)
        free = run.places - len(pool.ids)
        if free and len(waiting):
            pool, waiting = pool.join(run.enter(waiting[:free], restart)), waiting[free:]


def _require_fitting(images: Tensor, labels: Tensor, bounds: tuple[float, float]) -> None:
    if images.ndim < 2 or labels.shape != images.shape[:1]:
        raise DataError(f"cannot attack images {tuple(images.shape)} with labels {tuple(labels.shape)}")
    low, high = (torch.tensor(bound, dtype=torch.float32) for bound in bounds)
    inside = (images >= low) & (images <= high)  # NaN is not inside
    if not bool(inside.all()):
        raise DataError(
            f"images have pixels outside [{bounds[0]:g}, {bounds[1]:g}]",
            hint="give pixels, not normalised images; set the pixel bounds with --pixel-bounds",
        )
