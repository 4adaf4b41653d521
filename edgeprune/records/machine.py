"""A machine that numbers were measured on, and how warm it was."""

from __future__ import annotations

from edgeprune.records.base import Record


class Environment(Record):
    """The machine and the versions behind the numbers."""

    edgeprune: str
    python: str
    system: str
    cpu: str
    cores: int
    cpu_features: tuple[str, ...]
    packages: dict[str, str]


class Heat(Record):
    """How warm and how fast a machine is at a moment; None where it does not tell.

    `celsius` of the warmest zone; `mhz` of the slowest core in use, `most_mhz` what it may reach; `throttles` counts
    the kernel's since boot; `throttled`: the board says so now.
    """

    celsius: float | None = None
    mhz: float | None = None
    most_mhz: float | None = None
    throttles: int | None = None
    throttled: bool | None = None


class Warmth(Record):
    """Heat over a whole run: warmest, slowest, and whether the machine was throttled (None: it does not tell)."""

    celsius_first: float | None = None
    celsius_most: float | None = None
    mhz_least: float | None = None
    mhz_most: float | None = None
    throttled: bool | None = None


class Drift(Record):
    """Did times rise or fall while they were taken? Relative changes of the dense file's block medians.

    `within`: from the first to the last block of a process; `across`: from the first process to the last (None: too
    few processes to tell). `moving`: one of them is beyond 5 % and beyond chance (Mann and Kendall's test, p < 0.01).
    """

    within: float
    across: float | None
    moving: bool
