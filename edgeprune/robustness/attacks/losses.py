"""What the gradient attacks climb: losses (N,) of logits (N, K), larger where the image is nearer to falling.

Promise: the size of the logits decides nothing. Each loss is divided by a gap between logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.robustness.gradients import SHARPNESS

Loss = Literal["ce", "dlr", "targeted"]


def gaps(logits: Tensor) -> Tensor:
    """Largest minus third largest logit of each row (N,), of two classes the second; never 0."""
    top = logits.topk(min(3, logits.shape[1]), dim=1).values
    gap = torch.maximum(top[:, 0] - top[:, -1], 1e-6 * logits.abs().amax(1))  # about what float32 resolves
    return torch.where(gap > 0, gap, 1.0)


def objective(loss: Loss, labels: Tensor, targets: Tensor, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """The named loss as a function of logits (N, K) alone; labels, targets and scales are (N,)."""
    if loss == "ce":
        return partial(cross_entropy, labels=labels, scales=scales)
    if loss == "dlr":
        return partial(difference_of_logits_ratio, labels=labels, scales=scales)
    return partial(targeted_ratio, labels=labels, targets=targets, scales=scales)


def cross_entropy(logits: Tensor, labels: Tensor, scales: Tensor) -> Tensor:
    """Cross-entropy of logits divided by `scales` (N,) and multiplied by `SHARPNESS`.

    The scale belongs to the image, not to the iterate, so that losses of one run can be compared.
    """
    return functional.cross_entropy(SHARPNESS * logits / scales[:, None], labels, reduction="none")


def difference_of_logits_ratio(logits: Tensor, labels: Tensor, scales: Tensor) -> Tensor:
    """The DLR loss (Croce and Hein 2020, eq. 6); of two classes, where it is constant, the margin over `scales`."""
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    gap = others - logits.gather(1, labels[:, None]).squeeze(1)
    if logits.shape[1] < 3:
        return gap / scales
    top = logits.topk(3, dim=1).values
    return gap / _positive(top[:, 0] - top[:, 2])


def targeted_ratio(logits: Tensor, labels: Tensor, targets: Tensor, scales: Tensor) -> Tensor:
    """The targeted DLR loss (eq. 7 there); of fewer than four classes the margin to the target over `scales`."""
    gap = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    if logits.shape[1] < 4:
        return gap / scales
    top = logits.topk(4, dim=1).values
    return gap / _positive(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def _positive(values: Tensor) -> Tensor:
    """Denominators: 0, where classes tie, becomes a number that keeps the quotient finite in float32."""
    return torch.where(values > 0, values, torch.finfo(values.dtype).tiny ** 0.5)
