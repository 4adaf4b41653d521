"""Looks: one pass serves verdict and gradient, and a verdict stays the word of the file's own session."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_examples import ModuleSession, budget_of, grid_images, labels_of, linear, silent, small_network
from test_way_back import SHAPE as TWIN_SHAPE
from test_way_back import WITH_RULES, both
from torch import Tensor, nn
from twin_examples import save

from edgeprune import protocols
from edgeprune.robustness.attacks.losses import Loss, Objective
from edgeprune.robustness.attacks.watching import DOUBT, Watch, doubtful
from edgeprune.robustness.gradients import seeds_of
from edgeprune.robustness.twin.building import build
from edgeprune.robustness.twin.source import gradients_of
from edgeprune.types import AttackOutcome, Preprocessing, Victim

FOLLOWING = ("pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "fmn")


@dataclass
class Glance:
    """A look through torch, whose logits may be told otherwise."""

    module: nn.Module
    points: Tensor
    told: Callable[[np.ndarray], np.ndarray]

    @property
    def logits(self) -> np.ndarray:
        with torch.no_grad():
            return self.told(self.module(self.points).numpy())

    def of(self, mask: np.ndarray) -> "Glance":
        return Glance(self.module, self.points[torch.from_numpy(mask)], self.told)

    def gradients(self, seeds: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = self.points.clone().requires_grad_(True)
            return torch.autograd.grad((self.module(leaf) * seeds).sum(), leaf)[0]


@dataclass
class Counted:
    """A victim of a module with looks; how many points the session was asked about, and looked at."""

    module: nn.Module
    told: Callable[[np.ndarray], np.ndarray] = lambda logits: logits
    asked: int = 0
    seen: int = 0

    def victim(self) -> Victim:
        return Victim(self.logits, self.module, (0.0, 1.0), self.pull, self.look)

    def logits(self, points: np.ndarray) -> np.ndarray:
        self.asked += len(points)
        return ModuleSession(self.module).logits(points)

    def look(self, points: Tensor) -> Glance:
        self.seen += len(points)
        return Glance(self.module, points.clone(), self.told)

    def pull(self, points: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        glance = Glance(self.module, points, self.told)
        return torch.from_numpy(glance.logits), glance.gradients(seeds)


def attacked(name: str, victim: Victim, images: np.ndarray, labels: np.ndarray, epsilon: float) -> AttackOutcome:
    attack: protocols.Attack = protocols.find("attack", name)
    return attack(victim, torch.from_numpy(images), torch.from_numpy(labels), budget_of(epsilon), progress=silent)


@pytest.mark.parametrize("name", FOLLOWING)
def test_same_images_fall_with_looks_and_without(name: str) -> None:
    module, images = small_network(), grid_images(48)
    counted, labels = Counted(module), labels_of(module, images)
    alone = Victim(ModuleSession(module).logits, module, (0.0, 1.0), counted.pull)
    found, wanted = (attacked(name, victim, images, labels, 0.03) for victim in (counted.victim(), alone))
    assert 0 < int(wanted.fell.sum()) < 48
    assert torch.equal(found.fell, wanted.fell)
    assert torch.equal(found.adversarials, wanted.adversarials)
    assert counted.seen > 4 * (counted.asked - 48)  # the clean images are always asked about


@pytest.mark.parametrize("name", FOLLOWING)
def test_look_alone_fells_nobody(name: str) -> None:
    module, images = linear(3), grid_images(12)
    counted = Counted(module, lambda logits: -logits)  # whatever stands looks fallen
    found = attacked(name, counted.victim(), images, labels_of(module, images), 1e-5)
    assert not bool(found.fell.any())


@pytest.mark.parametrize("name", ["pgd", "apgd-t"])
def test_nearest_point_of_a_pass_is_asked_about_though_its_look_says_that_it_stands(name: str) -> None:
    module, images = linear(4), grid_images(24)
    labels = labels_of(module, images)
    honest, flattered = Counted(module), Counted(module)
    wanted = attacked(name, honest.victim(), images, labels, 0.05)
    one = labels == labels[0]
    flattered.told = lambda logits: logits + 5 * np.eye(4, dtype=np.float32)[labels[0]]
    found = attacked(name, flattered.victim(), images[one], labels[one], 0.05)
    assert bool(wanted.fell[torch.from_numpy(one)].all())
    assert int(found.fell.sum()) > len(found.fell) / 2  # what it climbs is not quite the same


def test_looks_are_not_believed_again_once_the_session_differs() -> None:
    module, images = linear(2), grid_images(4)
    counted = Counted(module, lambda logits: logits + 1)
    watch = Watch.over(counted.victim(), images)
    looked = watch.look(images)
    assert looked is not None
    said = watch.asked(looked, images, np.array([True, False, False, False]))
    assert np.array_equal(said[0], ModuleSession(module).logits(images[:1])[0])
    assert np.array_equal(said[1:], looked.logits[1:])
    assert watch.look(images) is None


def test_look_that_is_no_number_is_left_to_the_session() -> None:
    module, images = linear(2), grid_images(4)
    assert Watch.over(Counted(module, lambda logits: logits * np.nan).victim(), images).look(images) is None


def test_doubt_grows_with_the_logits() -> None:
    logits = np.array([[10.0, 9.0], [10.0, 9.995], [1000.0, 999.5], [1.0, 2.0]], np.float32)
    margin = logits[:, 0].astype(np.float64) - logits[:, 1]
    assert DOUBT == 1e-3
    assert doubtful(logits, margin).tolist() == [False, True, True, True]


def test_nearest_point_of_each_image_is_kept_until_its_pass_ends() -> None:
    images = grid_images(3)
    watch = Watch.over(Counted(linear(2)).victim(), images)
    for margin in (np.array([3.0, 1.0]), np.array([2.0, 5.0])):
        watch.note(np.array([0, 2]), images[:2] * 0 + np.float32(margin).reshape(2, 1, 1, 1), margin)
    rows, points = watch.nearest(np.array([0, 1, 2]))
    assert rows.tolist() == [0, 2]
    assert [float(point.max()) for point in points] == [2.0, 1.0]
    assert not len(watch.nearest(np.array([0, 2]))[0])


@pytest.mark.parametrize("name", WITH_RULES)
def test_gradients_of_some_rows_are_those_of_all(name: str, tmp_path: Path) -> None:
    twin, pull = both(WITH_RULES[name], tmp_path)
    assert pull is not None
    points = torch.rand(9, *twin.layout.shape, generator=torch.Generator().manual_seed(4))
    seeds = torch.randn(9, twin.classes, generator=torch.Generator().manual_seed(5))
    looked, whole = pull.look(points), pull(points, seeds)[1]
    some, fewer = np.arange(9) % 3 > 0, np.array([True, False, False, True, True, False])
    part = looked.of(some).of(fewer)
    chosen = torch.from_numpy(np.flatnonzero(some)[fewer])
    assert np.array_equal(part.logits, looked.logits[chosen.numpy()])
    assert torch.allclose(part.gradients(seeds[chosen]), whole[chosen], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("runtime", "offered"), [("onnxruntime", True), ("openvino", False)])
def test_only_the_runtime_that_looks_is_stood_in_for(runtime: str, offered: bool, tmp_path: Path) -> None:
    file = save(WITH_RULES["relu"], tmp_path)
    twin, images = build(file), np.random.default_rng(0).random((4, *TWIN_SHAPE), np.float32)
    assert twin.module is not None
    session = ModuleSession(twin.module, runtime)
    found = gradients_of(twin, file, session, images, Preprocessing())
    assert found.pull is not None
    assert (found.look is not None) is offered


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
def test_slopes_of_a_loss_are_those_of_its_tape(loss: Loss, classes: int) -> None:
    draw = torch.Generator().manual_seed(classes)
    logits, labels = 5 * torch.randn(64, classes, generator=draw), torch.randint(classes, (64,), generator=draw)
    targets = (labels + 1 + torch.randint(classes - 1, (64,), generator=draw)) % classes
    objective = Objective(loss, labels, targets, torch.rand(64, generator=draw) + 0.5)
    wanted = seeds_of(logits, objective)
    for found, expected in zip(objective.slopes(logits), wanted, strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
