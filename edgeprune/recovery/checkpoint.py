"""A training state after each epoch: written beside and renamed, read back as tensors only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeprune.files import replacing

NAME = "recovery.checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after `epoch` epochs, and the best state so far with its held-out accuracy."""

    epoch: int
    network: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    best_network: dict[str, torch.Tensor]
    best_accuracy: float | None


def write_checkpoint(folder: Path, state: Checkpoint) -> None:
    """Replace the folder's checkpoint."""
    with replacing(folder / NAME) as beside:
        torch.save({name: getattr(state, name) for name in Checkpoint.__slots__}, beside)


def read_checkpoint(folder: Path, device: str) -> Checkpoint | None:
    """The folder's checkpoint; None when there is none."""
    path = folder / NAME
    if not path.is_file():
        return None
    return Checkpoint(**torch.load(path, map_location=device, weights_only=True))
