"""A sweep's points as runs of MLflow, where it is installed: one run a point, in an experiment named for the network.

Promise: what is logged is what sweep.json says (settings as parameters, figures and the ends of their intervals as
metrics; what was not measured is absent), with the point's report as an artifact. A point is logged once for each
report, so a sweep that is run again adds nothing. MLflow's own troubles are said, and take nothing from the sweep: its
files are written before. Where runs go is MLflow's to say (MLFLOW_TRACKING_URI).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprune.console import Console
from edgeprune.errors import RuntimeMissingError, UsageError
from edgeprune.files import write_text
from edgeprune.records import Figure, Record, Sha256, Sweep, SweepPoint, read_record

LOGGED = "mlflow.json"
_FIGURES = ("speedup", "latency_ms", "accuracy", "robust_accuracy", "size_bytes")
_FILES = ("report.html", "report.json")


class Logged(Record):
    """The run of MLflow that a point's report went into."""

    report_sha256: Sha256
    run_id: str


def require_mlflow() -> Any:
    """The package; RuntimeMissingError where it is not installed."""
    try:
        import mlflow
    except ImportError as error:
        raise RuntimeMissingError(
            "--log mlflow needs MLflow", hint="pip install mlflow-skinny, or leave out --log"
        ) from error
    return mlflow


def log_sweep(found: Sweep, root: Path, console: Console) -> int:
    """Log the points that came to an end and were not logged yet; how many were."""
    mlflow, logged = require_mlflow(), 0
    try:
        mlflow.set_experiment(f"edgeprune {found.model} for {found.target}")
        for point in found.points:
            if point.report_sha256 is not None and not _is_logged(point, root):
                run_id = _log(mlflow, found, point, root)
                noted = Logged(report_sha256=point.report_sha256, run_id=run_id)
                write_text(root / point.folder / LOGGED, noted.to_json())
                logged += 1
    except Exception as error:  # noqa: BLE001  # a tracking server's faults are many, and none is the sweep's
        console.warn(f"MLflow took {logged} points, then failed: {type(error).__name__}: {error}")
        return logged
    console.say(f"{logged} points logged to MLflow")
    return logged


def _log(mlflow: Any, found: Sweep, point: SweepPoint, root: Path) -> str:
    with mlflow.start_run(run_name=point.name) as run:
        mlflow.log_params(point.settings)
        mlflow.log_metrics(dict(_metrics(point)))
        mlflow.set_tags(
            {
                "edgeprune.artifact_sha256": point.artifact_sha256 or "",
                "edgeprune.model_sha256": found.model_sha256,
                "edgeprune.runtime": found.runtime,
                "edgeprune.machine": point.machine,
                "edgeprune.standing": found.where(point.name).standing,
                "edgeprune.verdict": point.verdict or "",
                "edgeprune.doubts": "; ".join(point.doubts),
                "edgeprune.command": point.command,
            }
        )
        for name in _FILES:
            mlflow.log_artifact(str(root / point.folder / name))
        return str(run.info.run_id)


def _metrics(point: SweepPoint) -> Iterator[tuple[str, float]]:
    for name in _FIGURES:
        figure = getattr(point, name)
        if isinstance(figure, Figure):
            yield name, figure.value
            if figure.interval is not None:
                yield f"{name}_low", figure.interval.low
                yield f"{name}_high", figure.interval.high


def _is_logged(point: SweepPoint, root: Path) -> bool:
    try:
        return read_record(Logged, root / point.folder / LOGGED).report_sha256 == point.report_sha256
    except UsageError:
        return False
