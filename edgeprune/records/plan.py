"""What surgery removes, and what was left alone and why."""

from __future__ import annotations

from typing import Literal

from edgeprune.records.base import SCHEMA_VERSION, Record, Sha256


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


class PrunePlan(Record):
    """What surgery removes from the network whose weights have the digest `parent`.

    `removed_blocks` are in the order of their removal; groups of channels that went with them are not in `groups`.
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
    notes: tuple[str, ...] = ()

    @property
    def removed_channels(self) -> int:
        return sum(group.width - len(group.kept) for group in self.groups)
