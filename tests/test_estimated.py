"""Estimates in a report: called estimates, with their error, and never enough for a gate that did not allow them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Command
from test_targets import CALIBRATION

from edgeprune.latency.profiles import load_profile
from edgeprune.latency.writing import write_profile
from edgeprune.records import Report, Unmeasured, read_record

COEFFICIENTS = {
    "pointwise": 1e-5,
    "depthwise": 1e-5,
    "convolution": 1e-5,
    "linear": 1e-5,
    "bytes": 0.0,
    "operators": 0.1,
}


@pytest.fixture
def board(project: Path) -> Path:
    """A target elsewhere with a calibration of ONNX Runtime."""
    calibration = CALIBRATION.model_copy(update={"coefficients": COEFFICIENTS})
    profile = load_profile("raspberry-pi-5").model_copy(update={"estimates": {"onnxruntime": calibration}})
    write_profile(profile, project / "board.toml")
    return project / "board.toml"


def test_run_without_the_device_reports_an_estimate_and_its_error(
    project: Path, board: Path, edgeprune: Command
) -> None:
    budgets = ("--max-latency-ms", "1000", "--min-speedup", "1.01")
    said = edgeprune("compress", "model.pt", "--target", board, "--runtimes", "onnxruntime", "--gate", *budgets)
    assert said.code == 1, said.err  # unmeasured: an estimate is not enough
    report = read_record(Report, project / "run" / "report.json")
    assert isinstance(report.latency, Unmeasured)
    (estimate,) = report.estimates
    assert estimate.kind == "estimated"
    assert estimate.dense_ms > estimate.compressed_ms > 0.2
    assert estimate.compressed_sha256 == report.artifact("compressed").sha256
    assert report.verdict is not None
    rows = {row.metric: row for row in report.verdict.rows}
    assert rows["latency_ms"].status == "missing"
    assert "allow_estimates is not set" in rows["latency_ms"].reason
    text = (project / "run" / "report.md").read_text()
    assert "Latency, estimated" in text
    assert "off by 5.0 % (median), 20.0 % (largest) on 6 others" in text
    allowed = edgeprune("gate", "run", "--artifact", "run/model.onnx", "--allow-estimates", "true", *budgets)
    judged = {row.metric: row for row in read_record(Report, project / "run" / "report.json").verdict.rows}  # type: ignore[union-attr]
    assert judged["latency_ms"].status == "missing"  # what the run wrote stays
    assert allowed.code == 0, allowed.out
    assert "judged 20% worse" in allowed.out.replace("\n", " ") or "estimated" in allowed.out


def test_other_threads_than_those_of_the_calibration_have_no_estimate(
    project: Path, board: Path, edgeprune: Command
) -> None:
    said = edgeprune("compress", "model.pt", "--target", board, "--runtimes", "onnxruntime", "--threads", "2")
    assert said.code == 0, said.err
    assert "no estimate for onnxruntime: it was calibrated with 1 thread(s)" in said.err.replace("\n", " ")
    assert read_record(Report, project / "run" / "report.json").estimates == ()
