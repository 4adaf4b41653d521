"""Widths that the user wants kept to: at least so many channels, at most so many, by name or pattern.

A limit counts channels of a layer or is a share of its dense width. Limits meet on a group, since coupled layers have
one width; what contradicts itself, or what no width of the group can meet, is an error before anything is pruned. A
layer that is narrower than its floor is left alone.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeprune.errors import UsageError
from edgeprune.types import ChannelGraph, Group, Member

EXAMPLES = '"16..48", "16..", "..75%" or "32"'


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of channels, or (`share`) a part of the dense width."""

    value: float
    share: bool

    def of(self, width: int) -> float:
        """In channels of a layer that has `width` of them."""
        return self.value * width if self.share else self.value


@dataclass(frozen=True, slots=True)
class Span:
    """From `least` to `most` channels; None: no limit on that side."""

    least: Amount | None = None
    most: Amount | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Units of a group that must stay and that may stay. `said` names the settings that want it."""

    least: int = 1
    most: int | None = None
    said: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WidthLimits:
    """`everywhere` holds for every group, `layers` (name or pattern -> span) for the groups of those layers."""

    everywhere: Span = Span()
    layers: Mapping[str, Span] = field(default_factory=dict)


def amount(text: object) -> Amount:
    """ "16" channels, "25%" or 0.25 of the width. ValueError when it is neither."""
    words = str(text).strip()
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", words)
    if not match or isinstance(text, bool):
        raise ValueError('must be a number of channels such as 16, or a share such as "25%" or 0.25')
    value = float(match[1])
    if match[2] or not value.is_integer():
        value = value / 100 if match[2] else value
        if not 0 < value <= 1:
            raise ValueError("a share of the channels must be above 0 and at most 100%")
        return Amount(value, share=True)
    if value < 1:
        raise ValueError("must be at least one channel")
    return Amount(value, share=False)


def span(text: object) -> Span:
    """ "16..48", "16..", "..48", or one width. ValueError when it is none of them or nothing lies in it."""
    words = str(text).strip()
    low, dots, high = words.partition("..")
    try:
        least = amount(low) if low.strip() else None
        most = (amount(high) if high.strip() else None) if dots else least
    except ValueError as error:
        raise ValueError(f"{words}: {error}") from None
    if least is None and most is None:
        raise ValueError(f"must be a range of widths such as {EXAMPLES}, not {words!r}")
    if least and most and least.share == most.share and least.value > most.value:
        raise ValueError(f"{words}: the smaller width comes first")
    return Span(least, most, words)


def matches(pattern: str, name: str) -> bool:
    """Is the layer `name` meant by `pattern`: itself, by wildcard, or inside of what it names?"""
    inside = pattern.removesuffix("*").removesuffix(".")
    return fnmatch.fnmatchcase(name, pattern) or bool(inside and name.startswith(inside + "."))


def bounds_of(graph: ChannelGraph, limits: WidthLimits) -> dict[str, Bounds]:
    """Group name -> its bounds, for the groups that have any.

    Errors: UsageError when limits contradict each other on a group, or want less of layers that cannot be pruned.
    """
    _check_reach(graph, limits)
    found = {}
    for group in graph.groups:
        wanted = [(limits.everywhere, member, "") for member in _makers(group)[:1]]
        wanted += [
            (span, member, f"widths: {pattern} = {span.text}")
            for pattern, span in limits.layers.items()
            for member in _makers(group)
            if matches(pattern, member.name)
        ]
        least, most, said = 1, math.inf, []
        for span, member, words in wanted:
            low, high = _in_units(span, group, member)
            if low > least or high < most:
                said.append(words or _everywhere(limits, low > least))
            least, most = max(least, low), min(most, high)
        least = min(least, group.width)
        if least > most:
            raise UsageError(
                f"no width of {group.name} meets all limits: at least {least} and at most {most:g} of {group.width}",
                where="; ".join(dict.fromkeys(said)),
                hint="layers that are coupled have one width: `edgeprune inspect` lists them",
            )
        if said:
            found[group.name] = Bounds(least, None if math.isinf(most) else int(most), tuple(dict.fromkeys(said)))
    return found


def within(group: Group, steps: tuple[int, ...], bounds: Bounds | None) -> tuple[int, ...]:
    """Those of a group's widths (widest first, on the channel multiple) that lie inside its bounds.

    A floor above all but the dense width leaves that alone. Errors: UsageError when a ceiling leaves none.
    """
    if bounds is None:
        return steps
    most = group.width if bounds.most is None else bounds.most
    left = tuple(width for width in steps if bounds.least <= width <= most)
    if not left:
        near = ", ".join(str(width) for width in steps[:12])
        raise UsageError(
            f"no width of {group.name} is at least {bounds.least} and at most {most}",
            where=f"{'; '.join(bounds.said)}; on the channel multiple its widths are {near}",
            hint="choose one of those, or allow finer widths with --channel-multiple",
        )
    return left


def _makers(group: Group) -> list[Member]:
    """Members that make the group's channels, the layer that gave it its name first."""
    makers = [member for member in group.members if member.role == "out"]
    return sorted(makers, key=lambda member: member.name != group.name)


def _in_units(span: Span, group: Group, member: Member) -> tuple[int, float]:
    each = max(len(member.channels[0]), 1)
    width = group.width * each
    least = math.ceil(span.least.of(width) / each - 1e-9) if span.least else 1
    most = math.floor(span.most.of(width) / each + 1e-9) if span.most else math.inf
    return least, most


def _everywhere(limits: WidthLimits, floor: bool) -> str:
    bound = limits.everywhere.least if floor else limits.everywhere.most
    assert bound
    value = f"{bound.value:.0%}" if bound.share else f"{bound.value:g}"
    return f"{'min' if floor else 'max'}_width = {value}"


def _check_reach(graph: ChannelGraph, limits: WidthLimits) -> None:
    """A ceiling on layers that are in no group cannot be kept to, and that is said."""
    makers = [member.name for group in graph.groups for member in _makers(group)]
    for pattern, span in limits.layers.items():
        if span.most and not any(matches(pattern, name) for name in makers):
            why = next((r for r in graph.refusals for name in (r.name, *r.layers) if matches(pattern, name)), None)
            raise UsageError(
                f"widths: {pattern} = {span.text} cannot be kept to: no layer of that name can be pruned",
                where=f"{why.name}: {why.reason}" if why else "",
                hint="`edgeprune inspect` lists the groups, and what is left alone and why",
            )
