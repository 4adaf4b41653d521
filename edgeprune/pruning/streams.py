"""From labels to candidate groups: which atoms are units of one group, and where each of them stands.

Units of a group are atoms that were made with one axis and stand in the same places equally often: the channels of a
residual stream, the heads of an attention, the channels of every head. Frozen atoms are in no group.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from torch import nn

from edgeprune.pruning.axes import Labels
from edgeprune.pruning.flow import Flow, Maker
from edgeprune.pruning.surgery import WEIGHTED
from edgeprune.types import Group, Member


class Spot(NamedTuple):
    """A dimension that loses indices, as a member's name, kind, role and dim, and its size."""

    name: str
    kind: str
    role: str
    dim: int
    size: int


class Candidate(NamedTuple):
    """A group that is to be proved. `scales`: members that would make up for a divisor that follows the width.

    `sizes`: numbers of channels that the group covers as a whole, each with the channels of every unit. `multiplied`:
    some of the units are summed over in a product of two activations. `parts`: names of the groups it was joined from.
    """

    group: Group
    scales: tuple[Member, ...]
    sizes: Mapping[int, tuple[tuple[int, ...], ...]]
    multiplied: bool
    parts: tuple[str, ...] = ()


def candidates(flow: Flow, odd: Mapping[str, str]) -> list[Candidate]:
    """All groups that the labels show. `odd`: layers (and parameters) whose weights cannot be cut, with the reason."""
    _freeze_odd(flow, odd)
    places = {spot: _by_atom(flow, labels) for spot, labels in _spots(flow)}
    footprints: dict[int, dict[Spot, list[int]]] = defaultdict(dict)
    for spot, found in places.items():
        for atom, indices in found.items():
            footprints[atom][spot] = indices
    for role, zeroed in (("zero", _factors(flow, second=True)), ("scale", _factors(flow, second=False))):
        for atom, rows in zeroed.items():
            for (name, dim, size), chosen in rows.items():
                kind = "PARAMETER" if role == "zero" else "SCALE"
                if atom in footprints:
                    footprints[atom][Spot(name, kind, role, dim, size)] = sorted(chosen)
    classes: dict[object, list[int]] = defaultdict(list)
    for atom, spots in footprints.items():
        if flow.axes.frozen(atom) is None:
            classes[(flow.axes.axis_of(atom), *sorted((s, len(i)) for s, i in spots.items()))].append(atom)
    multiplied = {atom for each in flow.contractions for term in set(each.labels.tolist()) for atom in
                  flow.axes.atoms(term)}  # fmt: skip
    made = [_candidate(flow, atoms, footprints, bool(multiplied & set(atoms))) for atoms in classes.values()]
    beside = _beside(flow, multiplied)
    heads = [bool(beside & set(atoms)) for atoms in classes.values()]
    return list(_named((each, head) for each, head in zip(made, heads, strict=True) if each is not None))


def _beside(flow: Flow, multiplied: set[int]) -> set[int]:
    """Atoms that share an index with one that is summed over: heads, beside the channels of queries and keys."""
    known = [own for mark in flow.weights.values() for own in mark.dims if own is not None]
    terms = {term for own in known for term in own.tolist()}
    sets = [flow.axes.atoms(term) for term in terms]
    return set().union(*(atoms - multiplied for atoms in sets if atoms & multiplied and len(atoms) > 1))


def _candidate(
    flow: Flow, atoms: list[int], footprints: Mapping[int, dict[Spot, list[int]]], multiplied: bool
) -> Candidate | None:
    members: list[Member] = []
    scales: list[Member] = []
    sizes: dict[int, tuple[tuple[int, ...], ...]] = {}
    for spot in footprints[atoms[0]]:
        channels = tuple(tuple(footprints[atom][spot]) for atom in atoms)
        if spot.role == "scale":
            scales.append(Member(spot.name, "SCALE", "out", channels, spot.dim))
            continue
        role: Literal["out", "in", "zero"] = "in" if spot.role == "in" else "zero" if spot.role == "zero" else "out"
        members.append(Member(spot.name, spot.kind, role, channels, spot.dim))
        if role != "zero" and len(set(itertools.chain(*channels))) == spot.size:
            sizes.setdefault(spot.size, channels)
    makers = [m for m in members if m.role == "out" and (m.kind in WEIGHTED or m.name in flow.parameters)]
    if not makers or all(member.role == "out" for member in members):
        return None  # nothing takes its channels in (the network's output), or nothing learned makes them (a table)
    maker = next((member for member in makers if member.kind in WEIGHTED), makers[0])
    sizes[len(atoms)] = tuple((index,) for index in range(len(atoms)))
    return Candidate(Group(maker.name, len(atoms), tuple(members)), tuple(scales), sizes, multiplied)


