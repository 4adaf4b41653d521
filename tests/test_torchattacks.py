"""torchattacks behind its fence: it proposes, the runtime judges, and it leaves nothing behind."""

import random
import sys

import numpy as np
import pytest
import torch
from attack_examples import (
    ModuleSession,
    Scaled,
    budget_of,
    grid_images,
    labels_of,
    linear,
    silent,
    small_network,
    victim_of,
)

from edgeprune import protocols
from edgeprune.errors import MeasurementError, RuntimeMissingError, UsageError
from edgeprune.robustness.attacks import foreign
from edgeprune.robustness.norms import distances
from edgeprune.types import Victim

pytest.importorskip("torchattacks", exc_type=ImportError)


def run(name, module, images, labels, budget, victim=None):
    attack = protocols.find("attack", f"torchattacks:{name}")
    given = torch.from_numpy(images), torch.from_numpy(labels)
    return attack(victim or victim_of(module), *given, budget, progress=silent)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("PGD", "linf"),
        ("BIM", "linf"),
        ("APGD", "linf"),
        ("MIFGSM", "linf"),
        ("PGDL2", "l2"),
        ("DeepFool", "l2"),
        ("CW", "l2"),
    ],
)
def test_candidates_are_brought_into_the_ball_and_judged_by_the_runtime(name, norm):
    module, images = small_network(), grid_images(24)
    labels = labels_of(module, images)
    epsilon = 0.04 if norm == "linf" else 0.3
    found = run(name, module, images, labels, budget_of(epsilon, norm, steps=50))
    assert int(found.fell.sum()) > 12
    assert distances(found.adversarials.numpy(), images, norm).max() <= epsilon
    assert (labels_of(module, found.adversarials.numpy()) != labels)[found.fell.numpy()].all()
    assert torch.equal(found.adversarials[~found.fell], torch.from_numpy(images)[~found.fell])


def test_the_runtime_judges_and_not_the_network():
    module, images = small_network(), grid_images(10)
    labels = labels_of(module, images)
    stubborn = Victim(lambda pixels: np.eye(5, dtype=np.float32)[labels], module, (0.0, 1.0))
    assert not run("PGD", module, images, labels, budget_of(0.1), stubborn).fell.any()


class Shifted(torch.nn.Module):
    def __init__(self, network, constant):
        super().__init__()
        self.network, self.constant = network, constant

    def forward(self, images):
        return self.network(images) + self.constant


def test_a_constant_added_to_the_logits_does_not_change_what_cw_finds():
    module, images = small_network(), grid_images(20)
    labels, budget = labels_of(module, images), budget_of(0.2, "l2", steps=30)
    found = [run("CW", Shifted(module, shift), images, labels, budget).fell for shift in (0.0, -100.0, 100.0)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert found[0].any()


def test_black_and_white_pixels_do_not_break_cw():
    module, images = Scaled(small_network(), 30.0), grid_images(10)
    images[:, :, 0, :2], images[:, :, 1, :2] = 0.0, 1.0
    found = run("CW", module, images, labels_of(module, images), budget_of(2.0, "l2", steps=60))
    assert found.fell.any()


def test_pixels_may_have_other_bounds():
    class Wide(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network((images + 1) / 2)

    module, images = small_network(), grid_images(20)
    labels = labels_of(module, images)
    wide = Victim(ModuleSession(Wide(module)).logits, Wide(module), (-1.0, 1.0))
    narrow = run("PGD", module, images, labels, budget_of(0.02))
    found = run("PGD", None, images * 2 - 1, labels, budget_of(0.04), wide)
    assert int((narrow.fell != found.fell).sum()) <= 2
    assert narrow.fell.any()


def test_generators_network_and_output_are_left_alone(capsys):
    module, images = small_network().train(), grid_images(8)
    labels = labels_of(small_network(), images)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for name in ("PGD", "CW", "DeepFool", "Square", "Pixle"):
        run(name, module, images, labels, budget_of(0.05, steps=5))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert module.training
    assert all(weight.grad is None and weight.requires_grad for weight in module.parameters())
    assert capsys.readouterr().out == ""


def test_same_seed_same_adversarials():
    module, images = small_network(), grid_images(8)
    labels = labels_of(module, images)
    first, again, other = (run("PGD", module, images, labels, budget_of(0.05, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.adversarials, again.adversarials)
    assert not torch.equal(first.adversarials, other.adversarials)


def test_what_it_cannot_say_stays_open():
    module, images = linear(), grid_images(4)
    found = run("PGD", module, images, labels_of(module, images), budget_of(1e-4))
    assert found.gain is None
    assert found.late is None
    assert found.gradient_health.all()


@pytest.mark.parametrize("name", ["AutoAttack", "MultiAttack", "LGV"])
def test_what_would_bear_a_false_name_is_refused(name):
    with pytest.raises(UsageError, match=f"torchattacks:{name} is not run"):
        protocols.find("attack", f"torchattacks:{name}")


def test_unknown_attack_names_the_nearest():
    with pytest.raises(UsageError, match=r"no attack DeepFul\n  did you mean DeepFool\?"):
        protocols.find("attack", "torchattacks:DeepFul")


def test_unknown_family_is_refused():
    with pytest.raises(UsageError, match="unknown attack family: foolbox"):
        protocols.find("attack", "foolbox:PGD")


def test_failing_import_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(RuntimeMissingError, match="torchattacks cannot be imported"):
        protocols.find("attack", "torchattacks:PGD")


def test_failing_attack_is_no_result(monkeypatch):
    def fail(*_arguments, **_named):
        raise ZeroDivisionError("inside")

    module, images = linear(), grid_images(3)
    monkeypatch.setattr(foreign, "_settings", fail)
    with pytest.raises(MeasurementError, match="torchattacks:PGD failed: ZeroDivisionError: inside"):
        run("PGD", module, images, labels_of(module, images), budget_of(0.1))
