"""Cuts channels out of a network. Only this module cuts, and it cuts a copy.

All removals are collected first, as indices of the *uncut* tensors, and made once: a tensor that loses channels to
two groups (a concatenation) cannot be cut twice with shifted indices. Tensors are replaced, never written to, and
torch-pruning's own cutters are not used: they are objects with state, shared by the whole process.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from edgeprune.errors import PruningError
from edgeprune.pruning import recurrent
from edgeprune.pruning.cropping import CARRIED, MADE, crop
from edgeprune.pruning.masked import without
from edgeprune.types import Group, Member

Removals = Mapping[str, Sequence[int]]
"""Group name -> unit indices that go."""

WEIGHTED = frozenset({"CONV", "LINEAR", "DEPTHWISE_CONV"})
"""Members that are layers with a weight of their own."""
MIXING = frozenset({"LN", "GN", "MIX"})
"""Members that compute a mean over channels."""
_APART = frozenset({"SCALE", MADE, CARRIED})  # no cuts of a tensor
_NORMS = ("weight", "bias", "running_mean", "running_var")


class Place(NamedTuple):
    """One dimension of one layer (or bare parameter) that loses channels."""

    name: str
    kind: str
    role: str
    dim: int


def cut(module: nn.Module, groups: Sequence[Group], removals: Removals, *, share: bool = False) -> nn.Module:
    """A copy of `module` without the given units of the given groups.

    With `share` the copy keeps the uncut tensors of `module` itself: for a network that is only looked at.
    Errors: PruningError when a group would lose all of its channels, or the network does not fit the groups.
    """
    all_places = collect(groups, removals).items()
    places = {place: indices for place, indices in all_places if place.role != "zero" and place.kind not in _APART}
    scaled = _scales(groups, removals)
    shorter = _edited(module, places, _cut, share=share, scaled=scaled)
    made, carried = ({p.name: gone for p, gone in all_places if p.kind == kind} for kind in (MADE, CARRIED))
    crop(shorter, made, carried)
    return shorter


def silence(module: nn.Module, groups: Sequence[Group], removals: Removals, *, share: bool = False) -> nn.Module:
    """A copy of `module` in which nothing reads the given units: the weights that take them in are zero.

    What `cut` must agree with. Zeroing the readers is neutral whatever lies between (a sigmoid turns a zeroed
    channel into 0.5, a reader with zero weights ignores it all the same). Two kinds of readers have no weights: a norm
    computes its statistics without the units (`edgeprune.pruning.masked`), and of a product of two activations (queries
    and keys) one factor is made zero. Errors: as for `cut`.
    """
    places = collect(groups, removals)
    readers = {place: indices for place, indices in places.items() if place.role in ("in", "zero")}
    silent = _edited(module, readers, _silence, share=share)
    for place, indices in places.items():
        if place.kind in MIXING:
            without(silent.get_submodule(place.name), place.kind, place.dim, indices)
    return silent


def collect(groups: Sequence[Group], removals: Removals) -> dict[Place, list[int]]:
    """Where something goes -> sorted indices of the uncut tensor that go there."""
    unknown = removals.keys() - {group.name for group in groups}
    if unknown:
        raise PruningError(f"the plan names a group that the network does not have: {min(unknown)}")
    gone: dict[Place, set[int]] = defaultdict(set)
    for group in groups:
        units = set(removals.get(group.name, ()))
        if units and len(units) >= group.width:
            raise PruningError(f"the plan removes every channel of {group.name}")
        if any(not 0 <= unit < group.width for unit in units):
            raise PruningError(f"the plan removes a channel that {group.name} does not have")
        for member in group.members:
            for unit in units:
                gone[Place(member.name, member.kind, member.role, member.dim)].update(member.channels[unit])
    return {place: sorted(indices) for place, indices in gone.items() if indices}


def replica(module: nn.Module, *, share: bool = False) -> nn.Module:
    """A deep copy; with `share`, one that holds the very tensors of `module`. PruningError where there can be none."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors} if share else {}
    memo |= {id(cache): type(cache)() for cache in caches(module)}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # a module may hold anything, and deepcopy fails with whatever that raises
        raise PruningError(
            f"the network cannot be copied: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="a weight that is computed by a hook is the usual reason: torch.nn.utils.remove_weight_norm",
        ) from error


def caches(module: nn.Module) -> list[dict[Any, Any]]:
    """Dictionaries of tensors that a module keeps beside its parameters: what it computed once (attention biases).

    A copy starts without them: they are computed anew from its own weights, never stale.
    """
    return [
        value
        for layer in module.modules()
        for key, value in vars(layer).items()
        if key not in ("_parameters", "_buffers", "_modules")
        and isinstance(value, dict)
        and value
        and all(isinstance(each, torch.Tensor) for each in value.values())
    ]


