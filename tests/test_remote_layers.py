"""Costs of layers on a device: timed there by the same code, kept by the device, and a plan that follows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sshd
from test_remote import place, server, settings  # noqa: F401  # fixtures

from edgeprune.errors import DeviceError, MeasurementError
from edgeprune.latency import board, remote, remote_layers
from edgeprune.latency.copies import PAGE, WEIGHTS, Operator, bare_copies
from edgeprune.latency.costs import Bench, Wanted, measured, times_of
from edgeprune.latency.kernels import Point
from edgeprune.latency.remote import Attached
from edgeprune.latency.ssh import LostError
from edgeprune.protocols import find
from edgeprune.records import Environment

needs_sshd = pytest.mark.skipif(bool(sshd.MISSING), reason=sshd.MISSING)
CONV = Operator(kind="conv", size=(8, 8), kernel=(3, 3), pads=(1, 1, 1, 1))
LINEAR = Operator(kind="linear", size=(1, 1))
BOARD = Environment(
    edgeprune="1",
    python="3.11.2",
    system="Linux 6.1.0 aarch64",
    cpu="Cortex-A76",
    cores=4,
    cpu_features=("asimd",),
    packages={"numpy": "2.0", "onnxruntime": "1.19.2"},
)


class Board:
    """A device whose machine is described, and whose layers cost what `law` says."""

    def __init__(self, machine: Environment = BOARD, law: Any = lambda o, i: 1e-4 * o * i) -> None:
        self.machine, self.law, self.asked = machine, law, list[str]()

    def time_layers(self, runtime: str, threads: int, batch_size: int, points: Sequence[Point], found: Any) -> None:
        for point in points:
            self.asked.append(point.key())
            found(point, self.law(point.outputs, point.inputs))


def silent(text: str, share: float) -> None:
    assert 0 <= share <= 1


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgeprune" / "costs"


# ------------------------------------------------------------------------------------------------ what is sent


@pytest.mark.parametrize("operator", [CONV, CONV.model_copy(update={"kind": "depthwise"}), LINEAR])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_files_without_weights_are_served_with_random_ones(operator: Operator, runtime: str, tmp_path: Path) -> None:
    content, size = bare_copies(operator, 8, 8, 4)
    assert len(content) < 4096
    board._make_weights(np, tmp_path / WEIGHTS, size)
    (tmp_path / "copies.onnx").write_bytes(content)
    onnx.checker.check_model(str(tmp_path / "copies.onnx"), full_check=True)
    output = find("runtime", runtime).open(tmp_path / "copies.onnx", threads=1).logits(operator.image(2, 8))
    assert output.shape == (2, 8)
    assert np.ptp(output) > 0


def test_no_two_constants_are_equal_and_none_reads_beyond_the_file(tmp_path: Path) -> None:
    content, size = bare_copies(CONV, 8, 8, 4)
    board._make_weights(np, tmp_path / WEIGHTS, size)
    (tmp_path / "copies.onnx").write_bytes(content)
    proto = onnx.load(str(tmp_path / "copies.onnx"))
    constants = {i.name: onnx.numpy_helper.to_array(i).tobytes() for i in proto.graph.initializer if i.name != "axes"}
    assert len(set(constants.values())) == len(constants) == 8
    assert size == 7 * PAGE + 4 * 8
    assert (tmp_path / WEIGHTS).stat().st_size == size


def test_random_numbers_are_made_once_and_again_when_more_are_needed(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    board._make_weights(np, path, 400)
    first = path.stat().st_mtime_ns
    board._make_weights(np, path, 100)
    assert path.stat().st_mtime_ns == first
    board._make_weights(np, path, 5 << 20)
    values = np.fromfile(path, dtype=np.float32)
    assert len(values) * 4 == 5 << 20
    assert values.std() == pytest.approx(0.05, rel=0.02)
    assert not path.with_suffix(".bin.part").exists()


def test_points_go_in_chunks_that_all_know_the_largest_file() -> None:
    points = [Point(operator=LINEAR, outputs=width, inputs=8) for width in range(1, 41)]
    made = list(remote_layers.chunks("onnxruntime", 1, 2, points))
    assert [len(one.points) for one in made] == [16, 16, 8]
    assert {one.job["weights_bytes"] for one in made} == {bare_copies(LINEAR, 40, 8, 4)[1]}
    assert made[0].job["points"][0]["shape"] == [2, 1, 8]


@pytest.mark.parametrize("answer", [None, {}, {"ms": [1.0]}, {"ms": [1.0, -1.0]}, {"ms": [1.0, float("nan")]}])
def test_answer_that_is_none_is_an_error(answer: Any) -> None:
    points = [Point(operator=LINEAR, outputs=width, inputs=8) for width in (4, 8)]
    (chunk,) = remote_layers.chunks("onnxruntime", 1, 1, points)
    with pytest.raises(MeasurementError, match="pi@board gave an answer that is none"):
        remote_layers.figures(answer, chunk, "pi@board")


# -------------------------------------------------------------------------------------------- over real ssh


@needs_sshd
def test_layers_are_timed_over_ssh_and_nothing_stays_there(server: sshd.Server, place: Path, cache: Path) -> None:  # noqa: F811
    wanted = [Wanted(CONV, (8, 256), (64,)), Wanted(LINEAR, (4, 8), (16,))]
    with find("device", "ssh").attach(settings(server, place)) as there:
        narrow_and_wide, small = measured(Bench("onnxruntime", 1, 1, there), wanted, silent)
        assert (place / "on the board" / "layers" / WEIGHTS).exists()
        described = there.machine
    assert narrow_and_wide[1, 0] > 3 * narrow_and_wide[0, 0] > 0
    assert (small > 0).all()
    assert not (place / "on the board").exists()
    (file,) = cache.glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["runtime_version"] == described.packages["onnxruntime"]
    assert len(kept["points"]) == 4


@needs_sshd
def test_lost_connection_keeps_the_chunks_that_were_timed(
    server: sshd.Server,  # noqa: F811
    place: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third point's process never answers; the same command then times what is left."""
    ran: list[int] = []
    real = Attached._ask

    def ask(device: Attached, job: dict[str, Any], timeout_s: float = 60.0) -> object:
        if job["do"] == "layers":
            if len(ran) == 2 and lost:
                raise LostError("the connection was lost")
            ran.append(len(job["points"]))
        return real(device, job, timeout_s)

    monkeypatch.setattr(Attached, "_ask", ask)
    monkeypatch.setattr(remote, "WAITS_S", (0.0,))
    monkeypatch.setattr(remote_layers, "CHUNK", 1)
    points, lost = [Point(operator=LINEAR, outputs=width, inputs=8) for width in (4, 8, 12)], True
    device = find("device", "ssh")
    with (
        pytest.raises(DeviceError, match="the connection was lost") as error,
        device.attach(settings(server, place)) as there,
    ):
        times_of(Bench("onnxruntime", 1, 1, there), points, silent)
    assert "the same command goes on" in error.value.hint
    assert not (place / "on the board").exists()
    lost = False
    with device.attach(settings(server, place)) as there:
        found = times_of(Bench("onnxruntime", 1, 1, there), points, silent)
    assert ran == [1, 1, 1]
    assert list(found) == [point.key() for point in points]


