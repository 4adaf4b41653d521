"""One point of a sweep: a whole run of `edgeprune compress`, and what is taken from its report.

Promise: a point that came to an end is not run again while what it depends on (model, code, data, settings, runtimes,
version) and its files are the same. A point that fails says why, and its finished stages are kept for the next try.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edgeprune import protocols
from edgeprune.assembly import REPORT
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import EdgepruneError, UsageError
from edgeprune.files import sha256_of, write_text
from edgeprune.pipeline import compress
from edgeprune.records import (
    Artifact,
    Figure,
    LatencyComparison,
    Record,
    Report,
    Sha256,
    Side,
    SweepDense,
    SweepPoint,
    Unmeasured,
    read_record,
)
from edgeprune.sweeping.sharing import Shared

POINT = "point.json"
_FAILED = Unmeasured(unmeasured="the point failed")


@dataclass(frozen=True, slots=True)
class Task:
    """What it takes to run a point anywhere: the model's path, the settings, where its folder and the sweep's are.

    `config` names the point's folder as its `run.out`. `key`: what a finished point must have been made from.
    """

    name: str
    settings: dict[str, str]
    model: Path
    config: Config
    root: Path
    key: str
    command: str

    @property
    def folder(self) -> Path:
        """The point's run folder."""
        assert self.config.run.out is not None
        return self.config.run.out

    @property
    def shared(self) -> Path:
        """Where work that the points have in common is kept."""
        return self.root / "shared"


class Finished(Record):
    """A point that came to an end, and what it was made from."""

    key: Sha256
    point: SweepPoint


def run_point(task: Task, console: Console, shared: Shared) -> SweepPoint:
    """The point: kept when it came to an end before, else run; a failure is a point, too, with its reason.

    An interruption (Ctrl-C) is no failure of the point: it is raised.
    """
    kept = finished(task)
    if kept is not None:
        console.say(f"{task.name}: kept from the sweep before")
        return kept
    started = time.perf_counter()
    try:
        report = compress(task.model, task.config, command=task.command, console=console, shared=shared)
        point = _done(task, report, time.perf_counter() - started)
        write_text(task.folder / POINT, Finished(key=task.key, point=point).to_json())
    except EdgepruneError as error:
        return failed(task, str(error), time.perf_counter() - started)
    except Exception as error:  # noqa: BLE001  # plugins and runtimes run in here: one point's fault stops no other
        return failed(task, f"{type(error).__name__}: {error}", time.perf_counter() - started)
    return point


def finished(task: Task) -> SweepPoint | None:
    """The point as it came to an end before; None where it did not, or something that it rests on has changed."""
    try:
        found = read_record(Finished, task.folder / POINT)
        report = task.folder / REPORT
        if found.key != task.key or sha256_of(report) != found.point.report_sha256:
            return None
        files = [file for item in read_record(Report, report).artifacts for file in _files(item)]
        whole = all(sha256_of(task.folder / path) == sha256 for path, sha256 in files)
    except (UsageError, OSError):
        return None
    return found.point.model_copy(update={"command": task.command}) if whole else None


def failed(task: Task, reason: str, seconds: float) -> SweepPoint:
    """A point without a result."""
    return SweepPoint(
        name=task.name,
        settings=task.settings,
        status="failed",
        reason=reason,
        folder=str(task.folder.relative_to(task.root)),
        command=task.command,
        seconds=seconds,
        speedup=_FAILED,
        latency_ms=_FAILED,
        accuracy=_FAILED,
        robust_accuracy=_FAILED,
        size_bytes=_FAILED,
    )


def dense_of(report: Report, runtime: str) -> SweepDense:
    """The dense network's figures in a point's report."""
    return SweepDense(
        latency_ms=_latency(report, runtime, "dense"),
        accuracy=_accuracy(report, runtime, "dense"),
        robust_accuracy=_robust(report, "dense"),
        size_bytes=_size(_artifact(report, runtime, "dense")),
    )


