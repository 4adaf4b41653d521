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
    """What surgery removes from the network whose weights have the digest `parent`."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    parent: Sha256
    goal: str
    goal_value: float
    criterion: str
    normalisation: str
    channel_multiple: int
    seed: int
    groups: tuple[GroupPlan, ...]
    removed_blocks: tuple[str, ...] = ()
    refusals: tuple[RefusalRecord, ...] = ()
    dense_macs: int
    dense_parameters: int
    macs: int
    parameters: int
    notes: tuple[str, ...] = ()

    @property
    def removed_channels(self) -> int:
        return sum(group.width - len(group.kept) for group in self.groups)
