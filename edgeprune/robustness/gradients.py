"""Gradients of a twin: a torch module that stands for an exported file in backward passes, and nowhere else.

Promise: the module is left as it was found (mode, `requires_grad`, no `.grad`), and the size of its logits does not
decide whether there is a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.errors import MeasurementError

TEMPERATURE = 10.0


@contextmanager
def at_rest(module: nn.Module) -> Iterator[torch.device]:
    """The module in eval mode and without gradients for its weights; its device. Restored on the way out."""
    modes = {part: part.training for part in module.modules()}
    wanted = {weight: weight.requires_grad for weight in module.parameters()}
    first = next((tensor for tensors in (module.parameters(), module.buffers()) for tensor in tensors), None)
    try:
        module.eval()
        for weight in wanted:
            weight.requires_grad_(False)
        yield torch.device("cpu") if first is None else first.device
    finally:
        for part, training in modes.items():
            part.training = training
        for weight, flag in wanted.items():
            weight.requires_grad_(flag)


def rescaled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (N,) of logits that were divided by their own spread and multiplied by `TEMPERATURE`.

    The spread is the largest minus the smallest logit of that image, taken as a constant. So multiplying the logits
    by any positive number changes nothing, and softmax cannot saturate: the largest gap is `TEMPERATURE`, and
    exp(-TEMPERATURE) is far from float32's underflow. (Croce and Hein 2020, section 4: plain cross-entropy loses its
    gradient when logits are large.)
    """
    spread = (logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)).detach()
    scaled = TEMPERATURE * logits / torch.where(spread > 0, spread, 1.0)
    return functional.cross_entropy(scaled, labels, reduction="none")


def input_gradients(module: nn.Module, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the loss at `points` (N, ...), and bool (N,): False where it was zero or not finite.

    A gradient that is not finite comes back as zero. A network that its input does not reach has zero gradients.
    """
    with torch.inference_mode(False), torch.enable_grad():
        points = points.detach().clone().requires_grad_(True)
        logits = module(points)
        if logits.ndim != 2 or logits.shape[0] != len(points) or logits.shape[1] < 2:
            raise MeasurementError(
                f"the network that gives the gradients returned {tuple(logits.shape)} for {len(points)} images",
                hint="it must return logits (images, classes) with at least two classes",
            )
        loss = rescaled_cross_entropy(logits, labels).sum()
        if not loss.requires_grad:
            return torch.zeros_like(points, requires_grad=False), torch.zeros(len(points), dtype=torch.bool)
        (gradients,) = torch.autograd.grad(loss, points, allow_unused=True, materialize_grads=True)
    flat = gradients.flatten(1)
    usable = flat.isfinite().all(1) & flat.ne(0).any(1)
    return torch.where(usable.view(-1, *([1] * (gradients.ndim - 1))), gradients, 0.0), usable
