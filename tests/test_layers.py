"""Where the milliseconds went: nodes of a runtime's profile brought to the layers of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeprune import protocols
from edgeprune.errors import MeasurementError
from edgeprune.latency.layers import layers_of, profile_files, side_by_side
from edgeprune.latency.repeating import WARM_UP, repeat, typical
from edgeprune.records import LayerProfile, NodeTime, Report, Unmeasured, read_record


def residual() -> Any:
    """conv a -> relu -> conv b -> add (with the shortcut conv c) -> relu -> an unnamed Gemm."""
    nodes = [
        helper.make_node("Conv", ["images", "module.a.weight"], ["conv_a"], name="node_conv_a"),
        helper.make_node("Relu", ["conv_a"], ["relu"], name="node_relu"),
        helper.make_node("Conv", ["relu", "module.b.weight"], ["conv_b"], name="node_conv_b"),
        helper.make_node("Conv", ["images", "module.c.weight"], ["conv_c"], name="node_conv_c"),
        helper.make_node("Add", ["conv_b", "conv_c"], ["add"], name="node_add"),
        helper.make_node("Relu", ["add"], ["relu_1"], name="node_relu_1"),
        helper.make_node("Gemm", ["relu_1", "val_7"], ["logits"], name="node_linear"),
    ]
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, [1], [0.0])
        for name in ("module.a.weight", "module.b.weight", "module.c.weight", "val_7")
    ]
    return helper.make_graph(nodes, "g", [], [], weights)


def node(name: str, ms: float, operator: str = "Conv") -> NodeTime:
    return NodeTime(name=name, operator=operator, ms=ms)


def test_a_node_goes_to_its_layer_by_name_or_by_the_output_that_it_finishes() -> None:
    found = layers_of([node("node_conv_a", 1), node("relu", 2), node("conv_c", 4)], residual())
    assert found == {("a", True): 3.0, ("c", True): 4.0}


def test_a_fused_sum_is_the_one_layer_that_no_other_node_claims() -> None:
    found = layers_of([node("node_conv_c", 1), node("relu_1", 2)], residual())
    assert found == {("c", True): 1.0, ("b", True): 2.0}


def test_what_could_be_one_of_several_layers_is_nobodys() -> None:
    assert layers_of([node("relu_1", 2)], residual()) == {("Conv", False): 2.0}


def test_nodes_between_layers_are_summed_by_operator() -> None:
    nodes = [node("node_relu", 1, "Relu"), node("node_relu_1", 2, "Relu"), node("ReorderOutput", 4, "ReorderOutput")]
    assert layers_of(nodes, residual()) == {("Relu", False): 3.0, ("ReorderOutput", False): 4.0}


def test_a_layer_whose_name_the_exporter_lost_has_its_nodes() -> None:
    assert layers_of([node("node_linear", 1, "Gemm")], residual()) == {("node_linear", True): 1.0}


def test_layers_come_first_and_absent_ones_are_none() -> None:
    rows = side_by_side({("a", True): 1.0, ("Relu", False): 2.0, ("b", True): 3.0}, {("a", True): 0.5})
    assert [(row.name, row.dense_ms, row.compressed_ms) for row in rows] == [
        ("a", 1.0, 0.5),
        ("b", 3.0, None),
        ("Relu", 2.0, None),
    ]


def test_the_warm_up_and_the_slowest_tenth_do_not_count() -> None:
    assert typical([9.0] * WARM_UP + [1.0] * 9 + [50.0]) == 1.0
    assert typical([2.0]) == 2.0
    calls: list[int] = []
    assert repeat(calls.append, 0.0) == len(calls) - WARM_UP == 10


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_every_layer_of_an_exported_network_is_found(name: str, finished: Path) -> None:
    runtime = protocols.find("runtime", name)
    run, images = finished / "run", np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32)
    count, nodes = runtime.node_times(run / f"model{runtime.suffix}", images, threads=1, seconds=0.01)
    assert count >= 10
    found = layers_of(nodes, onnx.load(run / "model.onnx").graph)
    assert {layer for layer, is_layer in found if is_layer} == {"conv1", "conv2", "head"}
    assert sum(found.values()) == pytest.approx(sum(each.ms for each in nodes))


def test_a_report_says_where_the_milliseconds_went(finished: Path) -> None:
    times = read_record(Report, finished / "run" / "report.json").layer_times
    assert isinstance(times, LayerProfile)
    assert {"conv1", "conv2", "head"} <= {layer.name for layer in times.layers}
    assert times.dense_ms > 0
    assert times.compressed_ms > 0
    assert 'id="layers"' in (finished / "run" / "report.html").read_text()


def test_a_process_that_dies_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="without a result"):
        profile_files("onnxruntime", (tmp_path / "no.onnx",) * 2, tmp_path / "no.npy", 1, 0.01)


def test_another_device_has_no_profile(project: Path, edgeprune: Any) -> None:
    edgeprune("compress", "model.pt", "--target", "raspberry-pi-5")
    found = read_record(Report, project / "run" / "report.json").layer_times
    assert isinstance(found, Unmeasured)
    assert "not this machine" in found.unmeasured
