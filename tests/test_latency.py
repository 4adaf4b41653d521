"""The latency protocol: exact answers from a fake clock, known ratios from made-up samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest

from edgeprune.errors import InconclusiveError, MeasurementError
from edgeprune.latency import timing
from edgeprune.latency.protocol import compare, steer
from edgeprune.records import BlockSamples, LatencyFile, LatencyRequest, RuntimeInfo

INFO = RuntimeInfo(name="fake", version="1", precision="float32", threads=1)
DENSE = LatencyFile(path="/dense", sha256="a" * 64)
PRUNED = LatencyFile(path="/pruned", sha256="b" * 64)
PAIR = LatencyRequest(runtime="fake", dense=DENSE, compressed=PRUNED, images="/images.npy")
ALONE = PAIR.model_copy(update={"compressed": None})
Label = Literal["dense", "control", "compressed"]
LABELS: tuple[Label, ...] = ("dense", "control", "compressed")


# ------------------------------------------------------------------------------------------ a fake clock


class FakeClock:
    """Time that moves only when told; `costs_ms` are the durations of the runs, in turn."""

    def __init__(self, costs_ms: Sequence[float]) -> None:
        self.costs_ms, self.wall, self.cpu, self.switches, self.runs = costs_ms, 0, 0, 0, 0

    def run(self, index: int) -> None:
        cost = round(self.costs_ms[min(self.runs, len(self.costs_ms) - 1)] * 1e6)
        self.wall, self.cpu, self.runs = self.wall + cost, self.cpu + cost, self.runs + 1

    def clock(self, *, one_thread: bool = True) -> timing.Clock:
        return timing.Clock(lambda: self.wall, lambda: self.cpu, lambda: self.switches, one_thread)


def test_block_gives_the_exact_times_without_the_run_that_refills_the_caches() -> None:
    fake = FakeClock([9.0, 2.0, 3.0, 2.5])
    block = timing.time_block(fake.run, 3, fake.clock())
    assert block.samples_ms == (2.0, 3.0, 2.5)
    assert block.preempted == (False, False, False)


def test_runtimes_own_time_is_asked_for_after_each_timed_run_and_costs_no_time_of_it() -> None:
    fake = FakeClock([9.0, 2.0, 3.0])

    def told() -> float:
        fake.wall += 10_000_000  # however long the answer takes, it is outside of the clock
        return fake.runs / 10

    block = timing.time_block(fake.run, 2, fake.clock(), told)
    assert (block.samples_ms, block.runtime_ms) == ((2.0, 3.0), (0.2, 0.3))
    assert timing.time_block(fake.run, 2, fake.clock()).runtime_ms == ()


def test_context_switch_marks_just_that_iteration() -> None:
    fake = FakeClock([1.0])

    def run(index: int) -> None:
        fake.run(index)
        fake.switches += index == 1

    # the untimed run has index 0, so only the second timed one switches
    assert timing.time_block(run, 3, fake.clock()).preempted == (False, True, False)


@pytest.mark.parametrize(("one_thread", "expected"), [(True, (True,)), (False, (False,))])
def test_thread_time_far_below_wall_time_means_preempted_only_when_one_thread_works(
    one_thread: bool, expected: tuple[bool, ...]
) -> None:
    fake = FakeClock([1.0])

    def run(index: int) -> None:
        fake.run(index)
        fake.wall += 500_000  # half a millisecond that the thread did not run

    assert timing.time_block(run, 1, fake.clock(one_thread=one_thread)).preempted == expected


def test_warm_up_ends_when_two_windows_agree() -> None:
    fake = FakeClock([*(40.0 - 3 * i for i in range(10)), *([10.0] * 50)])
    warm = timing.warm_up(fake.run, fake.clock())
    assert warm.settled
    assert warm.median_ms == 10.0
    assert warm.iterations < 30


def test_warm_up_that_never_settles_stops_at_the_cap_and_says_so() -> None:
    fake = FakeClock([1.2**i for i in range(60)])
    warm = timing.warm_up(fake.run, fake.clock())
    assert not warm.settled
    assert fake.wall / 1e6 < 2 * timing.WARM_UP_CAP_MS


def test_every_round_holds_every_label_once_and_the_seed_decides_the_order() -> None:
    order = timing.draw_order(LABELS, 40, seed=3, process=1)
    assert all(sorted(labels) == sorted(LABELS) for labels in order)
    assert len(set(order)) == 6
    assert order == timing.draw_order(LABELS, 40, seed=3, process=1)
    assert order != timing.draw_order(LABELS, 40, seed=3, process=2)


def test_blocks_are_counted_out_not_cut_off() -> None:
    assert timing.iterations_for(50.0, 0.5) == 100
    assert timing.iterations_for(50.0, 400.0) == 1


class SharedCache:
    """Runs of two files that drive each other out of a cache: after the other one, a file is slow for `cold` runs."""

    def __init__(self, cold: int) -> None:
        self.cold, self.wall, self.last, self.since = cold, 0, "", 0

    def run(self, label: str) -> Callable[[int], None]:
        def one(_: int) -> None:
            self.since = self.since + 1 if label == self.last else 1
            self.last = label
            self.wall += 5_000_000 if self.since <= self.cold else 4_000_000

        return one

    def opened(self) -> dict[str, timing.Opened]:
        return {label: timing.Opened(None, self.run(label), 1.0, 1.0) for label in ("dense", "compressed")}


def test_block_begins_once_the_other_files_weights_are_out_of_the_caches() -> None:
    cache = SharedCache(cold=5)
    clock = timing.Clock(lambda: cache.wall, lambda: cache.wall, lambda: 0, True)
    done, _ = timing.interleave(cache.opened(), clock, timing.Blocks(8, 20.0, 0, 0), lambda: None)
    assert {ms for each in done for ms in each.block.samples_ms} == {4.0}


@pytest.mark.parametrize(("median_ms", "refills"), [(0.05, 8), (4.0, 8), (7.0, 5), (26.0, 2), (400.0, 1)])
def test_fast_files_run_more_often_before_a_block_than_slow_ones(median_ms: float, refills: int) -> None:
    assert timing.refills_for(median_ms) == refills


# --------------------------------------------------------------------------------------- made-up samples


def block(label: Label, process: int, number: int, samples: Sequence[float], lost: Sequence[bool] = ()) -> BlockSamples:
    return BlockSamples(
        process=process,
        round=number,
        position=3 * number + LABELS.index(label),
        label=label,
        samples_ms=tuple(samples),
        preempted=tuple(lost) or (False,) * len(samples),
        runtime=INFO,
        cores=(1,),
        peak_rss_bytes=1000 + process,
        cold_start_ms=5.0 + process,
    )


def exact(dense: float, compressed: float, *, processes: int = 5, rounds: int = 4) -> list[BlockSamples]:
    times: dict[Label, float] = {"dense": dense, "control": dense, "compressed": compressed}
    return [
        block(label, process, number, [times[label]] * 5)
        for process in range(processes)
        for number in range(rounds)
        for label in LABELS
    ]


def noisy(
    rng: np.random.Generator, *, ratio: float = 1.0, process_noise: float = 0.01, drift: float = 0.0
) -> list[BlockSamples]:
    """Five processes whose placement, blocks, iterations and clock all vary; dense over compressed is `ratio`."""
    blocks = []
    for process in range(5):
        placement = {label: rng.normal(0, process_noise) for label in LABELS}
        for number in range(12):
            for position, label in enumerate(rng.permutation(np.array(LABELS))):
                age = (number + position / 3) / 12
                centre = np.exp(placement[label] + rng.normal(0, 0.02) + drift * age)
                centre /= ratio if label == "compressed" else 1.0
                blocks.append(block(label, process, number, centre * np.exp(np.abs(rng.normal(0, 0.03, 8)))))
    return blocks


def test_exact_times_give_exact_figures() -> None:
    result = compare(exact(2.0, 0.5), PAIR, "cpu")
    assert result.verdict == "faster"
    assert result.speedup is not None
    assert result.compressed is not None
    assert result.speedup.value == pytest.approx(4.0)
    assert (result.control.value, result.control.interval.low, result.control.interval.high) == (1.0, 1.0, 1.0)
    assert (result.dense.p50_ms, result.compressed.p50_ms, result.compressed.min_ms) == (2.0, 0.5, 0.5)
    assert result.dense.throughput_per_s == pytest.approx(500.0)
    assert (result.dense.samples, result.dense.preempted) == (100, 0)
    assert result.dense.cold_start_ms == 7.0
    assert (result.dense.peak_rss_bytes, result.cores, result.processes) == (None, (1,), 5)
    assert (result.dense.sha256, result.compressed.sha256) == (DENSE.sha256, PRUNED.sha256)


def test_runtimes_own_median_leaves_preempted_iterations_out_and_is_none_unless_told_for_each() -> None:
    lost = (False, False, False, True, False)
    inside = {"runtime_ms": (0.3, 0.4, 0.5, 9.0, 0.4), "preempted": lost}
    told = [one.model_copy(update=inside) for one in exact(2.0, 0.5)]
    result = compare(told, PAIR, "cpu")
    assert result.compressed is not None
    assert (result.dense.runtime_p50_ms, result.compressed.runtime_p50_ms) == (0.4, 0.4)
    assert (result.dense.p50_ms, result.compressed.p50_ms) == (2.0, 0.5)  # what a caller waits for stays the figure
    assert compare(exact(2.0, 0.5), PAIR, "cpu").dense.runtime_p50_ms is None
    partly = compare([*told[:-1], told[-1].model_copy(update={"runtime_ms": ()})], PAIR, "cpu")
    assert partly.compressed is not None
    assert (partly.dense.runtime_p50_ms, partly.compressed.runtime_p50_ms) == (0.4, None)


def test_steering_needs_no_control_and_gives_the_same_ratio() -> None:
    samples = noisy(np.random.default_rng(3), ratio=1.7)
    whole = compare(samples, PAIR, "cpu")
    assert whole.speedup is not None
    assert whole.compressed is not None
    bare = [each for each in samples if each.label != "control"]
    found = steer(bare, PAIR.model_copy(update={"control": False}))
    assert (found.value, found.interval) == (whole.speedup.value, whole.speedup.interval)
    assert found.compressed_p50_ms == whole.compressed.p50_ms
    assert (found.compressed_interval, found.processes) == (whole.compressed.p50_interval, 5)
    with pytest.raises(MeasurementError, match="no block of control"):
        compare(bare, PAIR, "cpu")


def test_slower_is_called_slower_and_equal_is_called_equal() -> None:
    assert compare(exact(1.0, 1.5), PAIR, "cpu").verdict == "slower"
    assert compare(exact(1.0, 1.0), PAIR, "cpu").verdict == "no significant difference"


def test_one_file_alone_has_a_control_and_no_speedup() -> None:
    blocks = [one for one in exact(1.0, 1.0) if one.label != "compressed"]
    result = compare(blocks, ALONE, "cpu")
    assert (result.verdict, result.speedup, result.compressed) == ("alone", None, None)


@pytest.mark.parametrize(("count", "p90", "p99"), [(63, False, False), (64, True, False), (662, True, True)])
def test_tail_quantiles_are_refused_without_enough_samples(count: int, p90: bool, p99: bool) -> None:
    half = count // 2
    blocks = [block(label, 0, n, [1.0] * size) for label in LABELS for n, size in enumerate((half, count - half))]
    stats = compare(blocks, PAIR, "cpu").dense
    assert (stats.samples, stats.p90_ms is not None, stats.p99_ms is not None) == (count, p90, p99)


def test_preempted_samples_are_counted_and_left_out() -> None:
    blocks = [
        block(label, process, number, [1.0, 1.0, 50.0], [False, False, True])
        for process in range(2)
        for number in range(3)
        for label in LABELS
    ]
    stats = compare(blocks, PAIR, "cpu").dense
    assert (stats.p50_ms, stats.samples, stats.preempted) == (1.0, 12, 6)


def test_too_many_preempted_samples_are_inconclusive_and_show_all_times() -> None:
    blocks = [
        block(label, process, number, [1.0, 9.0, 9.0], [False, True, True])
        for process in range(2)
        for number in range(3)
        for label in LABELS
    ]
    result = compare(blocks, PAIR, "cpu")
    assert result.verdict == "inconclusive"
    assert (result.dense.p50_ms, result.dense.samples, result.dense.preempted) == (9.0, 18, 12)
    assert any("67% of the dense iterations" in note for note in result.notes)


def test_no_clean_sample_at_all_is_inconclusive_even_for_a_large_speedup() -> None:
    blocks = [one.model_copy(update={"preempted": (True,) * 5}) for one in exact(4.0, 1.0)]
    assert compare(blocks, PAIR, "cpu").verdict == "inconclusive"


def test_missing_blocks_are_an_error() -> None:
    with pytest.raises(MeasurementError, match="compressed"):
        compare([one for one in exact(1.0, 1.0) if one.label != "compressed"], PAIR, "cpu")


def test_single_round_supports_no_interval() -> None:
    with pytest.raises(InconclusiveError, match="one undisturbed round"):
        compare(exact(1.0, 0.5, processes=1, rounds=1), PAIR, "cpu")


def test_control_that_misses_one_makes_even_a_large_speedup_inconclusive() -> None:
    blocks = [
        one.model_copy(update={"samples_ms": tuple(ms * 1.05 for ms in one.samples_ms)})
        if one.label == "control"
        else one
        for one in exact(1.0, 0.25)
    ]
    result = compare(blocks, PAIR, "cpu")
    assert result.verdict == "inconclusive"
    assert "misses 1" in result.notes[0]


def test_control_wider_than_the_limit_is_inconclusive_and_names_the_flag() -> None:
    samples = noisy(np.random.default_rng(0), ratio=2.0)
    assert compare(samples, PAIR, "cpu").verdict == "faster"
    strict = compare(samples, PAIR, "cpu", control_limit=0.001)
    assert strict.verdict == "inconclusive"
    assert "--timing-processes" in strict.notes[0]


def test_difference_counts_only_beyond_the_control() -> None:
    """Compressed 0.5 % faster, with a control that is off by 0.8 %: the method's own error is larger."""
    times: dict[Label, float] = {"dense": 1.0, "control": 1 / 1.008, "compressed": 1 / 1.005}
    blocks = [block(label, p, n, [times[label]] * 5) for p in range(5) for n in range(4) for label in LABELS]
    assert compare(blocks, PAIR, "cpu").verdict == "no significant difference"


