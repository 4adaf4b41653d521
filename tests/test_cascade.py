"""Suites in a row, what a threat model says of them, and networks that none of them may call robust."""

import importlib.util
import logging

import numpy as np
import pytest
import torch
from attack_examples import (
    Constant,
    ModuleSession,
    Saturated,
    budget_of,
    grid_images,
    labels_of,
    linear,
    silent,
    small_network,
    split_of,
    victim_of,
)

from edgeprune import protocols
from edgeprune.config import AttackConfig, load_config
from edgeprune.errors import UsageError
from edgeprune.records import AttackPart
from edgeprune.robustness import evaluate
from edgeprune.robustness.attacks.cascade import cascade
from edgeprune.robustness.health import Health, warnings
from edgeprune.robustness.suites import SUITES, effort
from edgeprune.robustness.twin import Gradients
from edgeprune.types import Victim

SHORT = (
    AttackPart(name="apgd-ce", steps=20),
    AttackPart(name="apgd-t", steps=10, targets=9),
    AttackPart(name="fab-t", steps=10, targets=9),
    AttackPart(name="square", queries=200),
)


def run(parts, module, images, labels, epsilon, victim=None, progress=silent):
    given = torch.from_numpy(images), torch.from_numpy(labels)
    return cascade(parts, victim or victim_of(module), *given, budget_of(epsilon), progress=progress)


def attacked(module, images, labels, epsilon, runtime=None, attack="quick"):
    split = split_of(images, labels)
    threat = evaluate.threat_model(
        AttackConfig(attack=attack, eps=f"{round(epsilon * 255000)}/255000"), (0.0, 1.0), split, 0
    )
    session = ModuleSession(runtime or module)
    return evaluate.attack_file(Gradients(module, session, "test"), split, threat, sha256="0" * 64, progress=silent)


# ------------------------------------------------------------------------------------------------- suites


def test_standard_has_the_published_settings():
    parts = [(part.name, part.steps, part.restarts, part.targets, part.queries) for part in SUITES["standard"]]
    assert parts == [
        ("apgd-ce", 100, 1, None, None),
        ("apgd-t", 100, 1, 9, None),
        ("fab-t", 100, 1, 9, None),
        ("square", None, 1, None, 5000),
    ]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_every_part_takes_what_the_ones_before_left(classes):
    module, images = small_network(classes=classes), grid_images(40)
    labels = labels_of(module, images)
    whole = run(SHORT, module, images, labels, 0.012)
    alone = [run((part,), module, images, labels, 0.012).fell for part in SHORT]
    assert torch.equal(whole.fell, torch.stack(alone).any(0))
    assert 0 < int(whole.fell.sum()) < 40


def test_progress_never_goes_back_and_ends_at_one():
    module, images, shares = small_network(), grid_images(12), []
    run(SHORT, module, images, labels_of(module, images), 0.012, progress=lambda _text, share: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_fallen_images_are_not_attacked_again():
    module, images = linear(), grid_images(16)
    session, asked = ModuleSession(module), []

    def counting(pixels):
        asked.append(len(pixels))
        return session.logits(pixels)

    found = run(SHORT, module, images, labels_of(module, images), 0.5, Victim(counting, module, (0.0, 1.0)))
    assert found.fell.all()
    assert sum(asked) < 4 * 16


# --------------------------------------------------------------------------------- what a threat model says


def test_threat_model_lists_what_a_suite_runs():
    split = split_of(grid_images(3), np.zeros(3, np.int64))
    threat = evaluate.threat_model(AttackConfig(attack="standard"), (0.0, 1.0), split, 0)
    assert threat.parts == SUITES["standard"]
    assert (threat.attack, threat.steps, threat.restarts) == ("standard", 100, 1)
    said = effort(threat).split(", then ")
    targeted = "100 steps x 9 targets"
    assert said == ["apgd-ce 100 steps", f"apgd-t {targeted}", f"fab-t {targeted}", "square 5,000 queries"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "40 steps, 2 restarts"),
        ({"attack": "fgsm"}, "1 step, 1 restart"),
        ({"attack": "square", "queries": 300, "restarts": 1}, "300 queries"),
        ({"attack": "apgd-t", "targets": 4, "steps": 20}, "20 steps x 4 targets x 2 restarts"),
        ({"attack": "torchattacks:CW", "restarts": 1}, "40 steps, 1 restart"),
    ],
)
def test_effort_is_said_as_it_was_spent(settings, said):
    split = split_of(grid_images(3), np.zeros(3, np.int64))
    assert effort(evaluate.threat_model(AttackConfig(**settings), (0.0, 1.0), split, 0)) == said


