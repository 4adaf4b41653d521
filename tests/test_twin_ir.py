"""Operators of OpenVINO's IR: the twin computes what OpenVINO computes, and its gradients live."""

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
import openvino.opset10 as ops10
import openvino.opset13 as ops
import pytest
import torch

from edgeprune.robustness.twin.ir import read_ir
from edgeprune.robustness.twin.ir_rules import RULES
from edgeprune.robustness.twin.program import Graph, compile_network

SHAPE = (2, 4, 6, 6)
DRAW = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


def whole(*values: int) -> Any:
    return ops.constant(np.array(values, np.int64))


def same(x: Any, kernel: Any, group: bool = False) -> Any:
    make = ops.group_convolution if group else ops.convolution
    return make(x, kernel, [2, 1], [1, 0], [0, 1], [1, 1])


def fake_quantize(x: Any) -> Any:
    low, high = (ops.constant(np.float32(bound)) for bound in (-1.0, 1.5))
    return ops.fake_quantize(x, low, high, low, high, 16)


def resized(x: Any, mode: str, by: str, target: np.ndarray) -> Any:
    return ops.interpolate(x, ops.constant(target), mode, by, axes=whole(2, 3))


def compressed(x: Any) -> Any:
    """Weights as whole numbers with a scale a channel, as weight compression leaves them."""
    levels = ops.convert(ops.constant(DRAW.integers(-100, 100, (5, 4, 3, 3)).astype(np.int8)), "f32")
    scales = ops.constant(np.abs(numbers(5, 1, 1, 1)) / 100)
    return same(x, ops.multiply(levels, scales))


BUILT: dict[str, Callable[[Any], Any]] = {
    "convolution": lambda x: same(x, numbers(5, 4, 3, 3)),
    "grouped": lambda x: same(x, numbers(2, 3, 2, 3, 3), group=True),
    "transposed": lambda x: ops.convolution_backprop_data(x, ops.constant(numbers(4, 3, 2, 2)), [2, 2]),
    "half weights": lambda x: same(x, ops.convert(ops.constant(numbers(5, 4, 3, 3).astype(np.float16)), "f32")),
    "compressed": compressed,
    "fake quantize": fake_quantize,
    "matmul": lambda x: ops.matmul(x, ops.constant(numbers(3, 6)), False, True),
    "clamp": lambda x: ops.clamp(x, 0.0, 0.8),
    "prelu": lambda x: ops.prelu(x, ops.constant(numbers(4))),
    "swish": ops.swish,
    "hswish": ops.hswish,
    "hsigmoid": ops.hsigmoid,
    "gelu": lambda x: ops.gelu(x, "tanh"),
    "selu": lambda x: ops.selu(x, ops.constant(np.float32(1.67)), ops.constant(np.float32(1.05))),
    "hard sigmoid": lambda x: ops.hard_sigmoid(x, ops.constant(np.float32(0.3)), ops.constant(np.float32(0.4))),
    "elu": lambda x: ops.elu(x, 0.7),
    "max pool": lambda x: ops.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [3, 3]).output(0),
    "average pool": lambda x: ops.avg_pool(x, [2, 2], [1, 1], [1, 1], [3, 3], True),
    "adaptive": lambda x: ops.adaptive_avg_pool(x, whole(2, 3)),
    "reduce": lambda x: ops.reduce_mean(x, whole(2, 3), keep_dims=True),
    "softmax": lambda x: ops.softmax(x, 1),
    "transpose": lambda x: ops.transpose(x, whole(0, 2, 3, 1)),
    "reshape": lambda x: ops.reshape(x, whole(0, 2, -1), True),
    "squeeze": lambda x: ops.squeeze(ops.reduce_sum(x, whole(2), keep_dims=True), whole(2)),
    "concat": lambda x: ops.concat([x, ops.relu(x)], 1),
    "split": lambda x: ops.split(x, ops.constant(np.int64(1)), 2).output(1),
    "variadic": lambda x: ops.variadic_split(x, ops.constant(np.int64(1)), whole(1, -1)).output(1),
    "strided slice": lambda x: ops.strided_slice(x, whole(0, 1), whole(0, 4), whole(1, 2), [1, 0], [1, 0]),
    "slice": lambda x: ops.slice(x, whole(1), whole(5), whole(2), whole(3)),
    "cumulative": lambda x: ops.cum_sum(x, ops.constant(np.int64(2)), False, True),
    "einsum": lambda x: ops.einsum([x, ops.constant(numbers(6, 5))], "bchw,wk->bchk"),
    "largest": lambda x: ops.topk(x, ops.constant(np.int64(3)), 1, "max", "value").output(0),
    "smallest": lambda x: ops.topk(x, ops.constant(np.int64(2)), 3, "min", "value").output(0),
    "nearest": lambda x: resized(x, "nearest", "scales", np.array([2.0, 1.5], np.float32)),
    "linear": lambda x: resized(x, "linear_onnx", "sizes", np.array([9, 4], np.int64)),
    "cubic": lambda x: resized(x, "cubic", "sizes", np.array([9, 7], np.int64)),
    "scaled, version 4": lambda x: ops10.interpolate(
        x, whole(9, 9), ops.constant(np.array([2.0, 1.5], np.float32)), "nearest", "scales", axes=whole(2, 3)
    ),
    "gather": lambda x: ops.gather(x, whole(2, 0), ops.constant(np.int64(1))),
    "pad": lambda x: ops.pad(x, whole(0, 0, 1, 2), whole(0, 0, 0, 1), "reflect"),
    "broadcast": lambda x: ops.broadcast(ops.reduce_max(x, whole(3), keep_dims=True), whole(*SHAPE)),
    "layer norm": lambda x: ops.mvn(x, whole(1, 2, 3), True, 1e-5, "inside_sqrt"),
    "normalize": lambda x: ops.normalize_l2(x, whole(1), 1e-6, "add"),
    "batch norm": lambda x: ops.batch_norm_inference(
        x, numbers(4), numbers(4), numbers(4), np.abs(numbers(4)) + 0.1, 1e-5
    ),
    "shuffle": lambda x: ops.shuffle_channels(x, 1, 2),
    "depth to space": lambda x: ops.depth_to_space(x, "blocks_first", 2),
    "roll": lambda x: ops.roll(x, whole(1, -2), whole(2, 3)),
    "select": lambda x: ops.select(ops.greater(x, ops.constant(np.float32(0.2))), x, ops.negative(x)),
    "not equal": lambda x: ops.select(ops.not_equal(ops.relu(x), ops.constant(np.float32(0))), x, ops.negative(x)),
    "convert like": lambda x: ops.multiply(x, ops.convert_like(whole(3), x)),
    "attention": lambda x: ops.scaled_dot_product_attention(x, ops.negative(x), x),
    "squared difference": lambda x: ops.squared_difference(x, ops.constant(numbers(1, 4, 1, 1))),
}


