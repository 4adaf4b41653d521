"""Raw block times -> a comparison that doubts itself. Pure: no clock, no files, no processes.

Promise: the same samples give the same figures, and no verdict is given that the control does not support.

How a ratio is estimated, and why:

- Every round holds one block of each file within a fraction of a second. The ratio comes from *pairs* inside a
  round (median of one block over median of the other), so that drift slower than a round (heat, clock
  frequency, a neighbour) falls out; a ratio of two pooled medians would keep it.
- Inside a process the median over the rounds, between processes the mean (both of logarithms): a burst spoils
  some rounds; where memory happened to lie differs from process to process and is part of the error.
- The interval is a hierarchical bootstrap. On the upper level processes are drawn with replacement, each with its
  estimate, which holds the noise of its rounds already (Davison and Hinkley 1997, section 3.8; Kalibera and Jones
  2013, "Rigorous benchmarking in reasonable time"). On the lower level the rounds are drawn inside their
  process; what they show is a floor, for five processes may agree by chance. Drawing single iterations would
  take thousands of correlated times for independent and give intervals far too narrow.
- Five processes are few, and a percentile interval of few values is too short. Its arms are therefore lengthened by
  t(n-1) / z * sqrt(n / (n-1)) (Hesterberg 2015, "What teachers should know about the bootstrap"). On made-up runs
  with a known ratio the interval covers it in 94 to 99 of 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Literal

import numpy as np

from edgeprune.errors import InconclusiveError, MeasurementError
from edgeprune.latency.drift import drift_of, said, warmth_of
from edgeprune.records import (
    BlockSamples,
    Interval,
    LatencyComparison,
    LatencyFile,
    LatencyRequest,
    LatencyStats,
    QuickRatio,
    Ratio,
)

Logs = np.ndarray[tuple[int], np.dtype[np.float64]]
Label = Literal["dense", "control", "compressed"]
VerdictWord = Literal["faster", "slower", "no significant difference", "inconclusive", "alone"]
Kind = Literal["measured-local", "measured-remote"]

CONFIDENCE = 0.95
ERROR = 1 - CONFIDENCE
RESAMPLES = 2000
CONTROL_LIMIT = 0.1
CONTROL_SLACK = 0.01
"""A control that misses 1 by less than this is not held against the run: a difference must clear it anyway."""
PREEMPTED_LIMIT = 0.5
"""Share of preempted iterations of a file beyond which the others are no fair sample of its times. All of them
count then, so that there is a figure to look at, and the verdict is inconclusive."""
LEAST_FOR_P90, LEAST_FOR_P99 = 64, 662
"""Queries that MLPerf LoadGen's early-stopping estimate asks for before it names these percentiles."""


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Samples sorted by what they are needed for.

    `blocks[label][process][round]` is the median of a block's counted samples; `lost[label]` the share of preempted
    ones; `hopeless` says that they count, too, for there is too little else.
    """

    request: LatencyRequest
    samples: Mapping[Label, tuple[BlockSamples, ...]]
    blocks: Mapping[Label, Mapping[int, Mapping[int, float]]]
    lost: Mapping[Label, float]
    hopeless: bool
    error: float


def compare(
    samples: Sequence[BlockSamples],
    request: LatencyRequest,
    target: str,
    *,
    kind: Kind = "measured-local",
    control_limit: float = CONTROL_LIMIT,
    error: float = ERROR,
) -> LatencyComparison:
    """Judge the blocks that a device ran for `request`.

    `error` of each interval: smaller than 0.05 where this is one of several looks, so that they hold together.

    Errors: MeasurementError (blocks of a label are missing), InconclusiveError (fewer than two undisturbed rounds).
    """
    run = _sorted(samples, request, error)
    control = _ratio(run, "dense", "control")
    speedup = _ratio(run, "dense", "compressed") if request.compressed else None
    verdict, notes = _judge(run, control, speedup, control_limit)
    drift, warmth = drift_of(run.blocks["dense"]), warmth_of(samples)
    notes = (*notes, *said(drift, warmth))
    first = samples[0]
    return LatencyComparison(
        kind=kind,
        target=target,
        runtime=first.runtime,
        batch_size=request.batch_size,
        processes=len({block.process for block in samples}),
        cores=first.cores,
        dense=_stats(run, "dense", request.dense),
        compressed=_stats(run, "compressed", request.compressed) if request.compressed else None,
        speedup=speedup,
        control=control,
        control_limit=control_limit,
        verdict=verdict,
        notes=notes,
        drift=drift,
        warmth=warmth,
    )


def steer(samples: Sequence[BlockSamples], request: LatencyRequest) -> QuickRatio:
    """Dense over compressed and the compressed p50, from a request with or without a control: to steer by, no verdict.

    Errors: as of `compare`.
    """
    run = _sorted(samples, request, ERROR)
    ratio = _ratio(run, "dense", "compressed")
    assert request.compressed is not None
    compressed = _stats(run, "compressed", request.compressed)
    return QuickRatio(
        value=ratio.value,
        interval=ratio.interval,
        dense_p50_ms=_stats(run, "dense", request.dense).p50_ms,
        compressed_p50_ms=compressed.p50_ms,
        compressed_interval=compressed.p50_interval,
        processes=len({block.process for block in samples}),
    )


def _sorted(samples: Sequence[BlockSamples], request: LatencyRequest, error: float) -> _Run:
    asked: dict[Label, bool] = {
        "dense": True,
        "control": request.control,
        "compressed": request.compressed is not None,
    }
    labels = tuple(label for label, wanted in asked.items() if wanted)
    of = {label: tuple(block for block in samples if block.label == label) for label in labels}
    for label in labels:
        if not of[label]:
            raise MeasurementError(f"the device returned no block of {label}", hint="this is a fault of the device")
    lost = {
        label: sum(sum(block.preempted) for block in blocks) / sum(len(block.preempted) for block in blocks)
        for label, blocks in of.items()
    }
    hopeless = max(lost.values()) > PREEMPTED_LIMIT
    medians: dict[Label, dict[int, dict[int, float]]] = {label: {} for label in labels}
    for block in samples:
        counted = _counted(block, hopeless)
        if counted and block.label in medians:
            medians[block.label].setdefault(block.process, {})[block.round] = median(counted)
    return _Run(request, of, medians, lost, hopeless, error)


def _counted(block: BlockSamples, hopeless: bool) -> list[float]:
    return _undisturbed(block.samples_ms, block, hopeless)


def _undisturbed(times: Sequence[float], block: BlockSamples, hopeless: bool) -> list[float]:
    return [ms for ms, lost in zip(times, block.preempted, strict=True) if hopeless or not lost]


def _ratio(run: _Run, over: Label, under: Label) -> Ratio:
    """`over` divided by `under`, from the rounds that have clean blocks of both."""
    logs = []
    for process, rounds in run.blocks[over].items():
        others = run.blocks[under].get(process, {})
        pairs = [math.log(rounds[number] / others[number]) for number in sorted(rounds.keys() & others.keys())]
        if pairs:
            logs.append(np.array(pairs))
    if not logs:
        raise InconclusiveError(
            f"no round has an undisturbed block of both {over} and {under}",
            hint="stop other work on this machine, or time longer with --timing-blocks",
        )
    centre = float(np.mean([np.median(part) for part in logs]))
    low, high = _spread(logs, run.request.seed, run.error)
    return Ratio(value=math.exp(centre), interval=Interval(low=math.exp(centre + low), high=math.exp(centre + high)))


def _spread(logs: Sequence[Logs], seed: int, error: float) -> tuple[float, float]:
    """How far below (<= 0) and above (>= 0) the estimate the interval of that error reaches, in logarithms.

    `logs` has one array of round values a process. The estimate is the mean over processes of the median over
    rounds. With a single process only its rounds can be drawn, and the interval speaks for that process alone.
    """
    draw = np.random.default_rng(seed)
    estimates = np.array([np.median(part) for part in logs])
    rounds = [np.median(part[draw.integers(0, len(part), (RESAMPLES, len(part)))], axis=1) for part in logs]
    inside = _arms(np.mean(rounds, axis=0) - estimates.mean(), sum(len(part) for part in logs), error)
    if len(logs) == 1:
        return inside
    drawn = draw.integers(0, len(logs), (RESAMPLES, len(logs)))
    between = _arms(estimates[drawn].mean(axis=1) - estimates.mean(), len(logs), error)
    return min(inside[0], between[0]), max(inside[1], between[1])


def _arms(deviations: Logs, count: int, error: float) -> tuple[float, float]:
    """The interval's arms, from bootstrap deviations of an estimate that rests on `count` independent values."""
    from scipy.special import stdtrit

    if count < 2:
        raise InconclusiveError(
            "one undisturbed round of blocks supports no interval",
            hint="stop other work on this machine, or time longer with --timing-blocks",
        )
    tail = error / 2
    low, high = np.quantile(deviations, [tail, 1 - tail])
    longer = stdtrit(count - 1, 1 - tail) / NormalDist().inv_cdf(1 - tail) * math.sqrt(count / (count - 1))
    return min(0.0, float(low * longer)), max(0.0, float(high * longer))