@pytest.mark.parametrize("attack", ["standard", "quick"])
@pytest.mark.parametrize("setting", ["steps", "restarts", "targets", "queries"])
def test_nothing_else_may_be_called_by_the_name_of_a_suite(attack, setting):
    with pytest.raises(UsageError, match=f"{attack} has its own settings: leave out {setting}"):
        load_config(None, {"attack": {"attack": attack, setting: "7"}})


def test_unknown_attack_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown attack: standart\n  did you mean standard\?"):
        protocols.find("attack", "standart")


# ------------------------------------------------------------------------- networks that hide their gradients


class Shattered(torch.nn.Module):
    """A network whose input is rounded to a few levels: right answers, and no gradient at all."""

    def __init__(self, network, levels=64):
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, images):
        return self.network(torch.round(images * self.levels) / self.levels)


class Noisy(torch.nn.Module):
    """A network with gradients that point anywhere: a fast ripple on its input, far too small to matter."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images + 2e-5 * torch.sin(1e6 * images))


@pytest.mark.parametrize("hide", [Shattered, Noisy, Saturated])
def test_hidden_gradients_are_broken_through_or_flagged(hide):
    module, images = linear(3, seed=3), grid_images(60)
    outcome = attacked(hide(module), images, labels_of(hide(module), images), 0.06)
    open_one = attacked(module, images, labels_of(module, images), 0.06)
    missed = outcome.record.robust.count - open_one.record.robust.count
    assert open_one.record.robust.count < 30
    assert missed <= 3 or warnings("compressed", outcome.health)


def test_queries_that_beat_gradients_are_flagged():
    module, images = linear(), grid_images(40)
    broken = Shattered(module)
    outcome = attacked(broken, images, labels_of(broken, images), 0.06)
    assert outcome.health.black_box > 2
    assert any("fell to queries alone" in line for line in warnings("dense", outcome.health))


def test_honest_network_is_not_flagged():
    module, images = small_network(), grid_images(50)
    outcome = attacked(module, images, labels_of(module, images), 0.012)
    assert 5 < outcome.record.fell < 45
    assert warnings("dense", outcome.health) == ()


def test_attack_that_stops_too_early_is_flagged():
    module, images = small_network(), grid_images(50)
    outcome = attacked(module, images, labels_of(module, images), 0.012, attack="fgsm")
    assert any("still moving in the last steps" in line for line in warnings("dense", outcome.health))


def test_constant_network_is_flagged_by_every_suite():
    module, images = Constant(), grid_images(6)
    outcome = attacked(module, images, labels_of(module, images), 0.05)
    assert outcome.health.constant
    assert outcome.health.dead == 6


def test_limits_of_the_new_checks():
    healthy = dict(
        images=100, attacked=100, dead=0, survivors=50, flat=0, twin_disagreements=0, claims=50, rejected=0, probed=10,
        probe_stood=0, constant=False,
    )  # fmt: skip
    assert warnings("dense", Health(**healthy, moving=5, black_box=2)) == ()
    assert len(warnings("dense", Health(**healthy, moving=6, black_box=3))) == 2
    assert warnings("dense", Health(**healthy, moving=None)) == ()


# -------------------------------------------------------------------------------------- the upstream code


@pytest.mark.skipif(
    importlib.util.find_spec("pyautoattack") is None, reason="pyautoattack is not installed: pip install pyautoattack"
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_standard_agrees_with_pyautoattack(norm):
    import pyautoattack

    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Linear(100, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10)
        module = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten(), *layers)
        images = grid_images(30, shape=(1, 10, 10), low=0, high=256)
        module(torch.from_numpy(images))  # the batch norm learns what the images are like
    module.eval()
    labels, epsilon = labels_of(module, images), 0.02 if norm == "linf" else 0.15
    given = torch.from_numpy(images), torch.from_numpy(labels)
    attack = protocols.find("attack", "standard")
    ours = attack(victim_of(module), *given, budget_of(epsilon, norm), progress=silent)
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        upstream = pyautoattack.AutoAttack(module, norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, seed=0)
        adversarials, _ = upstream.run_standard_evaluation(*given, batch_size=40)
    theirs = torch.from_numpy(labels_of(module, adversarials.numpy())) != given[1]
    assert 5 < int(theirs.sum()) < 25
    assert not (theirs & ~ours.fell).any()
    assert int((ours.fell != theirs).sum()) <= 1
