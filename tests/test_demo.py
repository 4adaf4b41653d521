"""The README's first command: the demo, whole, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(700)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "edgeprune.cli", "demo"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    return folder / "edgeprune-demo", done


def test_the_demo_ends_well_and_says_what_it_wrote(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = demo
    assert done.returncode == 0, done.stderr
    assert "$ edgeprune compress model.pt --target cpu" in done.stdout
    listed = [line for line in done.stdout.splitlines() if line.startswith("runs/")]
    assert {Path(line).name for line in listed} >= {"report.html", "model.onnx", "model.xml", "pruned.pt"}
    assert all((folder / line).is_file() for line in listed)
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_the_demo_measures_what_it_promises(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    report = json.loads((demo[0] / "runs" / "model-cpu" / "report.json").read_text())
    robustness = report["robustness"]
    assert robustness["conclusive"]
    assert 0.5 < robustness["dense"]["robust"]["count"] / robustness["dense"]["robust"]["total"] < 0.95
    assert all(comparison["dense"]["count"] / comparison["dense"]["total"] > 0.97 for comparison in report["accuracy"])
    assert {comparison["runtime"]["name"] for comparison in report["latency"]} == {"onnxruntime", "openvino"}
    assert report["plan"]["macs"] < 0.55 * report["plan"]["dense_macs"]
    assert report["verdict"]["status"] in ("passed", "failed", "inconclusive")
    metrics = {row["metric"] for row in report["verdict"]["rows"]}
    assert metrics == {"accuracy_drop", "robust_accuracy_drop", "speedup", "size_bytes"}
