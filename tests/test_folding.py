"""Batch norm folded into convolutions: the same answers for less work, and hands off where that cannot be."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from toy_networks import PRUNABLE, SHAPE, Lambda, randomized

from edgeprune.models.folding import NOTHING, Folding

IMAGES = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def norms_of(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", PRUNABLE)
def test_folded_network_gives_the_same_answers_and_gradients(name: str) -> None:
    network = randomized(PRUNABLE[name]()).eval()
    folding = Folding.of(network, IMAGES)
    assert {norm for _, norm in folding.pairs} <= set(norms_of(network))

    def looked() -> tuple[Tensor, Tensor]:
        images = IMAGES.clone().requires_grad_()
        logits = network(images)
        (slope,) = torch.autograd.grad(logits.square().sum(), images)
        return logits.detach(), slope

    plain = looked()
    with folding.done():
        folded = looked()
    for there, here in zip(plain, folded, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4 * float(there.abs().max()))
    for there, here in zip(plain, looked(), strict=True):  # afterwards it is as it was
        assert torch.equal(there, here)


def test_every_norm_behind_a_convolution_is_folded() -> None:
    network = randomized(PRUNABLE["Residual"]()).eval()
    assert {norm for _, norm in Folding.of(network, IMAGES).pairs} == set(norms_of(network))


def test_a_folded_norm_does_nothing_and_weights_get_no_gradient() -> None:
    network = randomized(PRUNABLE["Chain"]()).eval()
    ran: list[str] = []
    forward = nn.functional.batch_norm
    with pytest.MonkeyPatch.context() as patch, Folding.of(network, IMAGES).done():
        patch.setattr(nn.functional, "batch_norm", lambda *a, **k: ran.append("norm") or forward(*a, **k))
        network(IMAGES).sum().backward()
    assert not ran
    assert all(pair.weight.grad is None for pair in network.modules() if isinstance(pair, nn.Conv2d))


def test_weights_are_folded_as_they_are_when_it_is_done() -> None:
    network = randomized(PRUNABLE["Chain"]()).eval()
    folding = Folding.of(network, IMAGES)
    randomized(network, seed=5)
    with folding.done():
        folded = network(IMAGES)
    torch.testing.assert_close(folded, network(IMAGES), rtol=1e-4, atol=1e-4)


def test_training_network_is_left_in_training() -> None:
    network = randomized(PRUNABLE["Chain"]()).train()
    before = norms_of(network)[0].running_mean
    assert before is not None
    kept = before.clone()
    assert Folding.of(network, IMAGES).pairs
    assert network.training
    assert torch.equal(before, kept)


def _twice(net: Lambda, x: Tensor) -> Tensor:
    """What the convolution gives is read by the norm, and by the sum."""
    out = cast(nn.Module, net.conv)(x)
    mixed: Tensor = (cast(nn.Module, net.norm)(out) + out).mean((2, 3))
    return mixed


def _again(net: Lambda, x: Tensor) -> Tensor:
    """One convolution before two norms."""
    conv, one, other = (cast(nn.Module, each) for each in (net.conv, net.norm, net.other))
    mixed: Tensor = (one(conv(x)) + other(conv(x.flip(-1)))).mean((2, 3))
    return mixed


@pytest.mark.parametrize("function", [_twice, _again])
def test_convolution_whose_output_is_not_the_norms_alone_is_left_as_it_is(function: object) -> None:
    layers = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "other": nn.BatchNorm2d(4)}
    network = randomized(Lambda(function, **layers)).eval()  # type: ignore[arg-type]
    assert Folding.of(network, IMAGES) == NOTHING


def test_activation_in_place_between_both_is_seen_even_where_it_changes_nothing() -> None:
    convolution = nn.Conv2d(3, 4, 3)
    nn.init.constant_(convolution.bias, 100.0)  # type: ignore[arg-type]
    network = nn.Sequential(convolution, nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Flatten()).eval()
    assert Folding.of(network, IMAGES) == NOTHING


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_bias_and_a_norm_without_weights_are_folded_too(bias: bool, affine: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine), nn.Flatten())
    network = randomized(network).eval()  # type: ignore[assignment]
    folding = Folding.of(network, IMAGES)
    assert len(folding.pairs) == 1
    with folding.done():
        folded = network(IMAGES)
    torch.testing.assert_close(folded, network(IMAGES), rtol=1e-4, atol=1e-4)


def test_module_with_a_forward_of_its_own_keeps_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
    own = network[1].__dict__["forward"] = network[1].forward
    folding = Folding.of(network, IMAGES)
    assert folding == NOTHING
    assert network[1].__dict__["forward"] is own


def test_norm_that_keeps_no_statistics_is_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).eval()
    assert Folding.of(network, IMAGES) == NOTHING
