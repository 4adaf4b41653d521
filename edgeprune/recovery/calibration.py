"""Batch-norm statistics, measured again: what every recovery begins with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeprune.recovery.images import on_device
from edgeprune.types import Split

_NORMS = nn.modules.batchnorm._BatchNorm
_IMAGES, _BATCH = 2048, 128


def recalibrate(network: nn.Module, split: Split, device: str, *, seed: int) -> None:
    """Measure batch-norm statistics again, on up to 2,048 images drawn by the seed. In place.

    Pruning changes what every layer receives; the old statistics belong to the dense network (Li et al. 2020,
    "EagleEye"). Batches are of nearly equal size, at most 128. Fewer than two images: nothing happens.
    """
    order = np.random.default_rng(seed).permutation(split.ids)[:_IMAGES]
    if len(order) < 2:
        return
    parts = np.array_split(order, math.ceil(len(order) / _BATCH))
    measure_statistics(network, (on_device(split.source.read(part), device) for part in parts))


class _Statistics:
    """Mean and variance of every channel over all batches, in float64: sums are pooled (Chan et al. 1979)."""

    def __init__(self, norm: Any) -> None:
        self.count = 0
        self.mean = torch.zeros_like(norm.running_mean, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)  # sum of squared distances to the mean

    def __call__(self, norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].detach().transpose(0, 1).flatten(1).double()
        count, mean = values.shape[1], values.mean(1)
        total, apart = self.count + count, mean - self.mean
        self.squares += (values - mean[:, None]).square().sum(1) + apart.square() * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    def store(self, norm: Any) -> None:
        norm.running_mean.copy_(self.mean)
        norm.running_var.copy_(self.squares / max(1, self.count - 1))


def measure_statistics(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace all batch-norm statistics by the mean and the variance (unbiased, as torch has it) of the batches.

    While that runs, batch norm uses each batch's own statistics, as in training, so that a layer measures what
    calibrated layers before it send. In place; everything else stays in eval mode and as it was. A norm that no
    batch reaches keeps its statistics. `batches`: at least one, float32 (N, C, H, W).
    """
    norms: list[Any] = [m for m in network.modules() if isinstance(m, _NORMS) and m.running_mean is not None]
    statistics = {norm: _Statistics(norm) for norm in norms}
    momenta = {norm: norm.momentum for norm in norms}
    hooks = [norm.register_forward_pre_hook(found) for norm, found in statistics.items()]
    network.eval()
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 0.0  # training mode must not write what is about to be replaced
            norm.num_batches_tracked.zero_()
        with torch.no_grad():
            for images in batches:
                network(images)
            for norm, found in statistics.items():
                if found.count:
                    found.store(norm)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        network.eval()
