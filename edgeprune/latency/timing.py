"""The timing loop: open, warm up, run blocks in random order, mark the iterations that lost the processor.

Promise: needs nothing but Python 3.8's standard library, since this very module also runs on a device that is reached
over ssh; knows nothing of files, runtimes or statistics. All times come from a `Clock`, so that a test can own time.
"""

from __future__ import annotations

import math
import random
import resource
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Run = Callable[[int], object]
    """Runs inference number i; which batch that is, the caller knows."""
    Told = Callable[[], float]
    """What the runtime itself says its last inference took, in ms: without the caller's part of it."""

WINDOW = 5  # iterations in a window of the rolling median
TOLERANCE = 0.02  # two neighbouring windows this near each other: settled
WARM_UP_MS, WARM_UP_CAP_MS = 30.0, 3000.0
LEAST_WARM_UP = 3  # iterations, however slow the network is
REFILL_MS, MOST_REFILLS = 30.0, 8  # before a block: until its own weights are where the other file's were
THREAD_SHARE = 0.9  # thread time over wall time under which an iteration counts as preempted
TICK_NS = 50_000  # a preemption is longer than this; below it, thread time and wall time may differ by reading cost


@dataclass(frozen=True)
class Clock:
    """Where time comes from.

    `wall_ns` and `cpu_ns` (time of the calling thread) in nanoseconds; `switches` counts involuntary context
    switches so far. `one_thread` says that the calling thread does all the work, so that thread time far below
    wall time means a lost processor.
    """

    wall_ns: Callable[[], int]
    cpu_ns: Callable[[], int]
    switches: Callable[[], int]
    one_thread: bool


