"""What surgery removes, and what was left alone and why."""

from __future__ import annotations

from typing import Literal

from edgeprune.records.base import SCHEMA_VERSION, Interval, Record, Sha256


class GroupPlan(Record):
    """Channel indices of one group that stay, ascending. `width` is the dense width."""

    name: str
    width: int
    kept: tuple[int, ...]


class RefusalRecord(Record):
    """A group that was left alone."""

    name: str
    reason: str
    layers: tuple[str, ...] = ()


class PlanTiming(Record):
    """What the plan's network was timed at before recovery, beside the dense one: a short run to steer by, no result.

    `interval` is the speed-up's, 95 %. Medians are of the processes that timed this very candidate.
    """

    runtime: str
    speedup: float
    interval: Interval
    dense_p50_ms: float
    compressed_p50_ms: float


class PrunePlan(Record):
    """What surgery removes from the network whose weights have the digest `parent`.

    `removed_blocks` are in the order of their removal; groups of channels that went with them are not in `groups`.
    `timing` is None where the goal is not in time, and where nothing was timed.
    """

    schema_version: Literal["1"] = SCHEMA_VERSION
    parent: Sha256
    goal: str
    goal_value: float
    criterion: str
    normalisation: str
    channel_multiple: int
    seed: int
    groups: tuple[GroupPlan, ...]
    scope: Literal["channels", "blocks", "both"] = "channels"
    removed_blocks: tuple[str, ...] = ()
    removable_blocks: int = 0
    block_criterion: str | None = None
    block_normalisation: str | None = None
    refusals: tuple[RefusalRecord, ...] = ()
    block_refusals: tuple[RefusalRecord, ...] = ()
    dense_macs: int
    dense_parameters: int
    macs: int
    parameters: int
    timing: PlanTiming | None = None
    notes: tuple[str, ...] = ()

    @property
    def removed_channels(self) -> int:
        return sum(group.width - len(group.kept) for group in self.groups)
