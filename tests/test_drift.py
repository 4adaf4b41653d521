"""Drift, heat and throttling: known trends are found, steady times are left in peace."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.latency.drift import drift_of, said, warmth_of
from edgeprune.records import BlockSamples, Heat, RuntimeInfo

INFO = RuntimeInfo(name="fake", version="1", precision="float32", threads=1)


def rounds(within: float, across: float, noise: float = 0.002) -> dict[int, dict[int, float]]:
    draw = np.random.default_rng(0)
    return {
        process: {
            number: (1 + within * number / 11) * (1 + across * process / 4) * (1 + draw.normal(0, noise))
            for number in range(12)
        }
        for process in range(5)
    }


def test_steady_times_do_not_drift() -> None:
    drift = drift_of(rounds(0, 0))
    assert drift is not None
    assert not drift.moving
    assert drift.within == pytest.approx(0, abs=0.005)
    assert list(said(drift, None)) == []


def test_times_that_rise_inside_processes_are_found_and_told() -> None:
    drift = drift_of(rounds(0.2, 0))
    assert drift is not None
    assert drift.moving
    assert drift.within == pytest.approx(0.15, abs=0.02)
    assert "+1" in next(said(drift, None))


def test_times_that_rise_from_process_to_process_are_measured() -> None:
    drift = drift_of(rounds(0, 0.3))
    assert drift is not None
    assert drift.across == pytest.approx(0.26, abs=0.02)


def test_noise_alone_is_no_drift() -> None:
    drift = drift_of(rounds(0, 0, noise=0.1))
    assert drift is not None
    assert not drift.moving


def test_few_rounds_say_nothing() -> None:
    assert drift_of({0: {0: 1.0, 1: 2.0, 2: 3.0}}) is None


def sample(process: int, before: Heat, after: Heat) -> BlockSamples:
    return BlockSamples(
        process=process,
        round=0,
        position=0,
        label="dense",
        samples_ms=(1.0,),
        preempted=(False,),
        runtime=INFO,
        peak_rss_bytes=1,
        cold_start_ms=1.0,
        heat=(before, after),
    )


def test_throttling_is_told_with_the_temperature() -> None:
    warm = warmth_of(
        [
            sample(0, Heat(celsius=50, throttles=7), Heat(celsius=71, throttles=7)),
            sample(1, Heat(celsius=70, throttles=7), Heat(celsius=84, throttles=9)),
        ]
    )
    assert warm is not None
    assert (warm.celsius_first, warm.celsius_most, warm.throttled) == (50, 84, True)
    assert "throttled while it was timed (up to 84 C)" in next(said(None, warm))


def test_machine_that_tells_nothing_has_no_warmth() -> None:
    assert warmth_of([sample(0, Heat(), Heat())]) is None


def test_core_that_is_held_below_its_clock_is_told() -> None:
    warm = warmth_of([sample(0, Heat(mhz=2400, most_mhz=2400), Heat(mhz=1500, most_mhz=2400))])
    assert warm is not None
    assert warm.throttled is None
    assert "1500 of 2400 MHz" in next(said(None, warm))
