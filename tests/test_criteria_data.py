"""OBD against exact second derivatives, Taylor under attack against a network whose adversarials are known, APoZ by
counting."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_networks import PRUNABLE, Chain, Lambda, bundle_of, calibrated, randomized, split_of, stripes

from edgeprune.errors import PruningError, UsageError
from edgeprune.protocols import find
from edgeprune.pruning import criteria
from edgeprune.pruning.criteria.gradients import ADVERSARIAL_EPSILON, boundary_distances
from edgeprune.pruning.graph import trace
from edgeprune.types import ChannelGraph, Group, Member, ModelBundle, Preprocessing, Split


def traced(name: str = "Chain") -> tuple[ModelBundle, ChannelGraph]:
    bundle = bundle_of(randomized(PRUNABLE[name]()))
    return bundle, trace(bundle)


def data(count: int = 24) -> Split:
    return split_of(*stripes(count))


def curvature(bundle: ModelBundle, readers: tuple[nn.Module, ...], width: int, split: Split) -> Tensor:
    """The exact second derivative of the mean loss at a gate on each channel that `readers` read."""
    images, labels = (torch.from_numpy(each) for each in next(split.batches(len(split))))
    bundle.module.double()

    def loss(gates: Tensor) -> Tensor:
        def close(layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            seen = inputs[0]
            wide = gates.repeat_interleave(seen.shape[1] // width) if seen.ndim == 2 else gates  # behind a flatten
            return seen * (wide if isinstance(layer, nn.Linear) else gates.view(-1, 1, 1))

        hooks = [reader.register_forward_pre_hook(close) for reader in readers]
        found = nn.functional.cross_entropy(bundle.module(images.double()), labels)
        for hook in hooks:
            hook.remove()
        return found

    exact = torch.autograd.functional.hessian(loss, torch.ones(width, dtype=torch.float64)).diagonal()
    bundle.module.float()
    return exact


@pytest.mark.parametrize(
    ("name", "group", "layers"),
    [("Chain", "conv2.0", ("head.fc",)), ("Chain", "conv1.0", ("conv2.0",)), ("Residual", "middle.0", ("out.0",)),
     ("Flattened", "fc1", ("fc2",)), ("Flattened", "conv", ("fc1",))],
)  # fmt: skip
def test_obd_is_the_exact_diagonal_where_logits_are_linear_in_a_gate(
    name: str, group: str, layers: tuple[str, ...]
) -> None:
    bundle, graph = traced(name)  # piecewise linear in each gate: the second derivative of the loss is all there is
    split = data(50)  # more than a batch
    readers = tuple(bundle.module.get_submodule(layer) for layer in layers)
    expected = curvature(bundle, readers, graph.group(group).width, split).numpy()
    found = criteria.obd(bundle, graph, split, seed=0).values[group]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-3, atol=1e-6)


def one_group(*members: Member) -> ChannelGraph:
    return ChannelGraph((Group(members[0].name, 6, members),), (), (), 0, 0)


def each(name: str, kind: str, role: Literal["out", "in"]) -> Member:
    return Member(name, kind, role, tuple((unit,) for unit in range(6)))


def windows(m: Lambda, x: Tensor) -> Tensor:
    """A linear layer reads 16 windows of every image."""
    seen = torch.relu(m.conv(x)).flatten(2).transpose(1, 2).reshape(-1, 4, 6)
    logits: Tensor = m.fc(m.read(seen).reshape(len(x), 64, 5).mean(1))
    return logits


def test_obd_tells_images_apart_that_a_layer_sees_in_pieces() -> None:
    layers = {"conv": nn.Conv2d(3, 6, 3, padding=1), "read": nn.Linear(6, 5), "fc": nn.Linear(5, 4)}
    bundle, split = bundle_of(randomized(Lambda(windows, **layers))), data(20)
    graph = one_group(each("conv", "CONV", "out"), each("read", "LINEAR", "in"))
    expected = curvature(bundle, (bundle.module.get_submodule("read"),), 6, split).numpy()
    found = criteria.obd(bundle, graph, split, seed=0).values["conv"]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-3, atol=1e-6)


def test_obd_refuses_a_layer_that_mixes_images() -> None:
    layers = {"conv": nn.Conv2d(3, 6, 3), "fc": nn.Linear(6, 4)}
    module = Lambda(lambda m, x: m.fc(m.conv(x).mean((0, 2, 3))[None]).expand(len(x), 4), **layers)
    graph = one_group(each("conv", "CONV", "out"), each("fc", "LINEAR", "in"))
    with pytest.raises(PruningError, match="cannot tell images apart in fc"):
        criteria.obd(bundle_of(randomized(module)), graph, data(), seed=0)


def test_obd_of_many_classes_is_near_the_exact_diagonal() -> None:
    module = Lambda(lambda m, x: m.fc(torch.relu(m.conv(x)).mean((2, 3))), conv=nn.Conv2d(3, 6, 3), fc=nn.Linear(6, 30))
    bundle = bundle_of(randomized(module), classes=30)
    graph, split = trace(bundle), data(500)
    expected = curvature(bundle, (bundle.module.get_submodule("fc"),), 6, split).numpy()
    found = criteria.obd(bundle, graph, split, seed=0).values["conv"]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=0.1)
    assert not np.array_equal(found, criteria.obd(bundle, graph, split, seed=1).values["conv"])


def test_adv_taylor_is_taylor_at_the_adversarials() -> None:
    """Logits are linear in the pixels and there are two classes: the worst image in the ball is a corner of it."""
    layers = {"conv": nn.Conv2d(3, 6, 1), "fc": nn.Linear(6, 2)}
    module = randomized(Lambda(lambda m, x: m.fc(m.conv(x).mean((2, 3))), **layers))
    generator = np.random.default_rng(0)
    images = generator.uniform(0.6, 1.4, (40, 3, 8, 8)).astype(np.float32)
    labels = np.arange(40, dtype=np.int64) % 2
    bundle = bundle_of(module, classes=2, preprocessing=Preprocessing(bounds=(0.0, 2.0)))
    slope = (module.fc.weight[1] - module.fc.weight[0]) @ module.conv.weight.flatten(1)
    away = np.where(labels == 1, -1, 1)[:, None, None, None] * slope.sign().detach().numpy()[None, :, None, None]
    worst = (images + 2 * ADVERSARIAL_EPSILON * away).astype(np.float32)
    graph = trace(bundle)
    found = criteria.adv_taylor(bundle, graph, split_of(images, labels), seed=0).values["conv"]
    expected = criteria.taylor(bundle, graph, split_of(worst, labels), seed=0).values["conv"]
    clean = criteria.taylor(bundle, graph, split_of(images, labels), seed=0).values["conv"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not np.allclose(found, clean, rtol=1e-2)


def test_adv_taylor_takes_an_epsilon_in_pixel_units_as_a_family() -> None:
    bundle = bundle_of(randomized(Chain()), preprocessing=Preprocessing(bounds=(0.0, 2.0)))
    graph = trace(bundle)
    found = find("criterion", "adv-taylor:16/255")(bundle, graph, data(), seed=0)
    usual = criteria.adv_taylor(bundle, graph, data(), seed=0).values["conv1.0"]  # 8/255 of a range of 2
    assert found.criterion == "adv-taylor:16/255"
    np.testing.assert_array_equal(found.values["conv1.0"], usual)
    less = find("criterion", "adv-taylor:0.001")(bundle, graph, data(), seed=0).values["conv1.0"]
    assert not np.allclose(less, usual)


@pytest.mark.parametrize("epsilon", ["", "0", "-1/255", "8/0", "much"])
def test_adv_taylor_of_a_senseless_epsilon_is_refused_at_once(epsilon: str) -> None:
    with pytest.raises(UsageError, match="unknown criterion: adv-taylor") as caught:
        find("criterion", f"adv-taylor:{epsilon}")
    assert "adv-taylor:2/255" in str(caught.value)


def two_classes() -> tuple[ModelBundle, Tensor]:
    """A network whose margin is linear in the pixels, and that margin's gradient."""
    layers = {"conv": nn.Conv2d(3, 6, 1), "fc": nn.Linear(6, 2)}
    module = randomized(Lambda(lambda m, x: m.fc(m.conv(x).mean((2, 3))), **layers))
    slope = ((module.fc.weight[1] - module.fc.weight[0]) @ module.conv.weight.flatten(1)).detach()
    return bundle_of(module, classes=2), (slope[:, None, None] / 64).expand(3, 8, 8)


