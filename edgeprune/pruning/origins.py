"""From a recorded flow of channels to what one layer's channels touch, in the form that `units` makes groups of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch_pruning.ops import OPTYPE, module2type

from edgeprune.pruning.dependencies import Apart, Own, Touch
from edgeprune.pruning.labels import Ints
from edgeprune.pruning.recording import WHOLE, Parts, Recording, Seen
from edgeprune.pruning.units import MADE_OUTPUT, STUCK, UNREAD

_PER_CHANNEL = (OPTYPE.BN, OPTYPE.IN, OPTYPE.PRELU, OPTYPE.LN, OPTYPE.GN)


@dataclass(frozen=True, slots=True, eq=False)
class Origins:
    """A recording with its ties resolved.

    `classes` has the class of every label; `lost` why classes cannot be followed; `fixed` those that meet constants;
    `output` those that reach the network's output; `seen_of` where each class is seen, and `apart_of` taken apart.
    """

    module: nn.Module
    notes: Recording
    classes: Ints
    lost: dict[int, str]
    fixed: frozenset[int]
    output: frozenset[int]
    seen_of: dict[int, set[int]]
    apart_of: dict[int, set[int]]

    @classmethod
    def of(cls, module: nn.Module, notes: Recording) -> Origins:
        classes = notes.ties.resolved()
        lost = {
            c: reason for reason, found in notes.ties.lost.items() for each in found for c in _classes(classes, each)
        }
        output = {c for label in notes.output for c in _classes(classes, label)}
        fixed = {c for found in notes.ties.fixed for c in _classes(classes, found)}
        seen_of: dict[int, set[int]] = defaultdict(set)
        apart_of: dict[int, set[int]] = defaultdict(set)
        for places, held in (
            (seen_of, [each.labels for each in notes.seen]),
            (apart_of, [each.labels for each in notes.apart]),
        ):
            for index, labels in enumerate(held):
                for c in _classes(classes, labels):
                    places[c].add(index)
        return cls(module, notes, classes, lost, frozenset(fixed), frozenset(output), seen_of, apart_of)

    def follow(self, name: str, outputs: Sequence[int]) -> tuple[Touch, ...] | str:
        """Everything that has to go with the output channels `outputs` of a layer, or why they cannot be followed.

        Channels that meet a constant of fixed size stay, and are not in what comes back.
        """
        if name not in self.notes.makers:
            return "the traced forward pass does not reach it"
        own = self.classes[self.notes.makers[name].numpy().astype(np.int64)]
        found = {int(own[output]) for output in outputs}
        if reason := next((self.lost[c] for c in found if c in self.lost), None):
            return reason
        first: dict[int, int] = {}
        for output in outputs:
            if int(own[output]) not in self.fixed:
                first.setdefault(int(own[output]), output)
        if not first:
            return STUCK
        touches = []
        for index in sorted(set().union(*(self.seen_of[c] for c in first))):
            touch = self._touch(self.notes.seen[index], first)
            if isinstance(touch, str):
                return touch
            if touch is not None:
                touches.append(touch)
        if any(int(own[output]) in self.output for output in outputs):
            return UNREAD if all(touch.outward for touch in touches) else MADE_OUTPUT
        if all(touch.outward for touch in touches):
            return "nothing that has weights takes its channels in"
        free = [output for output in outputs if int(own[output]) in first]
        links = tuple((output, origin) for output in free for origin in {output, first[int(own[output])]})
        touches = [t._replace(channels=links) if t.outward and t.name == name else t for t in touches]
        return (*touches, *self._apart(first))

    def _touch(self, seen: Seen, first: dict[int, int]) -> Touch | str | None:
        if seen.dim == WHOLE:
            return self._parameter(seen, first)
        channels = self._positions(seen.labels.numpy(), first)
        return Touch(seen.name, seen.kind, seen.outward, seen.dim, seen.module, channels) if channels else None

    def _parameter(self, seen: Seen, first: dict[int, int]) -> Touch | str | None:
        """The slices of a bare parameter (or of a layer that has one value a channel) that go."""
        classes = self.classes[seen.labels.numpy().astype(np.int64)]
        going = np.isin(classes, list(first))
        if not going.any():
            return None
        for dim in range(going.ndim):
            rows = np.moveaxis(going, dim, 0).reshape(going.shape[dim], -1)
            if rows.shape[0] > 1 and (rows.all(1) == rows.any(1)).all():
                reached = np.moveaxis(classes, dim, 0).reshape(going.shape[dim], -1)
                channels = tuple(
                    (int(row), first[int(c)]) for row in np.flatnonzero(rows.all(1)) for c in np.unique(reached[row])
                )
                owner = seen.name.rpartition(".")[0]
                layer = self.module.get_submodule(owner)
                if module2type(layer) in _PER_CHANNEL:
                    return Touch(owner, module2type(layer), True, 0, layer, channels)
                return Touch(seen.name, OPTYPE.PARAMETER, True, dim, seen.module, channels)
        return f"its channels cannot be cut out of {seen.name}: they are no slices of it"

    def _positions(self, labels: np.ndarray[Any, Any], first: dict[int, int]) -> tuple[tuple[int, int | None], ...]:
        whole = labels.astype(np.int64)
        going = np.flatnonzero((whole != 0) & np.isin(self.classes[whole], list(first)))
        return tuple((int(position), first[int(self.classes[whole[position]])]) for position in going)

    def _apart(self, first: dict[int, int]) -> Iterator[Touch]:
        """Where the channels are taken apart: parts, and the numbers that say how large they are."""
        known = set()
        for index in sorted(set().union(*(self.apart_of[c] for c in first))):
            parts = self.notes.apart[index]
            channels = self._positions(parts.labels.numpy(), first)
            number = None if parts.even else _number(self.module, parts)
            numbered = parts.parts.tolist()
            if not channels or (key := (channels, tuple(numbered), number)) in known:
                continue
            known.add(key)
            even = parts.even or (number is not None and parts.pieces and number[1] == WHOLE)
            yield Touch(None, OPTYPE.SPLIT, True, 0, Apart(tuple(numbered), even), channels)
            if number is not None:
                yield from _numbers(self.module, number, numbered, channels)


def _classes(classes: Ints, labels: Any) -> list[int]:
    whole = labels.unique().numpy().astype(np.int64)
    return [int(c) for c in np.unique(classes[whole[whole != 0]])]


def _number(module: nn.Module, parts: Parts) -> tuple[str, int] | None:
    """The attribute that channels are taken apart by: (name, WHOLE) of one number, (name, 0) of one for each part.

    Looked for in the modules that were running, the innermost first; the proof tells whether it is the one.
    """
    sizes = [size for size in parts.parts.bincount().tolist() if size]
    for name in reversed(parts.stack[-3:]):
        held = {key: value for key, value in vars(module.get_submodule(name)).items() if not key.startswith("_")}
        for key, value in held.items():
            full = f"{name}.{key}".lstrip(".")
            if parts.pieces and isinstance(value, list | tuple) and list(value) == sizes:
                return full, 0
            if type(value) is int and value == sizes[0] and (not parts.pieces or len(set(sizes)) == 1):
                return full, WHOLE
    return None


def _numbers(
    module: nn.Module, number: tuple[str, int], parts: Sequence[int], channels: tuple[tuple[int, int | None], ...]
) -> Iterator[Touch]:
    """A number loses one for each channel that its part loses; a lone number is the size of the first part."""
    name, form = number
    owner = module.get_submodule(name.rpartition(".")[0])
    present = sorted(set(parts))
    for position, part in enumerate(present[:1] if form == WHOLE else present):
        going = tuple((channel, origin) for channel, origin in channels if parts[channel] == part)
        if going:
            yield Touch(name, Own.SIZE, True, WHOLE if form == WHOLE else position, owner, going)
