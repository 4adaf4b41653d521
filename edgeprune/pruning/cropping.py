"""Channels that a module without weights makes of nothing (the zeros that pad a shortcut), and how they go.

Nothing in such a module says how many it makes, so they are left out behind it: `Cropped` hands on the channels that
stay. It is the shortcut of a ResNet for CIFAR (He et al. 2016, option A) that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgeprune.errors import PruningError

MADE, CARRIED = "MADE", "CARRIED"
"""Kinds of members: channels that the module makes itself, and those that it hands on from another layer."""


class Cropped(nn.Module):
    """A module, and of its output (N, C, ...) the channels that are not in `gone`."""

    def __init__(self, inner: nn.Module, gone: Sequence[int]) -> None:
        super().__init__()
        self.inner = inner
        self.gone = tuple(sorted(gone))
        self.training = inner.training

    def forward(self, images: Tensor) -> Tensor:
        """What the module makes of (N, C', ...), without the channels that are gone: (N, C - len(gone), ...)."""
        made: Tensor = self.inner(images)
        left = set(self.gone)
        kept = [channel for channel in range(made.shape[1]) if channel not in left]
        if kept == list(range(kept[0], kept[-1] + 1)):
            return made[:, kept[0] : kept[-1] + 1]
        return made.index_select(1, torch.tensor(kept, device=made.device))


def crop(module: nn.Module, made: Mapping[str, Sequence[int]], carried: Mapping[str, Sequence[int]]) -> None:
    """Leave out channels behind modules, in place; both map a module's name to indices of what comes out of it.

    `made` are those that the module makes itself, `carried` those that it hands on and no longer gets.
    Errors: PruningError for a module that is not there.
    """
    for name in dict.fromkeys((*made, *carried)):
        owner, _, leaf = name.rpartition(".")
        parent = module.get_submodule(owner)
        found = parent._modules.get(leaf)
        if found is None:
            raise PruningError(f"cannot cut {name}: there is no such module")
        inner, before = (found.inner, found.gone) if isinstance(found, Cropped) else (found, ())
        missing = {_inside(index, before) for index in carried.get(name, ())}
        gone = {*before, *(_inside(index, before) for index in made.get(name, ()))}
        shifted = [index - sum(other < index for other in missing) for index in gone]
        parent._modules[leaf] = Cropped(inner, shifted) if shifted else inner


def _inside(index: int, gone: Sequence[int]) -> int:
    """The position in the inner module's output of what comes out at `index`."""
    for each in gone:
        if each > index:
            break
        index += 1
    return index
