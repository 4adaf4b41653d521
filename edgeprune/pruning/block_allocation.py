"""Which blocks go, and what the channels then still have to give. Pure: no network, no file, no clock.

Blocks go in the order of importance lost a MAC saved. Where blocks and channels share one budget, every number of
removed blocks is tried: the rest of the budget is met with channels, and the candidate that loses least importance
wins. Both are counted in one currency, -log of the share of a group's importance that stays; see `BLOCK_PRICE`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgeprune.errors import PruningError
from edgeprune.pruning.allocation import (
    FREE,
    NothingLeftError,
    Rules,
    Widths,
    by_macs,
    by_share,
    check_scores,
    choices_of,
    macs_of,
)
from edgeprune.pruning.block_scores import check_block_scores
from edgeprune.types import Block, BlockScores, ChannelGraph, Group, Scores

Scope = Literal["channels", "blocks", "both"]
BLOCK_PRICE = 2 * math.log(2)
"""A block of average importance costs as much as one group that keeps a quarter of its importance."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What goes: blocks in the order of their removal, and the widths of the groups that are left.

    `notes` say what of the goal it misses, and make no other choice of it.
    """

    widths: Widths
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """Scores of channels and of blocks (none, where only channels are pruned), and what may be removed."""

    scope: Scope
    channels: Scores
    blocks: BlockScores | None = None

    @classmethod
    def of_blocks(cls, graph: ChannelGraph, blocks: BlockScores) -> Importance:
        """For plans that leave all channels as they are."""
        equal = {group.name: np.ones(group.width) for group in graph.groups}
        return cls("blocks", Scores("none", equal, "no channels are pruned"), blocks)


def without(graph: ChannelGraph, removed: Sequence[str]) -> ChannelGraph:
    """The graph of the network without those blocks: their layers are gone, and groups that lived in them.

    Groups that pass through a removed block keep what they have outside. Errors: PruningError when the graph has no
    such block.
    """
    unknown = set(removed) - {block.name for block in graph.blocks}
    if unknown:
        reason = next((r.reason for r in graph.block_refusals if r.name == min(unknown)), "there is no such block")
        raise PruningError(
            f"the plan removes the block {min(unknown)}, which cannot be removed now",
            where=reason,
            hint="make a new plan; in Python, look for blocks first: edgeprune.pruning.blocks.with_blocks",
        )
    going = [block for block in graph.blocks if block.name in removed]
    stays = [f"{b.name}.{step}" for b in going for kind, step in b.keep if kind == "module"]

    def gone(name: str) -> bool:
        inside = any(_within(name, block.name) for block in going)
        return inside and not any(_within(name, kept) for kept in stays)

    groups = []
    for group in _joined(graph.groups, [block for block in going if block.kind == "chain"]):
        members = tuple(member for member in group.members if not gone(member.name))
        roles = {member.role for member in members}
        if "out" in roles and roles & {"in", "zero"}:  # made and read by what is left
            groups.append(dataclasses.replace(group, members=members))
    layers = tuple(layer for layer in graph.layers if not gone(layer.name))
    return dataclasses.replace(
        graph,
        groups=tuple(groups),
        layers=layers,
        macs=sum(layer.macs for layer in layers),
        parameters=graph.parameters - sum(block.parameters for block in going),
        refusals=tuple(r for r in graph.refusals if not (gone(r.name) or (r.layers and all(map(gone, r.layers))))),
        blocks=tuple(block for block in graph.blocks if block.name not in removed),
    )


def _joined(groups: Sequence[Group], links: Sequence[Block]) -> list[Group]:
    """The groups when what enters a removed link comes out of it: the two groups around it are one.

    The one that is left has the name, and so the scores, of the group that enters. Where the channels do not
    correspond one by one, or one side is in no group, the other side may not be cut either and is left out.
    """
    joined = list(groups)
    for link in links:
        entering = [g for g in joined if _met(g, link, inward=True)]
        leaving = [g for g in joined if _met(g, link, inward=False)]
        if entering == leaving:
            continue
        joined = [group for group in joined if group not in entering and group not in leaving]
        if len(entering) == len(leaving) == 1:
            one, other = entering[0], leaving[0]
            if _met(one, link, inward=True) == _met(other, link, inward=False):
                members = dict.fromkeys((*one.members, *other.members))
                joined.append(dataclasses.replace(one, members=tuple(members)))
    order = {group.name: position for position, group in enumerate(groups)}
    return sorted(joined, key=lambda group: order[group.name])


def _met(group: Group, link: Block, *, inward: bool) -> tuple[tuple[int, ...], ...]:
    """The channels of a group's units where they enter the link (or leave it); nothing if they do not."""
    role, beyond = ("in", "out") if inward else ("out", "in")
    inside = [m for m in group.members if m.name in link.layers and (m.role == role or m.kind == "DEPTHWISE_CONV")]
    outside = any(member.role == beyond and not _within(member.name, link.name) for member in group.members)
    return inside[0].channels if inside and outside else ()


def by_ratio(graph: ChannelGraph, importance: Importance, ratio: float, multiple: int, rules: Rules = FREE) -> Choice:
    """The share `ratio` of the blocks, the least important first, and of the channels that are left where they may go.

    To the nearest number of blocks; a tie keeps more. Errors: PruningError when nothing can go.
    """
    _check(graph, importance)
    values = importance.blocks.values if importance.blocks else {}
    count = math.ceil(ratio * len(graph.blocks) - 0.5) if values else 0
    removed = tuple(sorted(values, key=values.__getitem__)[:count])
    shorter = without(graph, removed)
    if importance.scope == "blocks" or (removed and not shorter.groups):
        return _something(Choice(_widest(shorter, importance, multiple, rules), removed), graph)
    ranking = rules.ranking or "local"
    return Choice(by_share(shorter, importance.channels, ratio, ranking, multiple, rules), removed)


