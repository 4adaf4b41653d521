"""Rules for the way back: how each operator is written down again, and what it makes of a gradient.

Convolutions go back as convolutions with the kernel turned round, strided ones as several
(`edgeprune.robustness.twin.phases`); those of few channels, whose blocks would be mostly padding, and the strided ones
that have no such phases as transposed ones. A maximum passes its gradient to the place that it came from, a
clipped value to nobody, as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from edgeprune.robustness.twin.drafting import BOOL, INT64, Back, Draft, Rule
from edgeprune.robustness.twin.node import Node, Unsupported, numbers
from edgeprune.robustness.twin.phases import FEWEST, phased, woven
from edgeprune.robustness.twin.windows import Window

_FEW = 4
"""Channels up to which a convolution goes back as a transposed one: 24.7 to 15 microseconds an image, from 16 to 3."""


def _passing(draft: Draft, node: Node) -> Back:
    draft.put("Identity", [draft.given(node.inputs[0])], node.outputs[0])
    return lambda gradient: [(0, gradient)]


def _reshaping(draft: Draft, node: Node) -> Back:
    """Whatever only changes the shape of an image: the sizes are those that were seen."""
    draft.put("Identity", [draft.like(draft.given(node.inputs[0]), node.outputs[0])], node.outputs[0])
    return lambda gradient: [(0, draft.like(gradient, node.inputs[0]))]


def _transpose(draft: Draft, node: Node) -> Back:
    order = node.integers("perm") or tuple(reversed(range(len(draft.shapes[node.inputs[0]]))))
    draft.put("Transpose", [draft.given(node.inputs[0])], node.outputs[0], perm=list(order))
    inverse = [order.index(axis) for axis in range(len(order))]
    return lambda gradient: [(0, draft.put("Transpose", [gradient], perm=inverse))]


def _two(draft: Draft, node: Node) -> tuple[str, str]:
    """Both inputs; what varies must have the shape of the result, for its gradient has."""
    for name in filter(draft.varies, node.inputs):
        if draft.shapes.get(name) != draft.shapes[node.outputs[0]]:
            raise Unsupported(f"{node.label} (an input that is spread out)")
    return draft.given(node.inputs[0]), draft.given(node.inputs[1])


def _add(draft: Draft, node: Node) -> Back:
    draft.put("Add", list(_two(draft, node)), node.outputs[0])
    places = [place for place, name in enumerate(node.inputs) if draft.varies(name)]
    return lambda gradient: [(place, gradient) for place in places]


def _changes_nothing(draft: Draft, node: Node, neutral: float) -> bool:
    """Whether the second input is a constant of nothing but `neutral`, which widens nothing: no mean, or no scale."""
    if draft.varies(node.inputs[1]) or not draft.varies(node.inputs[0]):
        return False
    same = draft.shapes[node.inputs[0]] == draft.shapes[node.outputs[0]]
    return same and bool((draft.constants[node.inputs[1]] == neutral).all())


def _sub(draft: Draft, node: Node) -> Back:
    if _changes_nothing(draft, node, 0.0):
        return _passing(draft, node)
    draft.put("Sub", list(_two(draft, node)), node.outputs[0])
    first, second = map(draft.varies, node.inputs)

    def back(gradient: str) -> list[tuple[int, str]]:
        return [(0, gradient)] * first + ([(1, draft.put("Neg", [gradient]))] if second else [])

    return back


def _mul(draft: Draft, node: Node) -> Back:
    names = _two(draft, node)
    draft.put("Mul", list(names), node.outputs[0])
    places = [place for place, name in enumerate(node.inputs) if draft.varies(name)]
    return lambda gradient: [(place, draft.put("Mul", [gradient, names[1 - place]])) for place in places]


def _div(draft: Draft, node: Node) -> Back:
    if _changes_nothing(draft, node, 1.0):
        return _passing(draft, node)
    top, bottom = _two(draft, node)
    if draft.varies(node.inputs[1]):
        raise Unsupported("Div by what varies")
    draft.put("Div", [top, bottom], node.outputs[0])
    return lambda gradient: [(0, draft.put("Div", [gradient, bottom]))]


# ------------------------------------------------------------------------------------------------- activations


def _mask(draft: Draft, op: str, inputs: list[str], like: str) -> str:
    """Where a condition holds, in the shape of `like`: written on the way there, so that bits are kept, not numbers."""
    name = draft.put(op, inputs)
    draft.kinds[name], draft.shapes[name] = BOOL, draft.shapes[like]
    return name


def _where(draft: Draft, gradient: str, condition: str) -> str:
    return draft.put("Mul", [gradient, draft.put("Cast", [condition], to=1)])


def _relu(draft: Draft, node: Node) -> Back:
    name = draft.put("Relu", [draft.given(node.inputs[0])], node.outputs[0])
    on = _mask(draft, "Greater", [name, draft.fixed(np.array(0, np.float32))], name)
    return lambda gradient: [(0, _where(draft, gradient, on))]


def _leaky(draft: Draft, node: Node) -> Back:
    given, slope = draft.given(node.inputs[0]), node.real("alpha", 0.01)
    name = draft.put("LeakyRelu", [given], node.outputs[0], alpha=slope)
    low = draft.fixed(np.array(slope, np.float32))
    on = _mask(draft, "Greater", [given, draft.fixed(np.array(0, np.float32))], name)

    def back(gradient: str) -> list[tuple[int, str]]:
        less = draft.put("Mul", [gradient, low])
        return [(0, draft.put("Where", [on, gradient, less]))]

    return back


def _clip(draft: Draft, node: Node) -> Back:
    low, high = node.real("min", -math.inf), node.real("max", math.inf)
    for place, name in enumerate(node.inputs[1:3]):
        if name:
            if draft.varies(name):
                raise Unsupported("Clip to what varies")
            low, high = (float(draft.constants[name]), high) if place == 0 else (low, float(draft.constants[name]))
    ends = [draft.fixed(np.array(end, np.float32)) for end in (low, high)]
    given = draft.given(node.inputs[0])
    name = draft.put("Clip", [given, *ends], node.outputs[0])
    inside = [draft.put("GreaterOrEqual", [given, ends[0]]), draft.put("LessOrEqual", [given, ends[1]])]
    on = _mask(draft, "And", inside, name)
    return lambda gradient: [(0, _where(draft, gradient, on))]


def _sigmoid(draft: Draft, node: Node) -> Back:
    name = draft.put("Sigmoid", [draft.given(node.inputs[0])], node.outputs[0])
    one = draft.fixed(np.array(1, np.float32))

    def back(gradient: str) -> list[tuple[int, str]]:
        slope = draft.put("Mul", [name, draft.put("Sub", [one, name])])
        return [(0, draft.put("Mul", [gradient, slope]))]

    return back


def _tanh(draft: Draft, node: Node) -> Back:
    name = draft.put("Tanh", [draft.given(node.inputs[0])], node.outputs[0])
    one = draft.fixed(np.array(1, np.float32))

    def back(gradient: str) -> list[tuple[int, str]]:
        slope = draft.put("Sub", [one, draft.put("Mul", [name, name])])
        return [(0, draft.put("Mul", [gradient, slope]))]

    return back


# ------------------------------------------------------------------------------------------------- sums of products


def _fixed_weights(draft: Draft, node: Node) -> None:
    if any(name and draft.varies(name) for name in node.inputs[1:]):
        raise Unsupported(f"{node.label} (weights that vary)")
    if not draft.varies(node.inputs[0]):
        raise Unsupported(f"{node.label} (of constants)")


def _gemm(draft: Draft, node: Node) -> Back:
    _fixed_weights(draft, node)
    if node.integer("transA", 0) or node.real("alpha", 1.0) != 1.0 or node.real("beta", 1.0) != 1.0:
        raise Unsupported("Gemm (transposed or scaled)")
    turned, inputs = node.integer("transB", 0), [draft.given(name) for name in node.inputs if name]
    draft.put("Gemm", inputs, node.outputs[0], transB=turned)
    weight = draft.constants[node.inputs[1]]
    back = draft.fixed(weight if turned else weight.T)
    return lambda gradient: [(0, draft.put("MatMul", [gradient, back]))]


def _matmul(draft: Draft, node: Node) -> Back:
    _fixed_weights(draft, node)
    weight = draft.constants[node.inputs[1]]
    if weight.ndim != 2:
        raise Unsupported("MatMul (a stack of matrices)")
    draft.put("MatMul", [draft.given(name) for name in node.inputs], node.outputs[0])
    back = draft.fixed(weight.T)
    return lambda gradient: [(0, draft.put("MatMul", [gradient, back]))]


def _batch_norm(draft: Draft, node: Node) -> Back:
    _fixed_weights(draft, node)
    node.only_first_output()
    if node.integer("training_mode", 0) or node.integer("spatial", 1) != 1:
        raise Unsupported("BatchNormalization (of the batch)")
    scale, bias, mean, var = (draft.constants[name].double() for name in node.inputs[1:5])
    factor = scale / torch.sqrt(var + node.real("epsilon", 1e-5))
    shape = (-1, *(1,) * (len(draft.shapes[node.inputs[0]]) - 2))
    slope = draft.fixed(factor.float().view(shape))
    shift = draft.fixed((bias - mean * factor).float().view(shape))
    draft.put("Add", [draft.put("Mul", [draft.given(node.inputs[0]), slope]), shift], node.outputs[0])
    return lambda gradient: [(0, draft.put("Mul", [gradient, slope]))]


def _conv(draft: Draft, node: Node) -> Back:
    _fixed_weights(draft, node)
    weight, group = draft.constants[node.inputs[1]], node.integer("group", 1)
    window = Window.of(node, tuple(weight.shape[2:]))
    sizes, results = draft.shapes[node.inputs[0]][2:], draft.shapes[node.outputs[0]][2:]
    padding = window.padding(sizes)
    said: dict[str, Any] = {
        "group": group,
        "strides": list(window.strides),
        "dilations": list(window.dilations),
        "kernel_shape": list(window.kernel),
    }
    pads = [before for before, _ in padding] + [after for _, after in padding]
    inputs = [draft.given(name) for name in node.inputs if name]
    draft.put("Conv", inputs, node.outputs[0], pads=pads, **said)
    turned = [reach - 1 - pad for reach, pad in zip(window.reach * 2, pads, strict=True)]
    if all(step == 1 for step in window.strides) and min(turned) >= 0 and draft.shapes[node.inputs[0]][1] > _FEW:
        kernel = draft.fixed(_turned(weight, group))
        return lambda gradient: [(0, draft.put("Conv", [gradient, kernel], pads=turned, **said))]
    phases = phased(window, group, sizes, results)
    if phases and draft.shapes[node.inputs[0]][1] >= FEWEST:
        return lambda gradient: [(0, woven(draft, gradient, weight, phases, sizes))]
    reached = [
        (count - 1) * step - sum(pair) + reach
        for count, step, pair, reach in zip(results, window.strides, padding, window.reach, strict=True)
    ]
    more = [size - end for size, end in zip(sizes, reached, strict=True)]
    if any(not 0 <= extra < step for extra, step in zip(more, window.strides, strict=True)):
        raise Unsupported("Conv (pixels that no window reads)")
    kernel = draft.fixed(weight)
    back: dict[str, Any] = {**said, "pads": pads, "output_padding": more}
    return lambda gradient: [(0, draft.put("ConvTranspose", [gradient, kernel], **back))]


def _turned(weight: torch.Tensor, group: int) -> torch.Tensor:
    """A kernel (O, I / group, ...) turned round for the way from its outputs to its inputs: (I, O / group, ...)."""
    outputs, inputs, *taps = weight.shape
    grouped = weight.reshape(group, outputs // group, inputs, *taps).transpose(1, 2)
    return grouped.reshape(group * inputs, outputs // group, *taps).flip(*range(2, weight.ndim))


# ------------------------------------------------------------------------------------------------- pooling


def _average(draft: Draft, node: Node) -> Back:
    window, whole = Window.of(node, node.integers("kernel_shape") or ()), draft.shapes[node.inputs[0]]
    padding = window.padding(whole[2:])
    tiled = window.kernel == window.strides and not any(map(any, padding))
    fits = all(size % step == 0 for size, step in zip(whole[2:], window.strides, strict=True))
    if not (tiled and fits) or any(step != 1 for step in window.dilations):
        raise Unsupported("AveragePool (windows that overlap, or padding)")
    said: dict[str, Any] = {"kernel_shape": list(window.kernel), "strides": list(window.strides)}
    draft.put("AveragePool", [draft.given(node.inputs[0])], node.outputs[0], **said)
    share = draft.fixed(np.array(1 / math.prod(window.kernel), np.float32))
    scales = draft.fixed(np.array([1, 1, *window.kernel], np.float32))

    def back(gradient: str) -> list[tuple[int, str]]:
        each = draft.put("Mul", [gradient, share])
        said = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return [(0, draft.put("Resize", [each, "", scales], None, 1, mode="nearest", **said))]

    return back


def _mean(draft: Draft, node: Node) -> Back:
    """The mean of every channel: GlobalAveragePool, or ReduceMean over all pixels."""
    shape = draft.shapes[node.inputs[0]]
    pixels = tuple(range(2, len(shape)))
    if node.op == "ReduceMean":
        said = node.integers("axes") or tuple(
            numbers(draft.constants[node.inputs[1]] if len(node.inputs) > 1 else None) or ()
        )
        if tuple(sorted(axis % len(shape) for axis in said)) != pixels:
            raise Unsupported("ReduceMean (of other axes)")
    mean = draft.put("GlobalAveragePool", [draft.given(node.inputs[0])])
    draft.put("Identity", [draft.like(mean, node.outputs[0])], node.outputs[0])
    share = draft.fixed(np.full((1, 1, *shape[2:]), 1 / math.prod(shape[2:]), np.float32))
    one = draft.whole(-1, shape[1], *(1 for _ in pixels))

    def back(gradient: str) -> list[tuple[int, str]]:
        return [(0, draft.put("Mul", [draft.put("Reshape", [gradient, one]), share]))]

    return back


def _max_pool(draft: Draft, node: Node) -> Back:
    node.only_first_output()
    window = Window.of(node, node.integers("kernel_shape") or ())
    given, padding = draft.given(node.inputs[0]), window.padding(draft.shapes[node.inputs[0]][2:])
    pads = [before for before, _ in padding] + [after for _, after in padding]
    said: dict[str, Any] = {
        "kernel_shape": list(window.kernel),
        "strides": list(window.strides),
        "dilations": list(window.dilations),
    }
    name = draft.put("MaxPool", [given], node.outputs[0], outputs=2, pads=pads, ceil_mode=int(window.ceil), **said)
    flat = draft.whole(-1)
    draft.kinds[f"{name}~1"], draft.shapes[f"{name}~1"] = INT64, draft.shapes[name]

    def back(gradient: str) -> list[tuple[int, str]]:
        shape = draft.put("Shape", [given])
        empty = draft.put("ConstantOfShape", [draft.put("ReduceProd", [shape], keepdims=1)])
        places, values = (draft.put("Reshape", [each, flat]) for each in (f"{name}~1", gradient))
        spread = draft.put("ScatterElements", [empty, places, values], axis=0, reduction="add")
        return [(0, draft.put("Reshape", [spread, shape]))]

    return back


def _concat(draft: Draft, node: Node) -> Back:
    axis = node.integer("axis", 1) % len(draft.shapes[node.outputs[0]])
    if axis == 0 or not all(map(draft.varies, node.inputs)):
        raise Unsupported("Concat (of constants, or of images)")
    draft.put("Concat", [draft.given(name) for name in node.inputs], node.outputs[0], axis=axis)
    ends = np.cumsum([0, *(draft.shapes[name][axis] for name in node.inputs)])

    def back(gradient: str) -> list[tuple[int, str]]:
        return [
            (place, draft.put("Slice", [gradient, *(draft.whole(int(at)) for at in (*ends[place : place + 2], axis))]))
            for place in range(len(node.inputs))
        ]

    return back


RULES: Mapping[str, Rule] = {
    "Add": _add,
    "AveragePool": _average,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Dropout": _passing,
    "Flatten": _reshaping,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "Identity": _passing,
    "LeakyRelu": _leaky,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "ReduceMean": _mean,
    "Relu": _relu,
    "Reshape": _reshaping,
    "Sigmoid": _sigmoid,
    "Squeeze": _reshaping,
    "Sub": _sub,
    "Tanh": _tanh,
    "Transpose": _transpose,
    "Unsqueeze": _reshaping,
}
"""Operator of ONNX's own domain to its rule."""