@needs_sshd
def test_runtime_that_the_device_does_not_have_is_an_error_of_the_device(server: sshd.Server, place: Path) -> None:  # noqa: F811
    with (
        find("device", "ssh").attach(settings(server, place)) as there,
        pytest.raises(DeviceError, match="does not know the runtime no-such-runtime"),
    ):
        there.time_layers("no-such-runtime", 1, 1, [Point(operator=LINEAR, outputs=4, inputs=4)], silent)


@needs_sshd
def test_weights_that_the_disk_has_no_room_for_are_not_made(server: sshd.Server, place: Path) -> None:  # noqa: F811
    with find("device", "ssh").attach(settings(server, place)) as there:
        there.free_bytes = 100
        with pytest.raises(DeviceError, match="no space left"):
            there.time_layers("onnxruntime", 1, 1, [Point(operator=LINEAR, outputs=4, inputs=4)], silent)


# ---------------------------------------------------------------------------------------- whose costs they are


def test_costs_of_a_device_are_kept_apart_from_those_of_this_machine(cache: Path) -> None:
    there, wanted = Board(), [Wanted(CONV, (8, 16), (4,))]
    (found,) = measured(Bench("onnxruntime", 1, 1, there), wanted, silent)  # type: ignore[arg-type]
    np.testing.assert_allclose(found[:, 0], [32e-4, 64e-4])
    again = Board(law=lambda o, i: 1.0)
    measured(Bench("onnxruntime", 1, 1, again), wanted, silent)  # type: ignore[arg-type]
    assert (len(there.asked), again.asked) == (2, [])
    assert not Bench("onnxruntime", 1, 1).path().exists()


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": "Cortex-A55"},
        {"cpu_features": ("asimd", "i8mm")},
        {"packages": {"onnxruntime": "1.20.0"}},
        {"system": "Linux 6.1.0 armv7l"},
    ],
)
def test_another_device_or_version_there_has_a_cache_of_its_own(change: dict[str, Any]) -> None:
    other = Board(BOARD.model_copy(update=change))
    paths = {Bench("onnxruntime", 1, 1, one).path() for one in (Board(), other)}  # type: ignore[arg-type]
    assert len(paths) == 2


def test_kernel_update_of_a_device_keeps_its_costs() -> None:
    other = Board(BOARD.model_copy(update={"system": "Linux 6.6.9 aarch64"}))
    paths = {Bench("onnxruntime", 1, 1, one).path() for one in (Board(), other)}  # type: ignore[arg-type]
    assert len(paths) == 1


def test_version_that_a_device_makes_up_is_no_path(cache: Path) -> None:
    odd = Board(BOARD.model_copy(update={"packages": {"onnxruntime": "../../../../tmp/x"}}))
    assert Bench("onnxruntime", 1, 1, odd).path().parent == cache  # type: ignore[arg-type]
