"""Quantised operators, with straight-through gradients that respect saturation.

A quantised tensor is carried as the floats of its whole numbers, because torch sends no gradient through integers:
values are those of the runtime, exactly, and the gradient of quantize is 1 / scale where the value is inside the range
and 0 where it is cut off (Bengio et al. 2013; Jacob et al. 2018). What a runtime fuses (say, a convolution in int8)
it may round in another place: such files agree with their twin to a step of quantisation, not to float precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from edgeprune.robustness.twin import elementwise, windows
from edgeprune.robustness.twin.elementwise import straight_through
from edgeprune.robustness.twin.node import Compute, Node, Rule, Unsupported
from edgeprune.robustness.twin.windows import conv

RANGES: Mapping[int, tuple[int, int]] = {
    2: (0, 255),
    3: (-128, 127),
    4: (0, 65535),
    5: (-32768, 32767),
    6: (-(2**31), 2**31 - 1),
    21: (0, 15),
    22: (-8, 7),
}
"""ONNX element type to the smallest and the largest value."""

Range = tuple[int, int]


def quantise(x: Tensor, scale: Tensor, zero: Tensor, limits: Range) -> Tensor:
    """Floats of whole numbers: x / scale, rounded half to even, shifted, cut off at the limits."""
    steps = x / scale
    return torch.clamp(straight_through(steps.round(), steps) + zero, *limits)


def _floats(values: Tensor) -> Tensor:
    return values if values.is_floating_point() else values.to(torch.float32)


def _zero(zero: Tensor | None) -> Tensor:
    return torch.zeros(()) if zero is None else _floats(zero)


def _shaped(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points, one for all, one for each index of an axis, or one for each block, to lie beside `x`."""
    if values.numel() == 1:
        return values.reshape(()).to(x.device)
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return values.to(x.device).view([-1 if place == axis % x.ndim else 1 for place in range(x.ndim)])


def _limits(node: Node, place: int) -> Range:
    kind = node.kinds[place] if len(node.kinds) > place else 0
    has_zero = len(node.inputs) > place and bool(node.inputs[place])
    if not has_zero:
        kind = node.integer("output_dtype", 0) or 2
    if kind not in RANGES:
        raise Unsupported("a zero point that is computed" if not kind else f"element type {kind}")
    return RANGES[kind]


def _quantize(node: Node) -> Compute:
    axis, block, limits = node.integer("axis", 1), node.integer("block_size", 0), _limits(node, 2)

    def quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        by, shift = (_shaped(values, x, axis, block) for values in (_floats(scale), _zero(zero)))
        return quantise(_floats(x), by, shift, limits)

    return quantize


def _dequantize(node: Node) -> Compute:
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)

    def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        by, shift = (_shaped(values, x, axis, block) for values in (_floats(scale), _zero(zero)))
        return (_floats(x) - shift) * by

    return dequantize


def _dynamic_quantize(_node: Node) -> Compute:
    def quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = x.detach().amin().clamp_max(0), x.detach().amax().clamp_min(0)
        scale = (high - low) / 255
        scale = torch.where(scale > 0, scale, 1.0)
        zero = torch.clamp((-low / scale).round(), 0, 255)
        return quantise(x, scale, zero, (0, 255)), scale, zero

    return quantize


def _conv_integer(node: Node) -> Compute:
    convolve = conv(node)

    def compute(x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None) -> Tensor:
        shift = _shaped(_zero(w_zero), weight, 0, 0)
        result: Tensor = convolve(_floats(x) - _zero(x_zero), _floats(weight) - shift)
        return result

    return compute


