"""Quantised operators of the twin against ONNX Runtime, and what their gradients are."""

import numpy as np
import pytest
from twin_examples import IMAGE, RANDOM, compare, floats, graph_of, node, number, positive

Q = {"s": number(0.05), "z": number(120, np.uint8)}
AXIS = {"s": positive(4) * 0.05, "z": np.array([-3, 0, 5, 7], np.int8)}
WHOLE = {"q": RANDOM.integers(-128, 127, (6, 4, 3, 2)).astype(np.int8)}


def quantised(op, inputs, constants, opset, *, after=(), **attributes):
    return graph_of([node(op, inputs, "q", **attributes), *after], opset, IMAGE, constants)


@pytest.mark.parametrize(
    ("opset", "constants", "attributes"), [(10, Q, {}), (13, Q, {}), (13, AXIS, {"axis": 1}), (21, AXIS, {"axis": 1})]
)
def test_quantise_and_back(tmp_path, opset, constants, attributes):
    back = node("DequantizeLinear", "q s z", **attributes)
    model = quantised("QuantizeLinear", "x s z", constants, opset, after=[back], **attributes)
    gradient = compare(tmp_path, model, 4 * floats(*IMAGE), optimised=False)
    assert (gradient == 0).any()
    assert (gradient != 0).any()


def test_quantise_by_blocks(tmp_path):
    constants = {"s": positive(2, 2, 7, 6) * 0.05, "z": np.zeros((2, 2, 7, 6), np.int8)}
    back = node("DequantizeLinear", "q s z", axis=1, block_size=2)
    model = quantised("QuantizeLinear", "x s z", constants, 21, after=[back], axis=1, block_size=2)
    compare(tmp_path, model, floats(*IMAGE), optimised=False)


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_quantise_to_sixteen_bits(tmp_path, kind):
    constants = {"s": number(1e-4), "z": number(0, kind)}
    back = node("DequantizeLinear", "q s z")
    compare(
        tmp_path, quantised("QuantizeLinear", "x s z", constants, 21, after=[back]), floats(*IMAGE), optimised=False
    )


def test_dynamically_quantised_product(tmp_path):
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"),
        node("MatMulInteger", "q w z wz", "whole"),
        node("Cast", "whole", "real", to=1),
        node("Mul", "real s"),
    ]
    constants = {"w": RANDOM.integers(0, 255, (6, 5)).astype(np.uint8), "wz": number(128, np.uint8)}
    gradient = compare(tmp_path, graph_of(nodes, 11, (3, 6), constants), floats(3, 6), optimised=False)
    assert (gradient != 0).all()


@pytest.mark.parametrize("zeros", [np.array(3, np.int8), RANDOM.integers(-5, 5, 6).astype(np.int8)])
def test_quantised_convolution(tmp_path, zeros):
    scales = positive(*zeros.shape) * 0.01
    zero = np.zeros_like(zeros)
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("QLinearConv", "q s z w ws wz ys yz b", "r", pads=[1, 1, 1, 1]),
        node("DequantizeLinear", "r ys yz"),
    ]
    # Seven bits: with eight, results differed by up to 2.2 on a processor without VNNI, where ONNX Runtime's documents
    # say that sums of two products may saturate.
    weights = WHOLE["q"] // 2
    constants = {**Q, "w": weights, "ws": scales, "wz": zero, "ys": number(0.2), "yz": number(100, np.uint8)}
    constants["b"] = RANDOM.integers(-200, 200, 6).astype(np.int32)
    compare(tmp_path, graph_of(nodes, 10, IMAGE, constants), floats(*IMAGE), 0.21)  # one step where a sum ties


def test_quantised_products(tmp_path):
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("ConvInteger", "q w z", "c"),
        node("Cast", "c", "f", to=1),
        node("QuantizeLinear", "f ys yz", "p"),
        node("QLinearMatMul", "p ys yz m ms mz ys yz", "r"),
        node("DequantizeLinear", "r ys yz"),
    ]
    constants = {**Q, "w": WHOLE["q"], "ys": number(200.0), "yz": number(100, np.uint8), "mz": number(0, np.int8)}
    constants |= {"m": RANDOM.integers(-128, 127, (5, 3)).astype(np.int8), "ms": number(0.01)}
    compare(tmp_path, graph_of(nodes, 10, IMAGE, constants), floats(*IMAGE), 200.0, optimised=False)


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_onnx_runtimes_own_quantised_arithmetic(tmp_path, op):
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node(op, "q s z q s z ys yz", "r", "com.microsoft"),
        node("QLinearGlobalAveragePool", "r ys yz ys yz", "g", "com.microsoft", channels_last=0),
        node("DequantizeLinear", "g ys yz"),
    ]
    constants = {**Q, "ys": number(0.1), "yz": number(100, np.uint8)}
    compare(tmp_path, graph_of(nodes, 13, IMAGE, constants, domains=["com.microsoft"]), floats(*IMAGE), 0.11)


@pytest.mark.parametrize("bias", [True, False])
def test_onnx_runtimes_own_quantised_layers(tmp_path, bias):
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("QLinearLeakyRelu", "q s z ys yz", "r", "com.microsoft", alpha=0.1),
        node("QLinearSigmoid", "r ys yz ys yz", "g", "com.microsoft"),
        node("QLinearConcat", "ys yz g ys yz q s z", "c", "com.microsoft", axis=1),
        node("QLinearAveragePool", "c ys yz ys yz", "p", "com.microsoft", kernel_shape=[7, 6]),
        node("Flatten", "p", "f"),
        node("QGemm", f"f ys yz w ws wz {'b' if bias else '-'} ys yz", "o", "com.microsoft", transB=1),
        node("DequantizeLinear", "o ys yz"),
    ]
    constants = {**Q, "ys": number(0.03), "yz": number(100, np.uint8), "ws": number(0.01), "wz": number(0, np.int8)}
    constants |= {"w": RANDOM.integers(-99, 99, (3, 8)).astype(np.int8)}
    if bias:
        constants["b"] = RANDOM.integers(-99, 99, 3).astype(np.int32)
    compare(tmp_path, graph_of(nodes, 13, IMAGE, constants, domains=["com.microsoft"]), floats(*IMAGE), 0.031)
