"""Randomised smoothing: exact radii of linear classifiers, coverage of the certificates, and what it refuses to say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attack_examples import ModuleSession, grid_images, linear, silent, split_of
from scipy import stats

from edgeprune.errors import DataError
from edgeprune.records import Noise
from edgeprune.robustness.smoothing import ABSTAINED, certify, certify_split, largest_radius, lower_bound

NOISE = Noise(sigma=0.25, guesses=50, draws=2000, alpha=0.001, seed=0)


def exact_radii(module: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """l2 distance of each image to the plane between the two classes: the radius of perfect knowledge."""
    weights = next(iter(module.parameters())).detach().numpy()
    with torch.no_grad():
        logits = module(torch.from_numpy(images)).numpy()
    return np.abs(logits[:, 0] - logits[:, 1]) / np.linalg.norm(weights[0] - weights[1])


def test_the_radius_of_a_linear_classifier_is_exact_up_to_the_binomial_bound() -> None:
    """The share of the right half-space is Phi(distance / sigma), so sigma * quantile of it is the distance itself."""
    module, images = linear(), grid_images(12)
    session = ModuleSession(module)
    labels = session.logits(images).argmax(1).astype(np.int64)
    found = certify_split(session, split_of(images, labels), NOISE, (0.05,), "1" * 64, silent)
    exact = exact_radii(module, images)
    for radius, distance in zip(found.radii, exact, strict=True):
        share = stats.norm.cdf(distance / NOISE.sigma)
        spread = 4 * np.sqrt(share * (1 - share) / NOISE.draws)
        low = lower_bound(int(np.floor((share - spread) * NOISE.draws)), NOISE.draws, NOISE.alpha)
        floor = NOISE.sigma * stats.norm.ppf(low) if low > 0.5 else 0.0
        assert floor - 1e-9 <= radius <= min(distance, found.largest_radius) + 1e-9
    assert found.abstained == sum(radius == 0 for radius in found.radii)
    assert 0 < found.abstained < 12


def test_certified_accuracy_falls_with_the_radius_and_counts_right_answers_only() -> None:
    module, images = linear(), grid_images(12)
    session = ModuleSession(module)
    labels = session.logits(images).argmax(1).astype(np.int64)
    right = certify_split(session, split_of(images, labels), NOISE, (0.05, 0.1, 9.0), "1" * 64, silent)
    counts = [each.right.count for each in right.at]
    assert [each.radius for each in right.at] == [0.0, 0.05, 0.1, 9.0]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 12 - right.abstained
    assert counts[-1] == 0
    wrong = certify_split(session, split_of(images, 1 - labels), NOISE, (), "1" * 64, silent)
    assert (wrong.plain.count, wrong.at[0].right.count) == (0, 0)


def test_an_image_on_the_boundary_gets_no_answer() -> None:
    def coin(images: np.ndarray) -> np.ndarray:
        return (images[:, 0, 0, 0] > 0.5).astype(np.int64)

    on_it = np.full((1, 4, 4), 0.5, np.float32)
    assert certify(coin, on_it, NOISE).answer == ABSTAINED


def test_a_constant_file_has_the_largest_radius_that_the_draws_can_show() -> None:
    found = certify(lambda images: np.ones(len(images), np.int64), np.zeros((1, 4, 4), np.float32), NOISE)
    assert found.answer == 1
    assert found.radius == pytest.approx(0.25 * stats.norm.ppf(0.001 ** (1 / 2000)))
    assert found.radius == largest_radius(NOISE)
    assert largest_radius(NOISE.model_copy(update={"draws": 5})) == 0.0


def test_the_same_image_and_seed_give_the_same_certificate() -> None:
    module, image = linear(), grid_images(1)[0]

    def predict(images: np.ndarray) -> np.ndarray:
        return ModuleSession(module).logits(images).argmax(1)

    first = certify(predict, image, NOISE)
    torch.manual_seed(5)
    assert certify(predict, image, NOISE) == first


def test_the_lower_bound_is_clopper_and_pearsons() -> None:
    for count, total in ((0, 10), (7, 10), (100, 100)):
        theirs = stats.binomtest(count, total, alternative="greater").proportion_ci(0.99, method="exact")
        assert lower_bound(count, total, 0.01) == pytest.approx(theirs.low)


def test_no_image_is_no_certificate() -> None:
    session = ModuleSession(linear())
    with pytest.raises(DataError, match="no images to certify"):
        certify_split(session, split_of(grid_images(0), np.zeros(0, np.int64)), NOISE, (), "1" * 64, silent)


def test_the_command_says_what_it_certifies(edgeprune, finished: Path) -> None:
    arguments = ("--test", finished / "test.npz", "--certify-samples", "4", "--certify-draws", "200", "--sigma", "0.1")
    said = edgeprune("certify", finished / "run" / "model.onnx", *arguments)
    assert said.code == 0, said.err
    assert "the smoothed classifier, not the file as it is served" in said.out
    assert "certified right" in said.out
    refused = edgeprune("certify", finished / "run" / "model.onnx", "--sigma", "0", *arguments[:2])
    assert refused.code == 2
    assert "--sigma 0: must be above 0" in refused.err