def _matmul_integer(_node: Node) -> Compute:
    def compute(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
        left = _shaped(_zero(a_zero), a, -2, 0)
        return (_floats(a) - left) @ (_floats(b) - _shaped(_zero(b_zero), b, -1, 0))

    return compute


def _q_linear_conv(node: Node) -> Compute:
    convolve, limits = conv(node), _limits(node, 7)

    def compute(*tensors: Any) -> Tensor:
        x, x_scale, x_zero, weight, w_scale, w_zero, y_scale, y_zero, bias = (*tensors, None)[:9]
        per_channel = _shaped(w_scale, weight, 0, 0)
        real = (_floats(weight) - _shaped(_zero(w_zero), weight, 0, 0)) * per_channel
        shift = None if bias is None else _floats(bias) * x_scale * w_scale
        y: Tensor = convolve((_floats(x) - _zero(x_zero)) * x_scale, real, shift)
        return quantise(y, y_scale, _zero(y_zero), limits)

    return compute


def _q_linear_matmul(node: Node) -> Compute:
    limits = _limits(node, 7)

    def compute(*tensors: Any) -> Tensor:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = tensors
        left = (_floats(a) - _shaped(_zero(a_zero), a, -2, 0)) * _shaped(a_scale, a, -2, 0)
        right = (_floats(b) - _shaped(_zero(b_zero), b, -1, 0)) * _shaped(b_scale, b, -1, 0)
        return quantise(left @ right, y_scale, _zero(y_zero), limits)

    return compute


def _q_linear_binary(function: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """ONNX Runtime's own: two quantised tensors in, one out."""

    def rule(node: Node) -> Compute:
        limits = _limits(node, 7)

        def compute(*tensors: Any) -> Tensor:
            a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (*tensors, None)[:8]
            left, right = (_floats(a) - _zero(a_zero)) * a_scale, (_floats(b) - _zero(b_zero)) * b_scale
            return quantise(function(left, right), y_scale, _zero(y_zero), limits)

        return compute

    return rule


def _q_linear_unary(inner: Rule) -> Rule:
    """ONNX Runtime's own: a quantised tensor in, the operator on its real values, a quantised tensor out."""

    def rule(node: Node) -> Compute:
        node.refuse("channels_last", 0)
        real, limits = inner(node), _limits(node, 4)

        def compute(
            x: Tensor, x_scale: Tensor, x_zero: Tensor, y_scale: Tensor, y_zero: Tensor | None = None
        ) -> Tensor:
            return quantise(real((_floats(x) - _zero(x_zero)) * x_scale), y_scale, _zero(y_zero), limits)

        return compute

    return rule


def _q_linear_concat(node: Node) -> Compute:
    axis, limits = node.integer("axis", 0), _limits(node, 1)

    def compute(y_scale: Tensor, y_zero: Tensor, *tensors: Any) -> Tensor:
        triples = zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True)
        real = torch.cat([(_floats(x) - _zero(zero)) * scale for x, scale, zero in triples], axis)
        return quantise(real, y_scale, _zero(y_zero), limits)

    return compute


def _q_gemm(node: Node) -> Compute:
    alpha, first, second = node.real("alpha", 1.0), node.integer("transA", 0), node.integer("transB", 0)
    limits = _limits(node, 8) if len(node.inputs) > 7 and node.inputs[7] else None

    def compute(*tensors: Any) -> Tensor:
        a, a_scale, a_zero, b, b_scale, b_zero, bias, y_scale, y_zero = (*tensors, None, None, None)[:9]
        left = (_floats(a) - _zero(a_zero)) * a_scale
        columns = 0 if second else 1
        right = (_floats(b) - _shaped(_zero(b_zero), b, columns, 0)) * _shaped(b_scale, b, columns, 0)
        product = alpha * ((left.t() if first else left) @ (right.t() if second else right))
        if bias is not None:
            product = product + _floats(bias) * alpha * a_scale * b_scale
        return product if limits is None else quantise(product, y_scale, _zero(y_zero), limits)

    return compute


RULES: Mapping[str, Rule] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _q_linear_conv,
    "QLinearMatMul": _q_linear_matmul,
    "QuantizeLinear": _quantize,
}

MICROSOFT_RULES: Mapping[str, Rule] = {
    "DequantizeLinear": _dequantize,
    "QGemm": _q_gemm,
    "QLinearAdd": _q_linear_binary(torch.add),
    "QLinearAveragePool": _q_linear_unary(windows.RULES["AveragePool"]),
    "QLinearConcat": _q_linear_concat,
    "QLinearGlobalAveragePool": _q_linear_unary(windows.RULES["GlobalAveragePool"]),
    "QLinearLeakyRelu": _q_linear_unary(elementwise.RULES["LeakyRelu"]),
    "QLinearMul": _q_linear_binary(torch.mul),
    "QLinearSigmoid": _q_linear_unary(elementwise.RULES["Sigmoid"]),
    "QuantizeLinear": _quantize,
}
