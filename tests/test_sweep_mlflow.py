"""Points of a sweep as runs of MLflow, on a module that stands in for it and remembers what it was given."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from sweep_examples import lost, point
from test_reporting_sweep import sweep_of

from edgeprune.console import Console
from edgeprune.errors import RuntimeMissingError
from edgeprune.records import Sweep
from edgeprune.sweeping.mlflow_log import log_sweep, require_mlflow


class Warned(Console):
    """Remembers what it was warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What MLflow was asked to do."""
    found: list[tuple[str, Any]] = []
    fake: Any = ModuleType("mlflow")
    for name in ("set_experiment", "log_params", "log_metrics", "set_tags", "log_artifact"):
        setattr(fake, name, lambda given, name=name: found.append((name, given)))

    @contextmanager
    def start_run(run_name: str) -> Iterator[Any]:
        found.append(("start_run", run_name))
        yield SimpleNamespace(info=SimpleNamespace(run_id=f"id of {run_name}"))

    fake.start_run = start_run
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return found


def example(root: Path) -> Sweep:
    done = [point(name).model_copy(update={"report_sha256": "1" * 64}) for name in ("a", "b")]
    for each in done:
        (root / each.folder).mkdir(parents=True)
    return sweep_of(*done, lost("gone", "no"))


def test_each_point_is_a_run_with_its_settings_and_figures(calls: list[tuple[str, Any]], tmp_path: Path) -> None:
    assert log_sweep(example(tmp_path), tmp_path, Console()) == 2
    assert [given for name, given in calls if name == "start_run"] == ["a", "b"]  # what failed has nothing to log
    assert ("log_params", {"prune.criterion": "a"}) in calls
    metrics = next(given for name, given in calls if name == "log_metrics")
    assert (metrics["speedup"], metrics["size_bytes"]) == (2.0, 1000.0)
    assert "size_bytes_low" not in metrics
    assert ("log_artifact", str(tmp_path / "points/a/report.html")) in calls


def test_a_report_is_logged_once(calls: list[tuple[str, Any]], tmp_path: Path) -> None:
    found = example(tmp_path)
    assert [log_sweep(found, tmp_path, Console()) for _ in range(2)] == [2, 0]
    points = (found.points[0].model_copy(update={"report_sha256": "2" * 64}), *found.points[1:])
    assert log_sweep(found.model_copy(update={"points": points}), tmp_path, Console()) == 1


def test_trouble_of_the_server_is_said_and_raises_nothing(
    calls: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(given: object) -> None:
        raise ConnectionError("no such server")

    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", refuse)
    console = Warned()
    assert log_sweep(example(tmp_path), tmp_path, console) == 0
    assert "ConnectionError: no such server" in console.warnings[0]


def test_without_mlflow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RuntimeMissingError, match="mlflow-skinny"):
        require_mlflow()
