"""The decision attack: labels only."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_examples import ModuleSession, budget_of, grid_images, labels_of, linear, silent, small_network, victim_of

from edgeprune import protocols
from edgeprune.robustness.norms import distances
from edgeprune.types import Victim


def run(victim, images, labels, epsilon, norm="linf", queries=400, restarts=1, seed=0):
    attack = protocols.find("attack", "decision")
    budget = replace(budget_of(epsilon, norm, restarts=restarts, seed=seed), queries=queries)
    return attack(victim, torch.from_numpy(images), torch.from_numpy(labels), budget, progress=silent)


def exact(module, images, order):
    weight = module[1].weight.detach().double().numpy()
    bias = module[1].bias.detach().double().numpy()
    gap = images.reshape(len(images), -1) @ (weight[0] - weight[1]) + bias[0] - bias[1]
    return np.abs(gap) / np.linalg.norm(weight[0] - weight[1], order)


@pytest.mark.parametrize(("norm", "order", "share"), [("linf", 1, 0.98), ("l2", 2, 0.7)])
def test_linear_network_falls_near_its_exact_distance_and_never_below(norm, order, share):
    module, images = linear(), grid_images(30)
    far = exact(module, images, order)
    epsilon = float(np.median(far))
    found = run(victim_of(module), images, labels_of(module, images), epsilon, norm, queries=800)
    fell = found.fell.numpy()
    assert fell[far < share * epsilon].all()
    assert not fell[far > epsilon * (1 + 1e-6)].any()
    assert distances(found.adversarials.numpy(), images, norm).max() <= epsilon


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_but_the_label_is_looked_at(norm):
    """The same labels from one-hot answers: the same adversarials."""
    module, images = small_network(), grid_images(10)
    labels = labels_of(module, images)

    def one_hot(pixels):
        return torch.nn.functional.one_hot(module(pixels).argmax(1), 5).float()

    honest = run(victim_of(module), images, labels, 0.02, norm)
    hidden = run(Victim(ModuleSession(one_hot).logits, module, (0.0, 1.0)), images, labels, 0.02, norm)
    assert torch.equal(honest.adversarials, hidden.adversarials)
    assert honest.fell.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_more_is_asked_than_allowed(norm):
    module, images = linear(), grid_images(4)
    session, asked = ModuleSession(module), []

    def counting(pixels):
        asked.append(len(pixels))
        return session.logits(pixels)

    run(Victim(counting, module, (0.0, 1.0)), images, labels_of(module, images), 1e-4, norm, queries=100)
    assert sum(asked) <= 4 + 4 * 100  # the clean images, then the questions


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_result_does_not_depend_on_the_order(norm):
    module, images = small_network(), grid_images(8)
    labels = labels_of(module, images)
    one = run(victim_of(module), images, labels, 0.02, norm)
    other = run(victim_of(module), images[::-1].copy(), labels[::-1].copy(), 0.02, norm)
    assert torch.equal(one.fell, other.fell.flip(0))


def test_network_that_is_never_wrong_leaves_every_image():
    images = grid_images(3)

    def stubborn(pixels):
        return torch.tensor([[1.0, 0.0]]).expand(len(pixels), 2)

    module = linear()
    for norm in ("linf", "l2"):
        found = run(
            Victim(ModuleSession(stubborn).logits, module, (0.0, 1.0)), images, np.zeros(3, np.int64), 0.5, norm
        )
        assert not found.fell.any()
