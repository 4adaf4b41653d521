"""A killed run finishes when it is started again, and ends where an uninterrupted one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

HERE = Path(__file__).parent
STAGES = (
    *("plan", "recover", "export", "accuracy", "latency-onnxruntime", "latency-openvino", "layers"),
    *("attack-dense", "attack-compressed", "divergence", "distances-dense", "distances-compressed", "report"),
)
pytestmark = pytest.mark.timeout(1200)
OUTPUTS = ("model.onnx", "model.xml", "model.bin", "pruned.pt", "plan.json", "evidence.npz")


def run(folder: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    """`edgeprune compress model.pt` in a process of its own, in `folder`; `prefix` replaces ``-m edgeprune.cli``."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(prefix or ("-m", "edgeprune.cli")), "compress", "model.pt"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An uninterrupted run, and one that was killed once in every stage; what each process printed to stderr."""
    plain, killed = (tiny.write_project(tmp_path_factory.mktemp(name)) for name in ("plain", "killed"))
    whole = run(plain)
    assert whole.returncode == 0, whole.stderr
    attempts = []
    for stage in STAGES:
        attempt = run(killed, str(HERE / "killed.py"), stage)
        attempts.append((stage, attempt.returncode, attempt.stderr, {p.name for p in (killed / "run").iterdir()}))
    last = run(killed)
    return {"plain": plain / "run", "killed": killed / "run", "attempts": attempts, "last": last}


def test_every_kill_hit_its_stage(runs: dict[str, Any]) -> None:
    assert [(stage, code) for stage, code, *_ in runs["attempts"]] == [(stage, -signal.SIGKILL) for stage in STAGES]


def test_a_killed_stage_leaves_no_result(runs: dict[str, Any]) -> None:
    left = {stage: names for stage, _, _, names in runs["attempts"]}
    assert "plan.json" not in left["plan"]
    assert "pruned.pt" not in left["recover"]
    assert "model.onnx" not in left["export"]
    assert "report.json" not in left["report"]


def test_finished_stages_are_not_done_again(runs: dict[str, Any]) -> None:
    for position, (_, _, messages, _) in enumerate(runs["attempts"][1:]):  # each redoes what its forerunner died in
        kept = [line.removesuffix(": kept from the run before") for line in messages.splitlines() if "kept" in line]
        assert kept == list(STAGES[:position])


def test_the_last_run_finishes_and_equals_an_uninterrupted_one(runs: dict[str, Any]) -> None:
    assert runs["last"].returncode == 0, runs["last"].stderr
    for name in OUTPUTS:
        assert (runs["killed"] / name).read_bytes() == (runs["plain"] / name).read_bytes(), name


def test_the_reports_agree_but_for_clocks(runs: dict[str, Any]) -> None:
    reports = [json.loads((runs[which] / "report.json").read_text()) for which in ("plain", "killed")]
    for report in reports:
        report.pop("created")
        report.pop("latency")  # samples
        report.pop("layer_times")
        report["recovery"].pop("seconds")
        report["recovery"].pop("images_per_second")
        for side in ("dense", "compressed"):
            report["robustness"][side].pop("seconds")
    assert reports[0] == reports[1]


def test_a_killed_run_leaves_no_half_file_for_good(runs: dict[str, Any]) -> None:
    assert [path.name for path in runs["killed"].rglob("*.partial*")] == []


def test_recovery_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    """Killed while it writes its second checkpoint, it trains the second epoch again and not the first."""
    project = tiny.write_project(tmp_path)
    text = tiny.settings(recover__epochs="3")
    (project / "edgeprune.toml").write_text(text)
    first = run(project, str(HERE / "killed_at_epoch.py"), "2")
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert list((project / "run" / "stages").glob("recover-*/recovery.checkpoint"))
    second = run(project, str(HERE / "killed_at_epoch.py"), "-1")
    assert second.returncode == 0, second.stderr
    trained = [line for line in second.stdout.splitlines() if line.startswith("checkpoint after epoch")]
    assert trained == ["checkpoint after epoch 2", "checkpoint after epoch 3"]
    assert not list((project / "run" / "stages").glob("recover-*"))
