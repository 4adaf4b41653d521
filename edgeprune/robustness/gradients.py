"""Gradients of a twin: a torch module that stands for an exported file in backward passes, and nowhere else.

Promise: the module is left as it was found (mode, `requires_grad`, no `.grad`), and the size of its logits does not
decide whether there is a gradient. A network that ends in a softmax is read through the logarithm, where its saturation
does no harm as long as float32 still tells its probabilities from zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeprune.errors import MeasurementError

SHARPNESS = 4.0
"""Of 1, 3, 4, 6 and 10, what left the fewest images standing, summed over four networks at two epsilons each; 3 to 10
hardly differ, 1 leaves 6 % more."""

_SUM_TOLERANCE = 1e-3


@contextmanager
def at_rest(module: nn.Module) -> Iterator[torch.device]:
    """The module in eval mode and without gradients for its weights; its device. Restored on the way out."""
    modes = {part: part.training for part in module.modules()}
    wanted = {weight: weight.requires_grad for weight in module.parameters()}
    first = next((tensor for tensors in (module.parameters(), module.buffers()) for tensor in tensors), None)
    try:
        for part in modes:  # not module.eval(), which torch.export's modules refuse
            part.training = False
        for weight in wanted:
            weight.requires_grad_(False)
        yield torch.device("cpu") if first is None else first.device
    finally:
        for part, training in modes.items():
            part.training = training
        for weight, flag in wanted.items():
            weight.requires_grad_(flag)


def rescaled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (N,) of logits divided by a gap of their own and multiplied by `SHARPNESS`.

    The gap is the largest minus the third largest logit of that image (of two classes: the second), as in the DLR loss
    (Croce and Hein 2020), and is taken as a constant. So logits times any positive number give the same gradient
    directions, and softmax cannot saturate: the third class always has exp(-SHARPNESS) of the first one's weight.
    Plain cross-entropy loses its gradient where logits are large (section 4 there).
    """
    top = logits.topk(min(3, logits.shape[1]), dim=1).values
    noise = 1e-6 * logits.abs().amax(1, keepdim=True)  # about what float32 resolves
    gap = torch.maximum(top[:, :1] - top[:, -1:], noise).detach()
    scaled = SHARPNESS * (logits - top[:, :1].detach()) / torch.where(gap > 0, gap, 1.0)
    return functional.cross_entropy(scaled, labels, reduction="none")


def as_logits(outputs: Tensor) -> Tensor:
    """`outputs` (N, K), with the rows that are probabilities replaced by their logarithms.

    A row whose entries are not negative and sum to 1 is a softmax's. Its order does not change, so neither do
    predictions.
    """
    rows = probabilities(outputs.detach())
    if not bool(rows.any()):
        return outputs
    logarithms = outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
    return torch.where(rows[:, None], logarithms, outputs)


def probabilities(outputs: Tensor) -> Tensor:
    """Which rows of (N, K) are a softmax's: bool (N,)."""
    return ((outputs.sum(1) - 1).abs() < _SUM_TOLERANCE) & (outputs >= 0).all(1)


def input_gradients(module: nn.Module, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of `rescaled_cross_entropy` at `points` (N, ...), and bool (N,): where it is usable."""
    _, gradients, usable = climb(module, points, lambda logits: rescaled_cross_entropy(logits, labels))
    return gradients, usable


def climb(module: nn.Module, points: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`objective` of the logits at `points` (N, ...): its values (N,), its gradients, and bool (N,) on the CPU: usable.

    A gradient that is zero or not finite is not usable; one that is not finite comes back as zero. A network that its
    input does not reach has zero gradients.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_(True)
        losses = objective(logits_of(module, points))
        if not losses.requires_grad:
            return losses, torch.zeros_like(points), torch.zeros(len(points), dtype=torch.bool)
        total = losses.sum()
        (gradients,) = torch.autograd.grad(total, points, allow_unused=True, materialize_grads=True)
    return losses.detach(), *judged(gradients)


def seeds_of(logits: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """`objective` of logits (N, K), read by `as_logits`: its values (N,), and its gradients for the logits (N, K)."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(True)
        losses = objective(as_logits(leaf))
        (seeds,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), seeds


def judged(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (N, ...), zero where one is not finite, and bool (N,) on the CPU: usable."""
    largest = gradients.flatten(1).abs().amax(1)  # NaN and infinity pass through
    finite = largest.isfinite()
    usable = (finite & (largest > 0)).cpu()
    if not bool(finite.all()):
        gradients = torch.where(finite.view(-1, *([1] * (gradients.ndim - 1))), gradients, 0.0)
    return gradients, usable


def logits_of(module: nn.Module, points: Tensor) -> Tensor:
    """What the module says of `points`, read by `as_logits`; MeasurementError unless it is (N, K) with K above 1."""
    logits = module(points)
    if logits.ndim != 2 or logits.shape[0] != len(points) or logits.shape[1] < 2:
        raise MeasurementError(
            f"the network that gives the gradients returned {tuple(logits.shape)} for {len(points)} images",
            hint="it must return logits (images, classes) with at least two classes",
        )
    return as_logits(logits)
