"""What else has to follow a group: numbers that modules keep, a scale, channels of another group.

An attention is cut right only when its own `num_heads`, `head_dim` and the like follow. Which of a module's numbers are
meant is not known: those that equal a size that changes are tried, by what their names say, and the proof decides.
Where a module takes its inner width from the residual stream (nn.MultiheadAttention, torchvision's Swin), a channel
of every head goes together with as many of the stream's. Where it divides by the root of a width that follows, the
queries' weights are scaled, so that what stays is computed as before.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import nn

from edgeprune.pruning.proof import Bench, attempt
from edgeprune.pruning.streams import Candidate
from edgeprune.types import Group, Member

_HEADS = re.compile(r"(^|_)n?heads?$|^nh$|^n_?head|num_.*heads?$")
_WIDTH = re.compile(r"head_(dim|size|features|channels)|(key|val|value|qk|v|k|q)_?dim$|dim_head|d_head|^d$|^kd$")
_STREAM = re.compile(
    r"^(embed_dim|dim|dim_in|in_dim|hidden_dim|hidden_size|in_features|num_features|channels|width|c)$"
)

Attributes = frozenset[tuple[str, int]]
"""Numbers that follow: a module's name and attribute, joined, and its value."""


def settle(
    module: nn.Module, found: Sequence[Candidate], bench: Bench, *, until: float
) -> tuple[list[Group], set[str]]:
    """Groups with all that has to follow them, and the names of those that nothing was found for.

    Whatever comes out is still to be proved: here it only passed a quick trial.
    """
    search = _Search(module, bench, until)
    plain = [each for each in found if not search.has_numbers(each)]
    groups: list[Group] = []
    failed: list[Candidate] = []
    for same in _alike(each for each in found if search.has_numbers(each)):
        passed, rest = search.settled(same)
        groups += passed
        failed += rest
    hindered, plain = _behind(plain, failed)
    failed += hindered
    open_parts = {each.group.name for each in failed}
    for joined in itertools.chain(_in_one_module(failed), _with_streams(failed)):
        free = [each for each in joined if open_parts.issuperset(each.parts)]
        passed, rest = search.settled(free) if free else ([], [])
        groups += passed
        open_parts -= {part for each in free if each not in rest for part in each.parts}
    groups += [each.group for each in plain]
    groups += [each.group for each in hindered if each.group.name in open_parts]  # let the proof say why
    return groups, open_parts - {each.group.name for each in hindered}


