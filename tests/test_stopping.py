"""When timing stops: the plans, the looks on a fake clock, and what looking does to the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from edgeprune.config import LatencyConfig, load_config
from edgeprune.errors import UsageError
from edgeprune.latency import stopping
from edgeprune.latency.protocol import compare
from edgeprune.records import BlockSamples, LatencyComparison, LatencyFile, LatencyRequest, RuntimeInfo

INFO = RuntimeInfo(name="fake", version="1", precision="float32", threads=1)
PAIR = LatencyRequest(
    runtime="fake",
    dense=LatencyFile(path="/dense", sha256="a" * 64),
    compressed=LatencyFile(path="/pruned", sha256="b" * 64),
    images="/images.npy",
)


@dataclass
class Bench:
    """A made-up device: process effects of `noise`, rounds of 1 %; its clock moves `cost_ms` a process."""

    noise: float
    seed: int = 0
    ratio: float = 1.0
    cost_ms: float = 3000.0
    now_ms: float = 0.0
    samples: list[BlockSamples] = field(default_factory=list)
    batches: list[tuple[int, int]] = field(default_factory=list)

    def more(self, first: int, count: int) -> None:
        self.batches.append((first, count))
        for process in range(first, first + count):
            draw = np.random.default_rng([self.seed, process])
            self.now_ms += self.cost_ms
            for label in ("dense", "control", "compressed"):
                place = draw.normal(0, self.noise)
                for number in range(4):
                    time = float(np.exp(place + draw.normal(0, 0.01))) / (self.ratio if label == "compressed" else 1)
                    self.samples.append(_block(process, number, label, time))

    def run(self, settings: LatencyConfig, error: float | None = None) -> LatencyComparison:
        plan = stopping.plan_of(settings, 3)
        judge: Callable[[], LatencyComparison] = lambda: compare(  # noqa: E731  # the plan's error, or another one
            self.samples, PAIR, "cpu", error=plan.error if error is None else error
        )
        return stopping.run(plan, self.more, judge, lambda: self.now_ms)


def _block(process: int, number: int, label: str, time: float) -> BlockSamples:
    return BlockSamples(
        process=process,
        round=number,
        position=number,
        label=label,  # type: ignore[arg-type]
        samples_ms=(time,) * 2,
        preempted=(False, False),
        runtime=INFO,
        peak_rss_bytes=1,
        cold_start_ms=1.0,
    )


def test_quiet_machine_stops_at_the_first_look_and_says_why() -> None:
    bench = Bench(noise=0.001)
    found = bench.run(LatencyConfig())
    assert bench.batches == [(0, 5)]
    assert found.processes == 5
    assert "after 5 processes (4.0% is enough)" in found.stopped


def test_noisy_machine_goes_on_to_the_cap_and_no_further() -> None:
    bench = Bench(noise=0.08)
    found = bench.run(LatencyConfig())
    assert bench.batches == [(0, 5), (5, 3), (8, 4)]
    assert found.stopped.startswith("12 processes are the most, still")


def test_processes_that_were_asked_for_are_run_however_noisy() -> None:
    bench = Bench(noise=0.08)
    assert bench.run(LatencyConfig(processes=4)).stopped == "4 processes were asked for"
    assert bench.batches == [(0, 4)]


@pytest.mark.parametrize(("seconds", "processes"), [(20, 6), (60, 20), (1, 3)])
def test_time_that_was_asked_for_is_filled_and_not_exceeded_by_a_process(seconds: int, processes: int) -> None:
    bench = Bench(noise=0.01, cost_ms=3000.0)
    found = bench.run(LatencyConfig(duration=f"{seconds} s"))
    assert found.processes == processes
    assert found.stopped == f"{seconds} s were asked for: {processes} processes"


def test_short_time_makes_short_processes_and_long_time_no_longer_ones() -> None:
    rounds = [stopping.plan_of(LatencyConfig(duration=f"{s} s"), 3).rounds for s in (1, 8, 20, 200)]
    assert rounds == [2, 6, 12, 12]


def test_runs_are_spread_over_processes_and_are_at_least_as_many_as_asked_for() -> None:
    plan = stopping.plan_of(LatencyConfig(runs=1000), 3)
    assert plan.iterations is not None
    assert (plan.looks, plan.rounds) == ((5,), 12)
    assert plan.looks[0] * plan.rounds * plan.iterations == 1020
    few = stopping.plan_of(LatencyConfig(runs=3), 3)
    assert (few.rounds, few.iterations) == (2, 1)


def test_two_lengths_at_once_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--for sets the length by itself"):
        load_config(None, {"latency": {"duration": "20 s", "runs": "100"}})


def test_intervals_cover_the_ratio_wherever_timing_stops() -> None:
    """Of 60 runs, stopped by their own width, the last interval holds the true ratio in at least 95 %."""
    found = [Bench(noise=0.012, seed=seed, ratio=1.3).run(LatencyConfig()) for seed in range(60)]
    assert len({one.processes for one in found}) == 3
    covered = sum(one.speedup.interval.low <= 1.3 <= one.speedup.interval.high for one in found if one.speedup)
    assert covered >= 57


def test_looking_at_equal_files_never_calls_one_of_them_faster() -> None:
    verdicts = [Bench(noise=0.012, seed=seed).run(LatencyConfig()).verdict for seed in range(60)]
    assert set(verdicts) <= {"no significant difference", "inconclusive"}
