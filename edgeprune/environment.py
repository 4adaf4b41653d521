"""The machine and the versions behind the numbers, and `doctor`: is this a place where numbers can be trusted?

Promise: `environment` is quick and loads no framework. `doctor` reports what it observed: the precision of a runtime
is found by computing with it, not by asking it.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgeprune import __version__, protocols
from edgeprune.latency import machine, timing
from edgeprune.latency.precision import RuntimePrecision, observe
from edgeprune.records import Environment, Record

PACKAGES = (
    "torch",
    "torch-pruning",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "torchattacks",
    "numpy",
    "scipy",
    "pydantic",
    "safetensors",
    "scikit-learn",
)
NOISE_SAMPLES = 200  # of about a millisecond each
NOISE_LIMIT, LOAD_LIMIT, STEAL_LIMIT = 0.1, 0.5, 0.01


class Advice(Record):
    """Something that will spoil numbers or stop a run, and what helps."""

    what: str
    remedy: str


class Noise(Record):
    """A fixed piece of work, timed again and again.

    `spread` is p90 over p50, minus 1. `preempted` is the share of repeats that lost the processor. `steal` is the
    share of time that a hypervisor gave to others meanwhile (None: not told).
    """

    spread: float
    preempted: float
    steal: float | None


class DoctorReport(Record):
    """What `edgeprune doctor` found. `missing` packages are needed; `cpu_quota` is in cores (None: no limit)."""

    environment: Environment
    missing: tuple[str, ...]
    usable_cores: tuple[int, ...]
    cpu_quota: float | None
    governor: str | None
    threads: int
    torch_threads: int | None
    runtimes: tuple[RuntimePrecision, ...]
    timer_resolution_ns: int
    load_average: float | None
    noise: Noise
    advice: tuple[Advice, ...]


def environment() -> Environment:
    """Versions, processor and its features. Where the system does not say, fields are empty rather than guessed."""
    flags = machine.cpuinfo()[1]
    return Environment(
        edgeprune=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=machine.processor(),
        cores=os.cpu_count() or 1,
        cpu_features=tuple(feature for feature in machine.FEATURES if feature in flags),
        packages=packages(),
    )


def packages() -> dict[str, str]:
    """Installed version of each package that numbers depend on; those that are missing are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def doctor(threads: int = 1) -> DoctorReport:
    """Look at everything that decides whether a run works here and whether its times can be trusted.

    `threads`: of the runtimes, as in `[latency] threads`. Takes a few seconds, most of them to load the frameworks.
    """
    found = environment()
    noise = measure_noise()  # first: the frameworks' thread pools would be part of it
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        runtimes = tuple(observe(name, threads, Path(folder)) for name in protocols.names("runtime"))
    report = DoctorReport(
        environment=found,
        missing=tuple(name for name in PACKAGES if name not in found.packages),
        usable_cores=usable_cores(),
        cpu_quota=cpu_quota(),
        governor=machine.governor(),
        threads=threads,
        torch_threads=_torch_threads(),
        runtimes=runtimes,
        timer_resolution_ns=timer_resolution_ns(),
        load_average=load,
        noise=noise,
        advice=(),
    )
    return report.model_copy(update={"advice": advise(report)})


def advise(report: DoctorReport) -> tuple[Advice, ...]:
    """What in a report asks for action. Pure."""
    return (*_about_packages(report), *_about_cores(report), *_about_noise(report))


def _about_packages(report: DoctorReport) -> Iterator[Advice]:
    for name in report.missing:
        yield Advice(what=f"{name} is not installed", remedy="pip install -c constraints.txt edgeprune")
    for one in report.runtimes:
        if one.failure:
            yield Advice(
                what=f"the runtime {one.name} does not work here: {one.failure}",
                remedy=f"install {one.name} again, or leave it out with --runtimes",
            )
        elif one.ours != "float32":
            yield Advice(
                what=f"{one.name} computes in {one.ours} although edgeprune asks for float32",
                remedy=f"leave {one.name} out with --runtimes: what it serves is not what was trained",
            )


def _about_cores(report: DoctorReport) -> Iterator[Advice]:
    cores = len(report.usable_cores)
    if report.threads > cores:
        yield Advice(what=f"{report.threads} threads on {cores} usable cores", remedy=f"use --threads {cores} or fewer")
    if report.cpu_quota is not None and report.cpu_quota < report.threads:
        yield Advice(
            what=f"this container may use the time of {report.cpu_quota:g} cores for {report.threads} threads",
            remedy="raise the container's limit, or use fewer threads",
        )
    if report.governor not in (None, "performance"):
        yield Advice(
            what=f"the processor's clock follows its load (governor {report.governor})",
            remedy="sudo cpupower frequency-set -g performance",
        )


def _about_noise(report: DoctorReport) -> Iterator[Advice]:
    noise, load, cores = report.noise, report.load_average, len(report.usable_cores)
    if load is not None and load > LOAD_LIMIT * cores:
        yield Advice(
            what=f"the machine is busy: load average {load:.1f} on {cores} cores",
            remedy="stop other work before timing; a verdict may come out inconclusive",
        )
    if noise.spread > NOISE_LIMIT or noise.preempted > NOISE_LIMIT:
        yield Advice(
            what=f"times vary here: p90 {noise.spread:.0%} over p50, {noise.preempted:.0%} of repeats preempted",
            remedy="stop other work, or time in more processes (--timing-processes)",
        )
    if noise.steal is not None and noise.steal > STEAL_LIMIT:
        yield Advice(
            what=f"the hypervisor gave {noise.steal:.0%} of the time to others, which no process can see",
            remedy="time on a machine of your own",
        )


def measure_noise() -> Noise:
    """Time a fixed piece of work for about a fifth of a second."""
    before = _steal()
    block = timing.time_block(lambda _: sum(range(40_000)), NOISE_SAMPLES, timing.system_clock(1))
    after = _steal()
    steal = None
    if before is not None and after is not None and after[1] > before[1]:
        steal = (after[0] - before[0]) / (after[1] - before[1])
    return Noise(
        spread=statistics.quantiles(block.samples_ms, n=10)[8] / statistics.median(block.samples_ms) - 1,
        preempted=sum(block.preempted) / len(block.preempted),
        steal=steal,
    )


def timer_resolution_ns() -> int:
    """Smallest step that the clock of the measurements was seen to make."""
    steps = []
    for _ in range(1000):
        first = time.perf_counter_ns()
        second = time.perf_counter_ns()
        if second > first:
            steps.append(second - first)
    return min(steps, default=0)


def usable_cores() -> tuple[int, ...]:
    """Cores that this process may run on."""
    if sys.platform == "linux":
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cpu_quota() -> float | None:
    """Cores' worth of processor time that the container grants; None without a limit (or without cgroups)."""
    try:
        granted, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return None if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        granted = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
        period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        return int(granted) / int(period) if int(granted) > 0 else None
    except (OSError, ValueError):
        return None


def _steal(path: Path = Path("/proc/stat")) -> tuple[int, int] | None:
    """(stolen, all) clock ticks since boot; None where the system does not count them."""
    try:
        ticks = [int(part) for part in path.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    return (ticks[7], sum(ticks[:8])) if len(ticks) >= 8 else None


def _torch_threads() -> int | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.get_num_threads()