def test_distance_to_a_linear_boundary_is_exact() -> None:
    bundle, slope = two_classes()
    images = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = bundle.network()(images).double()
    expected = (logits[:, 1] - logits[:, 0]).abs() / slope.double().norm()
    torch.testing.assert_close(boundary_distances(bundle.network(), images), expected, rtol=1e-5, atol=1e-8)


def test_an_image_without_a_slope_has_no_boundary() -> None:
    bundle, _ = two_classes()
    with torch.no_grad():
        bundle.module.get_parameter("conv.weight").zero_()
    assert torch.isinf(boundary_distances(bundle.network(), torch.rand(2, 3, 8, 8))).all()
    with pytest.raises(PruningError, match="no decision boundary"):
        criteria.thin_taylor(bundle, trace(bundle), data(), seed=0)


def test_thin_taylor_of_equally_thin_images_is_taylor() -> None:
    """All images are one image and its mirror on the other side of the boundary: every distance is the same."""
    bundle, slope = two_classes()
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = bundle.network()(image[None])[0]
    mirror = image - 2 * (logits[1] - logits[0]) * slope / slope.square().sum()
    split = split_of(torch.stack([image, mirror] * 8).numpy(), np.arange(16, dtype=np.int64) % 2)
    graph = trace(bundle)
    np.testing.assert_allclose(
        criteria.thin_taylor(bundle, graph, split, seed=0).values["conv"],
        criteria.taylor(bundle, graph, split, seed=0).values["conv"],
        rtol=1e-2,
        atol=1e-4,
    )


