"""A training state after each epoch: written beside and renamed, read back as tensors and numbers only."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeprune.files import replacing

NAME = "recovery.checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after `epoch` epochs, and the best state so far.

    `average`: the running mean of the weights (empty: none is kept). `course`: plain numbers and texts, how the
    training went so far. `task` is a digest of everything that the training depends on: a state is continued by the
    same task only.
    """

    epoch: int
    network: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    best_network: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    course: dict[str, Any]
    task: str = ""


def write_checkpoint(folder: Path, state: Checkpoint) -> None:
    """Replace the folder's checkpoint. Errors: OutputError, for a full disk, too."""
    buffer = io.BytesIO()  # torch reports a full disk as an error of its archive when it writes the file itself
    torch.save({name: getattr(state, name) for name in Checkpoint.__slots__}, buffer)
    with replacing(folder / NAME) as beside:
        beside.write_bytes(buffer.getbuffer())


def read_checkpoint(folder: Path, device: str, *, task: str = "") -> Checkpoint | None:
    """The folder's checkpoint; None when there is none, it is damaged, or it belongs to another task."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        found = Checkpoint(**torch.load(path, map_location=device, weights_only=True))
    except (OSError, RuntimeError, EOFError, TypeError, ValueError, KeyError, pickle.UnpicklingError):
        return None
    return found if found.task == task else None
