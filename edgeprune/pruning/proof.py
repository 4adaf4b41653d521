"""Is it sound to remove a group's channels? Tried on a copy before any plan may use the group.

Half of the group's channels (drawn at random) are silenced, by zeroing the weights that read them, and the same
channels are cut. Both networks must compute the same. The copy has random weights and runs in float64, so that a
dead channel, a symmetric layer or rounding cannot hide a wrong index; where the network's output does not react to
silencing, the proof would be blind and the group is refused.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from edgeprune.errors import PruningError
from edgeprune.pruning.surgery import cut, silence
from edgeprune.types import Group, Shape

TOLERANCE = 1e-8
_IMAGES = 2


def prove(module: nn.Module, group: Group, input_shape: Shape, *, seed: int = 0) -> str | None:
    """None when the group passes; else the reason, in words, why it is left alone."""
    if group.width < 2:
        return "it has a single channel"
    generator = torch.Generator().manual_seed(seed)
    network = _scrambled(module, generator)
    images = torch.rand(_IMAGES, *input_shape, generator=generator, dtype=torch.float64)
    removals = {group.name: torch.randperm(group.width, generator=generator)[: group.width // 2].tolist()}
    try:
        with torch.no_grad():
            before = network(images)
            expected = silence(network, (group,), removals)(images)
            actual = cut(network, (group,), removals)(images)
    except PruningError as error:
        return f"the cut failed: {error.what}"
    except Exception as error:  # a network with wrong widths fails wherever its forward pass notices
        return f"the network does not run without its channels: {_short(error)}"
    return _judge(before, expected, actual)


def _judge(before: torch.Tensor, expected: torch.Tensor, actual: torch.Tensor) -> str | None:
    if actual.shape != expected.shape:
        return f"the output changed its shape from {tuple(expected.shape)} to {tuple(actual.shape)}"
    scale = float(expected.abs().max())
    if not math.isfinite(scale):
        return "the proof cannot see: the output of the scrambled network is not finite"
    if float((before - expected).abs().max()) <= 1e3 * TOLERANCE * scale:
        return "the proof cannot see: the output does not react to its channels"
    difference = float((actual - expected).abs().max()) / max(scale, 1e-300)
    if not difference <= TOLERANCE:
        return f"the group failed its proof (outputs differ by {difference:.2g} of their size)"
    return None


def _scrambled(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A float64 copy with random weights of a size that keeps signals alive (He et al. 2015)."""
    network = copy.deepcopy(module).double()
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.dim() > 1:
                fan_in = tensor[0].numel()
                tensor.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            else:
                tensor.uniform_(0.5, 1.5, generator=generator)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                buffer.normal_(0, 0.1, generator=generator)
    return network


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
