"""A targeted threat model as one of two classes: the target, and the best of all others.

An image falls where the target's logit is the largest. Seen as two classes, every attack is a targeted one: it knows of
no target, and needs not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import UsageError
from edgeprune.protocols import Session

if TYPE_CHECKING:
    from edgeprune.types import Floats


class TowardsNetwork(nn.Module):
    """A network of K classes as one of two: the best logit but the target's, and the target's. (N, 2)."""

    def __init__(self, network: nn.Module, target: int) -> None:
        super().__init__()
        self.network, self.target = network, target

    def forward(self, images: Tensor) -> Tensor:
        from edgeprune.robustness.gradients import as_logits

        logits = as_logits(self.network(images))
        others = logits.index_fill(1, torch.tensor([self.target], device=logits.device), -torch.inf).amax(1)
        return torch.stack([others, logits[:, self.target]], 1)


class TowardsSession:
    """The same of a runtime; UsageError when the file has no such class."""

    def __init__(self, session: Session, target: int) -> None:
        self.info, self.input_shape = session.info, session.input_shape
        self._session, self._target = session, target

    def logits(self, images: Floats) -> Floats:
        """float32 (N, 2): class 1 wins exactly where the file's own first largest logit is the target's."""
        logits = np.asarray(self._session.logits(images), np.float32)
        if not self._target < logits.shape[1]:
            raise UsageError(
                f"there is no class {self._target}: the file has {logits.shape[1]}", hint="--attack-target"
            )
        others = np.delete(logits, self._target, axis=1).max(axis=1)
        aimed = logits[:, self._target]
        # A tie is the target's where its index is the lower one, as it is for the file's own prediction.
        wins = logits.argmax(axis=1) == self._target
        aimed = np.where(wins & (aimed == others), np.nextafter(aimed, np.float32(np.inf)), aimed)
        return np.stack([others, aimed], axis=1)
