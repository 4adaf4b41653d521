"""A sweep on two real Ray nodes, one of which is killed while it works: every point comes to its end all the same.

Ray is no part of `[dev]` (80 MB to fetch, 240 MB on disk): where it is not installed, the tests on it are skipped.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_sweep import QUICK

from edgeprune.cluster import Origin
from edgeprune.config import Config, RemoteConfig
from edgeprune.console import Console
from edgeprune.errors import DeviceError, RuntimeMissingError, UsageError
from edgeprune.records import Sweep
from edgeprune.sweeping.cluster import at_node, ray_engine
from edgeprune.sweeping.points import Task
from edgeprune.sweeping.settings import SweepConfig
from edgeprune.sweeping.space import read_space
from edgeprune.sweeping.sweep import sweep

HERE = Path(__file__).parent
pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeMissingError, match=r"edgeprune\[ray\]"):
        ray_engine(Config(), tmp_path)


def test_a_cluster_that_is_not_there_is_a_clear_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))  # it is not asked for ten minutes
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        engine = ray_engine(Config(sweep=SweepConfig(engine="ray", address=address, prune={}, recover={})), tmp_path)
        with pytest.raises(DeviceError, match=f"cannot use the Ray cluster at {address}"):
            list(engine([], Console()))


def test_a_device_over_ssh_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one device at once"):
        ray_engine(Config(remote=RemoteConfig(host="pi@board")), tmp_path)


def test_a_node_without_the_sweeps_folder_says_so(tmp_path: Path) -> None:
    config = Config().model_copy(update={"run": Config().run.model_copy(update={"out": tmp_path / "points" / "a"})})
    task = Task("a", {}, Path("model.pt"), config, tmp_path, "0" * 64, "")
    point = at_node(task, Origin.here(1), "another sweep's")
    assert point.status == "failed"
    assert "share it between the nodes" in point.reason


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tiny.write_project(tmp_path / "project")
    (folder / "edgeprune.toml").write_text(tiny.settings(**QUICK), encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(HERE))
    return folder


def swept(out: str, **more: str) -> Sweep:
    flags: dict[str, dict[str, object]] = {
        "prune": {"criterion": "l1,l2,fpgm"},
        "run": {"out": out},
        "sweep": dict(more),
    }
    return sweep(Path("model.pt"), read_space(None, flags), console=Console())


def at_work(folder: Path) -> list[str]:
    """The points that have a plan and are not at their end."""
    plans = (path.parent for path in folder.glob("points/*/plan.json"))
    return [path.name for path in plans if not (path / "point.json").exists()]


def kill_when_both_work(folder: Path, kill: Callable[[], object]) -> tuple[threading.Thread, list[str]]:
    """A thread that kills as soon as two points are at work, or after two minutes; and which ones were."""
    seen: list[str] = []

    def watch() -> None:
        ends = time.monotonic() + 120
        while len(found := at_work(folder)) < 2 and time.monotonic() < ends:
            time.sleep(0.05)
        seen.extend(found)
        kill()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, seen


def test_a_node_that_is_killed_loses_nothing(project: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'edgeprune[ray]'")
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        killer, working = kill_when_both_work(
            project / "far", lambda: cluster.remove_node(second, allow_graceful=False)
        )
        far = swept("far", engine="ray", address=cluster.address)
        killer.join()
    finally:
        cluster.shutdown()
    near = swept("near")
    assert len(working) == 2  # one on each node: the second one's was lost with it
    assert [point.status for point in far.points] == ["done"] * 3, [point.reason for point in far.points]
    for one, other in zip(far.points, near.points, strict=True):
        assert one.artifact_sha256 == other.artifact_sha256
        assert (one.accuracy, one.robust_accuracy) == (other.accuracy, other.robust_accuracy)
        assert one.verdict == other.verdict
