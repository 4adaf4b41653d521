"""PGD against victims whose exact answer is known, and what it must leave alone."""

import numpy as np
import onnx
import pytest
import torch
from attack_examples import (
    SHAPE,
    Constant,
    Misleading,
    ModuleSession,
    Saturated,
    Scaled,
    budget_of,
    grid_images,
    labels_of,
    linear,
    silent,
    small_network,
    victim_of,
)
from onnx import TensorProto, helper

from edgeprune.errors import DataError, MeasurementError
from edgeprune.robustness.attacks import batch_size, pgd, step_lengths
from edgeprune.robustness.attacks import run as attack_run
from edgeprune.robustness.gradients import at_rest, input_gradients, rescaled_cross_entropy
from edgeprune.robustness.norms import ascend, box, distances, project, random_starts
from edgeprune.types import Victim


def run(module, images, labels, budget, victim=None):
    return pgd(victim or victim_of(module), torch.from_numpy(images), torch.from_numpy(labels), budget, progress=silent)


def exact_distances(module, images, order):
    """Distance of each image from the boundary of a linear network of two classes."""
    weight = module[1].weight.detach().double().numpy()
    bias = module[1].bias.detach().double().numpy()
    gap = np.abs(images.reshape(len(images), -1).astype(np.float64) @ (weight[0] - weight[1]) + bias[0] - bias[1])
    return gap / np.linalg.norm(weight[0] - weight[1], order)


# ------------------------------------------------------------------------------------------ known answers


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2)])
def test_linear_network_falls_just_above_its_exact_distance_and_never_below(norm, order):
    module, images = linear(), grid_images(40)
    exact = exact_distances(module, images, order)
    labels = labels_of(module, images)
    for epsilon in np.quantile(exact, [0.2, 0.5, 0.8]):
        fell = run(module, images, labels, budget_of(float(epsilon), norm)).fell.numpy()
        assert fell[exact < 0.98 * epsilon].all()
        assert not fell[exact > epsilon].any()
        assert 0 < fell.sum() < 40


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_image_at_its_own_exact_distance(norm):
    module, images = linear(seed=3), grid_images(1, seed=5)
    exact = float(exact_distances(module, images, 1 if norm == "linf" else 2)[0])
    labels = labels_of(module, images)
    assert run(module, images, labels, budget_of(1.01 * exact, norm)).fell.item()
    assert not run(module, images, labels, budget_of(0.999 * exact, norm)).fell.item()


def test_exported_onnx_file_falls_at_the_exact_distance_of_its_weights():
    import onnxruntime

    module, images = linear(seed=2), grid_images(24, seed=2)
    session = onnxruntime.InferenceSession(onnx_of(module), providers=["CPUExecutionProvider"])
    victim = Victim(lambda pixels: session.run(None, {"images": pixels})[0], module, (0.0, 1.0))
    exact = exact_distances(module, images, 1)
    epsilon = float(np.median(exact))
    found = run(module, images, labels_of(module, images), budget_of(epsilon), victim)
    assert found.fell.numpy()[exact < 0.98 * epsilon].all()
    assert not found.fell.numpy()[exact > epsilon].any()
    adversarials = found.adversarials.numpy()[found.fell.numpy()]
    said = session.run(None, {"images": adversarials})[0].argmax(1)
    assert (said != labels_of(module, images)[found.fell.numpy()]).all()


def onnx_of(module):
    """The linear network of two layers as an ONNX file, made by hand."""
    weights = {name: tensor.detach().numpy() for name, tensor in module[1].named_parameters()}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
        ],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_the_runtime_judges_and_not_the_network():
    module, images = linear(), grid_images(20)
    labels = labels_of(module, images)
    stubborn = Victim(lambda pixels: np.eye(2, dtype=np.float32)[labels_like(pixels)], module, (0.0, 1.0))

    def labels_like(pixels):
        clean = images.reshape(20, -1)
        nearest = ((pixels.reshape(len(pixels), 1, -1) - clean) ** 2).sum(2).argmin(1)
        return labels[nearest]

    assert not run(module, images, labels, budget_of(0.05), stubborn).fell.any()
    assert run(module, images, labels, budget_of(0.05)).fell.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_adversarials_are_exactly_inside_epsilon_and_bounds(norm):
    module = small_network()
    images = np.random.default_rng(1).random((32, *SHAPE), dtype=np.float32)
    labels = labels_of(module, images)
    epsilon = 8 / 255 if norm == "linf" else 0.3
    found = run(module, images, labels, budget_of(epsilon, norm)).adversarials.numpy()
    assert distances(found, images, norm).max() <= epsilon
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1


