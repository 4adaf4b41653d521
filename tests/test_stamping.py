"""A candidate's file from the dense network's graph: the file that torch's exporter would have written, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeprune.export.onnx import export_onnx, parent_of
from edgeprune.export.stamping import Stamp
from toy_networks import PRUNABLE, SHAPE, Chain, Lambda, Residual, bundle_of, randomized

from edgeprune.artifacts import Destination, export_network
from edgeprune.errors import ExportError
from edgeprune.gauging import Range
from edgeprune.latency.local import DEVICE
from edgeprune.latency.settings import LatencyConfig
from edgeprune.pruning.criteria import random as by_chance
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import allocate, apply, make_plan
from edgeprune.types import Goal, ModelBundle, Preprocessing

IMAGES = np.random.default_rng(0).random((8, *SHAPE), dtype=np.float32)
PIXELS = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def halved(dense: ModelBundle) -> ModelBundle:
    graph = trace(dense)
    scores = by_chance(dense, graph, None, seed=0)
    goal = Goal("ratio", 0.5)
    return apply(make_plan(dense, graph, scores, allocate(graph, scores, goal, 1), goal, 1, 0), dense, graph)


def stamp_of(dense: ModelBundle, folder: Path) -> Stamp:
    export_onnx(dense, folder / "dense.onnx")
    return Stamp.of(dense, folder / "dense.onnx")


def values_of(path: Path) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", PRUNABLE)
def test_stamped_file_is_the_exported_one_with_its_values(name: str, tmp_path: Path) -> None:
    dense = bundle_of(randomized(PRUNABLE[name]()), preprocessing=PIXELS)
    pruned, stamp = halved(dense), stamp_of(dense, tmp_path)
    where = Destination(tmp_path, "stamped", "compressed")
    made = export_network(pruned, where, ("onnxruntime", "openvino"), IMAGES, "random", stamp)
    opset = export_onnx(pruned, tmp_path / "exported.onnx")
    assert made.artifacts[0].opset == opset
    assert parent_of(tmp_path / "stamped.onnx") == pruned.digest
    assert len(made.parity) == 2  # checked in both runtimes: the answers are the network's
    exported, stamped = (onnx.load(tmp_path / f"{each}.onnx").graph.node for each in ("exported", "stamped"))
    assert [node.op_type for node in stamped] == [node.op_type for node in exported]
    assert [node.input for node in stamped] == [node.input for node in exported]
    there, here = values_of(tmp_path / "exported.onnx"), values_of(tmp_path / "stamped.onnx")
    assert list(here) == list(there)
    for value in there:
        if there[value].dtype == np.float32:
            np.testing.assert_allclose(here[value], there[value], rtol=1e-4, atol=1e-5)


def test_stamp_of_the_dense_network_gives_its_own_file(tmp_path: Path) -> None:
    dense = bundle_of(randomized(Residual()), preprocessing=PIXELS)
    stamp_of(dense, tmp_path).write(dense, tmp_path / "again.onnx")
    there, here = values_of(tmp_path / "dense.onnx"), values_of(tmp_path / "again.onnx")
    assert all(np.allclose(here[name], there[name], rtol=1e-5) for name in there if there[name].dtype == np.float32)


def test_network_of_another_structure_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    stamp = stamp_of(bundle_of(randomized(Residual())), tmp_path)
    with pytest.raises(ExportError, match="another structure"):
        stamp.write(bundle_of(randomized(Chain())), tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_constant_that_holds_a_width_is_refused(tmp_path: Path) -> None:
    """The rows are a number in the graph, and belong to the dense network."""
    from torch import nn

    def rows(net: Lambda, x: object) -> object:
        seen = net.conv(x)  # type: ignore[operator]
        return net.fc(seen.reshape(-1, seen.shape[1], 64).mean(2))  # type: ignore[operator]

    dense = bundle_of(randomized(Lambda(rows, conv=nn.Conv2d(3, 8, 3, padding=1), fc=nn.Linear(8, 4))))  # type: ignore[arg-type]
    narrow = bundle_of(randomized(Lambda(rows, conv=nn.Conv2d(3, 5, 3, padding=1), fc=nn.Linear(5, 4))))  # type: ignore[arg-type]
    stamp = stamp_of(dense, tmp_path)
    with pytest.raises(ExportError, match="does not fit"):
        stamp.write(narrow, tmp_path / "narrow.onnx")


def test_file_that_is_no_onnx_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dense.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="not an ONNX file"):
        Stamp.of(bundle_of(Chain()), tmp_path / "dense.onnx")


@pytest.mark.parametrize("fits", [True, False])
def test_candidates_are_traced_only_where_the_stamp_does_not_fit(
    fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = bundle_of(randomized(Chain()))
    stamp, traced = stamp_of(dense, tmp_path), list[str]()

    def exported(bundle: ModelBundle, path: Path, *, plan_digest: str = "") -> int:
        traced.append(path.name)
        return export_onnx(bundle, path, plan_digest=plan_digest)

    def refused(self: Stamp, bundle: ModelBundle, path: Path) -> int:
        raise ExportError("no")

    monkeypatch.setattr("edgeprune.export.onnx.export_onnx", exported)
    if not fits:
        monkeypatch.setattr(Stamp, "write", refused)
    range_ = Range(dense, IMAGES, "random", LatencyConfig(runtimes=("onnxruntime",)), 0)
    file = range_.candidate(halved(dense), tmp_path, stamp)
    assert Path(file.path).exists()
    assert traced == ([] if fits else ["compressed.onnx"])


@pytest.mark.parametrize("fits", [True, False])
def test_whole_networks_are_timed_together_where_the_stamp_fits(
    fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dense = bundle_of(randomized(Chain()))
    if not fits:
        other = Stamp.write
        monkeypatch.setattr(Stamp, "write", lambda stamp, _, path: other(stamp, dense, path))  # another one's answers
    range_ = Range(dense, IMAGES, "random", LatencyConfig(runtimes=("onnxruntime",)), 0, DEVICE)
    networks = {"half": lambda: halved(dense), "whole": lambda: dense}
    with range_.opened() as time:
        found = time.together(networks, 60.0, lambda *_: None)
        assert time.together({}, 60.0, lambda *_: None) == {}
    if fits:
        assert found["whole"] == 1.0
        assert 0.2 < found["half"] < 1.5
    else:
        assert found == {}
