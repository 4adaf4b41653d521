"""Training images: in memory where they fit, moved about in whole batches, the same ones for the same seed.

Promise: what happens to a batch depends on the seed, the epoch and the batch alone, so that a training that was
resumed sees what an uninterrupted one sees. Nothing is mirrored unless that was asked for: signs and digits are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgeprune.types import Split

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


def on_device(images: Floats | torch.Tensor, device: str) -> torch.Tensor:
    """A batch on the device, channels-last."""
    return torch.as_tensor(images).to(device, memory_format=torch.channels_last)


def shuffled(count: int, seed: int, size: int) -> list[Ints]:
    """Positions in an order drawn by the seed, in batches; a smaller last one is left out if there are others."""
    order = np.random.default_rng(seed).permutation(count)
    batches = [order[start : start + size] for start in range(0, count, size)]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) < size else batches


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to a sixteenth of its size, edges repeated. Draws on the CPU, whatever the device."""
    reach = [max(1, size // 16) for size in images.shape[-2:]]
    padded = torch.nn.functional.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    rows, columns = (torch.randint(2 * r + 1, (len(images),), generator=generator).to(images.device) for r in reach)
    height, width = images.shape[-2:]
    pick_rows = rows[:, None, None] + torch.arange(height, device=images.device)[None, :, None]
    pick_columns = columns[:, None, None] + torch.arange(width, device=images.device)[None, None, :]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[batch, pick_rows, pick_columns]  # whole pixels at a time
    return moved.permute(0, 3, 1, 2)


def mirrored(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the images, drawn, left for right."""
    which = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(which[:, None, None, None], images.flip(-1), images)