def weight_name(member: Member) -> str:
    """The name of the parameter that a member of a layer, or a bare parameter, is about."""
    leaf = "weight_ih_l0" if member.kind == "RNN" else "weight"
    return member.name if member.kind == "PARAMETER" else f"{member.name}.{leaf}"


def per_unit(layer: Any, values: torch.Tensor, member: Member) -> torch.Tensor:
    """Sum `values` (shaped like the layer's weight) over the channels of each unit of a member. float64 (width,)."""
    outward = member.role == "out"
    if member.kind == "PARAMETER":
        channels = values.movedim(member.dim, 0).reshape(values.shape[member.dim], -1).sum(1)
    elif isinstance(layer, nn.modules.conv._ConvNd):
        parts, axis = _by_part(values, layer, outward=outward or member.kind == "DEPTHWISE_CONV")
        channels = parts.movedim(axis, 1).flatten(2).sum(2).flatten()
    else:
        channels = values.sum(1 if outward else 0)
    units = torch.tensor([unit for unit, owned in enumerate(member.channels) for _ in owned], dtype=torch.long)
    owned = torch.tensor([channel for owned in member.channels for channel in owned], dtype=torch.long)
    return torch.zeros(len(member.channels), dtype=torch.float64).index_add_(0, units, channels[owned].double())


_Edit = Callable[[Any, Place, list[int]], None]


def _edited(
    module: nn.Module,
    places: Mapping[Place, list[int]],
    edit: _Edit,
    *,
    share: bool,
    scaled: Mapping[str, list[tuple[list[int], float]]] | None = None,
) -> nn.Module:
    module = replica(module, share=share)
    for name, factors in (scaled or {}).items():
        owner, _, leaf = name.rpartition(".")
        _scale(module.get_submodule(owner), leaf, factors)
    for place, indices in places.items():
        bare = ("PARAMETER", "ATTRIBUTE", "SIZE")
        owner = place.name.rpartition(".")[0] if place.kind in bare else place.name
        try:
            with torch.no_grad():
                edit(module.get_submodule(owner), place, indices)
        except (AttributeError, IndexError, RuntimeError) as error:
            raise PruningError(f"cannot cut {place.name}: {error}") from error
    return module


def _cut(layer: Any, place: Place, gone: list[int]) -> None:
    kind, outward = place.kind, place.role == "out"
    if kind == "PARAMETER":
        _shorten(layer, place.name.rpartition(".")[2], place.dim, gone)
    elif kind in ("LN", "GN", "ATTRIBUTE"):
        _cut_size(layer, place, len(gone), gone)
    elif kind in ("MIX", "STATE"):
        return  # a mean follows the shape; a recurrent layer's own reading of its hidden units is cut with them
    elif kind == "RNN":
        for leaf, value in list(recurrent.changes(layer, kind, place.role, gone, recurrent.without)):
            _replace(layer, leaf, value)
        if outward:
            layer.hidden_size -= len({index % layer.hidden_size for index in gone})
        else:
            layer.input_size -= len(gone)
    elif kind == "SIZE":
        _lower(layer, place.name.rpartition(".")[2], place.dim, len(gone))
    elif kind in ("BN", "IN"):
        for leaf in _NORMS:
            _shorten(layer, leaf, 0, gone)
        layer.num_features -= len(gone)
    elif kind == "PRELU":
        if layer.num_parameters > 1:
            _shorten(layer, "weight", 0, gone)
            layer.num_parameters -= len(gone)
    elif kind == "EMBED":
        _shorten(layer, "weight", 1, gone)
        layer.embedding_dim -= len(gone)
    elif kind == "LINEAR":
        _shorten(layer, "weight", 0 if outward else 1, gone)
        if outward:
            _shorten(layer, "bias", 0, gone)
            layer.out_features -= len(gone)
        else:
            layer.in_features -= len(gone)
    elif kind == "DEPTHWISE_CONV":
        _shorten(layer, "weight", 0, gone)
        _shorten(layer, "bias", 0, gone)
        multiplier = layer.out_channels // layer.groups
        layer.out_channels -= len(gone)
        layer.in_channels = layer.groups = layer.out_channels // multiplier
    elif kind == "CONV":
        _cut_convolution(layer, gone, outward=outward)
    else:
        raise PruningError(f"cannot cut {place.name}: no rule for {kind}")


def _cut_size(layer: Any, place: Place, less: int, gone: list[int]) -> None:
    """A norm and its number of channels, or a number that a module keeps (its heads, their width)."""
    if place.kind == "ATTRIBUTE":
        leaf = place.name.rpartition(".")[2]
        setattr(layer, leaf, getattr(layer, leaf) - less)
        return
    _shorten(layer, "weight", 0, gone)
    _shorten(layer, "bias", 0, gone)
    if place.kind == "GN":
        layer.num_channels -= less
    else:
        layer.normalized_shape = (layer.normalized_shape[0] - less,)


