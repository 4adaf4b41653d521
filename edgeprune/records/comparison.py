"""Two runs, side by side: what may be compared, and how sure the difference is."""

from __future__ import annotations

from typing import Literal

from edgeprune.records.base import SCHEMA_VERSION, Interval, PairedDrop, Proportion, Record, Sha256, Unmeasured
from edgeprune.records.latency import Ratio


class RunName(Record):
    """One of the two runs: its folder, when it was made and by which version, and the file that it shipped."""

    folder: str
    created: str
    edgeprune: str
    model: str
    sha256: Sha256


class Paired(Record):
    """Both files on the same images: `drop` is before minus after, with McNemar's exact test and a bound."""

    what: str
    before: Proportion
    after: Proportion
    drop: PairedDrop


class Unpaired(Record):
    """Both files, each on images of its own: `difference` is the interval of before minus after. `why` not paired."""

    what: str
    why: str
    before: Proportion
    after: Proportion
    difference: Interval


class TimesCompared(Record):
    """p50 of both files where runtime, threads, batch, target and machine agree.

    `ratio` is before over after: above 1, the second file is faster. `interleaved` False: the two were timed in runs of
    their own, so what changed between the runs is in the ratio, and its interval does not know of it.
    """

    runtime: str
    target: str
    before_ms: float
    before_interval: Interval
    after_ms: float
    after_interval: Interval
    ratio: Ratio
    interleaved: bool
    conclusive: bool
    notes: tuple[str, ...] = ()


class Weighed(Record):
    """Something that is counted, not measured."""

    what: str
    unit: Literal["bytes", "count"]
    before: int
    after: int


class LayerPair(Record):
    """One layer's output channels in both compressed networks; None where a network has no such layer."""

    name: str
    before: int | None
    after: int | None


class RunComparison(Record):
    """RUN_A (before) against RUN_B (after).

    `better` and `worse` name what is shown to be so, `undecided` what nobody can say.
    """

    schema_version: Literal["1"] = SCHEMA_VERSION
    before: RunName
    after: RunName
    accuracy: Paired | Unpaired | Unmeasured
    robustness: Paired | Unpaired | Unmeasured
    latency: tuple[TimesCompared, ...] | Unmeasured
    weights: tuple[Weighed, ...]
    layers: tuple[LayerPair, ...]
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()
