"""Weights that are computed in every pass become plain ones; the network computes what it did, and can be pruned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pruning_checks import assert_pruned_right
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from toy_networks import SHAPE

import edgeprune
from edgeprune.config import ModelConfig
from edgeprune.models import from_module
from edgeprune.models.baking import baked


class Standardised(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (std + 1e-5)
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Dynamic(nn.Conv2d):
    """A weight that depends on the image: nothing to bake."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * torch.sigmoid(x.mean())
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Net(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), conv, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.conv(torch.relu(self.stem(x)))).mean((2, 3)))
        return logits


def conv(kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    return kind(6, 8, 3, padding=1)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


LAYERS = {
    "weight norm": lambda: parametrizations.weight_norm(conv()),
    "spectral norm": lambda: parametrizations.spectral_norm(conv()),
    "weight norm by hook": lambda: old_weight_norm(conv()),
    "spectral norm by hook": lambda: spectral_norm(conv()),
    "standardised": lambda: conv(Standardised),
}


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Net(LAYERS[kind]()).eval()


@pytest.mark.parametrize("kind", LAYERS)
def test_computed_weights_are_baked_in_and_pruned(kind: str, tmp_path: Path) -> None:
    module = network(kind)
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module(images)
    bundle = from_module(module, ModelConfig(input_shape=SHAPE))
    assert type(bundle.module.conv) is nn.Conv2d
    assert {name for name, _ in bundle.module.conv.named_parameters()} == {"weight", "bias"}
    with torch.no_grad():
        torch.testing.assert_close(bundle.module(images), expected, rtol=0, atol=1e-6)
    pruned = assert_pruned_right(bundle)
    assert pruned.module.conv.out_channels == 4
    edgeprune.save(pruned, tmp_path / "net.pt")
    again = edgeprune.load(tmp_path / "net.pt", ModelConfig(trust=("test_baking",)))
    with torch.no_grad():
        assert torch.equal(again.module(images), pruned.module(images))


def test_a_weight_that_depends_on_the_image_is_left_as_it_is() -> None:
    module = Net(conv(Dynamic)).eval()
    assert baked(module) is module


def test_a_plain_network_is_handed_back_itself() -> None:
    module = Net(conv()).eval()
    assert baked(module) is module
