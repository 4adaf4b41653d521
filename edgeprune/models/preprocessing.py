"""Pixels to what the network was trained on, as a module: one statement of mean and std for every room.

Promise: the same arithmetic as torchvision's `Normalize`, in float32, as two elementary operations that every
exporter and runtime computes alike. Refuses to guess: without a mean, pixels go to the network as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.types import Preprocessing


class Preprocessed(nn.Module):
    """A network behind its normalisation: float32 pixels (N, C, H, W) to whatever `module` returns."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.module = module

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.module((pixels - self.mean) / self.std)
        return logits


def with_preprocessing(module: nn.Module, preprocessing: Preprocessing) -> nn.Module:
    """`module` behind its preprocessing, in eval mode, on the module's device, sharing its weights.

    Without mean and std that is `module` itself.
    """
    module = module.eval()
    if not preprocessing.mean:
        return module
    tensor = next(iter(module.parameters()), None)
    return (
        Preprocessed(module, preprocessing.mean, preprocessing.std)
        .to(tensor.device if tensor is not None else "cpu")
        .eval()
    )


def check_channels(preprocessing: Preprocessing, channels: int) -> None:
    """UsageError unless mean and std have one value a channel (one value for all channels is fine)."""
    if len(preprocessing.mean) not in (0, 1, channels):
        raise UsageError(
            f"mean and std have {len(preprocessing.mean)} values, the images have {channels} channels",
            hint="give --mean and --std one value a channel",
        )
