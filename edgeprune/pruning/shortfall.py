"""What a plan says of itself where it does not do what was asked: how far it came, and what stood in the way. Pure.

A goal that is met within one step of one group needs no words. Everything else is said, with the share of the MACs
that each obstacle holds: layers that cannot be pruned, limits, and a channel multiple that is coarse for the network.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeprune.pruning.allocation import FREE, Rules, choices_of, macs_of
from edgeprune.types import ChannelGraph, Goal, Refusal

_NEAR = 0.02
"""A share of MACs or channels this near to the goal is the goal: nobody asks why."""
_NAMED = 3


def notes_on(
    graph: ChannelGraph, widths: Mapping[str, int], goal: Goal, multiple: int, rules: Rules = FREE
) -> tuple[str, ...]:
    """Sentences for the plan; none when the goal is met. Goals in time are judged by `edgeprune.pruning.aim`."""
    if goal.kind == "macs_ratio":
        return _on_macs(graph, widths, goal.value, multiple, rules)
    if goal.kind == "ratio":
        return _on_share(graph, widths, goal.value, multiple, rules)
    return ()


def obstacles(graph: ChannelGraph, widths: Mapping[str, int], multiple: int, rules: Rules = FREE) -> tuple[str, ...]:
    """What keeps MACs that the goal would have taken, the largest first: why a network ends where it does."""
    found = []
    locked = _locked(graph)
    if locked and (share := sum(locked.values()) / graph.macs) >= _NEAR / 2:
        reasons = {name: refusal.reason for refusal in reversed(graph.refusals) for name in _layers_of(refusal)}
        largest = sorted(locked, key=lambda name: -locked[name])[:_NAMED]
        named = "; ".join(
            f"{name} ({locked[name] / graph.macs:.0%}): {reasons.get(name, 'in no group')}" for name in largest
        )
        found.append(f"layers that cannot be pruned have {share:.0%} of the MACs: {named}")
    held = [group.name for group in graph.groups if group.name in rules.bounds]
    if held:
        said = dict.fromkeys(word for name in held for word in rules.bounds[name].said)
        found.append(f"limits hold {len(held)} of {len(graph.groups)} groups ({'; '.join(said)})")
    narrow = [graph.groups[i].name for i, widest in enumerate(choices_of(graph, multiple, rules)) if len(widest) == 1]
    narrow = [name for name in narrow if name not in rules.bounds]
    if narrow:
        found.append(
            f"{_some(narrow)} cannot be cut in multiples of {multiple}: allow finer widths with --channel-multiple"
        )
    return tuple(found)


def _on_macs(
    graph: ChannelGraph, widths: Mapping[str, int], goal: float, multiple: int, rules: Rules
) -> tuple[str, ...]:
    reached = macs_of(graph, widths) / graph.macs
    if abs(reached - goal) <= _NEAR:
        return ()
    choices = choices_of(graph, multiple, rules)
    lower, higher = {}, {}
    for group, steps in zip(graph.groups, choices, strict=True):
        below = [width for width in steps if width < widths[group.name]]
        above = [width for width in steps if width > widths[group.name]]
        if below:
            lower[group.name] = macs_of(graph, {**widths, group.name: below[0]}) / graph.macs
        if above:
            higher[group.name] = macs_of(graph, {**widths, group.name: above[-1]}) / graph.macs
    asked = f"{reached:.0%} of the MACs are left where {goal:.0%} was asked"
    if reached > goal and not lower:
        return (f"the goal cannot be reached: {asked}", *obstacles(graph, widths, multiple, rules))
    if reached < goal and not higher:
        return (f"the limits alone take more than the goal: {asked}", *obstacles(graph, widths, multiple, rules))
    step = min(lower, key=lambda name: lower[name]) if reached > goal else min(higher, key=lambda name: higher[name])
    share = abs((lower if reached > goal else higher)[step] - reached)
    return (f"{asked}: one step of {step} is {share:.0%} of the MACs (widths end on multiples of {multiple})",)


def _on_share(
    graph: ChannelGraph, widths: Mapping[str, int], goal: float, multiple: int, rules: Rules
) -> tuple[str, ...]:
    dense = {group.name: rules.dense.get(group.name, group.width) for group in graph.groups}
    gone = 1 - sum(widths.values()) / max(sum(dense.values()), 1)
    whole = [group.name for group in graph.groups if widths[group.name] == dense[group.name]]
    found = []
    if abs(gone - goal) > _NEAR:
        found.append(
            f"{gone:.0%} of the channels that can be pruned go where {goal:.0%} was asked: "
            f"widths end on multiples of {multiple}" + (" and keep to their limits" if rules.bounds else "")
        )
    if whole:
        found.append(f"nothing goes in {len(whole)} of {len(graph.groups)} groups: {_some(whole)}")
    if found:
        found += obstacles(graph, widths, multiple, rules)
    return tuple(found)


def _locked(graph: ChannelGraph) -> dict[str, int]:
    """MACs of the layers of which no group touches anything."""
    touched = {member.name for group in graph.groups for member in group.members}
    return {layer.name: layer.macs for layer in graph.layers if layer.name not in touched}


def _layers_of(refusal: Refusal) -> tuple[str, ...]:
    return (*refusal.layers, refusal.name)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