def _behind(plain: Sequence[Candidate], failed: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Plain candidates that an attention reads whose own channels cannot go alone, and the other ones."""
    makers = {m.name for each in failed if each.multiplied for m in each.group.members if m.role == "out"}
    hindered = [each for each in plain if any(m.role == "in" and m.name in makers for m in each.group.members)]
    return hindered, [each for each in plain if each not in hindered]


class _Search:
    """Tries attributes and scales for candidates that are alike, all at once."""

    def __init__(self, module: nn.Module, bench: Bench, until: float) -> None:
        self.modules = dict(module.named_modules())
        self.bench, self.until = bench, until

    def has_numbers(self, candidate: Candidate) -> bool:
        return bool(candidate.scales) or bool(self._matches(candidate))

    def settled(self, same: Sequence[Candidate]) -> tuple[list[Group], list[Candidate]]:
        """The candidates' groups with what follows them, and the candidates for which nothing was found."""
        known = [self._matches(candidate) for candidate in same]
        scaled = (False, True) if all(candidate.scales for candidate in same) else (False,)
        for rule, scale in itertools.product(_RULES, scaled):
            chosen = [rule(candidate, matches) for candidate, matches in zip(same, known, strict=True)]
            groups = [_with(candidate, names, scale) for candidate, names in zip(same, chosen, strict=True)]
            if self._is_new(rule, same, known) and time.monotonic() < self.until and not attempt(self.bench, groups):
                return groups, []
        return [], list(same)

    def _is_new(self, rule: _Rule, same: Sequence[Candidate], known: Sequence[Attributes]) -> bool:
        """No earlier rule picks the same numbers."""
        pairs = list(zip(same, known, strict=True))
        return rule is next(each for each in _RULES if all(each(c, k) == rule(c, k) for c, k in pairs))

    def _matches(self, candidate: Candidate) -> Attributes:
        """Numbers of the modules around the group's members that equal a size that changes."""
        owners = {member.name.rpartition(".")[0] for member in candidate.group.members}
        around = {
            ".".join(parts[:count]) for name in owners for parts in [name.split(".")] for count in range(len(parts) + 1)
        }
        top = _common(owners)
        return self._numbers(candidate, around, top) or self._numbers(candidate, around, top.rpartition(".")[0])

    def _numbers(self, candidate: Candidate, around: set[str], top: str) -> Attributes:
        found = set()
        for name in around:
            layer = self.modules.get(name)
            if layer is None or not (name == top or name.startswith(f"{top}.") or not top) or _is_layer(layer):
                continue
            for key, value in vars(layer).items():
                if type(value) is int and value > 1 and value in candidate.sizes:
                    found.add((f"{name}.{key}".lstrip("."), value))
        return frozenset(found)


_Rule = Callable[[Candidate, Attributes], Attributes]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _by_role(candidate: Candidate, matches: Attributes) -> Attributes:
    """What the names and the group suggest: the number of heads where heads go, widths where channels do."""
    if len(candidate.parts) > 1:
        return _with_all_names(candidate, matches)
    inner = _is_inner(candidate)
    return frozenset(
        each for each in _with_all_names(candidate, matches) if bool(_STREAM.search(_leaf(each[0]))) != inner
    )


def _with_all_names(candidate: Candidate, matches: Attributes) -> Attributes:
    own, heads = candidate.group.width, not candidate.multiplied
    return frozenset(
        (name, value)
        for name, value in matches
        if not (value == own and (_WIDTH if heads else _HEADS).search(_leaf(name)))
    )


def _widths_only(candidate: Candidate, matches: Attributes) -> Attributes:
    return frozenset((name, value) for name, value in matches if not _HEADS.search(_leaf(name)))


def _everything(candidate: Candidate, matches: Attributes) -> Attributes:
    return matches


def _nothing(candidate: Candidate, matches: Attributes) -> Attributes:
    return frozenset()


_RULES: tuple[_Rule, ...] = (_by_role, _with_all_names, _widths_only, _everything, _nothing)


def _is_inner(candidate: Candidate) -> bool:
    """Does a unit take several rows of a layer (a head of an attention)? A stream's takes one."""
    return any(m.role == "out" and len(m.channels[0]) > 1 and m.kind in ("LINEAR", "CONV", "PARAMETER")
               for m in candidate.group.members)  # fmt: skip


def _with(candidate: Candidate, attributes: Attributes, scale: bool) -> Group:
    members = [Member(name, "ATTRIBUTE", "out", candidate.sizes[value]) for name, value in sorted(attributes)]
    more = (*members, *(candidate.scales if scale else ()))
    return dataclasses.replace(candidate.group, members=(*candidate.group.members, *more))


def _alike(found: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates of one form: the same kinds of members at the same places of modules of one make."""
    forms: dict[object, list[Candidate]] = defaultdict(list)
    for candidate in found:
        top = _common({member.name.rpartition(".")[0] for member in candidate.group.members})
        members = tuple(
            (m.name[len(top) :], m.kind, m.role, m.dim if m.kind == "PARAMETER" else 0) for m in candidate.group.members
        )
        forms[members].append(candidate)
    yield from forms.values()


def _in_one_module(failed: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Groups of one attention that share a number: heads of queries and of values, widths of keys and of values."""
    forms: dict[object, list[Candidate]] = defaultdict(list)
    by_place: dict[tuple[str, int], list[Candidate]] = defaultdict(list)
    for candidate in failed:
        top = _common({member.name.rpartition(".")[0] for member in candidate.group.members})
        if top and _is_inner(candidate):
            by_place[top, candidate.group.width].append(candidate)
    for (top, _), parts in by_place.items():
        if len(parts) > 1:  # one of a kind would be joined with nothing
            joined = _joined(parts, [1] * len(parts), parts[0].group.width)
            form = tuple((m.name[len(top) :], m.kind, m.role) for m in joined.group.members)
            forms[form].append(joined)
    yield from forms.values()


def _with_streams(failed: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """A stream, and the width of the heads of every attention that reads it, as one group."""
    for stream in failed:
        if _is_inner(stream):
            continue
        reads = {member.name for member in stream.group.members if member.role == "in"}
        attached: dict[int, list[Candidate]] = defaultdict(list)
        for each in failed:
            makes = {member.name for member in each.group.members if member.role == "out"}
            if each is not stream and _is_inner(each) and each.multiplied and reads & makes:
                attached[each.group.width].append(each)
        for width, inner in attached.items():
            if stream.group.width % width == 0:
                yield [_joined([stream, *inner], [stream.group.width // width, *[1] * len(inner)], width)]


def _joined(parts: Sequence[Candidate], counts: Sequence[int], width: int) -> Candidate:
    """One candidate whose unit i takes units i*count to (i+1)*count of each part."""

    def regrouped(channels: Sequence[tuple[int, ...]], count: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(itertools.chain(*channels[i * count : (i + 1) * count])) for i in range(width))

    members: dict[tuple[str, str, str, int], Member] = {}
    scales: list[Member] = []
    sizes: dict[int, tuple[tuple[int, ...], ...]] = {}
    for part, count in zip(parts, counts, strict=True):
        for member in part.group.members:
            key = (member.name, member.kind, member.role, member.dim)
            channels = regrouped(member.channels, count)
            if key in members:
                both = zip(members[key].channels, channels, strict=True)
                channels = tuple(tuple(sorted({*a, *b})) for a, b in both)
            members[key] = dataclasses.replace(member, channels=channels)
        scales += [dataclasses.replace(member, channels=regrouped(member.channels, count)) for member in part.scales]
        sizes |= {size: regrouped(channels, count) for size, channels in part.sizes.items() if size not in sizes}
    group = Group(parts[0].group.name, width, tuple(members.values()))
    names = tuple(name for part in parts for name in part.parts)
    return Candidate(group, tuple(scales), sizes, any(part.multiplied for part in parts), names)


def _common(names: Iterable[str]) -> str:
    """The innermost module that holds all of these."""
    parts = [name.split(".") for name in names]
    shared = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return ".".join(level[0] for level in shared)


def _is_layer(layer: nn.Module) -> bool:
    """A layer whose sizes surgery sets itself."""
    own = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
    return isinstance(layer, own)
