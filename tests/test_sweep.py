"""A whole sweep on the smallest project: killed in its second point, resumed, with a point that fails."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tiny
from conftest import Command, Said

from edgeprune.config import Config, RunConfig, load_config
from edgeprune.records import Sweep, read_record
from edgeprune.schema import schema_of
from edgeprune.sweeping.points import Finished, Task, finished

HERE = Path(__file__).parent
ARGUMENTS = ("sweep", "model.pt", "--ratio", "0.01,0.5", "--criterion", "l2,l1", "--out", "swept")
QUICK = {
    "latency__runtimes": '["onnxruntime"]',
    "boundary__samples": "0",
    "attack__divergence_steps": "0",
    "recover__recipe": '"calibrate"',
    "run__out": "",
}
KILLED = """
import os, signal, sys
from edgeprune import cli, steps
left, accuracy = [2], steps.Run.accuracy
def fatal(self, exported):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return accuracy(self, exported)
steps.Run.accuracy = fatal
cli.main(sys.argv[1:])
"""
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A sweep that was killed in its second good point, then run again; what was left and what was said."""
    folder = tiny.write_project(tmp_path_factory.mktemp("sweep"))
    (folder / "edgeprune.toml").write_text(tiny.settings(**QUICK), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}

    def run(*start: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *start, *ARGUMENTS]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
        )

    killed = run("-c", KILLED)
    left = sorted(path.parent.name[:6] for path in folder.glob("swept/points/*/report.json"))
    return folder, {"killed": killed, "left": left, "resumed": run("-m", "edgeprune.cli")}


def found_in(folder: Path) -> Sweep:
    return read_record(Sweep, folder / "swept" / "sweep.json")


def test_the_kill_left_one_finished_point(swept: tuple[Path, dict[str, Any]]) -> None:
    assert swept[1]["killed"].returncode == -signal.SIGKILL
    assert swept[1]["left"] == ["0.5-l2"]


def test_a_killed_sweep_goes_on_where_it_was(swept: tuple[Path, dict[str, Any]]) -> None:
    folder, runs = swept
    resumed = runs["resumed"]
    assert resumed.returncode == 0, resumed.stderr
    assert [line for line in resumed.stderr.splitlines() if line.endswith("kept from the sweep before")] == [
        f"{point.name}: kept from the sweep before"
        for point in found_in(folder).points
        if point.settings == {"prune.ratio": "0.5", "prune.criterion": "l2"}
    ]
    assert "plan: kept from the run before" in resumed.stderr  # the second good point, up to its kill


def test_dense_work_is_done_once(swept: tuple[Path, dict[str, Any]]) -> None:
    said = swept[1]["killed"].stderr + swept[1]["resumed"].stderr
    for work in ("exporting the dense network", "accuracy of the dense file", "attacking the dense file"):
        assert said.count(f"{work}") == 2, work  # its beginning and its end


def test_a_point_that_fails_is_reported_and_stops_no_other(swept: tuple[Path, dict[str, Any]]) -> None:
    found = found_in(swept[0])
    assert [point.status for point in found.points] == ["failed", "failed", "done", "done"]
    assert all("remove" in point.reason for point in found.points[:2])
    assert "2 of 4 points came to an end" in swept[1]["resumed"].stdout


def test_every_point_is_a_full_run_folder(swept: tuple[Path, dict[str, Any]]) -> None:
    folder, found = swept[0] / "swept", found_in(swept[0])
    for point in found.points[2:]:
        for name in ("report.json", "report.html", "model.onnx", "dense/model.onnx", "pruned.pt", "evidence.npz"):
            assert (folder / point.folder / name).is_file(), name
        report = json.loads((folder / point.folder / "report.json").read_text())
        assert report["command"] == point.command
    dense = [(folder / point.folder / "dense" / "model.onnx").read_bytes() for point in found.points[2:]]
    assert dense[0] == dense[1]


def test_the_record_is_of_its_schema_and_its_files_are_there(swept: tuple[Path, dict[str, Any]]) -> None:
    folder, found = swept[0] / "swept", found_in(swept[0])
    jsonschema.Draft202012Validator(schema_of("sweep")).validate(json.loads(found.to_json()))
    page = (folder / "sweep.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<svg" in page
    assert found.points[2].command in (folder / "sweep.md").read_text() or found.recommended == found.points[3].name
    assert found.objectives == ("speedup", "accuracy", "robust_accuracy", "size_bytes")


def test_the_recommended_command_has_the_settings_of_its_point(
    swept: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_in(swept[0])
    assert found.recommended in [point.name for point in found.points[2:]]  # the size budget holds in both
    monkeypatch.chdir(swept[0])
    words = found.point(str(found.recommended)).command.split()
    assert words[:3] == ["edgeprune", "compress", "model.pt"]
    values = dict(zip(words[3::2], words[4::2], strict=True))
    flags = {"prune": {"ratio": values["--ratio"], "criterion": values["--criterion"]}}
    assert load_config(None, flags).prune.goal().value == 0.5
    assert values["--out"] == f"swept/points/{found.recommended}"


@pytest.fixture
def again(swept: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, edgeprune: Command) -> Said:
    monkeypatch.chdir(swept[0])
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    return edgeprune(*ARGUMENTS, "--gate", "--json")


def test_a_finished_sweep_is_kept_whole_and_prints_its_record(again: Said, swept: tuple[Path, dict[str, Any]]) -> None:
    found = Sweep.model_validate_json(again.out)
    assert again.code == 0  # the size budget holds
    assert again.err.count("kept from the sweep before") == 2
    assert found == found_in(swept[0])


@pytest.mark.parametrize("name", ["report.json", "model.onnx", "dense/model.onnx", "point.json"])
def test_a_point_whose_files_were_changed_is_not_kept(
    swept: tuple[Path, dict[str, Any]], name: str, tmp_path: Path
) -> None:
    point = found_in(swept[0]).points[3]
    root = tmp_path / "swept"
    shutil.copytree(swept[0] / "swept", root)
    folder = root / point.folder
    config = Config(run=RunConfig(out=folder))
    key = read_record(Finished, folder / "point.json").key
    task = Task(point.name, point.settings, Path("model.pt"), config, root, key, point.command)
    assert finished(task) == point
    assert finished(dataclasses.replace(task, key="0" * 64)) is None
    (folder / name).write_bytes(b"{}")
    assert finished(task) is None


def test_points_that_differ_in_recovery_alone_have_the_same_plan(
    swept: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edgeprune: Command
) -> None:
    for name in ("model.pt", "train.npz", "test.npz", "edgeprune.toml"):
        shutil.copy(swept[0] / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    said = edgeprune("sweep", "model.pt", "--ratio", "0.5", "--recover", "calibrate,none", "--out", "two")
    assert said.code == 0
    assert said.err.count("scoring channels") == 2  # the beginning and the end of one
    plans = [path.read_bytes() for path in sorted(tmp_path.glob("two/points/*/plan.json"))]
    assert len(plans) == 2
    assert plans[0] == plans[1]