def _stats(run: _Run, label: Label, file: LatencyFile) -> LatencyStats:
    blocks = run.samples[label]
    counted = np.array([ms for block in blocks for ms in _counted(block, run.hopeless)])
    p50 = float(np.median(counted))
    logs = [np.log(list(rounds.values())) for rounds in run.blocks[label].values()]
    low, high = _spread(logs, run.request.seed, run.error)
    cold = {block.process: block.cold_start_ms for block in blocks}
    return LatencyStats(
        sha256=file.sha256,
        p50_ms=p50,
        p50_interval=Interval(low=p50 * math.exp(low), high=p50 * math.exp(high)),
        p90_ms=float(np.quantile(counted, 0.9)) if len(counted) >= LEAST_FOR_P90 else None,
        p99_ms=float(np.quantile(counted, 0.99)) if len(counted) >= LEAST_FOR_P99 else None,
        min_ms=float(counted.min()),
        throughput_per_s=run.request.batch_size * 1000 / float(counted.mean()),
        cold_start_ms=median(cold.values()),
        samples=len(counted),
        preempted=sum(sum(block.preempted) for block in blocks),
        p90_interval=_p90_interval(run, label),
        load_ms=_median_over_processes({block.process: block.load_ms for block in blocks}),
        first_ms=_median_over_processes({block.process: block.first_ms for block in blocks}),
        size_bytes=file.size_bytes,
        runtime_p50_ms=_runtime_p50(run, label),
    )


