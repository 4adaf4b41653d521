"""A sweep: its points, which of them stand at the front, and which one is recommended."""

from __future__ import annotations

from typing import Literal

from edgeprune.records.base import SCHEMA_VERSION, Interval, Record, Sha256, Unmeasured
from edgeprune.records.machine import Environment

Objective = Literal["speedup", "latency_ms", "accuracy", "robust_accuracy", "size_bytes"]
Standing = Literal["front", "near", "behind", "not compared", "failed"]


class Figure(Record):
    """A measured value of the compressed file. `interval` None: counted, not measured."""

    value: float
    interval: Interval | None


class SweepPoint(Record):
    """One run. `settings` are what was chosen, by `section.name`; `command` makes this very run again.

    `folder` is relative to the sweep's. `doubts`: what the measurements say against themselves. A point that failed has
    the `reason`, and no figures. `machine`: the processor that it was timed on.
    """

    name: str
    settings: dict[str, str]
    status: Literal["done", "failed"]
    reason: str = ""
    folder: str
    command: str
    seconds: float
    report_sha256: Sha256 | None = None
    artifact_sha256: Sha256 | None = None
    speedup: Figure | Unmeasured
    latency_ms: Figure | Unmeasured
    accuracy: Figure | Unmeasured
    robust_accuracy: Figure | Unmeasured
    size_bytes: Figure | Unmeasured
    machine: str = ""
    verdict: Literal["passed", "failed", "inconclusive", "no budgets"] | None = None
    verdict_reason: str = ""
    doubts: tuple[str, ...] = ()


class Placed(Record):
    """Where a point stands.

    front: no other point is at least as good in every objective and better in one. near: another one is, but better
    only within the intervals, or in doubt. behind: another one is better beyond them. `behind` names those others.
    """

    name: str
    standing: Standing
    behind: tuple[str, ...] = ()
    reason: str = ""


class SweepAxis(Record):
    """A setting with several values, as text."""

    setting: str
    values: tuple[str, ...]


class SweepDense(Record):
    """The dense network in the runtime that points are compared in; every figure that could not be measured says so."""

    latency_ms: Figure | Unmeasured
    accuracy: Figure | Unmeasured
    robust_accuracy: Figure | Unmeasured
    size_bytes: Figure | Unmeasured


class Sweep(Record):
    """Everything that a sweep found: what sweep.json holds.

    `objectives` are what points are compared by: those that were measured. `placed` has every point, in the order of
    `points`. `recommended` names the fastest point whose budgets hold, by the gate's bounds; None where there is none,
    and `advice` says why.
    """

    schema_version: Literal["1"] = SCHEMA_VERSION
    created: str
    command: str
    model: str
    model_sha256: Sha256
    target: str
    runtime: str
    seed: int
    environment: Environment
    search: Literal["grid", "guided"]
    combinations: int
    axes: tuple[SweepAxis, ...]
    objectives: tuple[Objective, ...]
    budgets: dict[str, float | str | bool]
    dense: SweepDense | None
    points: tuple[SweepPoint, ...]
    placed: tuple[Placed, ...]
    recommended: str | None
    advice: str

    def point(self, name: str) -> SweepPoint:
        """The point of this name; KeyError when there is none."""
        for point in self.points:
            if point.name == name:
                return point
        raise KeyError(name)

    def where(self, name: str) -> Placed:
        """Where the point of this name stands; KeyError when there is none."""
        for placed in self.placed:
            if placed.name == name:
                return placed
        raise KeyError(name)
