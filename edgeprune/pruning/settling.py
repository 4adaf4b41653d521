"""Batch norms of a network with random weights, set to what they really see.

Random weights behind random statistics let signals grow from block to block until every gate of a deep network
(squeeze-and-excitation) stands at 0 or 1: the output no longer reacts to what moves the gates, and nothing behind
them can be proved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_JITTER = 0.1  # how far from centred, in standard deviations: what is exactly centred could hide a wrong index


def settle(network: nn.Module, images: Tensor, generator: torch.Generator) -> None:
    """Set the running statistics of all batch norms, each before it runs on `images`, to those of its input. In place.

    Errors: whatever the network's forward pass raises.
    """

    def observe(layer: Any, inputs: tuple[Any, ...]) -> None:
        seen = inputs[0].movedim(1, 0).flatten(1)
        variance, mean = torch.var_mean(seen, 1, correction=0)
        common = variance.mean()
        if not bool(common > 0):
            return
        variance = (variance + common) / 2  # a channel that is nearly constant here must not become noise
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        layer.running_mean.copy_(mean + _JITTER * variance.sqrt() * noise)
        layer.running_var.copy_(variance)

    norms = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
    ]
    hooks = [layer.register_forward_pre_hook(observe) for layer in norms]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
