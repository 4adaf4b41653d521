"""Training images: in memory where they fit, in batches drawn by a seed.

Promise: a batch depends on the seed, the epoch and its number alone, so that a training that was resumed sees what an
uninterrupted one sees. How images are changed is `views.py`'s.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgeprune.types import ModelBundle, Split

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

MOST_BYTES = 2**30
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """A split's images, float32 (N, C, H, W) channels-last on the device, or None where they are read each time."""

    split: Split
    device: str
    held: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, positions: Ints) -> torch.Tensor:
        """The images at these positions of the split, on the device."""
        if self.held is not None:
            return self.held[torch.from_numpy(positions).to(self.device)]
        return on_device(self.split.source.read(self.split.ids[positions]), self.device)


def images_of(split: Split, device: str, most_bytes: int = MOST_BYTES) -> Images:
    """The images of a split, held in memory where they take at most `most_bytes`."""
    if not len(split):
        return Images(split, device)
    first = split.source.read(split.ids[:1])
    if first.nbytes * len(split) > most_bytes:
        return Images(split, device)
    whole = torch.empty(
        (len(split), *first.shape[1:]), device=device, memory_format=torch.channels_last if first.ndim == 4 else None
    )
    for start in range(0, len(split), _AT_ONCE):
        part = split.source.read(split.ids[start : start + _AT_ONCE])
        whole[start : start + len(part)] = torch.from_numpy(part)
    return Images(split, device, whole)


def placed(bundle: ModelBundle, device: str) -> ModelBundle:
    """A copy on the device, in channels-last (training is faster in it on a CPU), in eval mode."""
    module = copy.deepcopy(bundle.module).to(device)
    return replace(bundle, module=module.to(memory_format=torch.channels_last).eval())  # type: ignore[call-overload]


def on_device(images: Floats | torch.Tensor, device: str) -> torch.Tensor:
    """A batch on the device, channels-last."""
    return torch.as_tensor(images).to(device, memory_format=torch.channels_last)


def shuffled(count: int, seed: int, size: int) -> list[Ints]:
    """Positions in an order drawn by the seed, in batches; a smaller last one is left out if there are others."""
    order = np.random.default_rng(seed).permutation(count)
    batches = [order[start : start + size] for start in range(0, count, size)]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < size else batches


def mixed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
