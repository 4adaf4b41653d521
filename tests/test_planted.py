"""Planted networks that hide from an attack: each is broken through or flagged, none is reported robust."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_examples import (
    Constant,
    ModuleSession,
    Saturated,
    Scaled,
    grid_images,
    labels_of,
    silent,
    small_network,
    split_of,
)
from torch import Tensor, nn

from edgeprune.config import AttackConfig
from edgeprune.errors import MeasurementError
from edgeprune.robustness import evaluate
from edgeprune.robustness.health import warnings
from edgeprune.robustness.twin import Gradients

EPSILON = "8/255"


class Behind(nn.Module):
    """A network behind a function of its logits, or of its pixels."""

    def __init__(self, network: nn.Module, *, pixels=None, logits=None) -> None:
        super().__init__()
        self.network, self.pixels, self.logits = network, pixels or (lambda x: x), logits or (lambda x: x)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.network(self.pixels(images)))


def quantised_activations(network: nn.Module) -> nn.Module:
    """Activations on a grid of eight steps: rounding without a gradient."""
    layers = list(network)
    steps = Behind(nn.Identity(), pixels=lambda x: torch.round(x * 8) / 8)
    return nn.Sequential(*layers[:3], steps, *layers[3:]).eval()


def shattered(network: nn.Module) -> nn.Module:
    """Pixels through a fine sawtooth: the gradient is there, and says nothing."""
    return Behind(network, pixels=lambda x: x + 0.004 * torch.sin(4000 * x))


def drawn(network: nn.Module) -> nn.Module:
    """Logits with a noise that is larger than their margins, new for every question."""
    generator = torch.Generator().manual_seed(0)
    return Behind(network, logits=lambda z: z + torch.randn(z.shape, generator=generator) * z.std())


PLANTED = {
    "logits x 1": lambda network: Scaled(network, 1.0),
    "logits x 100": lambda network: Scaled(network, 100.0),
    "logits x 10,000": lambda network: Scaled(network, 10_000.0),
    "softmax": lambda network: Behind(network, logits=lambda z: torch.softmax(z, 1)),
    "sharp softmax": lambda network: Behind(network, logits=lambda z: torch.softmax(1000 * z, 1)),
    "saturated": Saturated,
    "quantised activations": quantised_activations,
    "shattered": shattered,
    "random logits": drawn,
    "ignores its input": lambda _network: Constant(5),
}


def attacked(module: nn.Module, attack: str):
    images = grid_images(30)
    labels = labels_of(small_network(), images)
    if isinstance(module, Constant):
        labels[:] = 4  # what it always says
    split = split_of(images, labels)
    threat = evaluate.threat_model(AttackConfig(attack=attack, eps=EPSILON), (0.0, 1.0), split, 0)
    made = {"sha256": "0" * 64, "progress": silent}
    return evaluate.attack_file(Gradients(module, ModuleSession(module), "test"), split, threat, **made)


@pytest.fixture(scope="module")
def honest() -> float:
    """Robust accuracy of the network that hides from nothing."""
    return attacked(small_network(), "quick").record.robust.value


@pytest.mark.parametrize("attack", ["pgd", "quick"])
@pytest.mark.parametrize("name", PLANTED)
def test_none_is_reported_robust(name: str, attack: str, honest: float) -> None:
    outcome = attacked(PLANTED[name](small_network()), attack)
    broken = outcome.record.robust.value <= honest + 0.1
    assert broken or warnings("compressed", outcome.health), outcome.record.robust


@pytest.mark.parametrize("factor", [100.0, 10_000.0])
def test_scaled_logits_fall_as_the_plain_ones_do(factor: float) -> None:
    plain, scaled = (attacked(Scaled(small_network(), each), "quick") for each in (1.0, factor))
    assert np.abs(plain.record.robust.count - scaled.record.robust.count) <= 1
    assert not warnings("compressed", scaled.health)


@pytest.mark.parametrize("attack", ["pgd", "quick", "decision"])
def test_a_logit_that_is_no_number_is_an_error(attack: str) -> None:
    def spoiled(logits: Tensor) -> Tensor:
        return torch.cat([logits[:, :4], torch.full_like(logits[:, :1], torch.nan)], 1)

    with pytest.raises(MeasurementError, match="NaN"):
        attacked(Behind(small_network(), logits=spoiled), attack)