@pytest.mark.parametrize("name", BUILT)
def test_operator_computes_what_openvino_computes(tmp_path, name):
    given = ops.parameter([*SHAPE], np.float32, name="x")
    result = BUILT[name](given)
    model = openvino.Model([result], [given], "small")
    path = tmp_path / "model.xml"
    openvino.serialize(model, str(path), str(path.with_suffix(".bin")))
    network = read_ir(path)
    with torch.no_grad():
        compiled = compile_network(network, path)
    assert compiled.unsupported == ()
    images = numbers(*SHAPE)
    served = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    expected = served(images)[0]
    points = torch.from_numpy(images).requires_grad_(True)
    found = Graph(compiled, network.input, network.output)(points)
    assert found.shape == expected.shape
    assert np.allclose(found.detach().numpy(), expected, atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad((found * torch.linspace(0.5, 1.5, found.numel()).view_as(found)).sum(), points)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_every_rule_of_the_ir_has_a_case():
    built = set()
    for build in BUILT.values():
        given = ops.parameter([*SHAPE], np.float32, name="x")
        built |= {op.get_type_name() for op in openvino.Model([build(given)], [given], "small").get_ops()}
    inner = {"MergeGroups"}  # made of GroupConvolution's weights
    assert set(RULES) - built - inner == set()


def test_gradient_of_fake_quantize_passes_inside_its_range_and_stops_outside(tmp_path):
    given = ops.parameter([1, 3], np.float32, name="x")
    model = openvino.Model([fake_quantize(given)], [given], "small")
    openvino.serialize(model, str(tmp_path / "model.xml"), str(tmp_path / "model.bin"))
    network = read_ir(tmp_path / "model.xml")
    graph = Graph(compile_network(network, tmp_path / "model.xml"), network.input, network.output)
    points = torch.tensor([[-3.0, 0.21, 2.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(graph(points).sum(), points)
    assert gradient[0].tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-5)


def test_operator_without_a_rule_is_named(tmp_path):
    given = ops.parameter([*SHAPE], np.float32, name="x")
    model = openvino.Model([ops.grn(given, 0.1)], [given], "small")
    openvino.serialize(model, str(tmp_path / "model.xml"), str(tmp_path / "model.bin"))
    compiled = compile_network(read_ir(tmp_path / "model.xml"), tmp_path / "model.xml")
    assert compiled.unsupported == ("openvino.GRN",)
