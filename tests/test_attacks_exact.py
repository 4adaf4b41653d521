"""Every attack against victims whose exact answer is known, and what none of them may depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_examples import (
    SHAPE,
    Constant,
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
from scipy import optimize

from edgeprune import protocols
from edgeprune.errors import DataError, MeasurementError
from edgeprune.robustness.attacks import run as attack_run
from edgeprune.robustness.attacks.apgd import checkpoints
from edgeprune.robustness.attacks.hyperplane import onto
from edgeprune.robustness.attacks.losses import Objective, scaled
from edgeprune.robustness.attacks.nearest import nearest
from edgeprune.robustness.attacks.replay import replay
from edgeprune.robustness.attacks.square import side_of
from edgeprune.robustness.norms import distances
from edgeprune.robustness.verdicts import margins, mistaken
from edgeprune.types import Victim

PRECISE = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "fmn")
ALL = (*PRECISE, "fgsm", "pgd", "square")
NORMS = ("linf", "l2")


def run(name, module, images, labels, budget, victim=None):
    attack = protocols.find("attack", name)
    given = torch.from_numpy(images), torch.from_numpy(labels)
    return attack(victim or victim_of(module), *given, budget, progress=silent)


def queries(budget, number):
    return replace(budget, queries=number)


def exact_distances(module, images, norm):
    """Distance of each image from the nearest boundary of a linear network of any number of classes."""
    weight, bias = (tensor.detach().double().numpy() for tensor in (module[1].weight, module[1].bias))
    logits = images.reshape(len(images), -1).astype(np.float64) @ weight.T + bias
    labels = logits.argmax(1)
    dual = 1 if norm == "linf" else 2
    found = np.full(len(images), np.inf)
    for row, label in enumerate(labels):
        for other in set(range(len(bias))) - {label}:
            gap = logits[row, label] - logits[row, other]
            found[row] = min(found[row], gap / np.linalg.norm(weight[label] - weight[other], dual))
    return found


# ------------------------------------------------------------------------------------------ known answers


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PRECISE)
def test_linear_network_falls_just_above_its_exact_distance_and_never_below(name, norm, classes):
    module, images = linear(classes, seed=classes), grid_images(30)
    exact = exact_distances(module, images, norm)
    epsilon = float(np.median(exact))
    found = run(name, module, images, labels_of(module, images), budget_of(epsilon, norm, steps=60))
    fell = found.fell.numpy()
    share = 0.7 if name == "fmn" and classes > 2 else 1.0  # it keeps to the class that it met first
    assert fell[exact < 0.97 * epsilon].mean() >= share
    assert not fell[exact > epsilon * (1 + 1e-6)].any()
    assert distances(found.adversarials.numpy(), images, norm).max() <= epsilon


@pytest.mark.parametrize("norm", NORMS)
def test_square_finds_most_of_what_a_linear_network_loses_and_nothing_below(norm):
    module, images = linear(3, seed=3), grid_images(30)
    exact = exact_distances(module, images, norm)
    epsilon = float(np.median(exact))
    fell = run("square", module, images, labels_of(module, images), queries(budget_of(epsilon, norm), 800)).fell.numpy()
    assert not fell[exact > epsilon * (1 + 1e-6)].any()
    assert fell[exact < 0.6 * epsilon].mean() > 0.7


def test_one_step_falls_at_the_exact_distance_of_two_classes_and_says_that_the_loss_still_moved():
    module, images = linear(), grid_images(40)
    exact = exact_distances(module, images, "linf")
    epsilon = float(np.median(exact))
    found = run("fgsm", module, images, labels_of(module, images), budget_of(epsilon))
    assert (found.fell.numpy() == (exact < epsilon)).all()
    assert (found.late[~found.fell] > 0.005).float().mean() > 0.9


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_nearest_adversarials_are_as_near_as_the_exact_distance(norm, classes):
    module, images = linear(classes, seed=5), grid_images(25)
    labels = labels_of(module, images)
    labels[0] = (labels[0] + 1) % classes
    found = nearest(
        victim_of(module), torch.from_numpy(images), torch.from_numpy(labels), budget_of(0, norm, 80), progress=silent
    )
    exact = exact_distances(module, images, norm)
    assert found.distances[0] == 0
    assert (found.distances[1:] >= exact[1:] * (1 - 1e-4)).all()
    ratios = found.distances[1:] / exact[1:]
    assert np.median(ratios) < 1.01
    assert ratios.max() < 1.02
    assert np.allclose(distances(found.points, images, norm), found.distances)
    assert (labels_of(module, found.points) != labels).all()


@pytest.mark.parametrize("norm", NORMS)
def test_nearest_point_of_a_hyperplane_in_a_box_is_the_optimisers(norm):
    draw = np.random.default_rng(0)
    for trial in range(12):
        point, normal = draw.random(6), draw.standard_normal(6)
        normal[trial % 6] = 0.0
        point[(trial + 1) % 6] = float(trial % 2)  # no room on one side
        reach = np.where(normal > 0, normal * point, -normal * (1 - point)).sum()
        gap = draw.uniform(0.05, 0.9) * reach
        tensors = (torch.tensor(array[None], dtype=torch.float32) for array in (point, normal))
        change = onto(*tensors, torch.tensor([gap], dtype=torch.float32), (0.0, 1.0), norm)[0].numpy()
        assert normal @ change == pytest.approx(-gap, rel=1e-4)
        assert (point + change >= -1e-6).all()
        assert (point + change <= 1 + 1e-6).all()
        size = np.abs(change).max() if norm == "linf" else np.linalg.norm(change)
        assert size == pytest.approx(_smallest(point, normal, gap, norm), rel=1e-3)


def _smallest(point, normal, gap, norm):
    """The same problem for an optimiser: a linear program, or least squares under constraints."""
    bounds = [(-each, 1 - each) for each in point]
    if norm == "linf":
        ones = np.ones((6, 1))
        limits = np.block([[np.eye(6), -ones], [-np.eye(6), -ones]])
        equal = np.append(normal, 0.0)[None]
        solved = optimize.linprog(
            [0] * 6 + [1], limits, np.zeros(12), equal, [-gap], [*bounds, (0, None)], method="highs"
        )
        return solved.fun
    constraint = {"type": "eq", "fun": lambda change: normal @ change + gap}
    start = np.clip(-normal * gap / (normal @ normal), *np.array(bounds).T)
    solved = optimize.minimize(
        lambda change: change @ change, start, bounds=bounds, constraints=[constraint], options={"ftol": 1e-12}
    )
    return np.sqrt(solved.fun)


def test_hyperplane_out_of_reach_leads_as_far_as_the_box_lets():
    points, normals = torch.full((1, 4), 0.25), torch.tensor([[1.0, -2.0, 0.0, 3.0]])
    change = onto(points, normals, torch.tensor([100.0]), (0.0, 1.0), "linf")
    assert torch.allclose(points + change, torch.tensor([[0.0, 1.0, 0.25, 0.0]]))


def test_checkpoints_are_the_published_ones():
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert checkpoints(1) == {1: 1}


def test_squares_shrink_as_published():
    sides = [side_of(query, 1024, 32) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001)]
    assert sides == [29, 29, 20, 14, 10, 7, 5, 4, 3]
    assert side_of(4999, 16, 4) == 1


# ------------------------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "fmn"])
def test_scale_of_the_logits_does_not_change_the_result(name):
    module, images = small_network(), grid_images(40)
    labels, budget = labels_of(module, images), budget_of(0.015, steps=25)
    plain = run(name, module, images, labels, budget).fell
    assert 5 < int(plain.sum()) < 35
    for factor in (1e-4, 100.0, 1e4):
        scaled = run(name, module, images, labels, budget, victim_of(Scaled(module, factor))).fell
        assert int((plain != scaled).sum()) <= 1


class Probabilities(torch.nn.Module):
    """A network that ends in a softmax, with logits sharp enough that its cross-entropy is dead."""

    def __init__(self, network, sharpness):
        super().__init__()
        self.network, self.sharpness = network, sharpness

    def forward(self, images):
        return torch.softmax(self.sharpness * self.network(images), dim=1)


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "fmn"])
def test_softmax_as_output_hides_nothing(name):
    module, images = small_network(), grid_images(40)
    labels, budget = labels_of(module, images), budget_of(0.015, steps=25)
    plain = run(name, module, images, labels, budget).fell
    for sharpness in (1.0, 20.0):
        soft = run(name, module, images, labels, budget, victim_of(Probabilities(module, sharpness))).fell
        assert int((plain & ~soft).sum()) <= 2


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("norm", NORMS)
def test_result_does_not_depend_on_batches_or_order(monkeypatch, name, norm):
    module, images = small_network(), grid_images(24)
    labels = labels_of(module, images)
    budget = queries(budget_of(0.012 if norm == "linf" else 0.035, norm, steps=12, restarts=2), 60)
    whole = run(name, module, images, labels, budget)
    order = np.random.default_rng(0).permutation(24)
    monkeypatch.setattr(attack_run, "_LARGEST_BATCH", 5)
    monkeypatch.setattr(attack_run, "_SMALLEST_BATCH", 1)
    parts = run(name, module, images[order], labels[order], budget)
    assert 0 < int(whole.fell.sum()) < 24
    assert torch.equal(whole.fell[torch.from_numpy(order)], parts.fell)
    assert torch.allclose(whole.adversarials[torch.from_numpy(order)], parts.adversarials, atol=1e-5)


@pytest.mark.parametrize("name", ["apgd-ce", "square"])
def test_same_seed_same_adversarials_and_another_seed_other_ones(name):
    module, images = small_network(), grid_images(20)
    labels = labels_of(module, images)
    first, again, other = (
        run(name, module, images, labels, queries(budget_of(0.03, seed=seed), 60)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.adversarials, again.adversarials)
    assert not torch.equal(first.adversarials, other.adversarials)


@pytest.mark.parametrize("name", ALL)
def test_global_generators_and_the_network_are_left_as_they_were(name):
    module, images = small_network().train(), grid_images(8)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    labels, budget = labels_of(small_network(), images), queries(budget_of(0.02), 60)
    run(name, module, images, labels, budget, victim_of(module))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert module.training
    assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in module.parameters())


# --------------------------------------------------------------------------- failures that must be noticed


@pytest.mark.parametrize("name", PRECISE)
@pytest.mark.parametrize("reached", [False, True])
def test_network_without_a_gradient_is_reported(name, reached):
    module, images = Constant(reached=reached), grid_images(6)
    found = run(name, module, images, labels_of(module, images), budget_of(0.01))
    assert not found.fell.any()
    assert not found.gradient_health.any()


@pytest.mark.parametrize("name", ALL)
def test_logits_that_are_no_numbers_are_an_error(name):
    module, images = linear(), grid_images(8)
    session = ModuleSession(module)

    def poisoned(pixels):
        logits = session.logits(pixels)
        off_grid = np.abs(pixels * 255 - np.rint(pixels * 255)).reshape(len(pixels), -1).max(1) > 1e-3
        logits[off_grid] = np.nan
        return logits

    victim = Victim(poisoned, module, (0.0, 1.0))
    with pytest.raises(MeasurementError, match="NaN or infinite logits"):
        run(name, module, images, labels_of(module, images), budget_of(0.01), victim)


def test_square_needs_no_network():
    module, images = linear(), grid_images(10)
    victim = Victim(ModuleSession(module).logits, Constant(2), (0.0, 1.0))
    found = run("square", module, images, labels_of(module, images), budget_of(0.2), victim)
    assert found.fell.all()
    assert found.gradient_health.all()


def test_square_asks_no_more_than_its_queries():
    module, images = linear(), grid_images(4)
    asked = []
    session = ModuleSession(module)

    def counting(pixels):
        asked.append(len(pixels))
        return session.logits(pixels)

    budget = queries(budget_of(1e-4), 50)
    found = run("square", module, images, labels_of(module, images), budget, Victim(counting, module, (0.0, 1.0)))
    assert not found.fell.any()
    assert sum(asked) <= 4 * (1 + 50)


def test_square_refuses_what_is_no_image():
    module = torch.nn.Linear(5, 2)
    with pytest.raises(DataError, match="square attack needs images"):
        run("square", module, np.full((2, 5), 0.5, np.float32), np.zeros(2, np.int64), budget_of(0.1))


# -------------------------------------------------------------------------------------------------- replay


def test_replay_believes_what_the_runtime_misclassifies_inside_the_ball_alone():
    module, images = linear(seed=4), grid_images(20)
    labels = labels_of(module, images)
    source = run("apgd-ce", module, images, labels, budget_of(0.05))
    given = torch.from_numpy(images), torch.from_numpy(labels)
    again = replay(source.adversarials)(victim_of(module), *given, budget_of(0.05), progress=silent)
    assert torch.equal(again.fell, source.fell)
    assert torch.equal(again.adversarials, source.adversarials)
    smaller = replay(source.adversarials)(victim_of(module), *given, budget_of(0.01), progress=silent)
    assert not smaller.fell.any()
    broken = torch.full_like(source.adversarials, torch.nan)
    assert not replay(broken)(victim_of(module), *given, budget_of(0.05), progress=silent).fell.any()


def test_replay_of_other_images_is_refused():
    module, images = linear(), grid_images(3)
    given = torch.from_numpy(images), torch.from_numpy(labels_of(module, images))
    with pytest.raises(DataError, match="cannot be replayed"):
        replay(torch.zeros(2, *SHAPE))(victim_of(module), *given, budget_of(0.1), progress=silent)


@pytest.mark.parametrize("norm", NORMS)
def test_a_projection_does_not_depend_on_its_neighbours(norm):
    generator = torch.Generator().manual_seed(4)
    points, normals = torch.rand(40, 300, generator=generator), torch.randn(40, 300, generator=generator)
    gaps = normals.abs().sum(1) * torch.linspace(0.0, 0.4, 40)  # from one Newton step to many
    together = onto(points, normals, gaps, (0.0, 1.0), norm)
    alone = [onto(points[k : k + 1], normals[k : k + 1], gaps[k : k + 1], (0.0, 1.0), norm) for k in range(40)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    reached = (together * normals).sum(1)
    assert torch.allclose(reached, -gaps, rtol=1e-4, atol=1e-4)


def test_one_pixel_too_far_is_outside():
    module, images = linear(), grid_images(4)
    labels, budget = torch.from_numpy(labels_of(module, images)), budget_of(0.1)
    run_of = attack_run.Run.begin(victim_of(module), torch.from_numpy(images), labels, budget, torch.device("cpu"))
    points = np.clip(images + 0.05, 0, 1).astype(np.float32)
    points[1].reshape(-1)[5] = images[1].reshape(-1)[5] + (0.2 if images[1].reshape(-1)[5] < 0.5 else -0.2)
    points[2] = 1 - points[2]
    mask = np.array([True, True, True, False])
    assert run_of._within(np.arange(4), points, mask).tolist() == [True, False, False, False]


def test_a_tie_is_decided_by_the_lower_index():
    logits, labels = np.array([[1, 1], [1, 1], [2, 1], [1, 2]], np.float32), np.array([0, 1, 0, 0])
    assert mistaken(logits, labels, margins(logits, labels)).tolist() == [False, True, False, True]


@pytest.mark.parametrize(("loss", "classes"), [("ce", 5), ("dlr", 2), ("dlr", 3), ("targeted", 3), ("targeted", 4)])
def test_scales_count_where_the_loss_says_so(loss, classes):
    logits, labels = (
        torch.randn(6, classes, generator=torch.Generator().manual_seed(5)),
        torch.zeros(6, dtype=torch.int64),
    )
    found = [
        Objective(loss, labels, labels + 1, scales).slopes(logits) for scales in (torch.ones(6), torch.full((6,), 3.0))
    ]
    same = all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert same is not scaled(loss, classes)