def _scales(groups: Sequence[Group], removals: Removals) -> dict[str, list[tuple[list[int], float]]]:
    """Parameter -> rows and their factor: they stay what they were where a module divides by the root of a width."""
    found: dict[str, list[tuple[list[int], float]]] = defaultdict(list)
    for group in groups:
        left = 1 - len(set(removals.get(group.name, ()))) / group.width
        for member in group.members:
            if member.kind == "SCALE" and left < 1:
                found[member.name].append((sorted({i for unit in member.channels for i in unit}), left**0.5))
    return found


def _scale(layer: Any, leaf: str, factors: Sequence[tuple[list[int], float]]) -> None:
    value = getattr(layer, leaf).detach().clone()
    for rows, factor in factors:
        value[rows] *= factor
    _replace(layer, leaf, value)


def _cut_convolution(layer: Any, gone: list[int], *, outward: bool) -> None:
    weight, axis = _by_part(layer.weight, layer, outward=outward)
    parts, size = weight.shape[0], weight.shape[axis]
    removed = _per_part(gone, parts, size)
    if len({len(part) for part in removed}) > 1:
        raise PruningError("a grouped convolution would be left with groups of different size")
    kept = [[index for index in range(size) if index not in part] for part in removed]
    shorter = [weight[part].index_select(axis - 1, torch.tensor(kept[part])) for part in range(parts)]
    _replace(layer, "weight", torch.stack(shorter).flatten(0, 1))
    if outward:
        _shorten(layer, "bias", 0, gone)
        layer.out_channels -= len(gone)
    else:
        layer.in_channels -= len(gone)


def _silence(layer: Any, place: Place, gone: list[int]) -> None:
    if place.kind == "PARAMETER":
        leaf = place.name.rpartition(".")[2]
        _replace(layer, leaf, getattr(layer, leaf).index_fill(place.dim, torch.tensor(gone), 0))
    elif place.kind == "LINEAR":
        _replace(layer, "weight", layer.weight.index_fill(1, torch.tensor(gone), 0))
    elif place.kind == "CONV":
        weight, axis = _by_part(layer.weight, layer, outward=False)
        removed = _per_part(gone, weight.shape[0], weight.shape[axis])
        silent = [weight[part].index_fill(axis - 1, torch.tensor(sorted(gone)), 0) for part, gone in enumerate(removed)]
        _replace(layer, "weight", torch.stack(silent).flatten(0, 1))
    elif place.kind in ("RNN", "STATE"):
        for leaf, value in list(recurrent.changes(layer, place.kind, place.role, gone, recurrent.zeroed)):
            _replace(layer, leaf, value)
    else:
        raise PruningError(f"cannot silence what {place.name} reads: no rule for {place.kind}")


def _by_part(weight: torch.Tensor, layer: Any, *, outward: bool) -> tuple[torch.Tensor, int]:
    """A convolution's weight as (groups, rows, columns, ...), and the axis that holds its outputs or its inputs."""
    parts = weight.reshape(layer.groups, -1, *weight.shape[1:])
    return parts, 1 if outward != layer.transposed else 2


def _per_part(indices: list[int], parts: int, size: int) -> list[set[int]]:
    """Channel indices of a whole tensor as indices inside each convolution group."""
    removed: list[set[int]] = [set() for _ in range(parts)]
    for index in indices:
        removed[index // size].add(index % size)
    return removed


def _shorten(layer: Any, leaf: str, dim: int, gone: list[int]) -> None:
    """Take indices out of a parameter or buffer; nothing where the layer has none of that name."""
    old = getattr(layer, leaf, None)
    if old is None:
        return
    if gone[-1] >= old.shape[dim]:
        raise PruningError(f"cannot cut {leaf}: it has {old.shape[dim]} channels, not more than {gone[-1]}")
    left = set(gone)
    kept = torch.tensor([index for index in range(old.shape[dim]) if index not in left], dtype=torch.long)
    _replace(layer, leaf, old.index_select(dim, kept.to(old.device)))


def _lower(layer: Any, attribute: str, position: int, count: int) -> None:
    """Lower a number (or with a position, one of a list or tuple) that says how many channels there are."""
    held = getattr(layer, attribute)
    if position < 0:
        setattr(layer, attribute, held - count)
    else:
        setattr(layer, attribute, type(held)(n - count if i == position else n for i, n in enumerate(held)))


def _replace(layer: Any, leaf: str, value: torch.Tensor) -> None:
    old = getattr(layer, leaf)
    value = value.detach().contiguous()
    setattr(
        layer, leaf, nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    )