def test_clean_mistakes_fall_at_once_and_keep_their_image():
    module, images = linear(), grid_images(10)
    wrong = 1 - labels_of(module, images)
    found = run(module, images, wrong, budget_of(0.1))
    assert found.fell.all()
    assert np.array_equal(found.adversarials.numpy(), images)
    assert found.gradient_health.all()


def test_survivors_keep_their_clean_image():
    module, images = linear(), grid_images(10)
    found = run(module, images, labels_of(module, images), budget_of(1e-6))
    assert not found.fell.any()
    assert np.array_equal(found.adversarials.numpy(), images)


# --------------------------------------------------------------------------- failures that must be noticed


@pytest.mark.parametrize("factor", [1e-4, 100.0, 1e4])
def test_scale_of_the_logits_does_not_change_the_result(factor):
    module, images = small_network(), grid_images(60)
    labels = labels_of(module, images)
    plain = run(module, images, labels, budget_of(0.02, restarts=2)).fell
    scaled = run(module, images, labels, budget_of(0.02, restarts=2), victim_of(Scaled(module, factor))).fell
    assert 10 < int(plain.sum()) < 50
    assert abs(int(plain.sum()) - int(scaled.sum())) <= 1


def test_plain_cross_entropy_would_have_lost_its_gradient():
    module, images = Scaled(small_network(), 1e6), torch.from_numpy(grid_images(8))
    labels = module(images).argmax(1)
    points = images.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(module(points), labels, reduction="sum")
    assert not torch.autograd.grad(loss, points)[0].any()
    assert input_gradients(module, images, labels)[1].all()


@pytest.mark.parametrize("module", [Constant(), Constant(reached=True), Saturated(linear())])
def test_network_without_a_gradient_is_reported(module):
    images = grid_images(6)
    found = run(module, images, labels_of(module, images), budget_of(0.01))
    assert not found.gradient_health[~found.fell].any()
    assert not found.gain[~found.fell].gt(1e-3).any()


def test_gradients_that_are_not_finite_are_reported():
    def broken(pixels):
        return torch.sqrt(pixels.flatten(1)[:, :2] * 0) + torch.tensor([1.0, 0.0])

    module = torch.nn.Sequential(Wrapped(broken))
    images = grid_images(4)
    found = run(module, images, np.zeros(4, np.int64), budget_of(0.01))
    assert not found.gradient_health.any()
    assert not found.fell.any()


