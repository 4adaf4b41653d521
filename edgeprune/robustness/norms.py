"""The geometry of a threat model: distances, random starts, steepest steps, projections; linf and l2.

Promise: a projected point is inside the ball and inside the pixel bounds as float32 numbers, not just nearly. Random
starts belong to the image: the same pixels, seed and restart give the same start in every file, batch and order.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from edgeprune.types import AttackBudget, Floats

    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

Norm = Literal["linf", "l2"]

_ROUNDING = 2.0**-24  # of float32 numbers, relative; twice what one rounding can do


def distances(points: Floats, origins: Floats, norm: Norm) -> Reals:
    """Distance of each point from its origin: float32 (N, ...) twice to float64 (N,), computed in float64."""
    difference = (points.astype(np.float64) - origins.astype(np.float64)).reshape(len(points), -1)
    if norm == "linf":
        return np.asarray(np.abs(difference).max(axis=1, initial=0.0))
    return np.asarray(np.sqrt(np.sum(difference**2, axis=1)))


def box(origins: Tensor, budget: AttackBudget, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every pixel, float32 like `origins` (N, ...), rounded inwards.

    For linf this is the whole threat model. For l2 it is the pixel bounds, and `project` adds the ball.
    """
    smallest, largest = (torch.full_like(origins, bound) for bound in bounds)
    if budget.norm == "l2":
        return smallest, largest
    exact_low, exact_high = origins.double() - budget.epsilon, origins.double() + budget.epsilon
    low, high = exact_low.float(), exact_high.float()
    low = torch.where(low.double() < exact_low, torch.nextafter(low, torch.full_like(low, torch.inf)), low)
    high = torch.where(high.double() > exact_high, torch.nextafter(high, torch.full_like(high, -torch.inf)), high)
    return torch.maximum(low, smallest), torch.minimum(high, largest)


def project(points: Tensor, origins: Tensor, limits: tuple[Tensor, Tensor], budget: AttackBudget) -> Tensor:
    """The nearest allowed points (for l2: ball first, then box, which cannot lead out of the ball again).

    The ball of l2 is smaller than epsilon by the worst that float32 rounding of the sum can add.
    """
    if budget.norm == "l2":
        change = points - origins
        size = _length(change.double())
        largest = max(1.0, float(limits[0].abs().max()), float(limits[1].abs().max()))
        slack = _ROUNDING * largest * math.prod(origins.shape[1:]) ** 0.5
        radius = max(budget.epsilon - slack, 0.0)
        points = origins + (change.double() * torch.clamp(radius / size.clamp_min(1e-300), max=1.0)).float()
    return torch.minimum(torch.maximum(points, limits[0]), limits[1])


def ascend(points: Tensor, gradients: Tensor, steps: Tensor, norm: Norm) -> Tensor:
    """A step of length `steps` (N,) in the direction of steepest ascent; none where the gradient is zero.

    The direction does not depend on the size of a gradient, however small (no underflow in its length).
    """
    scale = steps.view(-1, *([1] * (points.ndim - 1))).to(points)
    if norm == "linf":
        return points + scale * gradients.sign()
    largest = gradients.abs().flatten(1).amax(1).view_as(scale)
    unit = gradients / torch.where(largest > 0, largest, 1.0)
    length = _length(unit)
    return points + scale * unit / torch.where(length > 0, length, 1.0)


def random_starts(origins: Tensor, budget: AttackBudget, restart: int) -> Tensor:
    """Perturbations drawn uniformly from the ball, float32 like `origins` (N, ...), before any projection.

    Each comes from its own generator, seeded by the image's bytes, the seed and the restart: no global state.
    """
    images = origins.cpu().numpy()
    starts = np.stack([_draw(image, budget, restart) for image in images]) if len(images) else images
    return torch.from_numpy(starts).to(origins)


def _draw(image: Floats, budget: AttackBudget, restart: int) -> Floats:
    name = hashlib.blake2b(f"{budget.seed}/{restart}/".encode() + image.tobytes(), digest_size=16)
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(name.digest(), "little")))
    if budget.norm == "linf":
        return (budget.epsilon * (2 * generator.random(image.shape) - 1)).astype(np.float32)
    direction = generator.standard_normal(image.shape)
    radius = budget.epsilon * generator.random() ** (1 / image.size)
    return np.asarray(radius * direction / np.linalg.norm(direction), dtype=np.float32)


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length of each (N, ...) as (N, 1, ...)."""
    lengths: Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return lengths.view(-1, *([1] * (vectors.ndim - 1)))
