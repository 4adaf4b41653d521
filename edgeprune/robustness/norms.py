"""The geometry of a threat model: distances, random starts, steepest steps, projections; linf, l2 and l1.

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

Norm = Literal["linf", "l2", "l1"]

_L1_SHARE = 0.01
"""Of the pixels, how many an l1 step changes (Tramer and Boneh 2019, Adversarial training and robustness for multiple
perturbations: the sparse l1 descent attack)."""
_ROUNDING = 2.0**-24  # of float32 numbers, relative; twice what one rounding can do


def distances(points: Floats, origins: Floats, norm: Norm) -> Reals:
    """Distance of each point from its origin: float32 (N, ...) twice to float64 (N,), computed in float64."""
    difference = (points.astype(np.float64) - origins.astype(np.float64)).reshape(len(points), -1)
    if norm == "linf":
        return np.asarray(np.abs(difference).max(axis=1, initial=0.0))
    if norm == "l1":
        return np.asarray(np.abs(difference).sum(axis=1))
    return np.asarray(np.sqrt(np.sum(difference**2, axis=1)))


def row_sizes(vectors: Tensor, norm: Norm) -> Tensor:
    """The norm of each row of (N, ...), float32 (N,). torch's own vector_norm takes 5 to 20 times as long for l1 and
    linf: 250 to 12 microseconds for 32 rows of 3,072."""
    rows = vectors.flatten(1)
    if norm == "l2":
        sizes: Tensor = torch.linalg.vector_norm(rows, dim=1)
        return sizes
    return rows.abs().amax(1) if norm == "linf" else rows.abs().sum(1)


def box(origins: Tensor, budget: AttackBudget, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every pixel, float32 like `origins` (N, ...), rounded inwards.

    For linf this is the whole threat model. For l2 and l1 it is the pixel bounds, and `project` adds the ball.
    """
    smallest, largest = (torch.full_like(origins, bound) for bound in bounds)
    if budget.norm != "linf":
        return smallest, largest
    exact_low, exact_high = origins.double() - budget.epsilon, origins.double() + budget.epsilon
    low, high = exact_low.float(), exact_high.float()
    low = torch.where(low.double() < exact_low, torch.nextafter(low, torch.full_like(low, torch.inf)), low)
    high = torch.where(high.double() > exact_high, torch.nextafter(high, torch.full_like(high, -torch.inf)), high)
    return torch.maximum(low, smallest), torch.minimum(high, largest)


def project(points: Tensor, origins: Tensor, limits: tuple[Tensor, Tensor], budget: AttackBudget) -> Tensor:
    """The nearest allowed points (for l2: ball first, then box, which cannot lead out of the ball again).

    For l1 they are the nearest of the ball and the box together, which one after the other would not give (Croce and
    Hein 2021, Mind the box, proposition 2.1). The ball of l2, and of l1, is smaller than epsilon by the worst that
    float32 rounding of the sum can add.
    """
    if budget.norm == "l1":
        points = origins + _into_l1(points, origins, limits, budget.epsilon)
    if budget.norm == "l2":
        change = points - origins
        size = _length(change.double())
        largest = max(1.0, float(limits[0].abs().max()), float(limits[1].abs().max()))
        slack = _ROUNDING * largest * math.prod(origins.shape[1:]) ** 0.5
        radius = max(budget.epsilon - slack, 0.0)
        points = origins + (change.double() * torch.clamp(radius / size.clamp_min(1e-300), max=1.0)).float()
    return torch.clamp(points, *limits)


def ascend(points: Tensor, gradients: Tensor, steps: Tensor, norm: Norm) -> Tensor:
    """A step of length `steps` (N,) in the direction of steepest ascent; none where the gradient is zero.

    The direction does not depend on the size of a gradient, however small (no underflow in its length).
    """
    scale = steps.view(-1, *([1] * (points.ndim - 1))).to(points)
    if norm == "linf":
        return torch.addcmul(points, gradients.sign(), scale)
    if norm == "l1":
        return points + scale * sparse_direction(gradients, _L1_SHARE)
    largest = gradients.abs().flatten(1).amax(1).view_as(scale)
    unit = gradients / torch.where(largest > 0, largest, 1.0)
    length = _length(unit)
    return points + scale * unit / torch.where(length > 0, length, 1.0)


def sparse_direction(gradients: Tensor, share: float | Tensor) -> Tensor:
    """The signs of the largest gradients of each image, `share` (a number, or (N,)) of its pixels; of l1 length 1."""
    flat = gradients.flatten(1)
    counts = (
        (torch.as_tensor(share, device=flat.device) * flat.shape[1]).clamp(1, flat.shape[1]).long().expand(len(flat))
    )
    sorted_sizes = flat.abs().sort(1, descending=True).values
    limits = sorted_sizes.gather(1, counts[:, None] - 1)
    signs = torch.where(flat.abs() >= limits, flat.sign(), 0.0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1.0)).view_as(gradients)


def _into_l1(points: Tensor, origins: Tensor, limits: tuple[Tensor, Tensor], epsilon: float) -> Tensor:
    """The change that leads to the nearest point of the l1 ball inside the box (N, ...).

    Every pixel moves by min(max(|d| - t, 0), room), its way shortened by one t for all, but no further than its room.
    The total falls with t, linearly between the points where a pixel leaves its limit or comes to rest: they are
    sorted, and t lies between two of them.
    """
    wanted = (points.double() - origins.double()).flatten(1)
    low, high = ((limit.double() - origins.double()).flatten(1) for limit in limits)
    sizes, rooms = wanted.abs(), torch.where(wanted > 0, high, -low)
    most = max(1.0, float(limits[0].abs().max()), float(limits[1].abs().max()))
    radius = max(epsilon - _ROUNDING * most * wanted.shape[1], 0.0)
    ends = torch.cat([(sizes - rooms).clamp_min(0), sizes], 1)
    turns, order = ends.sort(1)
    half = torch.ones_like(sizes)
    slopes = torch.cat([half, -half], 1).gather(1, order).cumsum(1)  # how many pixels shrink beyond each turn
    steps = torch.diff(turns, dim=1)
    total = torch.minimum(sizes, rooms).sum(1, keepdim=True)
    totals = total - torch.cat([torch.zeros_like(total), (slopes[:, :-1] * steps).cumsum(1)], 1)
    place = (totals > radius).sum(1, keepdim=True).clamp_min(1) - 1
    slope = slopes.gather(1, place).clamp_min(1.0)
    shift = turns.gather(1, place) + (totals.gather(1, place) - radius) / slope
    shift = torch.where(total > radius, shift, 0.0)
    moved = torch.minimum((sizes - shift).clamp_min(0), rooms) * wanted.sign()
    return moved.float().view_as(origins)


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
    if budget.norm == "l1":  # exponential numbers with signs, over their sum, lie uniformly on the sphere
        direction = generator.standard_exponential(image.shape) * (2 * generator.integers(0, 2, image.shape) - 1)
        radius = budget.epsilon * generator.random() ** (1 / image.size)
        return np.asarray(radius * direction / np.abs(direction).sum(), dtype=np.float32)
    direction = generator.standard_normal(image.shape)
    radius = budget.epsilon * generator.random() ** (1 / image.size)
    return np.asarray(radius * direction / np.linalg.norm(direction), dtype=np.float32)


def _length(vectors: Tensor) -> Tensor:
    """Euclidean length of each (N, ...) as (N, 1, ...)."""
    lengths: Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return lengths.view(-1, *([1] * (vectors.ndim - 1)))