def by_budget(
    graph: ChannelGraph, importance: Importance, macs_ratio: float, multiple: int, rules: Rules = FREE
) -> Choice:
    """The blocks and widths that keep the share `macs_ratio` of the MACs and lose least importance.

    Blocks alone go until the goal is met; with channels it is met within one step of one group. Errors: PruningError
    when nothing can go.
    """
    _check(graph, importance)
    goal = graph.macs * macs_ratio
    order = _in_order(graph, importance)
    if importance.scope == "blocks":
        enough = goal + _NEAR * graph.macs
        counts = range(1, len(order) + 1)
        count = next((count for count in counts if without(graph, order[:count]).macs <= enough), len(order))
        widths = _widest(without(graph, order[:count]), importance, multiple, rules)
        return _something(_noted(Choice(widths, order[:count]), graph, goal), graph)
    best: Choice | None = None
    least = (math.inf, math.inf)
    for count in range(len(order) + 1):
        found = _candidate(graph, importance, order[:count], goal, multiple, rules)
        if found is None:
            continue
        missed = max(0.0, abs(macs_after(graph, found) / goal - 1) - _STEP)  # to come near the goal counts first
        cost = (missed, _cost(graph, importance, found))
        if cost < least:
            best, least = found, cost
        if without(graph, order[:count]).macs <= goal:
            break  # more blocks would only overshoot
    if best is None:
        return Choice(by_macs(graph, importance.channels, macs_ratio, multiple, rules))  # which says what is wrong
    return _noted(best, graph, goal)


def macs_after(graph: ChannelGraph, choice: Choice) -> int:
    """Multiply-accumulates an image after the choice."""
    return macs_of(without(graph, choice.removed), choice.widths)


def _in_order(graph: ChannelGraph, importance: Importance) -> tuple[str, ...]:
    """Blocks by importance lost a MAC saved, the cheapest first."""
    values = importance.blocks.values if importance.blocks else {}
    cheap = sorted((b for b in graph.blocks if b.name in values), key=lambda b: values[b.name] / max(b.macs, 1))
    return tuple(block.name for block in cheap)


def _candidate(
    graph: ChannelGraph, importance: Importance, removed: tuple[str, ...], goal: float, multiple: int, rules: Rules
) -> Choice | None:
    """Those blocks, and channels for the rest of the budget; None where nothing would go at all."""
    shorter = without(graph, removed)
    if shorter.macs > goal:
        try:
            ratio = goal / shorter.macs
            return Choice(by_macs(shorter, importance.channels, ratio, multiple, rules), removed)
        except NothingLeftError:  # no channel can go: the blocks alone are a plan too
            pass
    return Choice(_widest(shorter, importance, multiple, rules), removed) if removed else None


def _cost(graph: ChannelGraph, importance: Importance, choice: Choice) -> float:
    """Importance that the choice loses, blocks and channels in one currency."""
    values = importance.blocks.values if importance.blocks else {}
    lost = sum(BLOCK_PRICE * values[name] for name in choice.removed)
    for group in without(graph, choice.removed).groups:
        scores = np.sort(importance.channels.values[group.name])
        gone = float(scores[: group.width - choice.widths[group.name]].sum() / max(float(scores.sum()), 1e-300))
        lost -= math.log1p(-min(gone, 1 - 1e-12))
    return lost


def _noted(choice: Choice, graph: ChannelGraph, goal: float) -> Choice:
    """With a note where whole blocks cannot come near the goal."""
    share, wanted = macs_after(graph, choice) / graph.macs, goal / graph.macs
    if abs(share - wanted) <= _NEAR:
        return choice
    if len(choice.removed) == len(graph.blocks):
        why = "all removable blocks are gone"
    else:
        why = "blocks go as a whole" if share < wanted or not choice.widths else "that is as far as channels go"
    return dataclasses.replace(
        choice, notes=(f"{share:.0%} of the MACs stay where {wanted:.0%} were asked for: {why}",)
    )


_NEAR, _STEP = 0.02, 0.05


def _widest(graph: ChannelGraph, importance: Importance, multiple: int, rules: Rules) -> Widths:
    """All channels that may stay: all of them, but for limits where channels are pruned at all."""
    if importance.scope == "blocks":
        return {group.name: group.width for group in graph.groups}
    return {
        group.name: widths[0] for group, widths in zip(graph.groups, choices_of(graph, multiple, rules), strict=True)
    }


def _something(choice: Choice, graph: ChannelGraph) -> Choice:
    if not choice.removed:
        raise NothingLeftError(
            "the plan removes nothing",
            where=f"blocks that can be removed: {len(graph.blocks)}",
            hint="ask for more, or prune channels too with --scope both",
        )
    return choice


def _check(graph: ChannelGraph, importance: Importance) -> None:
    check_scores(graph, importance.channels)
    if importance.scope == "channels":
        return
    if not graph.blocks and importance.scope == "blocks":
        reasons = "\n  ".join(f"{refusal.name}: {refusal.reason}" for refusal in graph.block_refusals[:3])
        raise PruningError(
            "the network has no block that can be removed",
            where=reasons,
            hint="prune channels with --scope channels; `edgeprune inspect` lists all reasons",
        )
    if importance.blocks is not None:
        check_block_scores(graph, importance.blocks)


def _within(name: str, owner: str) -> bool:
    return name == owner or name.startswith(owner + ".")


def removed_of(graph: ChannelGraph, names: Sequence[str]) -> tuple[Block, ...]:
    """The blocks of those names, in that order."""
    known = {block.name: block for block in graph.blocks}
    return tuple(known[name] for name in names)
