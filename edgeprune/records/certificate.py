"""What randomised smoothing certifies about a file: always of the smoothed classifier, never of the file as served."""

from __future__ import annotations

from edgeprune.records.artifacts import RuntimeInfo
from edgeprune.records.base import Proportion, Record, Sha256


class Noise(Record):
    """Gaussian noise of standard deviation `sigma`, in pixel units: `guesses` draws choose the class, `draws` fresh
    ones bound its share. A radius is wrong with a probability of at most `alpha`, image by image."""

    sigma: float
    guesses: int
    draws: int
    alpha: float
    seed: int


class CertifiedAt(Record):
    """Images whose right answer is certified within the l2 `radius`."""

    radius: float
    right: Proportion


class Certified(Record):
    """The smoothed classifier made of a file. `plain`: the file's own accuracy on the same images, without noise.

    `abstained`: images on which the smoothed classifier gives no answer. `largest_radius`: what so many draws can show
    at most. `radii`: of each image, in the order of the samples; 0 where it is not certified right.
    """

    sha256: Sha256
    samples_digest: Sha256
    runtime: RuntimeInfo
    noise: Noise
    plain: Proportion
    abstained: int
    largest_radius: float
    at: tuple[CertifiedAt, ...]
    radii: tuple[float, ...]
