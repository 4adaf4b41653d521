"""Requests to time files, raw samples, and what they come to."""

from __future__ import annotations

from typing import Literal

from edgeprune.records.artifacts import RuntimeInfo
from edgeprune.records.base import Interval, Record, Sha256
from edgeprune.records.machine import Drift, Environment, Heat, Warmth


class LatencyFile(Record):
    """A file to time, by absolute path, and the sha256 that it must have; `companions` belong to it (weights).

    `size_bytes`: all of them together (None: not looked at).
    """

    path: str
    sha256: Sha256
    companions: tuple[tuple[str, Sha256], ...] = ()
    size_bytes: int | None = None


class LatencyRequest(Record):
    """What a device is asked to time: interleaved blocks of two files in fresh processes.

    `compressed` None times one file alone (the A/A control remains). `images` is an .npy of float32 pixels
    (M, C, H, W) to draw batches from. Processes are numbered from `first`, so that a run can be added to; a block holds
    `iterations` runs where that is set, else as many as fill `block_ms`. Without `control` the dense file is opened
    once and no more: a process that holds nothing else tells what memory it takes.
    """

    runtime: str
    dense: LatencyFile
    compressed: LatencyFile | None
    images: str
    batch_size: int = 1
    threads: int = 1
    processes: int = 5
    blocks: int = 12
    block_ms: float = 60.0
    seed: int = 0
    first: int = 0
    iterations: int | None = None
    control: bool = True


class BlockSamples(Record):
    """Raw times of one block, in order. `preempted[i]` marks an iteration that lost the processor. `runtime_ms` are the
    runtime's own times of these iterations, without the caller's part (empty: it tells none).

    Every round holds one block of each label, in random order: blocks of one round are neighbours in time.
    `cores` the process was pinned to (empty: the system cannot pin); `settled` False when the warm-up reached its
    cap before this file's times settled. `peak_rss_bytes` is the process's, with all that it holds. `cold_start_ms` is
    `load_ms` and `first_ms` (the first inference) together. `started_s` counts from the process's first block;
    `heat` is before and after all blocks of the process.
    """

    process: int
    round: int
    position: int
    label: Literal["dense", "control", "compressed"]
    samples_ms: tuple[float, ...]
    preempted: tuple[bool, ...]
    runtime_ms: tuple[float, ...] = ()
    runtime: RuntimeInfo
    cores: tuple[int, ...] = ()
    settled: bool = True
    peak_rss_bytes: int
    cold_start_ms: float
    load_ms: float | None = None
    first_ms: float | None = None
    started_s: float = 0.0
    heat: tuple[Heat, Heat] | None = None


class LatencyStats(Record):
    """Quantiles of one file's samples, preempted ones left out. A quantile without enough samples is None.

    `samples` counts what the figures rest on, `preempted` the iterations that lost the processor; where more than
    half did, the figures hold them, too, and the comparison is inconclusive. `p90_interval` is None where p90 is, and
    in a single process. `cold_start_ms` (load and first inference, also given apart) is the median of the processes.
    `throughput_per_s` is in images, one inference after the other. `size_bytes` of the file and its companions.
    `peak_rss_bytes` is the peak resident memory of a process that serves this file alone, runtime included.
    `runtime_p50_ms` is the median of what the runtime itself says that these inferences took, which a benchmark tool of
    its own prints: the rest of `p50_ms` is the caller's, from handing the images over to holding the logits. None where
    the runtime tells no such time.
    """

    sha256: Sha256
    p50_ms: float
    p50_interval: Interval
    p90_ms: float | None
    p99_ms: float | None
    min_ms: float
    throughput_per_s: float
    cold_start_ms: float
    samples: int
    preempted: int
    p90_interval: Interval | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    size_bytes: int | None = None
    peak_rss_bytes: int | None = None
    runtime_p50_ms: float | None = None


class Ratio(Record):
    """A ratio of medians with its bootstrap interval."""

    value: float
    interval: Interval


class QuickRatio(Ratio):
    """A speed-up from a short run without a control, to steer by; never for a report."""

    dense_p50_ms: float
    compressed_p50_ms: float
    compressed_interval: Interval
    processes: int


class LatencyEstimate(Record):
    """Latency of both files where nothing was measured: a fit to anchors, on the target that they were measured on.

    `error`, `largest` and `within_10` are of `tested` networks that the fit had not seen: the median and the largest
    relative error, and the share up to 10 %. `source` says where, when and with what the anchors were measured.
    """

    kind: Literal["estimated"] = "estimated"
    target: str
    runtime: str
    threads: int
    dense_sha256: Sha256
    compressed_sha256: Sha256
    dense_ms: float
    compressed_ms: float
    method: str
    source: str
    anchors: tuple[str, ...]
    error: float
    largest: float
    within_10: float
    tested: int


class LatencyComparison(Record):
    """Dense and compressed, timed in the same interleaved run.

    `speedup` is dense over compressed, from pairs of neighbouring blocks. `control` is the same for dense against
    dense, so it shows the error of the method: when its interval is wider than `control_limit` or misses 1, the
    verdict is inconclusive, and a difference counts only beyond it. `notes` say why a verdict is inconclusive and
    what else was odd. `machine` is the device where it is not the machine of the report. `stopped` says why
    timing ended when it did.
    """

    kind: Literal["measured-local", "measured-remote"]
    target: str
    runtime: RuntimeInfo
    batch_size: int
    processes: int
    cores: tuple[int, ...]
    dense: LatencyStats
    compressed: LatencyStats | None
    speedup: Ratio | None
    control: Ratio
    control_limit: float
    verdict: Literal["faster", "slower", "no significant difference", "inconclusive", "alone"]
    notes: tuple[str, ...] = ()
    machine: Environment | None = None
    drift: Drift | None = None
    warmth: Warmth | None = None
    stopped: str = ""


class NodeTime(Record):
    """What one node of a graph took in an inference, as the runtime's own profiler says. `name` is the runtime's."""

    name: str
    operator: str
    ms: float


class LayerTime(Record):
    """One layer, or all nodes of one operator that belong to none; None where a file has no such layer."""

    name: str
    is_layer: bool
    dense_ms: float | None
    compressed_ms: float | None


class LayerProfile(Record):
    """Where the milliseconds went, with the runtime's profiling switched on, which costs time of its own.

    To compare layers with each other, never with a budget: the latencies that count are measured without it. Times are
    means over `inferences` of each file, the slowest tenth of each node left out.
    """

    runtime: str
    threads: int
    dense_sha256: Sha256
    compressed_sha256: Sha256
    inferences: tuple[int, int]
    layers: tuple[LayerTime, ...]

    @property
    def dense_ms(self) -> float:
        return sum(layer.dense_ms or 0.0 for layer in self.layers)

    @property
    def compressed_ms(self) -> float:
        return sum(layer.compressed_ms or 0.0 for layer in self.layers)
