"""Victims with known answers for the tests of the robustness room."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.records import RuntimeInfo, ThreatModel
from edgeprune.types import AttackBudget, Split, Victim

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

SHAPE = (1, 4, 4)


def silent(_text: str, _share: float) -> None:
    """A progress that shows nothing."""


class Arrays:
    """An image source in memory."""

    def __init__(self, images: Floats, labels: Ints) -> None:
        self.images, self.labels = images, labels

    def read(self, ids: Ints) -> Floats:
        return self.images[ids]


class ModuleSession:
    """A session whose runtime is the torch module itself, or any function of pixels."""

    def __init__(self, function: Callable[[Tensor], Tensor], name: str = "fake") -> None:
        self.function, self.input_shape = function, None
        self.info = RuntimeInfo(name=name, version="1", precision="float32", threads=1)

    def logits(self, images: Floats) -> Floats:
        with torch.no_grad():
            return np.asarray(self.function(torch.from_numpy(images)).numpy(), np.float32)


def split_of(images: Floats, labels: Ints) -> Split:
    return Split("test", "fake", Arrays(images, labels), np.arange(len(labels)), hashlib.sha256(b"fake").hexdigest())


def grid_images(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE, low: int = 80, high: int = 176) -> Floats:
    """Images on the 8-bit grid, away from the ends of the pixel range: float32 in [0, 1]."""
    levels = np.random.default_rng(seed).integers(low, high, (count, *shape))
    return (levels / np.float32(255)).astype(np.float32)


def linear(classes: int = 2, seed: int = 0, scale: float = 1.0) -> nn.Sequential:
    """A linear classifier whose boundary passes through the middle of the pixel range."""
    layer = nn.Linear(int(np.prod(SHAPE)), classes)
    weight = np.random.default_rng(seed).standard_normal((classes, layer.in_features)).astype(np.float32)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight) * scale)
        layer.bias.copy_(-layer.weight.sum(1) * 0.5)
    return nn.Sequential(nn.Flatten(), layer).eval()


def small_network(seed: int = 0, classes: int = 5) -> nn.Sequential:
    """A convolution, batch norm, ReLU and a linear layer with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, classes)
        ).eval()


class Scaled(nn.Module):
    """A network whose logits are multiplied by a number."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) * self.factor


class Constant(nn.Module):
    """Returns the same logits whatever it is given; with `reached` the input is in the graph, times zero."""

    def __init__(self, classes: int = 3, reached: bool = False) -> None:
        super().__init__()
        self.logits, self.reached = torch.arange(classes, dtype=torch.float32), reached

    def forward(self, images: Tensor) -> Tensor:
        return self.logits + (
            0 * images.flatten(1).sum(1, keepdim=True) if self.reached else torch.zeros(len(images), 1)
        )


class Saturated(nn.Module):
    """A network behind a sigmoid that is so steep that its gradient is exactly zero."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(1e6 * self.network(images))


class Misleading(nn.Module):
    """Returns a network's logits with the gradients of their opposite: every step leads away from the boundary."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return 2 * logits.detach() - logits


def victim_of(module: nn.Module, bounds: tuple[float, float] = (0.0, 1.0)) -> Victim:
    return Victim(ModuleSession(module).logits, module, bounds)


def labels_of(module: nn.Module, images: Floats) -> Ints:
    """What the module says: labels that it gets right."""
    with torch.no_grad():
        return module(torch.from_numpy(images)).argmax(1).numpy()


def budget_of(epsilon: float, norm: str = "linf", steps: int = 20, restarts: int = 1, seed: int = 0) -> AttackBudget:
    return AttackBudget(norm, epsilon, steps, restarts, seed)  # type: ignore[arg-type]


def threat_of(split: Split, epsilon: float, norm: str = "linf", **over: object) -> ThreatModel:
    settings: dict[str, object] = {"attack": "pgd", "steps": 20, "restarts": 1, "seed": 0, "bounds": (0.0, 1.0)}
    return ThreatModel(
        norm=norm,  # type: ignore[arg-type]
        epsilon=str(epsilon),
        epsilon_value=epsilon,
        samples=len(split),
        samples_digest=split.digest,
        **(settings | over),  # type: ignore[arg-type]
    )