def _named(found: Iterable[tuple[Candidate, bool]]) -> Iterator[Candidate]:
    """Groups that are made by one layer get names of their own: NAME:heads, NAME:width of every head, NAME:values."""
    by_name: dict[str, list[tuple[Candidate, bool]]] = defaultdict(list)
    for candidate, heads in found:
        by_name[candidate.group.name].append((candidate, heads))
    for name, same in by_name.items():
        taken: set[str] = set()
        for candidate, heads in same:
            title = name
            if len(same) > 1:
                title += ":width" if candidate.multiplied else ":heads" if heads else ":values"
            title += f".{len(taken)}" if title in taken else ""
            taken.add(title)
            group = Group(title, candidate.group.width, candidate.group.members)
            yield candidate._replace(group=group, parts=(title,))


def _freeze_odd(flow: Flow, odd: Mapping[str, str]) -> None:
    for name, mark in flow.weights.items():
        reason = odd.get(name.rpartition(".")[0]) or odd.get(name)
        for labels in mark.dims if reason else ():
            flow.axes.freeze(labels, reason or "")


def _spots(flow: Flow) -> Iterator[tuple[Spot, Labels]]:
    """Every dimension that has labels, once, as the member that it would be."""
    seen: set[tuple[str, str, str, int]] = set()
    for name, mark in flow.weights.items():
        owner, _, leaf = name.rpartition(".")
        layer = flow.layers[owner]
        for dim, own in enumerate(mark.dims):
            role = "in" if (name, dim) in flow.read else "out"
            labels, spot = own, Spot(name, "PARAMETER", role, dim, 0)
            if isinstance(layer, nn.Linear):
                spot = Spot(owner, "LINEAR", "in" if dim else "out", 0, 0)
            elif isinstance(layer, nn.modules.conv._ConvNd):
                depthwise = layer.groups == layer.in_channels == layer.out_channels > 1
                inward = leaf == "weight" and dim == (0 if layer.transposed else 1)
                spot = Spot(owner, "DEPTHWISE_CONV" if depthwise else "CONV", "in" if inward else "out", 0, 0)
                labels = flow.inputs.get(name) if inward and not depthwise else None if inward else own
            elif isinstance(layer, nn.modules.batchnorm._NormBase):
                spot = Spot(owner, "IN" if isinstance(layer, nn.modules.instancenorm._InstanceNorm) else "BN",
                            "out", 0, 0)  # fmt: skip
            elif isinstance(layer, nn.PReLU):
                spot = Spot(owner, "PRELU", "out", 0, 0)
            elif isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                continue  # below, with or without weights of its own
            if labels is not None and spot[:4] not in seen:
                seen.add(spot[:4])
                yield spot._replace(size=len(labels)), labels
    for mixing in flow.mixing:
        size = len(mixing.labels)
        spot = Spot(mixing.module, mixing.kind, "out", size if mixing.kind == "MIX" else 0, size)
        if spot[:4] not in seen:
            seen.add(spot[:4])
            yield spot, mixing.labels


def _by_atom(flow: Flow, labels: Labels) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for index, term in enumerate(labels.tolist()):
        for atom in flow.axes.atoms(term):
            found[atom].append(index)
    return found


def _factors(flow: Flow, *, second: bool) -> dict[int, dict[tuple[str, int, int], set[int]]]:
    """Atom -> (parameter, dimension, size) -> rows that make the second (or the first) factor of a product over it."""
    found: dict[int, dict[tuple[str, int, int], set[int]]] = defaultdict(lambda: defaultdict(set))
    known: dict[tuple[str, int], list[frozenset[int]]] = {}
    for contraction in flow.contractions:
        atoms = {atom for term in set(contraction.labels.tolist()) for atom in flow.axes.atoms(term)}
        for name, dim, labels, slice_ in _rows(flow, contraction.second if second else contraction.first):
            if (name, dim) not in known:
                known[name, dim] = [flow.axes.atoms(term) for term in labels.tolist()]
            for index, own in enumerate(known[name, dim]):
                if slice_ <= own:
                    for atom in own & atoms:
                        found[atom][name, dim, len(labels)].add(index)
    return found


def _rows(flow: Flow, makers: frozenset[Maker]) -> Iterator[tuple[str, int, Labels, frozenset[int]]]:
    for name, slice_ in sorted(makers, key=lambda maker: (maker[0], sorted(maker[1]))):
        if name in flow.weights:
            for dim, labels in enumerate(flow.weights[name].dims):
                if labels is not None and (name, dim) not in flow.read:
                    yield name, dim, labels, flow.axes.settled(slice_)