def test_thin_taylor_weighs_an_image_at_the_median_half_and_far_ones_next_to_nothing() -> None:
    """Of two kinds of images, near and very far, the far ones have no say."""
    bundle, slope = two_classes()
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    other = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)) + 1e3 * slope / slope.norm()
    labels = np.zeros(9, dtype=np.int64)
    near = split_of(torch.stack([image] * 9).numpy(), labels)
    mixed = split_of(torch.stack([image] * 5 + [other] * 4).numpy(), labels)
    graph = trace(bundle)
    expected = criteria.taylor(bundle, graph, near, seed=0).values["conv"]
    np.testing.assert_allclose(criteria.thin_taylor(bundle, graph, mixed, seed=0).values["conv"], expected, rtol=1e-3)
    plain = criteria.taylor(bundle, graph, mixed, seed=0).values["conv"]
    assert not np.allclose(plain, expected, rtol=1e-1)


def test_apoz_is_how_often_a_channel_is_not_zero() -> None:
    bundle, graph = traced()
    split = data(140)  # more than a batch
    images, _ = next(split.batches(140))
    with torch.no_grad():
        shown = torch.relu(bundle.module.conv1(torch.from_numpy(images)))
    expected = (shown > 0).double().mean((0, 2, 3)).numpy()
    found = criteria.apoz(bundle, graph, split, seed=0)
    np.testing.assert_allclose(found.values["conv1.0"], expected / expected.mean(), rtol=1e-12)


def test_apoz_scores_a_dead_channel_zero() -> None:
    bundle = bundle_of(calibrated(randomized(Chain()), stripes(24)[0]))
    with torch.no_grad():  # large weights, and yet its ReLU never opens
        bundle.module.conv1[0].weight[7] *= 10
        bundle.module.conv1[1].bias[7] = -1e4
    values = criteria.apoz(bundle, trace(bundle), data(), seed=0).values["conv1.0"]
    assert values[7] == 0
    assert np.delete(values, 7).min() > 0


def test_apoz_of_a_flattened_channel_counts_all_its_positions() -> None:
    bundle, graph = traced("Flattened")
    split = data()
    images, _ = next(split.batches(24))
    with torch.no_grad():
        expected = (torch.relu(bundle.module.conv(torch.from_numpy(images))) > 0).double().mean((0, 2, 3)).numpy()
    found = criteria.apoz(bundle, graph, split, seed=0).values["conv"]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-12)


def test_apoz_scores_a_linear_bottleneck_by_its_weights_and_says_so() -> None:
    bundle, graph = traced("Depthwise")
    found = criteria.apoz(bundle, graph, data(), seed=0)
    assert found.normalisation == "mean of each group = 1; 1 of 2 groups by l2, being without zeros"
    np.testing.assert_array_equal(
        found.values["project.0"], criteria.l2(bundle, graph, None, seed=0).values["project.0"]
    )


def test_apoz_of_a_network_without_zeros_is_an_error() -> None:
    layers = {"conv": nn.Conv2d(3, 6, 3), "fc": nn.Linear(6, 4)}
    bundle = bundle_of(randomized(Lambda(lambda m, x: m.fc(torch.sigmoid(m.conv(x)).mean((2, 3))), **layers)))
    with pytest.raises(PruningError, match="all are without zeros"):
        criteria.apoz(bundle, trace(bundle), data(), seed=0)
