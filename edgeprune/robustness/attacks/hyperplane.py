"""The nearest point of a hyperplane inside a box, for linf, l2 and l1: what FAB solves at every step.

Promise: exact up to float32. The perturbation of pixel i is limited by its room; the length along the normal grows
with a multiplier, concave and piecewise linear, so that Newton's method climbs to the answer from below and ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprune.robustness.norms import Norm

_MOST_PASSES = 40
_CLOSE = 1e-6  # relative


def onto(points: Tensor, normals: Tensor, gaps: Tensor, bounds: tuple[float, float], norm: Norm) -> Tensor:
    """The smallest change d (N, D) with <normal, d> = -gap and points + d inside the bounds.

    points, normals: (N, D); gaps: (N,), the value of the linear function at each point. Where the box does not reach
    the hyperplane, d goes as far as the box lets it. F. Croce and M. Hein 2020, Minimally distorted adversarial
    examples with a fast adaptive boundary attack, section 3.1 (arXiv 1907.02044); Newton's method for it is ours.
    """
    signs = normals.sign().mul_(-torch.where(gaps >= 0, 1.0, -1.0)[:, None])
    middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    rooms = (points - middle).mul_(signs).neg_().add_(half).clamp_min_(0.0)
    sizes, wanted = normals.abs(), gaps.abs()
    if norm == "l1":
        return _cheapest_first(sizes, rooms, wanted).mul_(signs)
    gain = sizes.square() if norm == "l2" else sizes  # of the linear function, for each unit of the multiplier
    reach, work = sizes * rooms, torch.empty_like(sizes)
    # Arithmetic in place instead of masks and new tensors: on a CPU that is what the time goes to. The first pass, at
    # a multiplier of 0, is known: nothing is reached yet, and only pixels without room count for nothing.
    multiplier = wanted / torch.sign(reach, out=work).mul_(gain).sum(1).clamp_min(1e-38)
    multiplier = _climbed(gain, reach, wanted, multiplier, work)
    lengths = sizes.mul_(multiplier[:, None]) if norm == "l2" else multiplier[:, None]
    return torch.minimum(lengths, rooms, out=work).mul_(signs)


def _climbed(gain: Tensor, reach: Tensor, wanted: Tensor, multiplier: Tensor, work: Tensor) -> Tensor:
    """Newton's steps from `multiplier` (N,) to where sum(min(gain * multiplier, reach)) is `wanted`; `work`: scratch.

    Two steps are enough for nearly all rows. Where fewer than half have further to go, only those are followed.
    """
    for _ in range(_MOST_PASSES):
        torch.minimum(torch.mul(gain, multiplier[:, None], out=work), reach, out=work)
        missing = wanted - work.sum(1)
        going = missing > _CLOSE * wanted
        left = int(going.sum())
        if not left:
            break
        if 2 * left < len(going):
            few = going.nonzero().squeeze(1)
            rest = (tensor.index_select(0, few) for tensor in (gain, reach, wanted, multiplier, work))
            return multiplier.index_copy(0, few, _climbed(*rest))
        slope = torch.sub(reach, work, out=work).sign_().mul_(gain).sum(1)
        going &= slope > 0
        if not bool(going.any()):
            break
        multiplier = torch.where(going, multiplier + missing / slope.clamp_min(1e-38), multiplier)
    return multiplier


def _cheapest_first(sizes: Tensor, rooms: Tensor, wanted: Tensor) -> Tensor:
    """For l1: the pixels where the function is steepest are filled up, one after the other, until the plane is met."""
    steepest = sizes.argsort(1, descending=True)
    sizes, rooms = sizes.gather(1, steepest), rooms.gather(1, steepest)
    gains = sizes * rooms
    missing = wanted[:, None] - (gains.cumsum(1) - gains)
    lengths = torch.minimum((missing / sizes.clamp_min(1e-38)).clamp_min(0.0), rooms)
    return torch.zeros_like(sizes).scatter_(1, steepest, torch.where(sizes > 0, lengths, 0.0))