def _done(task: Task, report: Report, seconds: float) -> SweepPoint:
    runtime = task.config.latency.runtimes[0]
    artifact = _artifact(report, runtime, "compressed")
    return SweepPoint(
        name=task.name,
        settings=task.settings,
        status="done",
        folder=str(task.folder.relative_to(task.root)),
        command=task.command,
        seconds=seconds,
        report_sha256=sha256_of(task.folder / REPORT),
        artifact_sha256=artifact.sha256,
        speedup=_speedup(report, runtime),
        latency_ms=_latency(report, runtime, "compressed"),
        accuracy=_accuracy(report, runtime, "compressed"),
        robust_accuracy=_robust(report, "compressed"),
        size_bytes=_size(artifact),
        machine=_machine(report, runtime),
        verdict=report.verdict.status if report.verdict else None,
        verdict_reason=report.verdict.reason if report.verdict else "",
        doubts=_doubts(report, runtime),
    )


def _files(artifact: Artifact) -> list[tuple[str, str]]:
    return [(artifact.path, artifact.sha256), *((path, sha256) for path, sha256, _ in artifact.companions)]


def _artifact(report: Report, runtime: str, side: Side) -> Artifact:
    """The file that the first runtime serves: the one that is timed, attacked and compared."""
    served: protocols.Runtime = protocols.find("runtime", runtime)
    return report.artifact(side, served.format)


def _timed(report: Report, runtime: str) -> LatencyComparison | Unmeasured:
    if isinstance(report.latency, Unmeasured):
        return report.latency
    found = next((item for item in report.latency if item.runtime.name == runtime), None)
    return found or Unmeasured(unmeasured=f"not timed in {runtime}")


def _speedup(report: Report, runtime: str) -> Figure | Unmeasured:
    timed = _timed(report, runtime)
    if isinstance(timed, Unmeasured):
        return timed
    if timed.speedup is None:
        return Unmeasured(unmeasured="timed alone")
    return Figure(value=timed.speedup.value, interval=timed.speedup.interval)


def _latency(report: Report, runtime: str, side: Side) -> Figure | Unmeasured:
    timed = _timed(report, runtime)
    if isinstance(timed, Unmeasured):
        return timed
    stats = timed.dense if side == "dense" else timed.compressed
    return Figure(value=stats.p50_ms, interval=stats.p50_interval) if stats else Unmeasured(unmeasured="timed alone")


def _accuracy(report: Report, runtime: str, side: Side) -> Figure | Unmeasured:
    if isinstance(report.accuracy, Unmeasured):
        return report.accuracy
    here = (item for item in report.accuracy if item.runtime.name == runtime and not item.target)
    found = next(here, None)
    if found is None:
        return Unmeasured(unmeasured=f"not measured in {runtime}")
    share = found.dense if side == "dense" else found.compressed
    return Figure(value=share.value, interval=share.interval)


def _robust(report: Report, side: Side) -> Figure | Unmeasured:
    if isinstance(report.robustness, Unmeasured):
        return report.robustness
    share = (report.robustness.dense if side == "dense" else report.robustness.compressed).robust
    return Figure(value=share.value, interval=share.interval)


def _size(artifact: Artifact) -> Figure:
    return Figure(value=float(artifact.total_bytes), interval=None)


def _machine(report: Report, runtime: str) -> str:
    timed = _timed(report, runtime)
    there = timed.machine if isinstance(timed, LatencyComparison) else None
    return (there or report.environment).cpu


def _doubts(report: Report, runtime: str) -> tuple[str, ...]:
    """What the measurements behind the figures say against themselves."""
    timed, attacked = _timed(report, runtime), report.robustness
    found = []
    if isinstance(timed, LatencyComparison) and timed.verdict == "inconclusive":
        found.append(f"latency is inconclusive: {'; '.join(timed.notes) or 'the control is too wide'}")
    if not isinstance(attacked, Unmeasured) and not attacked.conclusive:
        found.append(f"robust accuracy is inconclusive: {'; '.join(attacked.warnings) or 'the attack failed'}")
    return tuple(found)
