"""Batch-norm scales, LAMP and the geometric median, each against its formula on small networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toy_networks import PRUNABLE, Lambda, bundle_of, randomized

from edgeprune.errors import PruningError
from edgeprune.pruning import criteria
from edgeprune.pruning.graph import trace
from edgeprune.types import ChannelGraph, ModelBundle


def traced(name: str = "Chain") -> tuple[ModelBundle, ChannelGraph]:
    bundle = bundle_of(randomized(PRUNABLE[name]()))
    return bundle, trace(bundle)


def test_bn_scale_is_the_size_of_gamma() -> None:
    bundle, graph = traced()
    gamma = bundle.module.conv1[1].weight.detach().abs().double().numpy()
    found = criteria.bn_scale(bundle, graph, None, seed=0)
    np.testing.assert_allclose(found.values["conv1.0"], gamma / gamma.mean(), rtol=1e-12)
    assert found.normalisation == "mean of each group = 1"


def test_bn_scale_sums_over_the_norms_that_a_channel_passes() -> None:
    bundle, graph = traced("Residual")
    gammas = [getattr(bundle.module, name)[1].weight.detach().abs().double().numpy() for name in ("stem", "out")]
    expected = gammas[0] + gammas[1]
    found = criteria.bn_scale(bundle, graph, None, seed=0).values["stem.0"]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-12)


def test_bn_scale_adds_up_the_channels_of_a_unit() -> None:
    bundle, graph = traced("Grouped")
    gamma = bundle.module.first[1].weight.detach().abs().double().view(4, 4).sum(0).numpy()  # 0, 4, 8, 12 are unit 0
    found = criteria.bn_scale(bundle, graph, None, seed=0).values["first.0"]
    np.testing.assert_allclose(found, gamma / gamma.mean(), rtol=1e-12)


def test_bn_scale_says_which_share_of_the_groups_has_no_norm() -> None:
    bundle, graph = traced("Squeezed")
    found = criteria.bn_scale(bundle, graph, None, seed=0)
    assert found.normalisation == "mean of each group = 1; 1 of 2 groups by l2, being without batch norm"
    by_norm = criteria.l2(bundle, graph, None, seed=0).values
    np.testing.assert_array_equal(found.values["squeeze"], by_norm["squeeze"])
    assert not np.allclose(found.values["conv.0"], by_norm["conv.0"])


def test_bn_scale_of_a_network_without_batch_norm_is_an_error() -> None:
    bundle, graph = traced("Flattened")
    with pytest.raises(PruningError, match="cannot see any group: all are without batch norm"):
        criteria.bn_scale(bundle, graph, None, seed=0)


def test_a_norm_without_gamma_counts_as_none() -> None:
    layers = {"conv": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8, affine=False), "fc": nn.Linear(8, 4)}
    bundle = bundle_of(randomized(Lambda(lambda m, x: m.fc(m.norm(m.conv(x)).mean((2, 3))), **layers)))
    with pytest.raises(PruningError, match="without batch norm"):
        criteria.bn_scale(bundle, trace(bundle), None, seed=0)


def test_lamp_is_the_share_of_what_is_no_smaller() -> None:
    bundle, graph = traced()
    made, read = bundle.module.conv1[0].weight.detach().double(), bundle.module.conv2[0].weight.detach().double()
    squares = (made.square().sum((1, 2, 3)) + read.square().sum((0, 2, 3))).tolist()
    expected = [square / sum(other for other in squares if other >= square) for square in squares]
    found = criteria.lamp(bundle, graph, None, seed=0)
    np.testing.assert_allclose(found.values["conv1.0"], expected, rtol=1e-12)
    assert found.values["conv1.0"].max() == 1
    assert "no smaller" in found.normalisation


def test_lamp_scores_equal_channels_alike() -> None:
    bundle, _ = traced()
    with torch.no_grad():
        for parameter in bundle.module.parameters():
            parameter.fill_(0.1)
    values = criteria.lamp(bundle, trace(bundle), None, seed=0).values["conv1.0"]
    np.testing.assert_allclose(values, 1 / 16)


def test_fpgm_is_the_distance_to_all_other_filters() -> None:
    bundle, graph = traced("Residual")  # the stem's channels are made by two layers
    filters = [getattr(bundle.module, name)[0].weight.detach().double().flatten(1) for name in ("stem", "out")]
    expected = torch.cdist(torch.cat(filters, 1), torch.cat(filters, 1)).sum(1).numpy()
    found = criteria.fpgm(bundle, graph, None, seed=0).values["stem.0"]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-5)


def test_fpgm_of_filters_that_are_compared_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, graph = traced("Residual")
    whole = criteria.fpgm(bundle, graph, None, seed=0).values["stem.0"]
    monkeypatch.setattr("edgeprune.pruning.criteria.weights._COLUMNS", 5)
    np.testing.assert_allclose(criteria.fpgm(bundle, graph, None, seed=0).values["stem.0"], whole, rtol=1e-9)


def test_fpgm_scores_the_filter_that_has_a_double_lowest() -> None:
    bundle, _ = traced()
    weight = bundle.module.conv1[0].weight
    with torch.no_grad():
        weight.copy_(torch.linalg.qr(weight.flatten(1).T).Q.T.view_as(weight))  # all equally far from each other
        weight[11] = weight[3]
    values = criteria.fpgm(bundle, trace(bundle), None, seed=0).values["conv1.0"]
    assert set(np.argsort(values)[:2]) == {3, 11}
    assert np.delete(values, [3, 11]).min() > values[[3, 11]].max() * 1.05


def test_fpgm_does_not_mind_how_far_off_the_filters_lie() -> None:
    bundle, graph = traced()
    near = criteria.fpgm(bundle, graph, None, seed=0).values["conv1.0"]
    with torch.no_grad():
        bundle.module.conv1[0].weight.add_(64.0)
    np.testing.assert_allclose(criteria.fpgm(bundle, graph, None, seed=0).values["conv1.0"], near, rtol=1e-3)


def test_fpgm_of_a_transposed_convolution_compares_its_outputs() -> None:
    bundle, graph = traced("Transposed")
    filters = bundle.module.up.weight.detach().double().transpose(0, 1).flatten(1)
    expected = torch.cdist(filters, filters).sum(1).numpy()
    found = criteria.fpgm(bundle, graph, None, seed=0).values["up"]
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-5)
