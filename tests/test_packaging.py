"""What is installed: the contents of the wheel, and that it works in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout, by the installed setuptools (no network)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_room_and_nothing_generic(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    rooms = {path.parent.name for path in (ROOT / "edgeprune").glob("*/__init__.py")}
    assert {f"edgeprune/{room}/__init__.py" for room in rooms} <= names
    assert {"edgeprune/export/onnx.py", "edgeprune/hardware_profiles/cpu.toml", "edgeprune/py.typed"} <= names
    assert any(name.startswith("edgeprune/reporting/templates/") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgeprune"}


def test_the_wheel_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Dependencies come from this environment, edgeprune from the wheel alone."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = home / "lib" / version / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    outer = Path(pytest.__file__).parent.parent
    (site / "outer.pth").write_text(f"{outer}\n")
    python = home / "bin" / "python"
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}

    def edgeprune(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-m", "edgeprune.cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    code = "import edgeprune; print(edgeprune.__file__)"
    where = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert str(site) in where.stdout
    assert edgeprune("--version").stdout.startswith("edgeprune ")
    network = "import torch; from edgeprune.demo import DigitsNet; torch.save(DigitsNet(16).state_dict(), 'model.pt')"
    subprocess.run([str(python), "-c", network], cwd=tmp_path, env=environment, check=True)
    done = edgeprune(
        *("compress", "model.pt", "--arch", "edgeprune.demo:DigitsNet", "--arch-args", '{"width": 16}'),
        *("--input-shape", "1,8,8", "--ratio", "0.5", "--timing-processes", "1", "--timing-blocks", "2"),
        *("--timing-block-ms", "2"),
    )
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "runs" / "model-cpu").iterdir()}
    assert {"model.onnx", "model.xml", "model.bin", "pruned.pt", "plan.json", "report.json", "report.html"} <= made


def test_every_plugin_that_is_registered_loads() -> None:
    for kind in ("criteria", "runtimes", "attacks", "devices"):
        points = entry_points(group=f"edgeprune.{kind}")
        assert points, kind
        assert all(point.load() is not None for point in points)


def test_importing_edgeprune_loads_no_framework() -> None:
    code = "import sys, edgeprune; print([m for m in ('torch', 'onnx', 'openvino', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