@dataclass(frozen=True)
class Block:
    """Times of neighbouring iterations, in order, and which of them lost the processor.

    `runtime_ms` are the runtime's own times of the same iterations; empty where it tells none.
    """

    samples_ms: tuple[float, ...]
    preempted: tuple[bool, ...]
    runtime_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A file that was opened: its session, how it runs, and what its cold start cost (loading, first inference).

    `told` is None where the session does not say what the runtime took (`runtime_ms`).
    """

    session: Any
    run: Run
    load_ms: float
    first_ms: float
    told: Told | None = None


@dataclass(frozen=True)
class Blocks:
    """How one process times: rounds of blocks of `block_ms`, or of `iterations` runs each where that is set."""

    rounds: int
    block_ms: float
    seed: int
    process: int
    iterations: int | None = None


@dataclass(frozen=True)
class Timed:
    """A block of `label` that ran in a round, when it began (seconds since the process's first one)."""

    round: int
    label: str
    block: Block
    started_s: float


@dataclass(frozen=True)
class WarmUp:
    """The median (ms) that the times settled at, or the last one when the cap came first."""

    median_ms: float
    settled: bool
    iterations: int


def system_clock(threads: int) -> Clock:
    """The machine's clocks. With several threads the switches of the whole process count."""
    who = resource.RUSAGE_THREAD if threads == 1 else resource.RUSAGE_SELF
    return Clock(
        wall_ns=time.perf_counter_ns,
        cpu_ns=time.thread_time_ns,
        switches=lambda: resource.getrusage(who).ru_nivcsw,
        one_thread=threads == 1,
    )


def draw_order(labels: Sequence[str], rounds: int, seed: int, process: int) -> tuple[tuple[str, ...], ...]:
    """`rounds` random permutations of the labels: a randomised complete block design, the same for the same seed.

    Every round holds each label once, so that a drift slower than a round touches all labels alike.
    """
    draw = random.Random(f"{seed}/{process}")
    return tuple(tuple(draw.sample(list(labels), len(labels))) for _ in range(rounds))


def warm_up(run: Run, clock: Clock) -> WarmUp:
    """Run until the medians of two neighbouring windows agree and some time has passed, or until the cap."""
    times: list[float] = []
    start = clock.wall_ns()
    while True:
        before = clock.wall_ns()
        run(len(times))
        now = clock.wall_ns()
        times.append((now - before) / 1e6)
        elapsed_ms = (now - start) / 1e6
        settled = elapsed_ms >= WARM_UP_MS and _settled(times)
        if settled or (elapsed_ms >= WARM_UP_CAP_MS and len(times) >= LEAST_WARM_UP):
            return WarmUp(statistics.median(times[-WINDOW:]), settled, len(times))


def _settled(times: list[float]) -> bool:
    if len(times) < 2 * WINDOW:
        return False
    last, before = statistics.median(times[-WINDOW:]), statistics.median(times[-2 * WINDOW : -WINDOW])
    return abs(last - before) <= TOLERANCE * before


def iterations_for(block_ms: float, median_ms: float) -> int:
    """Iterations that fill a block. A count, not a deadline: a deadline would cut the slow iterations off."""
    return max(1, round(block_ms / max(median_ms, 1e-3)))


def refills_for(median_ms: float) -> int:
    """Untimed runs before a block. The other file's weights fill the caches, and one run does not drive them out:
    MobileNetV2 (14 MB) in OpenVINO took 14, 5, 2 and 1 % longer in its second to fifth run after another file."""
    return min(MOST_REFILLS, max(1, math.ceil(REFILL_MS / max(median_ms, 1e-3))))


def time_block(run: Run, iterations: int, clock: Clock, told: Told | None = None, refills: int = 1) -> Block:
    """Time `iterations` runs one after the other, after `refills` untimed ones that fill the caches."""
    for i in range(refills):
        run(i)
    samples: list[float] = []
    inside: list[float] = []
    preempted: list[bool] = []
    for i in range(iterations):
        switches, cpu = clock.switches(), clock.cpu_ns()
        start = clock.wall_ns()
        run(i)
        wall = clock.wall_ns() - start
        cpu = clock.cpu_ns() - cpu
        lost = clock.switches() != switches
        if clock.one_thread and wall - cpu > max(TICK_NS, (1 - THREAD_SHARE) * wall):
            lost = True
        samples.append(wall / 1e6)
        preempted.append(lost)
        if told is not None:
            inside.append(told())
    return Block(tuple(samples), tuple(preempted), tuple(inside))


def open_each(
    openers: Mapping[str, Callable[[], Any]],
    start: Callable[[Any], Run],
    clock: Clock,
    blocks: Blocks,
) -> dict[str, Opened]:
    """Open each label's own session, in random order, after one that is thrown away; timed apart from the blocks.

    `start` makes a session's `Run`. The first session of a process pays for loading the library; it would land on
    whichever file came first.
    """
    labels = list(openers)
    start(openers[labels[0]]())(0)
    opened = {}
    for label in random.Random(f"open/{blocks.seed}/{blocks.process}").sample(sorted(labels), len(labels)):
        begun = clock.wall_ns()
        session = openers[label]()
        loaded = clock.wall_ns()
        run = start(session)
        run(0)
        first_ms = (clock.wall_ns() - loaded) / 1e6
        opened[label] = Opened(session, run, (loaded - begun) / 1e6, first_ms, getattr(session, "runtime_ms", None))
    return {label: opened[label] for label in labels}


def interleave(
    opened: Mapping[str, Opened], clock: Clock, blocks: Blocks, check: Callable[[], None]
) -> tuple[list[Timed], dict[str, WarmUp]]:
    """Warm each label up, then time rounds of one block of each in random order; `check` is called before a round.

    Labels are "dense", "control" and "compressed"; the control does exactly as much as the dense file.
    """
    warm = {label: warm_up(one.run, clock) for label, one in opened.items()}
    counts = {label: blocks.iterations or iterations_for(blocks.block_ms, one.median_ms) for label, one in warm.items()}
    refills = {label: refills_for(one.median_ms) for label, one in warm.items()}
    for each in (counts, refills):
        each["control"] = each["dense"]
    done: list[Timed] = []
    begun = clock.wall_ns()
    for number, labels in enumerate(draw_order(tuple(opened), blocks.rounds, blocks.seed, blocks.process)):
        check()
        for label in labels:
            started_s = (clock.wall_ns() - begun) / 1e9
            block = time_block(opened[label].run, counts[label], clock, opened[label].told, refills[label])
            done.append(Timed(number, label, block, started_s))
    return done, warm
