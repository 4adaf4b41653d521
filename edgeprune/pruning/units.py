"""From touched channels to a group: which channels are one unit, since they can only go together.

Channels are tied where one depends on another (two reach the same place), and where layers demand balance: a grouped
convolution must lose as many channels in each of its groups, the halves of a split as many as each other. What
cannot be balanced is refused. The result is plain data: neither torch-pruning's graph nor its state is needed on.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch_pruning.ops import OPTYPE

from edgeprune.pruning.dependencies import FLOW, Apart, Own, Touch
from edgeprune.types import Group, Member

_MIXING = {OPTYPE.LN: "LayerNorm", OPTYPE.GN: "GroupNorm"}
MADE_OUTPUT = "it makes the network's output"
UNREAD = "no layer takes its channels in: they are the network's output"
STUCK = "its channels meet values that no layer makes, so many that they cannot become fewer"
MIXES = "mixes channels: the ones that stay would change"
_FINAL = (MADE_OUTPUT, UNREAD, STUCK, MIXES, "--ignore", "it has a single channel", "there was no time left")
_WITHOUT_RULE = {OPTYPE.CUSTOMIZED, OPTYPE.MHA, OPTYPE.LSTM}


def group_of(name: str, outputs: Sequence[int], touches: Sequence[Touch], odd: dict[str, str]) -> Group | str:
    """The group of the layer `name`'s output channels `outputs`, or why there is none.

    `odd` maps layers whose weights cannot be cut to the reason.
    """
    reasons = [reason for touch in touches if (reason := _unfit(touch, odd))]
    if reasons:
        return reasons[0]
    solid = [touch for touch in touches if touch.kind not in FLOW]
    if all(touch.outward for touch in solid):
        return UNREAD
    origins = sorted({origin for touch in solid for _, origin in touch.channels if origin is not None})
    positions = {output: position for position, output in enumerate(origins)}
    channels = [_by_origin(touch, positions) for touch in solid]
    units = _tied(len(origins), channels)
    slots = [_slots(touch, channels[i]) for i, touch in enumerate(solid)]
    parts = [touch for touch in touches if isinstance(touch.module, Apart)]
    slots += [_slots(touch, _by_origin(touch, positions)) for touch in parts]
    even = [*(True for _ in solid), *(touch.module.even for touch in parts)]
    balanced = _balanced(units, slots, even)
    if isinstance(balanced, str):
        return balanced
    members = tuple(
        Member(
            name=touch.name or "",
            kind=touch.kind.name,
            role="out" if touch.outward else "in",
            channels=tuple(tuple(sorted({c for origin in unit for c in channels[i][origin]})) for unit in balanced),
            dim=touch.dim,
        )
        for i, touch in enumerate(solid)
    )
    return Group(name, len(balanced), tuple(member for member in members if any(member.channels)))


def is_final(reason: str) -> bool:
    """Would no other way of following channels change this reason?"""
    return any(part in reason for part in _FINAL)


def weights_that_cannot_be_cut(module: nn.Module) -> dict[str, str]:
    """Layer name -> reason: weights that are shared with another layer, or computed whenever the layer runs."""
    owners: dict[int, list[str]] = defaultdict(list)
    layers = list(module.named_modules())
    for name, layer in layers:
        for leaf, parameter in layer.named_parameters(recurse=False):
            owners[id(parameter)].append(f"{name}.{leaf}")
    odd = {}
    for names in owners.values():
        for name in names if len(names) > 1 else ():
            layer_name, leaf = name.rsplit(".", 1)
            other = next(each for each in names if each != name)
            odd[layer_name] = f"{layer_name} shares its {leaf} with {other.rsplit('.', 1)[0]}"
            odd[name] = f"{name} is shared with {other}"
    for name, layer in layers:
        if hasattr(layer, "weight") and "weight" not in layer._parameters:
            odd[name] = f"{name} computes its weight anew in every pass (weight norm, spectral norm): bake it in first"
    return odd


def _unfit(touch: Touch, odd: dict[str, str]) -> str | None:
    if touch.kind == OPTYPE.OUTPUT:
        return MADE_OUTPUT
    if any(origin is None for _, origin in touch.channels):
        return f"its channels cannot be followed into {touch.name or type(touch.module).__name__}"
    if touch.kind in FLOW:
        return None
    if touch.name is None or touch.kind in _WITHOUT_RULE:
        return f"{touch.name or 'it'} ({type(touch.module).__name__}): no sound rule for its kind"
    if touch.kind in _MIXING:
        return f"{touch.name} ({_MIXING[touch.kind]}) {MIXES}"
    if isinstance(touch.kind, Own):
        return None
    size = _size(touch)
    if size is not None and any(not 0 <= channel < size for channel, _ in touch.channels):
        return f"its channels cannot be followed into {touch.name}, which has only {size}"
    return odd.get(touch.name)


def _size(touch: Touch) -> int | None:
    """How many channels the touched dimension has; None where all share one value."""
    layer, kind = touch.module, touch.kind
    if kind == OPTYPE.PARAMETER:
        return int(layer.shape[touch.dim])
    if kind in (OPTYPE.CONV, OPTYPE.DEPTHWISE_CONV):
        return int(layer.out_channels if touch.outward else layer.in_channels)
    if kind == OPTYPE.LINEAR:
        return int(layer.out_features if touch.outward else layer.in_features)
    if kind == OPTYPE.EMBED:
        return int(layer.embedding_dim)
    if kind == OPTYPE.PRELU:
        return int(layer.num_parameters) if layer.num_parameters > 1 else None
    return int(layer.num_features)


def _by_origin(touch: Touch, positions: dict[int, int]) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in positions]
    for channel, origin in touch.channels:
        found[positions[origin or 0]].add(channel)
    return found


def _tied(count: int, channels: Iterable[list[set[int]]]) -> list[list[int]]:
    """Origins that reach the same channel of something, as sets: union-find, the smallest origin first."""
    parent = list(range(count))

    def root(origin: int) -> int:
        while parent[origin] != origin:
            parent[origin] = parent[parent[origin]]
            origin = parent[origin]
        return origin

    for reached in channels:
        first: dict[int, int] = {}
        for origin, indices in enumerate(reached):
            for index in indices:
                a, b = sorted((root(origin), root(first.setdefault(index, origin))))
                parent[b] = a
    units: dict[int, list[int]] = defaultdict(list)
    for origin in range(count):
        units[root(origin)].append(origin)
    return list(units.values())


def _slots(touch: Touch, channels: list[set[int]]) -> list[dict[Any, set[int]]]:
    """Each origin's channels, by the convolution group or by the part of a split that they are in."""
    layer = touch.module
    if isinstance(layer, Apart):
        return [
            {part: {index for index in indices if layer.parts[index] == part} for part in sorted(set(layer.parts))}
            for indices in channels
        ]
    parts = layer.groups if touch.kind == OPTYPE.CONV else 1
    size = ((layer.out_channels if touch.outward else layer.in_channels) // parts) if parts > 1 else 0
    slots: list[dict[Any, set[int]]] = []
    for indices in channels:
        slot: dict[Any, set[int]] = {part: set() for part in range(parts)}
        for index in indices:
            slot[index // size if size else 0].add(index)
        slots.append(slot)
    return slots


_Shape = tuple[tuple[int, ...], ...]


def _balanced(
    units: list[list[int]], slots: list[list[dict[Any, set[int]]]], even: Sequence[bool]
) -> list[list[int]] | str:
    """Units that each take as much from every slot as every other unit does, or why there are none.

    `even` says of each member whether all of its slots must lose as much. Where the parts of a split are of different
    size, what has no partner stays.
    """

    def shape(unit: list[int]) -> _Shape:
        return tuple(
            tuple(len(set().union(*(member[origin][part] for origin in unit))) for part in member[0])
            for member in slots
        )

    def uneven(unit: list[int]) -> bool:
        return any(len(set(counts)) > 1 for counts, same in zip(shape(unit), even, strict=True) if same)

    classes: dict[_Shape, list[list[int]]] = defaultdict(list)
    for unit in units:
        classes[shape(unit)].append(unit)
    kinds = sorted(classes.values(), key=len)
    while 2 * len(kinds[0]) < len(kinds[-1]):  # too few to hold the others back: these stay
        del kinds[0]
    kinds.sort()
    together = [sorted(itertools.chain.from_iterable(tied)) for tied in zip(*kinds, strict=False)]
    if uneven(together[0]):
        return "its channels reach some parts of a grouped convolution or a split only"
    return together
