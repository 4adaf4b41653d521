"""Networks as `torch.export` programs: the last form of a bundle, and files that users bring as .pt2."""

from __future__ import annotations

from torch import nn

from edgeprune.models.encoding import Opaque
from edgeprune.types import Shape


def export(module: nn.Module, shape: Shape) -> bytes:
    """The module as a program with a dynamic batch; Opaque when torch cannot export it."""
    raise Opaque("torch.export programs are not written yet")


def load(content: bytes, path: str) -> nn.Module:
    """The network of a program."""
    raise Opaque(f"{path} is a torch.export program, which cannot be opened yet")
