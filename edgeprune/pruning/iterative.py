"""Pruning in several steps: the goal of each, and one plan for all of them. Pure.

A step prunes what the step before left, after it was recovered. What is written down is one plan relative to the
dense network: `compose` says which of its channels the steps kept.
"""

from __future__ import annotations

from typing import Literal

from edgeprune.errors import PruningError
from edgeprune.records import GroupPlan, PrunePlan
from edgeprune.types import Goal

Schedule = Literal["geometric", "linear"]


def step_goal(goal: Goal, number: int, steps: int, schedule: Schedule, *, dense_ms: float | None = None) -> Goal:
    """What step `number` (from 1) of `steps` aims at, counted from the dense network like the goal itself.

    geometric: every step keeps the same share of what it finds (of channels, MACs or time). linear: every step takes
    the same amount. `dense_ms` is the dense p50, which a goal in `latency_ms` needs before its last step.
    """
    if number == steps:
        return goal
    if goal.kind == "latency_ms" and dense_ms is None:
        raise ValueError("a step towards a latency needs the dense latency")
    start = dense_ms if goal.kind == "latency_ms" and dense_ms else 1.0
    end = {"ratio": 1 - goal.value, "speedup": 1 / goal.value}.get(goal.kind, goal.value)
    if end >= start:  # nothing to do on the way
        return goal
    done = number / steps
    left = start * (end / start) ** done if schedule == "geometric" else start + (end - start) * done
    value = {"ratio": 1 - left, "speedup": 1 / left}.get(goal.kind, left)
    return Goal(goal.kind, value)


def step_epochs(total: int, steps: int, between: int | None) -> tuple[int, int]:
    """Epochs of recovery (after each step but the last, after the last).

    `between` None: the total is split evenly, at least one each, and the last step has what is left.
    """
    if steps == 1:
        return 0, total
    if between is not None:
        return between, total
    each = max(1, total // steps)
    return each, max(1, total - each * (steps - 1))


def compose(first: PrunePlan, second: PrunePlan) -> PrunePlan:
    """One plan relative to `first`'s parent that keeps what `second`, made for its result, keeps.

    Groups that `second` left alone stay as `first` left them. Everything but channels and parent is `second`'s.
    Errors: PruningError when `second` is not about what `first` left.
    """
    later = {group.name: group for group in second.groups}
    if unknown := later.keys() - {group.name for group in first.groups}:
        raise PruningError(f"a later step prunes {min(unknown)}, which the first one did not know")
    groups = []
    for group in first.groups:
        after = later.get(group.name)
        if after is None:
            groups.append(group)
            continue
        if after.width != len(group.kept):
            raise PruningError(
                f"two steps disagree about {group.name}: {len(group.kept)} channels were left, not {after.width}"
            )
        groups.append(GroupPlan(name=group.name, width=group.width, kept=tuple(group.kept[i] for i in after.kept)))
    return second.model_copy(
        update={
            "parent": first.parent,
            "groups": tuple(groups),
            "refusals": first.refusals,
            "dense_macs": first.dense_macs,
            "dense_parameters": first.dense_parameters,
        }
    )
