"""Randomised smoothing: a radius in which no perturbation changes the answer of the *smoothed* file.

J. Cohen, E. Rosenfeld and Z. Kolter, Certified adversarial robustness via randomized smoothing, ICML 2019 (arXiv
1902.02918), algorithm CERTIFY. The smoothed classifier answers with the class that the file gives most often when
Gaussian noise of standard deviation `sigma` is added to the pixels; within an l2 distance of sigma * quantile(p) it
cannot change its answer, where p is a lower bound (Clopper and Pearson) of that class's share.

Promise: needs nothing but predictions of the runtime. Each radius holds with probability at least 1 - alpha over the
noise; where the share is not above one half with that confidence, it abstains.

Refusal: says nothing about the file as it is served, without noise. Noise is not clipped to the pixel range: clipping
would void the theorem's Gaussian.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from edgeprune.errors import DataError
from edgeprune.records import Certified, CertifiedAt, Noise, RuntimeInfo
from edgeprune.robustness.attacks import batch_size
from edgeprune.robustness.statistics import proportion
from edgeprune.robustness.verdicts import checked_logits, predictions

if TYPE_CHECKING:
    from edgeprune.protocols import Session
    from edgeprune.types import Floats, Ints, Progress, Split

ABSTAINED = -1
"""The class of a certificate that says nothing."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The smoothed classifier's answer on one image (ABSTAINED: none), and the l2 radius in which it holds."""

    answer: int
    radius: float


def certify(predict: Callable[[Floats], Ints], image: Floats, noise: Noise) -> Certificate:
    """CERTIFY on one image, float32 (C, H, W): guess the class from `noise.guesses` draws, bound its share on `draws`
    fresh ones. `predict` maps float32 (N, C, H, W) to classes, int64 (N,)."""
    random = _generator(image, noise.seed)
    guess = int(_votes(predict, image, noise.guesses, noise.sigma, random).argmax())
    votes = _votes(predict, image, noise.draws, noise.sigma, random)
    count = int(votes[guess]) if guess < len(votes) else 0
    share = lower_bound(count, noise.draws, noise.alpha)
    if share <= 0.5:
        return Certificate(ABSTAINED, 0.0)
    return Certificate(guess, noise.sigma * float(stats.norm.ppf(share)))


def lower_bound(count: int, total: int, alpha: float) -> float:
    """One-sided lower bound on a share of which `count` of `total` were seen (Clopper and Pearson 1934)."""
    return 0.0 if count == 0 else float(stats.beta.ppf(alpha, count, total - count + 1))


def largest_radius(noise: Noise) -> float:
    """The radius when every draw agrees: no image can have a larger one with so many draws."""
    return max(noise.sigma * float(stats.norm.ppf(lower_bound(noise.draws, noise.draws, noise.alpha))), 0.0)


def certify_split(
    session: Session, split: Split, noise: Noise, radii: tuple[float, ...], sha256: str, progress: Progress
) -> Certified:
    """Certified accuracy of the smoothed file on every image of `split`, at 0 and at each of `radii`.

    DataError when there is no image; MeasurementError for logits that are none.
    """
    if not len(split):
        raise DataError("no images to certify", hint="give test data, or a larger --certify-samples")

    def predict(images: Floats) -> Ints:
        return predictions(checked_logits(session.logits, images, who=session.info.name))

    labels, found, plain = split.labels(), [], []
    for index, one in enumerate(split.ids):
        image = np.asarray(split.source.read(split.ids[index : index + 1])[0], np.float32)
        plain.append(int(predict(image[None])[0]))
        found.append(certify(predict, image, noise))
        right = sum(each.answer == label for each, label in zip(found, labels, strict=False))
        progress(f"image {one}: {right} of {index + 1} certified right", (index + 1) / len(split))
    return _summary(found, labels, np.array(plain), noise, radii, (sha256, split.digest, session.info))


def _summary(
    found: list[Certificate],
    labels: Ints,
    plain: Ints,
    noise: Noise,
    radii: tuple[float, ...],
    about: tuple[str, str, RuntimeInfo],
) -> Certified:
    answers = np.array([each.answer for each in found])
    reached, right = np.array([each.radius for each in found]), answers == labels
    at = [(radius, right & (reached >= radius)) for radius in sorted({0.0, *radii})]
    return Certified(
        sha256=about[0],
        samples_digest=about[1],
        runtime=about[2],
        noise=noise,
        plain=proportion(int(np.sum(plain == labels)), len(labels)),
        abstained=int(np.sum(answers == ABSTAINED)),
        largest_radius=largest_radius(noise),
        at=tuple(CertifiedAt(radius=radius, right=proportion(int(mask.sum()), len(labels))) for radius, mask in at),
        radii=tuple(float(f"{each.radius:.6g}") if good else 0.0 for each, good in zip(found, right, strict=True)),
    )


def _votes(
    predict: Callable[[Floats], Ints], image: Floats, draws: int, sigma: float, random: np.random.Generator
) -> Ints:
    """How often each class is the file's answer under `draws` draws of noise, int64 (highest class seen + 1,)."""
    votes, size = np.zeros(0, np.int64), batch_size(image.shape)
    for start in range(0, draws, size):
        count = min(size, draws - start)
        noise = random.standard_normal((count, *image.shape), dtype=np.float32) * np.float32(sigma)
        seen = np.bincount(predict(image[None] + noise))
        longer, shorter = (votes, seen) if len(votes) > len(seen) else (seen, votes)
        votes = longer.astype(np.int64)
        votes[: len(shorter)] += shorter
    return votes


def _generator(image: Floats, seed: int) -> np.random.Generator:
    """Noise belongs to the image: the same pixels and seed give the same noise, whatever else is certified."""
    name = hashlib.blake2b(f"{seed}/".encode() + image.tobytes(), digest_size=16)
    return np.random.Generator(np.random.Philox(key=int.from_bytes(name.digest(), "little")))
