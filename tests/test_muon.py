"""Muon: singular values, lengths of steps, groups of convolutions, and what takes plain SGD."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgeprune.recovery.learner import optimizer_of, peak_rate
from edgeprune.recovery.muon import orthogonal
from edgeprune.recovery.settings import RecoverConfig


def stepped(network: nn.Module, rate: float = 0.02) -> dict[str, torch.Tensor]:
    """What one step changed, by name, after gradients that are drawn."""
    before = copy.deepcopy(network.state_dict())
    optimizer = optimizer_of(network)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return {name: value - before[name] for name, value in network.state_dict().items()}


@pytest.mark.parametrize("shape", [(1, 4, 9), (1, 9, 4), (3, 8, 8)])
def test_singular_values_end_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert 0.5 < float(values.min()) < float(values.max()) < 1.3


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not orthogonal(torch.zeros(1, 3, 5)).any()


def test_a_step_is_a_share_of_the_weights_length() -> None:
    torch.manual_seed(0)
    network = nn.Linear(6, 4)
    length = network.weight.detach().norm()
    moved = stepped(network)["weight"].norm() / length
    assert float(moved) == pytest.approx(0.02, rel=0.05)


def test_a_step_ignores_how_large_gradients_are() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(6, 4), nn.Linear(6, 4)
    other.load_state_dict(one.state_dict())
    for network, factor in ((one, 1.0), (other, 1e-4)):
        optimizer = optimizer_of(network)
        network.weight.grad = factor * torch.arange(24.0).view(4, 6)
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
    assert torch.allclose(one.weight, other.weight, atol=1e-5)


def test_a_weight_of_zeros_moves() -> None:
    network = nn.Linear(6, 4)
    nn.init.zeros_(network.weight)
    assert stepped(network)["weight"].any()


def test_depthwise_filters_move_each_by_its_own_length() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(4, 4, 3, groups=4)
    with torch.no_grad():
        network.weight.mul_(torch.tensor([1.0, 10.0, 0.1, 5.0]).view(4, 1, 1, 1))
    lengths = network.weight.detach().flatten(1).norm(dim=1)
    moved = stepped(network)["weight"].flatten(1).norm(dim=1)
    assert torch.allclose(moved, 0.02 * lengths, rtol=1e-3)


def test_biases_and_norms_take_plain_sgd() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    moved = stepped(network)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1:
            assert parameter.grad is not None
            assert torch.allclose(moved[name], -0.02 * 2.0 * 1.9 * parameter.grad, atol=1e-6)


def test_the_peak_follows_the_optimizer_and_for_sgd_the_network() -> None:
    plain, normed = nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    assert [peak_rate(each, RecoverConfig(optimizer="sgd")) for each in (plain, normed)] == [0.01, 0.05]
    assert [peak_rate(each, RecoverConfig()) for each in (plain, normed)] == [0.014, 0.014]
    assert peak_rate(normed, RecoverConfig(recipe="robust-distill")) == 0.014
    assert peak_rate(plain, RecoverConfig(learning_rate=0.3)) == 0.3
