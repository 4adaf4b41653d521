"""The second look: what an attack claims is believed only when a fresh pass of the runtime shows it again.

Promise: a believed adversarial is within epsilon (+ 1e-6) and the pixel bounds, and the runtime misclassifies it. A
refused claim counts as standing, and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.robustness.norms import distances

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeprune.records import ThreatModel
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

EPSILON_SLACK = 1e-6
_LEVELS = 255


@dataclass(frozen=True, slots=True, eq=False)
class Verified:
    """Of M claims, bool (M,): `believed`, and `rounded`: believed and still misclassified after rounding to 8 bits.

    `predicted`: int64 (M,), what the runtime said in the fresh pass.
    """

    believed: Bools
    rounded: Bools
    predicted: Ints


def verify(
    predict: Callable[[Floats], Ints], claims: Floats, origins: Floats, labels: Ints, threat: ThreatModel
) -> Verified:
    """Look again at `claims` (float32 (M, C, H, W)), made from `origins`, of the classes `labels` (int64 (M,))."""
    if not len(claims):  # numpy cannot flatten the images of an empty array
        none = np.zeros(0, np.bool_)
        return Verified(none, none, np.zeros(0, np.int64))
    low, high = np.float32(threat.bounds[0]), np.float32(threat.bounds[1])
    flat = claims.reshape(len(claims), -1)
    inside = np.isfinite(flat).all(axis=1) & (flat >= low).all(axis=1) & (flat <= high).all(axis=1)
    near = distances(claims, origins, threat.norm) <= threat.epsilon_value + EPSILON_SLACK
    predicted = predict(claims)
    believed = inside & near & (predicted != labels)
    rounded = believed & (predict(to_8_bits(claims, threat.bounds)) != labels)
    return Verified(believed, rounded, predicted)


def to_8_bits(images: Floats, bounds: tuple[float, float]) -> Floats:
    """Pixels on the grid of 256 levels that spans the bounds: what an image file can hold. float32 in and out."""
    low, span = bounds[0], bounds[1] - bounds[0]
    levels = np.clip(np.rint((images.astype(np.float64) - low) / span * _LEVELS), 0, _LEVELS)
    return np.asarray(low + levels / _LEVELS * span, dtype=np.float32)