def test_dense_against_dense_never_says_faster_or_slower() -> None:
    verdicts = [compare(noisy(np.random.default_rng(seed)), PAIR, "cpu").verdict for seed in range(60)]
    assert set(verdicts) <= {"no significant difference", "inconclusive"}
    assert verdicts.count("no significant difference") > 40


def test_interval_covers_the_known_ratio_through_drift() -> None:
    """Times grow by 65 % while a process runs; neighbours in a round see the same clock."""
    results = [compare(noisy(np.random.default_rng(seed), ratio=1.5, drift=0.5), PAIR, "cpu") for seed in range(60)]
    ratios = [result.speedup for result in results if result.speedup]
    covered = sum(ratio.interval.low <= 1.5 <= ratio.interval.high for ratio in ratios)
    assert covered >= 55
    assert np.mean([ratio.value for ratio in ratios]) == pytest.approx(1.5, rel=0.005)
    assert np.median([ratio.interval.high - ratio.interval.low for ratio in ratios]) < 0.1


def test_differences_between_processes_widen_the_interval() -> None:
    def width(process_noise: float) -> float:
        result = compare(noisy(np.random.default_rng(1), process_noise=process_noise), PAIR, "cpu")
        return result.control.interval.high - result.control.interval.low

    assert width(0.05) > 3 * width(0.0)


def test_same_samples_and_seed_give_the_same_figures() -> None:
    samples = noisy(np.random.default_rng(5))
    assert compare(samples, PAIR, "cpu") == compare(samples, PAIR, "cpu")


def test_unsettled_warm_up_is_noted() -> None:
    blocks = [one.model_copy(update={"settled": one.process != 2}) for one in exact(1.0, 0.5)]
    assert any("had not settled" in note for note in compare(blocks, PAIR, "cpu").notes)
