"""Criteria: what all of them promise, norms by hand, and Taylor against gates and finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from toy_networks import PRUNABLE, Chain, Residual, bundle_of, calibrated, randomized, split_of, stripes

from edgeprune.errors import PruningError, UsageError
from edgeprune.models import digest
from edgeprune.protocols import find, names
from edgeprune.pruning import criteria
from edgeprune.pruning.graph import trace
from edgeprune.pruning.surgery import silence
from edgeprune.types import ChannelGraph, ModelBundle, Preprocessing, Scores, Split


def traced(name: str = "Chain") -> tuple[ModelBundle, ChannelGraph]:
    bundle = bundle_of(randomized(PRUNABLE[name]()))
    return bundle, trace(bundle)


def data(count: int = 24) -> Split:
    return split_of(*stripes(count))


WITH_DATA = [criteria.taylor, criteria.adv_taylor, criteria.thin_taylor, criteria.obd, criteria.apoz]
ALL = [criteria.l1, criteria.l2, criteria.random, criteria.bn_scale, criteria.lamp, criteria.fpgm, *WITH_DATA]


def loss_of(module: nn.Module, split: Split) -> float:
    images, labels = next(split.batches(len(split)))
    with torch.no_grad():
        logits = module.double()(torch.from_numpy(images).double())
        return float(nn.functional.cross_entropy(logits, torch.from_numpy(labels)))


@pytest.mark.parametrize(
    ("criterion", "by_hand"),
    [
        (criteria.l1, lambda made, read: made.abs().sum((1, 2, 3)) + read.abs().sum((0, 2, 3))),
        (criteria.l2, lambda made, read: (made.square().sum((1, 2, 3)) + read.square().sum((0, 2, 3))).sqrt()),
    ],
)
def test_norms_are_over_what_makes_and_what_reads_a_channel(
    criterion: Callable[..., Scores], by_hand: Callable[..., torch.Tensor]
) -> None:
    bundle, graph = traced()
    made, read = bundle.module.conv1[0].weight.detach().double(), bundle.module.conv2[0].weight.detach().double()
    expected = by_hand(made, read)
    found = criterion(bundle, graph, None, seed=0).values["conv1.0"]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-12)


def test_norm_of_a_grouped_convolution_is_over_its_units() -> None:
    bundle, graph = traced("Grouped")
    first, grouped = bundle.module.first[0].weight.detach().double(), bundle.module.grouped[0].weight.detach().double()
    made = first.abs().sum((1, 2, 3)).view(4, 4).sum(0)  # channels 0, 4, 8, 12 are unit 0
    read = grouped.abs().sum((0, 2, 3))  # column 0 of every convolution group is read by unit 0
    np.testing.assert_allclose(
        criteria.l1(bundle, graph, None, seed=0).values["first.0"], (made + read) / (made + read).mean(), rtol=1e-12
    )


@pytest.mark.parametrize("name", sorted(PRUNABLE))
@pytest.mark.parametrize("criterion", [each for each in ALL if each not in (criteria.lamp, criteria.bn_scale)])
def test_every_group_has_one_positive_mean_of_one(name: str, criterion: Callable[..., Scores]) -> None:
    bundle, graph = traced(name)
    scores = criterion(bundle, graph, data(), seed=0)
    assert scores.normalisation.startswith("mean of each group = 1")
    for group in graph.groups:
        values = scores.values[group.name]
        assert values.shape == (group.width,)
        assert values.dtype == np.float64
        assert values.min() >= 0
        assert values.mean() == pytest.approx(1)


def test_taylor_is_the_squared_gradient_at_a_gate_on_what_is_read() -> None:
    bundle, graph = traced("Residual")
    split, module = data(20), copy.deepcopy(bundle.module)
    gate = torch.ones(1, 16, 1, 1, requires_grad=True)
    for reader in (module.middle, module.head):  # what reads the stem's channels sees them through the gate
        reader.register_forward_pre_hook(lambda layer, inputs: inputs[0] * gate)
    images, labels = next(split.batches(20))
    nn.functional.cross_entropy(module(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
    assert gate.grad is not None
    expected = gate.grad.flatten().double().square().numpy()
    found = criteria.taylor(bundle, graph, split, seed=0).values["stem.0"]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-3, atol=1e-6)


def test_taylor_agrees_with_finite_differences_of_the_loss() -> None:
    bundle, graph = traced("Flattened")
    split, step = data(12), 1e-4
    slopes = []
    for unit in range(6):
        silent = silence(bundle.module, graph.groups, {"conv": [unit]}).double()
        dense, nearly = copy.deepcopy(bundle.module).double(), copy.deepcopy(bundle.module).double()
        with torch.no_grad():
            for name, parameter in nearly.named_parameters():
                change = silent.get_parameter(name) - dense.get_parameter(name)
                parameter.add_(step * change)
        slopes.append((loss_of(nearly, split) - loss_of(dense, split)) / step)
    expected = np.square(slopes)
    found = criteria.taylor(bundle, graph, split, seed=0).values["conv"]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=2e-2, atol=1e-3)


def test_taylor_averages_over_batches() -> None:
    bundle, graph = traced()
    images, labels = stripes(256)
    both = criteria.taylor(bundle, graph, split_of(images, labels), seed=0)
    half = [
        criteria.taylor(bundle, graph, split_of(images[i], labels[i]), seed=0) for i in (slice(128), slice(128, 256))
    ]
    assert not np.allclose(both.values["conv1.0"], half[0].values["conv1.0"])
    low = np.minimum(half[0].values["conv1.0"], half[1].values["conv1.0"])
    high = np.maximum(half[0].values["conv1.0"], half[1].values["conv1.0"])
    inside = (both.values["conv1.0"] >= low - 1e-9) & (both.values["conv1.0"] <= high + 1e-9)
    assert inside.all()


def test_taylor_draws_its_images_from_the_whole_split() -> None:
    images, labels = stripes(2100)
    order = np.argsort(labels, kind="stable")  # sorted by class, as folders of images are
    split = split_of(images[order], labels[order])
    bundle, graph = traced()
    criteria.taylor(bundle, graph, split, seed=0)
    assert len(split.source.read_ids) == 2048  # type: ignore[attr-defined]
    assert max(split.source.read_ids) > 2090  # type: ignore[attr-defined]


@pytest.mark.parametrize("criterion", WITH_DATA)
def test_criterion_without_its_data_says_what_to_do(criterion: Callable[..., Scores]) -> None:
    bundle, graph = traced()
    with pytest.raises(UsageError, match="needs training data") as caught:
        criterion(bundle, graph, None, seed=0)
    assert "--train" in str(caught.value)
    assert criterion.__name__.replace("_", "-") in str(caught.value)


@pytest.mark.parametrize("criterion", [each for each in ALL if each is not criteria.random])
def test_a_channel_that_nothing_makes_and_nothing_reads_scores_lowest(criterion: Callable[..., Scores]) -> None:
    bundle = bundle_of(calibrated(randomized(Chain()), stripes(24)[0]))
    convolution, norm, reader = bundle.module.conv1[0], bundle.module.conv1[1], bundle.module.conv2[0]
    with torch.no_grad():
        for tensor in (convolution.weight[5], norm.weight[5], norm.bias[5], reader.weight[:, 5]):
            tensor.zero_()
    values = criterion(bundle, trace(bundle), data(), seed=0).values["conv1.0"]
    assert values.argmin() == 5
    assert values[5] < np.delete(values, 5).min()


@pytest.mark.parametrize("criterion", WITH_DATA)
def test_a_frozen_network_is_scored_and_nothing_in_it_changes(criterion: Callable[..., Scores]) -> None:
    bundle = bundle_of(randomized(Chain()), preprocessing=Preprocessing(mean=(0.5,), std=(0.25,)))
    for parameter in bundle.module.parameters():
        parameter.requires_grad_(False)
    graph = trace(bundle)
    with torch.no_grad():
        scores, again = (criterion(bundle, graph, data(), seed=0) for _ in range(2))
    assert scores.values["conv1.0"].std() > 0
    assert np.array_equal(scores.values["conv1.0"], again.values["conv1.0"])
    assert not any(layer._forward_pre_hooks for layer in bundle.module.modules())
    assert digest(bundle.module) == bundle.digest
    assert all(p.grad is None and not p.requires_grad for p in bundle.module.parameters())


def test_dead_group_scores_all_channels_alike() -> None:
    bundle = bundle_of(Residual())
    with torch.no_grad():
        for parameter in bundle.module.parameters():
            parameter.zero_()
    assert criteria.l2(bundle, trace(bundle), None, seed=0).values["stem.0"].tolist() == [1.0] * 16


@pytest.mark.parametrize("criterion", [criteria.taylor, criteria.adv_taylor, criteria.thin_taylor, criteria.obd])
def test_gradients_that_are_not_finite_are_an_error(criterion: Callable[..., Scores]) -> None:
    bundle, graph = traced()
    with torch.no_grad():
        bundle.module.head.fc.weight.fill_(1e38)
    with pytest.raises(PruningError, match="not finite"):
        criterion(bundle, graph, data(), seed=0)


def test_random_follows_its_seed() -> None:
    bundle, graph = traced()
    first, again, other = (criteria.random(bundle, graph, None, seed=seed).values["conv1.0"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_built_in_criteria_are_registered_like_plugins() -> None:
    for criterion in ALL:
        name = criterion.__name__.replace("_taylor", "-taylor")
        assert name in names("criterion")
        assert find("criterion", name) is criterion
    with pytest.raises(UsageError, match="did you mean taylor"):
        find("criterion", "tailor")
