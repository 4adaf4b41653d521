"""Training images: in memory where they fit, moved about in whole batches, the same ones for the same seed.

Promise: what happens to a batch depends on the seed, the epoch and the batch alone, so that a training that was
resumed sees what an uninterrupted one sees. Nothing is mirrored unless that was asked for: signs and digits are not.
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


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One draw of the augmentation, for N images: how far each moves (int64 (N,), None: not at all), which mirror.

    Drawn on the CPU, whatever the device: the same seed makes the same view everywhere.
    """

    moves: tuple[torch.Tensor, torch.Tensor] | None
    mirrors: torch.Tensor | None

    @classmethod
    def drawn(cls, images: Images, generator: torch.Generator, *, shift: bool, flip: bool) -> View:
        """A view of all images: moved by up to a sixteenth of their size, half of them mirrored."""
        count = len(images)
        reach = _reach(images.batch(np.arange(1)))
        return cls(_moves(count, reach, generator) if shift else None, _halves(count, generator) if flip else None)

    def of(self, images: torch.Tensor, positions: Ints) -> torch.Tensor:
        """The images (N, C, H, W) at these positions as they look in this view."""
        chosen = torch.from_numpy(positions)
        if self.moves is not None:
            images = _moved(images, (self.moves[0][chosen], self.moves[1][chosen]))
        return images if self.mirrors is None else _mirrored(images, self.mirrors[chosen])


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to a sixteenth of its size, edges repeated. Draws on the CPU, whatever the device."""
    return _moved(images, _moves(len(images), _reach(images), generator))


def mirrored(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the images, drawn, left for right."""
    return _mirrored(images, _halves(len(images), generator))


def _reach(images: torch.Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return max(1, height // 16), max(1, width // 16)


def _moves(count: int, reach: tuple[int, int], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns to move by, from 0 to twice the reach; the reach itself is no move."""
    down, right = (torch.randint(2 * r + 1, (count,), generator=generator) for r in reach)
    return down, right


def _halves(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator) < 0.5


def _moved(images: torch.Tensor, moves: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    reach, (height, width), device = _reach(images), images.shape[-2:], images.device
    padded = torch.nn.functional.pad(images, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
    down, right = (each.to(device) for each in moves)
    pick_rows = down[:, None, None] + torch.arange(height, device=device)[None, :, None]
    pick_columns = right[:, None, None] + torch.arange(width, device=device)[None, None, :]
    batch = torch.arange(len(images), device=device)[:, None, None]
    found = padded.permute(0, 2, 3, 1)[batch, pick_rows, pick_columns]  # whole pixels at a time
    return found.permute(0, 3, 1, 2)


def _mirrored(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    return torch.where(which.to(images.device)[:, None, None, None], images.flip(-1), images)
