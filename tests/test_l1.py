"""l1: the nearest points of the ball inside the box, and attacks that fall at the exact distance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_examples import budget_of, grid_images, labels_of, linear, silent, small_network, victim_of
from scipy import optimize

from edgeprune import protocols
from edgeprune.robustness.attacks.hyperplane import onto
from edgeprune.robustness.attacks.nearest import nearest
from edgeprune.robustness.norms import box, distances, project, random_starts, sparse_direction
from edgeprune.robustness.suites import suite


def exact_distances(module, images):
    """Of a linear network of two classes in the box [0, 1]: the steepest pixels are spent first."""
    weight, bias = (tensor.detach().double().numpy() for tensor in (module[1].weight, module[1].bias))
    flat = images.reshape(len(images), -1).astype(np.float64)
    gaps = flat @ (weight[0] - weight[1]) + bias[0] - bias[1]
    found = []
    for pixels, gap in zip(flat, gaps, strict=True):
        slope = -np.sign(gap) * (weight[0] - weight[1])
        room = np.where(slope > 0, 1 - pixels, pixels)
        left, spent = abs(gap), 0.0
        for place in np.argsort(-np.abs(slope)):
            step = min(room[place], left / abs(slope[place]))
            left, spent = left - step * abs(slope[place]), spent + step
        found.append(spent)
    return np.array(found)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "fmn"])
def test_linear_network_falls_just_above_its_exact_distance_and_never_below(name):
    module, images = linear(), grid_images(30)
    exact = exact_distances(module, images)
    epsilon = float(np.median(exact))
    attack = protocols.find("attack", name)
    given = torch.from_numpy(images), torch.from_numpy(labels_of(module, images))
    found = attack(victim_of(module), *given, budget_of(epsilon, "l1", steps=100), progress=silent)
    fell = found.fell.numpy()
    assert fell[exact < 0.95 * epsilon].all()
    assert not fell[exact > epsilon * (1 + 1e-6)].any()
    assert distances(found.adversarials.numpy(), images, "l1").max() <= epsilon
    assert 0 <= found.adversarials.min() <= found.adversarials.max() <= 1


@pytest.mark.parametrize("name", ["pgd", "square", "decision"])
def test_weaker_attacks_find_some_of_it_and_nothing_below(name):
    module, images = linear(), grid_images(30)
    exact = exact_distances(module, images)
    epsilon = float(np.median(exact))
    attack = protocols.find("attack", name)
    given = torch.from_numpy(images), torch.from_numpy(labels_of(module, images))
    budget = replace(budget_of(epsilon, "l1", steps=100), queries=800)
    fell = attack(victim_of(module), *given, budget, progress=silent).fell.numpy()
    assert not fell[exact > epsilon * (1 + 1e-6)].any()
    assert fell[exact < 0.3 * epsilon].all()
    assert fell.any()


def test_nearest_adversarials_are_as_near_as_the_exact_distance():
    module, images = linear(seed=5), grid_images(25)
    given = torch.from_numpy(images), torch.from_numpy(labels_of(module, images))
    found = nearest(victim_of(module), *given, budget_of(0, "l1", 200), progress=silent)
    ratios = found.distances / exact_distances(module, images)
    assert (ratios >= 1 - 1e-4).all()
    assert np.median(ratios) < 1.1


def test_projection_is_the_optimisers():
    draw = np.random.default_rng(0)
    for epsilon in (0.3, 1.0, 2.0):
        origin, wanted = draw.random(6), draw.uniform(-1, 2, 6)
        origins, points = (torch.tensor(array[None], dtype=torch.float32) for array in (origin, wanted))
        budget = budget_of(epsilon, "l1")
        found = project(points, origins, box(origins, budget, (0.0, 1.0)), budget)[0].numpy()
        ups_and_downs = [*(1 - origin), *origin]  # the change as two parts that are not negative
        solved = optimize.minimize(
            lambda parts, o=origin, w=wanted: np.sum((o + parts[:6] - parts[6:] - w) ** 2),
            np.zeros(12),
            bounds=[(0, most) for most in ups_and_downs],
            constraints=[{"type": "ineq", "fun": lambda parts, e=epsilon: e - parts.sum()}],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        best = origin + solved.x[:6] - solved.x[6:]
        assert np.sum((found - wanted) ** 2) <= np.sum((best - wanted) ** 2) + 1e-4
        assert np.abs(found.astype(np.float64) - origins[0].double().numpy()).sum() <= epsilon


def test_allowed_points_stay_where_they_are():
    origins = torch.full((1, 8), 0.5)
    points = origins.clone()
    points[0, 2] = 0.7
    budget = budget_of(0.5, "l1")
    assert torch.allclose(project(points, origins, box(origins, budget, (0.0, 1.0)), budget), points)


def test_nearest_point_of_a_hyperplane_in_a_box_is_a_linear_programs():
    draw = np.random.default_rng(1)
    for _ in range(12):
        point, normal = draw.random(6), draw.standard_normal(6)
        reach = np.where(normal > 0, normal * point, -normal * (1 - point)).sum()
        gap = draw.uniform(0.05, 0.9) * reach
        tensors = (torch.tensor(array[None], dtype=torch.float32) for array in (point, normal))
        change = onto(*tensors, torch.tensor([gap], dtype=torch.float32), (0.0, 1.0), "l1")[0].numpy()
        bounds = [*((0, 1 - each) for each in point), *((0, each) for each in point)]
        equal = np.concatenate([normal, -normal])[None]
        solved = optimize.linprog(np.ones(12), A_eq=equal, b_eq=[-gap], bounds=bounds, method="highs")
        assert normal @ change == pytest.approx(-gap, rel=1e-4)
        assert np.abs(change).sum() == pytest.approx(solved.fun, rel=1e-4)


def test_steps_change_the_largest_gradients_alone():
    gradients = torch.tensor([[0.1, -3.0, 2.0, 0.0]])
    assert sparse_direction(gradients, 0.5).tolist() == [[0.0, -0.5, 0.5, 0.0]]


def test_starts_lie_in_the_ball():
    origins = torch.from_numpy(grid_images(6))
    starts = random_starts(origins, budget_of(2.0, "l1"), 0)
    sizes = starts.flatten(1).abs().sum(1)
    assert (sizes <= 2.0 + 1e-5).all()
    assert sizes.min() > 1.0  # of sixteen pixels, nearly all of the ball is near its surface


def test_standard_has_the_published_numbers_for_l1():
    parts = [(part.name, part.restarts, part.targets) for part in suite("standard", "l1")]
    assert parts == [("apgd-ce", 5, None), ("apgd-t", 1, 5), ("fab-t", 1, 9), ("square", 1, None)]


def test_every_norm_leaves_the_network_that_the_others_leave_alone():
    """The same network falls in l1 at an epsilon that covers its l2 ball."""
    module, images = small_network(), grid_images(12)
    given = torch.from_numpy(images), torch.from_numpy(labels_of(module, images))
    attack = protocols.find("attack", "apgd-ce")
    small = attack(victim_of(module), *given, budget_of(0.1, "l2", steps=40), progress=silent).fell
    large = attack(victim_of(module), *given, budget_of(0.1 * 4, "l1", steps=40), progress=silent).fell
    assert (large | ~small).all()
    assert small.any()
