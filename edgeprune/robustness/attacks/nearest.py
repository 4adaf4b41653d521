"""The nearest adversarial of every image, by two searches that fail in different places, and a last halving.

FMN climbs the margin to whichever class is best, and stays with a class that was near at the start: on
gtsrb_net_std it alone left 34 of 100 images standing at 2/255 where APGD left 28. FAB goes to one class after the
other. What either passes on its way counts; at the end the way back to the image is halved, judged by the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from edgeprune.robustness.attacks.fab import FabRule
from edgeprune.robustness.attacks.fmn import FmnRule
from edgeprune.robustness.attacks.pool import passes
from edgeprune.robustness.attacks.run import Run, Seen
from edgeprune.robustness.gradients import at_rest
from edgeprune.robustness.norms import Norm, distances
from edgeprune.types import AttackBudget, Progress, Victim

if TYPE_CHECKING:
    from edgeprune.types import Floats

    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_HALVINGS = 12


class Placed(Protocol):
    """Points of images, and where they came from."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def points(self) -> Tensor: ...
    @property
    def origins(self) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """distances: float64 (N,), 0 where the clean image is misclassified, inf where nothing was found. points: float32
    (N, C, H, W), the adversarial at that distance, else the clean image."""

    distances: Reals
    points: Floats

    def enter(self, pool: Placed, seen: Seen, norm: Norm) -> None:
        """Write down the misclassified points that are nearer than what was found before."""
        if not seen.wrong.any():
            return
        rows = pool.ids.numpy()[seen.wrong]
        points = pool.points.cpu().numpy()[seen.wrong]
        sizes = distances(points, pool.origins.cpu().numpy()[seen.wrong], norm)
        nearer = sizes < self.distances[rows]
        self.distances[rows[nearer]], self.points[rows[nearer]] = sizes[nearer], points[nearer]


def nearest(victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress) -> Nearest:
    """Distance of every image to the nearest adversarial that is found; `budget.epsilon` is not used.

    `budget.restarts` passes of FMN, then one of FAB for each of the `budget.targets` nearest classes, `budget.steps`
    each. images: float32 (N, C, H, W), labels: int64 (N,). An upper bound of the true distance, judged by the runtime.
    """
    free = replace(budget, epsilon=0.0)
    with torch.inference_mode(False), torch.no_grad(), at_rest(victim.module) as device:
        run = Run.begin(victim, images, labels, free, device)
        clean = run.images.numpy()
        found = Nearest(np.where(run.ledger.fell, 0.0, np.inf), clean.copy())
        for name, share in _search(run, found, free):
            near = np.isfinite(found.distances)
            progress(f"{name}: {int(near.sum())} of {len(images)} reached", share)
        _tighten(run, found)
    return found


def _search(run: Run, found: Nearest, budget: AttackBudget) -> Iterator[tuple[str, float]]:
    targets = min(budget.targets, run.rivals.shape[1])
    first = budget.restarts / (budget.restarts + targets)
    run.way.begin(0, run.ledger)
    for share in passes(run, FmnRule(budget.steps, found), budget.restarts):
        yield "fmn", first * share
    run.way.begin(1, run.ledger)
    for share in passes(run, FabRule(budget.steps, 1, True, found), targets):
        yield "fab-t", first + (1 - first) * share


def _tighten(run: Run, found: Nearest) -> None:
    """Halve the way between the image and what was found, keeping the half whose far end is misclassified."""
    ids = torch.from_numpy(np.flatnonzero(np.isfinite(found.distances) & (found.distances > 0)))
    for start in range(0, len(ids), run.places):
        part = ids[start : start + run.places]
        rows, clean = part.numpy(), run.images[part].numpy()
        whole = found.points[rows].copy()
        low, high = np.zeros(len(rows)), np.ones(len(rows))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            share = middle.reshape(-1, *([1] * (clean.ndim - 1)))
            points = (clean + share * (whole - clean)).astype(np.float32)
            wrong = run.judge(part, points, inside=False).wrong
            low, high = np.where(wrong, low, middle), np.where(wrong, middle, high)
            if wrong.any():
                found.points[rows[wrong]] = points[wrong]
                found.distances[rows[wrong]] = distances(points[wrong], clean[wrong], run.budget.norm)
