"""A targeted threat model: an image falls where the file says the target, and nowhere else."""

import numpy as np
import pytest
import torch
from attack_examples import ModuleSession, grid_images, labels_of, linear, silent, small_network, split_of

from edgeprune.config import AttackConfig
from edgeprune.errors import UsageError
from edgeprune.robustness import evaluate
from edgeprune.robustness.health import warnings
from edgeprune.robustness.twin import Gradients


def attacked(module, images, labels, target, eps="10/255", attack="pgd"):
    split = evaluate.attack_subset(split_of(images, labels), None, 0, without=target)
    threat = evaluate.threat_model(AttackConfig(attack=attack, eps=eps, target=target), (0.0, 1.0), split, 0)
    session = ModuleSession(module)
    return evaluate.attack_file(Gradients(module, session, "test"), split, threat, sha256="0" * 64, progress=silent)


@pytest.mark.parametrize("attack", ["pgd", "quick"])
def test_fallen_images_are_in_the_targets_class(attack):
    module, images = small_network(), grid_images(40)
    labels = labels_of(module, images)
    target = int(np.bincount(labels).argmax())
    outcome = attacked(module, images, labels, target, attack=attack)
    assert len(outcome.ids) == int((labels != target).sum())
    assert outcome.fell.any()
    said = labels_of(module, outcome.adversarials)
    assert (said[outcome.fell] == target).all()
    assert (outcome.adversarial_predictions[outcome.fell] == target).all()
    assert outcome.record.twin_disagreement == 0
    assert not warnings("dense", outcome.health)


def test_a_target_is_harder_than_any_other_class():
    module, images = linear(6, seed=6), grid_images(40)
    labels = labels_of(module, images)
    target = int(labels[0])
    outcome = attacked(module, images, labels, target, eps="4/255")
    split = evaluate.attack_subset(split_of(images, labels), None, 0, without=target)
    threat = evaluate.threat_model(AttackConfig(eps="4/255"), (0.0, 1.0), split, 0)
    free = evaluate.attack_file(
        Gradients(module, ModuleSession(module), "test"), split, threat, sha256="0" * 64, progress=silent
    )
    assert outcome.record.fell < free.record.fell


def test_exact_distance_to_the_target():
    module, images = linear(4, seed=2), grid_images(40)
    labels = labels_of(module, images)
    target = int(labels[0])
    outcome = attacked(module, images, labels, target, eps="20/255")
    weight, bias = (tensor.detach().double().numpy() for tensor in (module[1].weight, module[1].bias))
    flat = outcome.adversarials.reshape(len(outcome.ids), -1).astype(np.float64)
    logits = flat @ weight.T + bias
    assert (logits[outcome.fell].argmax(1) == target).all()
    clean = images[outcome.ids].reshape(len(outcome.ids), -1).astype(np.float64) @ weight.T + bias
    rivals = [
        (clean[:, k] - clean[:, target]) / np.abs(weight[k] - weight[target]).sum() for k in range(4) if k != target
    ]
    needed = np.max(rivals, axis=0)  # every other class must be passed: at least the farthest of them
    assert not outcome.fell[needed > 20 / 255 + 1e-6].any()


def test_a_class_that_does_not_exist_is_an_error():
    module, images = linear(), grid_images(4)
    with pytest.raises(UsageError, match="no class 7"):
        attacked(module, images, labels_of(module, images), 7)


def test_ties_are_the_lower_index_as_they_are_for_the_file():
    from edgeprune.robustness.targeted import TowardsSession

    session = ModuleSession(lambda images: torch.tensor([[1.0, 1.0, 0.0]]).expand(len(images), 3))
    pixels = grid_images(2)
    assert TowardsSession(session, 0).logits(pixels).argmax(1).tolist() == [1, 1]
    assert TowardsSession(session, 1).logits(pixels).argmax(1).tolist() == [0, 0]
