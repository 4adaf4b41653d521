"""What every kind of APGD has in common: where a pass starts, and what it climbs."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from edgeprune.robustness.attacks import losses
from edgeprune.robustness.attacks.losses import Loss
from edgeprune.robustness.attacks.run import Run
from edgeprune.robustness.gradients import logits_of
from edgeprune.robustness.norms import box, project, random_starts


class Start(NamedTuple):
    """Clean images and random points in their balls, float32 (N, C, H, W), with the box of each image; the gaps between
    clean logits that rescale them, float32 (N,); the classes to aim at, int64 (N,)."""

    origins: Tensor
    limits: tuple[Tensor, Tensor]
    points: Tensor
    scales: Tensor
    targets: Tensor


class Climber(Protocol):
    """The images of a pass that are still climbing."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def scales(self) -> Tensor: ...


def start(run: Run, ids: Tensor, turn: int, restarts: int, loss: Loss) -> Start:
    """Pass number `turn` over the images `ids`: `restarts` passes for each class that a targeted loss aims at."""
    origins = run.images[ids].to(run.device)
    limits = box(origins, run.budget, run.victim.bounds)
    points = project(origins + random_starts(origins, run.budget, turn), origins, limits, run.budget)
    if losses.scaled(loss, run.rivals.shape[1] + 1):
        scales = losses.gaps(logits_of(run.victim.module, origins))
    else:
        scales = torch.ones(len(origins), device=origins.device)
    number = turn // restarts if loss == "targeted" else 0
    targets = torch.from_numpy(run.rivals[ids.numpy(), number]).to(run.device)
    return Start(origins, limits, points, scales, targets)


def objective(run: Run, pool: Climber, loss: Loss) -> losses.Objective:
    """Logits to what is climbed, for the images of the pool."""
    return losses.Objective(loss, run.labels[pool.ids].to(run.device), pool.targets, pool.scales)
