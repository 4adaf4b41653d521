"""Cuts channels out of a network. Only this module cuts, and it cuts a copy.

All removals are collected first, as indices of the *uncut* tensors, and made once: a tensor that loses channels to
two groups (a concatenation) cannot be cut twice with shifted indices.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch_pruning.ops import OPTYPE
from torch_pruning.pruner.function import PrunerBox

from edgeprune.errors import PruningError
from edgeprune.types import Group, Member

Removals = Mapping[str, Sequence[int]]
"""Group name -> unit indices that go."""


def cut(module: nn.Module, groups: Sequence[Group], removals: Removals) -> nn.Module:
    """A copy of `module` without the given units of the given groups.

    Errors: PruningError when a group would lose all of its channels, or the network does not fit the groups.
    """
    module = copy.deepcopy(module)
    for member, indices in collect(groups, removals).items():
        try:
            _cut_member(module, member, indices)
        except (AttributeError, IndexError, AssertionError, RuntimeError) as error:
            raise PruningError(f"cannot cut {member[0]}: {error}") from error
    return module


def silence(module: nn.Module, groups: Sequence[Group], removals: Removals) -> nn.Module:
    """A copy of `module` in which nothing reads the given units: the weights that take them in are zero.

    What `cut` must agree with. Zeroing the readers is neutral whatever lies between (a sigmoid turns a zeroed
    channel into 0.5, a reader with zero weights ignores it all the same).
    """
    module = copy.deepcopy(module)
    for (name, kind, role, _), indices in collect(groups, removals).items():
        if role == "in":
            layer: Any = module.get_submodule(name)
            with torch.no_grad():
                _reader_columns(layer, kind, indices)
    return module


def collect(groups: Sequence[Group], removals: Removals) -> dict[tuple[str, str, str, int], list[int]]:
    """(module, kind, role, dimension) -> sorted indices of the uncut tensor that go."""
    gone: dict[tuple[str, str, str, int], set[int]] = defaultdict(set)
    for group in groups:
        units = removals.get(group.name, ())
        if units and len(set(units)) >= group.width:
            raise PruningError(f"the plan removes every channel of {group.name}")
        for member in group.members:
            for unit in units:
                gone[_key(member)].update(member.channels[unit])
    return {key: sorted(indices) for key, indices in gone.items() if indices}


def _key(member: Member) -> tuple[str, str, str, int]:
    return member.name, member.kind, member.role, member.dim


def _cut_member(module: nn.Module, key: tuple[str, str, str, int], indices: list[int]) -> None:
    name, kind, role, dim = key
    if kind == OPTYPE.PARAMETER.name:
        owner, _, leaf = name.rpartition(".")
        parent = module.get_submodule(owner)
        old: torch.Tensor = getattr(parent, leaf)
        gone = set(indices)
        keep = torch.tensor([i for i in range(old.shape[dim]) if i not in gone])
        setattr(parent, leaf, nn.Parameter(old.detach().index_select(dim, keep), requires_grad=old.requires_grad))
        return
    layer = module.get_submodule(name)
    pruner = PrunerBox[OPTYPE[kind]]
    pruner.pruning_dim = 1
    frozen = {parameter for parameter, tensor in layer.named_parameters(recurse=False) if not tensor.requires_grad}
    (pruner.prune_out_channels if role == "out" else pruner.prune_in_channels)(layer, indices)
    for parameter in frozen:  # torch-pruning makes new parameters, and makes them trainable
        getattr(layer, parameter).requires_grad_(False)


def _reader_columns(layer: Any, kind: str, indices: list[int]) -> None:
    weight: torch.Tensor = layer.weight
    groups = int(getattr(layer, "groups", 1))
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if transposed:
        weight[indices] = 0
    elif groups == 1:
        weight[:, indices] = 0
    else:
        rows, columns = weight.shape[0] // groups, weight.shape[1]
        for index in indices:
            part, column = divmod(index, columns)
            weight[part * rows : (part + 1) * rows, column] = 0
