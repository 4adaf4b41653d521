"""What the gradient attacks climb: losses (N,) of logits (N, K), larger where the image is nearer to falling.

Promise: the size of the logits decides nothing. Each loss is divided by a gap between logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.robustness.gradients import SHARPNESS

Loss = Literal["ce", "dlr", "targeted"]
_SPREADS = {"dlr": torch.tensor([1.0, 0.0, -1.0]), "targeted": torch.tensor([1.0, 0.0, -0.5, -0.5])}
"""What the ratios divide by, as weights of the largest logits."""


def gaps(logits: Tensor) -> Tensor:
    """Largest minus third largest logit of each row (N,), of two classes the second; never 0."""
    top = logits.topk(min(3, logits.shape[1]), dim=1).values
    gap = torch.maximum(top[:, 0] - top[:, -1], 1e-6 * logits.abs().amax(1))  # about what float32 resolves
    return torch.where(gap > 0, gap, 1.0)


def scaled(loss: Loss, classes: int) -> bool:
    """Whether the loss is divided by the scales that it is given: a ratio divides by a gap of the present logits."""
    return loss == "ce" or classes < len(_SPREADS[loss])


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """The named loss as a function of logits (N, K) alone; labels, targets and scales are (N,)."""

    loss: Loss
    labels: Tensor
    targets: Tensor
    scales: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """The losses (N,), for torch to differentiate."""
        if self.loss == "ce":
            return cross_entropy(logits, self.labels, self.scales)
        if self.loss == "dlr":
            return difference_of_logits_ratio(logits, self.labels, self.scales)
        return targeted_ratio(logits, self.labels, self.targets, self.scales)

    def slopes(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (N,) and their gradients (N, K), written out: a tape over so few numbers takes ten times as long.

        Where classes tie, any of them is taken.
        """
        labels, scales = self.labels[:, None], self.scales[:, None]
        if self.loss == "ce":
            logarithms = (logits * (SHARPNESS / scales)).log_softmax(1)
            one = torch.zeros_like(logits).scatter_(1, labels, 1.0)
            return -logarithms.gather(1, labels).squeeze(1), (logarithms.exp() - one) * (SHARPNESS / scales)
        aims = self.targets[:, None]
        if self.loss == "dlr":
            aims = logits.scatter(1, labels, -torch.inf).argmax(1, keepdim=True)
        gap, one = logits.gather(1, aims) - logits.gather(1, labels), torch.ones_like(scales)
        rise = torch.zeros_like(logits).scatter_add_(1, aims, one).scatter_add_(1, labels, -one)
        shares = _SPREADS[self.loss]
        if logits.shape[1] < len(shares):
            return (gap / scales).squeeze(1), rise / scales
        top, places = logits.topk(len(shares), dim=1)
        spread = _positive((top * shares).sum(1, keepdim=True))
        ratio = gap / spread
        return ratio.squeeze(1), rise.scatter_add_(1, places, -ratio * shares).div_(spread)


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