def _runtime_p50(run: _Run, label: Label) -> float | None:
    """Of the runtime's own times, over the samples that count; None unless it told one for each."""
    told: list[float] = []
    for block in run.samples[label]:
        if len(block.runtime_ms) != len(block.samples_ms):
            return None
        told += _undisturbed(block.runtime_ms, block, run.hopeless)
    return median(told) if told else None


def _p90_interval(run: _Run, label: Label) -> Interval | None:
    """Around the p90 of all counted samples: the spread of the processes' own p90s, as a ratio's is taken.

    A block is too short for a p90 of its own, so rounds cannot be drawn; a single process supports no interval.
    """
    of: dict[int, list[float]] = {}
    for block in run.samples[label]:
        of.setdefault(block.process, []).extend(_counted(block, run.hopeless))
    pooled = [ms for samples in of.values() for ms in samples]
    if len(pooled) < LEAST_FOR_P90 or len(of) < 2 or not all(of.values()):
        return None
    logs = np.log([np.quantile(samples, 0.9) for samples in of.values()])
    drawn = np.random.default_rng(run.request.seed).integers(0, len(logs), (RESAMPLES, len(logs)))
    low, high = _arms(logs[drawn].mean(axis=1) - logs.mean(), len(logs), run.error)
    p90 = float(np.quantile(pooled, 0.9))
    return Interval(low=p90 * math.exp(low), high=p90 * math.exp(high))


def _median_over_processes(values: Mapping[int, float | None]) -> float | None:
    told = [value for value in values.values() if value is not None]
    return median(told) if told else None


def _judge(
    run: _Run, control: Ratio, speedup: Ratio | None, control_limit: float
) -> tuple[VerdictWord, tuple[str, ...]]:
    """The verdict, and why it is inconclusive or what was odd."""
    doubts = _doubts(run, control, control_limit)
    notes = tuple(_unsettled(run))
    if doubts:
        return "inconclusive", (*doubts, *notes)
    if speedup is None:
        return "alone", notes
    if speedup.interval.low > max(1.0, control.interval.high):
        return "faster", notes
    if speedup.interval.high < min(1.0, control.interval.low):
        return "slower", notes
    width = speedup.interval.high / speedup.interval.low - 1
    if width > control_limit:
        doubt = f"the speed-up's interval is {width:.0%} wide: too noisy to say faster, slower or the same"
        return "inconclusive", (doubt, *notes)
    return "no significant difference", notes


def _doubts(run: _Run, control: Ratio, control_limit: float) -> list[str]:
    doubts = []
    low, high = control.interval.low, control.interval.high
    span = f"dense against dense gave {low:.3f} to {high:.3f}"
    if high - low > control_limit:
        doubts.append(f"{span}, wider than {control_limit:g}: quieten the machine or raise --timing-processes")
    elif low > 1 + CONTROL_SLACK or high < 1 - CONTROL_SLACK:
        doubts.append(f"{span}, which misses 1: the machine favours one of two equal files; measure again")
    if run.hopeless:
        worst = max(run.lost, key=lambda label: run.lost[label])
        doubts.append(
            f"{run.lost[worst]:.0%} of the {worst} iterations lost the processor, so the figures hold them, too: "
            "stop other work on this machine"
        )
    return doubts


def _unsettled(run: _Run) -> list[str]:
    notes = []
    for label, blocks in run.samples.items():
        restless = len({block.process for block in blocks if not block.settled})
        if restless and label != "control":
            notes.append(f"the {label} file's times had not settled after the warm-up in {restless} processes")
    return notes