class Wrapped(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def test_gradients_that_lead_away_leave_the_loss_where_it_was():
    module, images = Misleading(linear()), grid_images(12)
    found = run(module, images, labels_of(module, images), budget_of(0.01))
    assert found.gradient_health.all()
    assert found.gain[~found.fell].max() < 1e-3
    honest = run(linear(), images, labels_of(module, images), budget_of(0.01))
    assert honest.gain[~honest.fell].min() > 1e-2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error_even_when_only_an_iterate_shows_them(value):
    module, images = linear(), grid_images(8)
    session = ModuleSession(module)

    def poisoned(pixels):
        logits = session.logits(pixels)
        off_grid = np.abs(pixels * 255 - np.rint(pixels * 255)).reshape(len(pixels), -1).max(1) > 1e-3
        logits[off_grid] = value
        return logits

    with pytest.raises(MeasurementError, match="NaN or infinite logits"):
        run(module, images, labels_of(module, images), budget_of(0.01), Victim(poisoned, module, (0.0, 1.0)))


def test_one_logit_an_image_is_no_classifier():
    module = Wrapped(lambda pixels: pixels.flatten(1).sum(1, keepdim=True))
    with pytest.raises(MeasurementError, match="shape"):
        run(module, grid_images(3), np.zeros(3, np.int64), budget_of(0.01))


def test_images_outside_the_bounds_are_refused():
    module, images = linear(), grid_images(3)
    for broken in (images * 255, np.full_like(images, np.nan)):
        with pytest.raises(DataError, match=r"outside \[0, 1\]"):
            run(module, broken, np.zeros(3, np.int64), budget_of(0.01))


@pytest.mark.parametrize("label", [-1, 2])
def test_labels_that_are_no_classes_are_refused(label):
    with pytest.raises(DataError, match=f"a label is {label}"):
        run(linear(), grid_images(3), np.full(3, label, np.int64), budget_of(0.01))


def test_no_image_is_no_work():
    found = run(linear(), grid_images(0), np.zeros(0, np.int64), budget_of(0.01))
    assert found.adversarials.shape == (0, *SHAPE)


# ------------------------------------------------------------------------------------- what stays the same


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_result_does_not_depend_on_batches_or_order(monkeypatch, norm):
    module, images = small_network(), grid_images(50)
    labels = labels_of(module, images)
    budget = budget_of(0.015 if norm == "linf" else 0.04, norm, restarts=2)
    whole = run(module, images, labels, budget)
    order = np.random.default_rng(0).permutation(50)
    monkeypatch.setattr(attack_run, "_LARGEST_BATCH", 7)
    parts = run(module, images[order], labels[order], budget)
    assert 5 < int(whole.fell.sum()) < 45
    assert torch.equal(whole.fell[torch.from_numpy(order)], parts.fell)
    assert torch.allclose(whole.adversarials[torch.from_numpy(order)], parts.adversarials, atol=1e-5)


def test_same_seed_same_adversarials_and_another_seed_other_ones():
    module, images = small_network(), grid_images(20)
    labels = labels_of(module, images)
    first, again, other = (run(module, images, labels, budget_of(0.03, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.adversarials, again.adversarials)
    assert not torch.equal(first.adversarials, other.adversarials)


def test_starts_belong_to_the_image_and_differ_between_restarts():
    images = torch.from_numpy(grid_images(5))
    budget = budget_of(0.1)
    whole = random_starts(images, budget, 0)
    assert torch.equal(whole[3:4], random_starts(images[3:4], budget, 0))
    assert not torch.equal(whole, random_starts(images, budget, 1))
    assert whole.abs().max() <= 0.1
    assert random_starts(images, budget_of(0.1, "l2"), 0).flatten(1).norm(dim=1).max() <= 0.1 + 1e-6


def test_more_restarts_never_find_less():
    module, images = small_network(), grid_images(40)
    labels = labels_of(module, images)
    one, three = (run(module, images, labels, budget_of(0.01, steps=3, restarts=n)).fell for n in (1, 3))
    assert bool((three | ~one).all())


def test_global_generators_are_not_touched():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    module, images = small_network(), grid_images(10)
    run(module, images, labels_of(module, images), budget_of(0.05, restarts=2))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_network_is_left_as_it_was_found():
    module, images = small_network(), grid_images(10)
    labels = labels_of(module, images)
    module.train()
    module[1].eval()
    module[0].weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    run(module, images, labels, budget_of(0.05))
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert [weight.requires_grad for weight in module.parameters()] == [False, True, True, True, True, True]
    assert all(weight.grad is None for weight in module.parameters())


def test_network_is_left_as_it_was_found_after_an_error():
    module = small_network().train()
    with pytest.raises(ZeroDivisionError), at_rest(module):
        _ = 1 / int(module.training)
    assert module.training
    assert all(weight.requires_grad for weight in module.parameters())


def test_exported_program_can_give_the_gradients():
    module, images = small_network(), grid_images(20)
    labels = labels_of(module, images)
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(module, (torch.zeros(2, *SHAPE),), dynamic_shapes=shapes).module()
    victim = Victim(ModuleSession(module).logits, program, (0.0, 1.0))
    expected = run(module, images, labels, budget_of(0.02))
    assert torch.equal(run(module, images, labels, budget_of(0.02), victim).fell, expected.fell)


def test_attack_works_inside_no_grad_and_inference_mode():
    module, images = linear(), grid_images(10)
    labels = labels_of(module, images)
    expected = run(module, images, labels, budget_of(0.02)).fell
    with torch.no_grad():
        assert torch.equal(run(module, images, labels, budget_of(0.02)).fell, expected)
    with torch.inference_mode():
        assert torch.equal(run(module, images, labels, budget_of(0.02)).fell, expected)


def test_progress_never_goes_back_and_ends_at_one():
    module, images = small_network(), grid_images(30)
    shares = []
    pgd(
        victim_of(module),
        torch.from_numpy(images),
        torch.from_numpy(labels_of(module, images)),
        budget_of(0.01, steps=5, restarts=2),
        progress=lambda _text, share: shares.append(share),
    )
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert min(shares) >= 0


def test_fallen_images_cost_nothing_more():
    module, images = linear(), grid_images(64)
    asked = []
    session = ModuleSession(module)

    def counting(pixels):
        asked.append(len(pixels))
        return session.logits(pixels)

    found = run(module, images, labels_of(module, images), budget_of(1.0), Victim(counting, module, (0.0, 1.0)))
    assert found.fell.all()
    assert sum(asked) < 4 * 64


# -------------------------------------------------------------------------------------------- the geometry


def test_box_is_rounded_inwards():
    origins = torch.from_numpy(np.random.default_rng(0).random((50, *SHAPE), dtype=np.float32))
    budget = budget_of(1 / 3)
    low, high = box(origins, budget, (0.0, 1.0))
    exact = origins.double()
    assert ((exact - low.double()) <= budget.epsilon).all()
    assert ((high.double() - exact) <= budget.epsilon).all()
    assert ((high.double() - exact) > budget.epsilon - 1e-6)[high < 1].all()


def test_projection_leaves_allowed_points_alone_and_brings_the_others_to_the_surface():
    origins = torch.full((2, *SHAPE), 0.5)
    budget = budget_of(0.2, "l2")
    limits = box(origins, budget, (0.0, 1.0))
    points = origins + torch.tensor([0.01, 0.3]).view(2, 1, 1, 1)
    projected = project(points, origins, limits, budget)
    assert torch.allclose(projected[0], points[0], atol=1e-7)
    assert float((projected[1] - origins[1]).norm()) == pytest.approx(0.2, abs=1e-5)
    assert float((projected[1] - origins[1]).double().norm()) <= 0.2


def test_steps_do_not_depend_on_the_size_of_the_gradient():
    gradients = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    origins, length = torch.zeros(3, *SHAPE), torch.full((3,), 0.5)
    for norm in ("linf", "l2"):
        usual = ascend(origins, gradients, length, norm)
        assert torch.allclose(ascend(origins, gradients * 1e-30, length, norm), usual, atol=1e-6)
        assert torch.equal(ascend(origins, torch.zeros_like(gradients), length, norm), origins)
    assert torch.allclose(usual.flatten(1).norm(dim=1), length)


def test_steps_shrink_from_two_epsilon_to_almost_nothing():
    lengths = step_lengths(torch.arange(40), budget_of(0.1, steps=40))
    assert lengths[0] == pytest.approx(0.2)
    assert bool((lengths[1:] < lengths[:-1]).all())
    assert 0 < lengths[-1] < 1e-3


def test_loss_of_two_classes_is_finite_where_they_tie():
    logits = torch.tensor([[1.0, 1.0], [3.0, 1.0]], requires_grad=True)
    loss = rescaled_cross_entropy(logits, torch.tensor([0, 0])).sum()
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 0] < 0).all()


def test_large_images_go_in_small_batches():
    assert batch_size((3, 32, 32)) == 256
    assert batch_size((3, 1000, 1000)) == 8
