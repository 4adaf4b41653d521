"""What an ONNX file's operators do, by class: the input of an estimate. Reads the graph; runs nothing.

Promise: counts what a runtime computes, after the usual fusions: an activation or a batch norm behind a convolution
costs nothing of its own. A graph whose shapes cannot be inferred is an error, never a guess.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from edgeprune.errors import ModelError
from edgeprune.latency.copies import Operator
from edgeprune.latency.estimate import Work

FUSED = frozenset(
    {
        "Relu",
        "Clip",
        "BatchNormalization",
        "Identity",
        "Flatten",
        "Reshape",
        "Constant",
        "Dropout",
        "Squeeze",
        "Unsqueeze",
    }
)
BYTES = 4
LINEAR = ("Gemm", "MatMul")


def work_of(path: Path, input_shape: tuple[int, int, int]) -> Work:
    """The work of one image of `input_shape` (C, H, W). ModelError when the file is no ONNX or its shapes stay open."""
    import onnx

    try:
        proto = onnx.load(str(path))
        dimensions = proto.graph.input[0].type.tensor_type.shape.dim
        for dimension, size in zip(dimensions, (1, *input_shape), strict=True):
            dimension.dim_value = size
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception as error:  # protobuf and onnx raise families of their own
        raise ModelError(f"cannot read the operators of {path}: {str(error).splitlines()[0]}") from error
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    weights = frozenset(shapes)
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(one.dim_value for one in value.type.tensor_type.shape.dim)
    total = Work()
    for node in graph.node:
        if node.op_type not in FUSED:
            total = total.plus(_work(node, shapes, weights, path))
    return total


def work_of_layer(operator: Operator, outputs: int, inputs: int) -> Work:
    """The work of one layer at these channels, for one image: as `work_of` counts it in a network."""
    positions = operator.size[0]
    if operator.kind == "linear":
        macs, moved = positions * outputs * inputs, positions * (outputs + inputs)
        return Work(linear=float(macs), bytes=float(BYTES * moved), operators=1.0)
    area = prod(
        (
            size
            + operator.pads[axis]
            + operator.pads[axis + 2]
            - operator.dilation[axis] * (operator.kernel[axis] - 1)
            - 1
        )
        // operator.stride[axis]
        + 1
        for axis, size in enumerate(operator.size)
    )
    each = 1 if operator.kind == "depthwise" else inputs / operator.groups
    kind = "depthwise" if operator.kind == "depthwise" or (operator.groups > 1 and each == 1) else "convolution"
    if kind == "convolution" and operator.kernel == (1, 1):
        kind = "pointwise"
    moved = outputs * area + inputs * prod(operator.size)
    work = outputs * each * prod(operator.kernel) * area
    return Work(**{kind: float(work)}, bytes=float(BYTES * moved), operators=1.0)


def _work(node: Any, shapes: dict[str, tuple[int, ...]], weights: frozenset[str], path: Path) -> Work:
    def shape(name: str) -> tuple[int, ...]:
        found = shapes.get(name)
        if found is None or 0 in found:
            raise ModelError(f"the shape of {name} in {path} cannot be inferred", where=f"{node.op_type} {node.name}")
        return found

    out = shape(node.output[0])
    moved = prod(out) + sum(prod(shape(name)) for name in node.input if name and name not in weights)
    work = {"bytes": float(BYTES * moved), "operators": 1.0}
    if node.op_type == "Conv":
        weight = shape(node.input[1])
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        kind = (
            "depthwise" if groups > 1 and weight[1] == 1 else "pointwise" if set(weight[2:]) == {1} else "convolution"
        )
        work[kind] = float(prod(out[2:]) * prod(weight))
    elif node.op_type in LINEAR:
        work["linear"] = float(prod(out) * shape(node.input[0])[-1])
    return Work(**work)
