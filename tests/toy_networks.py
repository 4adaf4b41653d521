"""Small networks with known answers, and bundles of them. Every class is at the top of its module: it can be saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.models import digest
from edgeprune.types import Architecture, ModelBundle, Preprocessing, Shape, Split

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

SHAPE: Shape = (3, 8, 8)


def bundle_of(
    module: nn.Module, shape: Shape = SHAPE, *, classes: int = 4, preprocessing: Preprocessing | None = None
) -> ModelBundle:
    """A bundle of a module, in eval mode, with digest."""
    module = module.eval()
    names = tuple(str(i) for i in range(classes))
    architecture = Architecture("module", f"{type(module).__module__}:{type(module).__qualname__}")
    return ModelBundle(module, shape, preprocessing or Preprocessing(), names, architecture, digest(module))


@dataclass(frozen=True, eq=False)
class Arrays:
    """An image source in memory that notes which images were read."""

    images: Floats
    labels: Ints
    read_ids: set[int]

    def read(self, ids: Ints) -> Floats:
        self.read_ids.update(int(i) for i in ids)
        return self.images[ids]


def split_of(images: Floats, labels: Ints, *, name: str = "toy", digest: str = "toy") -> Split:
    """A training split over all of some images; its source is an `Arrays`."""
    source = Arrays(images.astype(np.float32), labels.astype(np.int64), set())
    return Split("train", name, source, np.arange(len(images), dtype=np.int64), digest)


def stripes(count: int, *, classes: int = 4, shape: Shape = SHAPE, seed: int = 0) -> tuple[Floats, Ints]:
    """Images whose class is where a bright stripe is, under noise: learned in a few epochs."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % classes
    images = generator.uniform(0, 0.4, (count, *shape)).astype(np.float32)
    rows = shape[1] // classes
    for image, label in zip(images, labels, strict=True):
        image[:, label * rows : (label + 1) * rows] += 0.5
    return images, labels


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and batch-norm statistics drawn by the seed, nothing symmetric. In place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.3, generator=generator)
    return module.eval()


def calibrated(module: nn.Module, images: Floats) -> nn.Module:
    """Batch norms that centre what they see of these images: no channel is dead, none always on. In place."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        module.train()(torch.from_numpy(images))
    return module.eval()


def conv_bn(inputs: int, outputs: int, *, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Head(nn.Module):
    """Mean over positions, then a linear layer to four classes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Chain(nn.Module):
    """conv1 (16) - conv2 (24) - fc: the group of conv1 and that of conv2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = conv_bn(3, 16), conv_bn(16, 24), Head(24)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
        return logits


class Residual(nn.Module):
    """A stem (16), and a block whose middle (8) is free while its output is tied to the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.out, self.head = conv_bn(3, 16), conv_bn(16, 8), conv_bn(8, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        logits: Tensor = self.head(torch.relu(x + self.out(torch.relu(self.middle(x)))))
        return logits


class Concatenated(nn.Module):
    """Two branches (8 and 12) joined channel by channel, one of them read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.join, self.head = conv_bn(3, 8), conv_bn(3, 12), conv_bn(28, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.a(x)), torch.relu(self.b(x))
        logits: Tensor = self.head(torch.relu(self.join(torch.cat([a, b, a], 1))))
        return logits


class ResidualOverConcatenation(nn.Module):
    """One convolution (16) added to the concatenation of two others (8 and 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.a, self.b, self.head = conv_bn(3, 16), conv_bn(3, 8), conv_bn(3, 8), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.whole(x) + torch.cat([self.a(x), self.b(x)], 1)))
        return logits


class Grouped(nn.Module):
    """A convolution in four groups between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped, self.last, self.head = (
            conv_bn(3, 16),
            conv_bn(16, 32, groups=4),
            conv_bn(32, 8),
            Head(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.last(torch.relu(self.grouped(torch.relu(self.first(x)))))))
        return logits


class Depthwise(nn.Module):
    """Pointwise, depthwise, pointwise, as in MobileNet."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = conv_bn(3, 24, kernel=1), conv_bn(24, 24, groups=24)
        self.project, self.head = conv_bn(24, 16, kernel=1), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.expand(x))))
        logits: Tensor = self.head(self.project(x))
        return logits


class Flattened(nn.Module):
    """A convolution (6) flattened into a linear layer: each channel is 64 of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(384, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1))))
        return logits


class Squeezed(nn.Module):
    """Squeeze-and-excitation: the channels are gated by what their own means say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite, self.head = (
            conv_bn(3, 16),
            nn.Conv2d(16, 4, 1),
            nn.Conv2d(4, 16, 1),
            Head(16),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        logits: Tensor = self.head(x * gate)
        return logits


class Transposed(nn.Module):
    """A transposed convolution between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.head = (
            nn.Conv2d(3, 12, 3, stride=2, padding=1),
            nn.ConvTranspose2d(12, 8, 2, 2),
            Head(8),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.up(torch.relu(self.down(x)))))
        return logits


class Lambda(nn.Module):
    """Layers by name, and a function of them and the images: for networks that only one test needs."""

    def __init__(self, function: Callable[[Lambda, Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


PRUNABLE: dict[str, type[nn.Module]] = {
    each.__name__: each
    for each in (
        Chain, Residual, Concatenated, ResidualOverConcatenation, Grouped, Depthwise, Flattened, Squeezed, Transposed,
    )
}  # fmt: skip
"""Networks of which every layer but the last can be pruned."""
