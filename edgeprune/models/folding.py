"""Batch norm folded into the convolution before it: for passes that only look, and for what an exporter makes of both.

In eval mode a norm is a factor and a term for every channel, so the convolution before it can do its work (Jacob et al.
2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference"); on a processor
the norms of a narrow network take a third of such a pass. Which convolution stands before which norm is seen by
running the network, and whether it may take the norm's work by comparing the answers: a network that uses a
convolution's output twice, or whose path depends on what it sees, is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_SAME = 1e-4  # of the largest answer: float32 rounding, through many layers

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


@dataclass(frozen=True, slots=True)
class Folding:
    """Convolutions of one network, and the norm that takes nothing but what each one gives."""

    pairs: tuple[Pair, ...] = ()

    @classmethod
    def of(cls, network: nn.Module, images: torch.Tensor) -> Folding:
        """What can be folded in a network, as a look at some images, float32 (N, C, H, W), tells. It stays as it was.

        Nothing, where the folded network's answers are others.
        """
        was_training = network.training
        network.eval()
        try:
            with torch.no_grad():
                found = cls(_pairs(network, images))
                plain = network(images)
                with found.done():
                    folded = network(images)
        finally:
            network.train(was_training)
        same = (folded - plain).abs().max() <= _SAME * plain.abs().max()
        return found if same else cls()

    @contextmanager
    def done(self) -> Iterator[None]:
        """The network computes folded, with the weights and statistics that it has now; only for eval mode.

        Weights get no gradients meanwhile.
        """
        try:
            for convolution, norm in self.pairs:
                _fold(convolution, norm)
            yield
        finally:
            for module in (each for pair in self.pairs for each in pair):
                module.__dict__.pop("forward", None)


NOTHING = Folding()


def _pairs(network: nn.Module, images: torch.Tensor) -> tuple[Pair, ...]:
    """Plain convolutions that run once, each with the plain norm that takes its output."""
    given: dict[int, tuple[nn.Conv2d, torch.Tensor, int]] = {}  # tensors, too: an address is used again once they go
    taken: list[Pair] = []
    runs: dict[nn.Module, int] = {}

    def ran(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        runs[module] = runs.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            given[id(output)] = module, output, output._version
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in given:
            convolution, _, version = given[id(inputs[0])]
            if inputs[0]._version == version:  # nothing has changed it in place
                taken.append((convolution, module))

    kinds = nn.Conv2d, nn.BatchNorm2d
    plain = [each for each in network.modules() if type(each) in kinds and "forward" not in each.__dict__]
    hooks = [module.register_forward_hook(ran) for module in plain]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(
        (convolution, norm)
        for convolution, norm in taken
        if runs[convolution] == runs[norm] == 1 and norm.running_mean is not None
    )


@torch.no_grad()
def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (O, I, kH, kW) and bias (O,) of the convolution that does the norm's work, too, in eval mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    mean = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
    bias = -mean * factor if norm.bias is None else norm.bias - mean * factor
    return convolution.weight * factor[:, None, None, None], bias


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """One convolution does one norm's work until both forget their own `forward`."""
    weight, bias = folded(convolution, norm)
    weight = weight.contiguous(memory_format=torch.channels_last)
    convolution.__dict__["forward"] = lambda images: convolution._conv_forward(images, weight, bias)
    norm.__dict__["forward"] = lambda images: images
