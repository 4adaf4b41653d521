"""An OpenVINO IR as data: its graph through OpenVINO's Python API, in the words that the twin's table knows.

Promise: an operator that ONNX has is given ONNX's name, so that one table serves both formats; the others keep theirs
in the domain "openvino" (`edgeprune.robustness.twin.ir_rules`); one that neither has is kept, and the table names it.
Compressed weights (half floats, whole numbers with scales) come as the graph holds them and are folded.

Refusals: a file that OpenVINO cannot read, several inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import ModelError
from edgeprune.robustness.twin.ir_rules import DOMAIN
from edgeprune.robustness.twin.node import Node, Unsupported
from edgeprune.robustness.twin.reading import Network

PARENT = ("edgeprune", "parent_digest")
_OPSET = 23  # of ONNX: how the translated operators take their inputs
_ELEMENTS = {"f32": 1, "f16": 10, "f64": 11}
Attributes = Mapping[str, Any]

_SAME = {
    **{
        name: name for name in ("Abs", "Concat", "Cos", "Elu", "Equal", "Erf", "Exp", "Floor", "Greater", "Less", "Log")
    },
    **{name: name for name in ("LogSoftmax", "Mish", "Relu", "Reshape", "Sigmoid", "Sign", "Sin", "Softmax", "Sqrt")},
    **{name: name for name in ("Squeeze", "Tanh", "Tile", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "Gelu", "LRN")},
    **{f"Reduce{name}": f"Reduce{name}" for name in ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum")},
    **{"Add": "Add", "Subtract": "Sub", "Multiply": "Mul", "Divide": "Div", "Power": "Pow"},
    **{"Maximum": "Max", "Minimum": "Min", "Negative": "Neg", "Ceiling": "Ceil", "HSwish": "HardSwish"},
    **{"SoftPlus": "Softplus", "SoftSign": "Softsign", "GreaterEqual": "GreaterOrEqual", "LessEqual": "LessOrEqual"},
    **{"LogicalAnd": "And", "LogicalOr": "Or", "LogicalNot": "Not", "Select": "Where", "ShapeOf": "Shape"},
    **{"Convolution": "Conv", "GroupConvolution": "Conv", "ConvolutionBackpropData": "ConvTranspose"},
    **{"GroupConvolutionBackpropData": "ConvTranspose", "MaxPool": "MaxPool", "AvgPool": "AveragePool"},
    **{"Transpose": "Transpose", "Pad": "Pad", "BatchNormInference": "BatchNormalization", "Slice": "Slice"},
    **{"GroupNormalization": "GroupNormalization", "FloorMod": "Mod", "Range": "Range"},
    **{"CumSum": "CumSum", "Einsum": "Einsum", "Interpolate": "Resize", "TopK": "TopK"},
}
"""IR operator to ONNX's, where one rule serves both."""


def read_ir(path: Path) -> Network:
    """Read an IR; ModelError for what the module's docstring refuses, Unsupported for constants torch has no type for.

    Weights are read from the .bin beside the file, as OpenVINO itself does.
    """
    import openvino

    try:
        model = openvino.Core().read_model(str(path))
    except Exception as error:  # OpenVINO raises RuntimeError and classes of its own
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ModelError(f"OpenVINO cannot read {path}: {last}", hint="is the .bin beside it?") from error
    parameters, results = model.get_parameters(), model.get_results()
    if len(parameters) != 1 or not results:
        raise ModelError(f"{path} takes {len(parameters)} inputs: a classifier of images takes one")
    reader = _Reader()
    for op in model.get_ordered_ops():
        reader.take(op)
    shape = parameters[0].get_partial_shape()
    dimensions = () if shape.rank.is_dynamic else tuple(d.get_length() if d.is_static else None for d in shape)
    return Network(
        nodes=tuple(reader.nodes),
        constants=reader.constants,
        kinds={},
        input=reader.name_of(parameters[0].output(0)),
        output=reader.name_of(results[0].input_value(0)),
        dimensions=dimensions,
        element=_ELEMENTS.get(parameters[0].get_element_type().get_type_name(), 0),
        opset=_OPSET,
        producer=f"OpenVINO {openvino.get_version()}",
        parent=parent_in(model),
    )


def parent_in(model: Any) -> str | None:
    """Digest of the weights that edgeprune exported, as the IR notes it; None for a foreign one."""
    if not model.has_rt_info(list(PARENT)):
        return None
    return str(model.get_rt_info(list(PARENT)).astype(str))


class _Reader:
    """The nodes and constants so far; outputs are named by the position of their operator, since names may repeat."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self._places: dict[str, int] = {}

    def name_of(self, output: Any) -> str:
        """The name of an operator's output; OpenVINO's own names of operators are unique in a graph."""
        return f"{output.get_node().get_name()}:{output.get_index()}"

    def take(self, op: Any) -> None:
        """Enter one operator."""
        kind = op.get_type_name()
        if kind in ("Parameter", "Result"):
            return
        if kind == "Constant":
            self.constants[self.name_of(op.output(0))] = _constant(op)
            return
        inputs = tuple(self.name_of(op.input_value(i)) for i in range(op.get_input_size()))
        outputs = tuple(
            self.name_of(output) if not place or output.get_target_inputs() else ""
            for place, output in enumerate(op.outputs())
        )
        given = dict(op.get_attributes())
        if kind in _SAME:
            self.nodes.extend(_translated(kind, op, inputs, outputs, given, self.constants))
            return
        attributes = {name: getattr(value, "name", value) for name, value in given.items()}
        self.nodes.append(Node(kind, DOMAIN, inputs, outputs, attributes, 1))


def _translated(
    kind: str,
    op: Any,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    given: Attributes,
    constants: dict[str, Tensor],
) -> list[Node]:
    """The operator as ONNX says it: one node, or two where weights or paddings are laid out otherwise."""
    before: list[Node] = []
    if kind.startswith("Group") and "Convolution" in kind:
        merged = f"{inputs[1]}//merged"
        before.append(Node("MergeGroups", DOMAIN, (inputs[1],), (merged,), {}, 1))
        given = {**given, "group": int(op.input_value(1).get_partial_shape()[0].get_length())}
        inputs = (inputs[0], merged, *inputs[2:])
    if kind == "Pad":
        joined = f"{outputs[0]}//pads"
        before.append(Node("Concat", "", inputs[1:3], (joined,), {"axis": 0}, _OPSET))
        inputs = (inputs[0], joined, *inputs[3:])
    if kind == "Slice" and len(inputs) > 4:
        inputs = (*inputs[:3], inputs[4], inputs[3])
    elif kind == "Slice":
        raise Unsupported("Slice (without axes)")
    if kind == "BatchNormInference" and str(op.get_type_info().version_id) == "opset1":
        inputs = (inputs[2], inputs[0], inputs[1], *inputs[3:])
    if kind == "Transpose":
        order = constants.get(inputs[1])
        if order is None:
            raise Unsupported("Transpose (an order that is computed)")
        given, inputs = {"perm": [int(axis) for axis in order]}, inputs[:1]
    if kind == "Interpolate":
        axes = constants.get(inputs[-1]) if len(inputs) > 2 else torch.arange(len(op.get_input_partial_shape(0)))
        if axes is None:
            raise Unsupported("Interpolate (axes that are computed)")
        by_sizes = str(given["shape_calculation_mode"]).lower() == "sizes"
        wanted = inputs[1 if by_sizes or len(inputs) < 4 else 2]  # version 4 has sizes and scales, 11 one of both
        given = {**given, "axes": axes.reshape(-1).tolist()}
        inputs = (inputs[0], "", "", wanted) if by_sizes else (inputs[0], "", wanted)
    if kind == "LRN":
        inputs = inputs[:1]
    maker = _ATTRIBUTES.get(kind)
    attributes = maker(given) if maker else _plain(given)
    return [*before, Node(_SAME[kind], "", inputs, outputs, attributes, _OPSET)]


def _constant(op: Any) -> Tensor:
    kind = op.get_element_type().get_type_name()
    if kind in ("f16", "bf16", "f32"):
        values = op.get_data(dtype=np.float32)
    elif kind in ("f64", "i8", "i16", "i32", "i64", "u8", "boolean"):
        values = op.get_data()
    elif kind in ("u16", "u32", "u64", "u4", "i4"):
        values = op.get_data(dtype=np.int64)
    else:
        raise Unsupported(f"a constant of element type {kind}")
    return torch.from_numpy(np.array(values))


# --------------------------------------------------------------------------------------------- attributes


def _plain(given: Attributes) -> dict[str, Any]:
    return {{"keep_dims": "keepdims"}.get(name, name): value for name, value in given.items()}


def _window(given: Attributes) -> dict[str, Any]:
    auto = str(given.get("auto_pad", "explicit")).lower()
    found: dict[str, Any] = {
        "strides": list(given["strides"]),
        "pads": [*given["pads_begin"], *given["pads_end"]],
        "auto_pad": {"explicit": "NOTSET"}.get(auto, auto.upper()),
    }
    for theirs, ours in (("dilations", "dilations"), ("kernel", "kernel_shape"), ("output_padding", "output_padding")):
        if theirs in given:
            found[ours] = list(given[theirs])
    if "group" in given:
        found["group"] = given["group"]
    if "rounding_type" in given:
        found["ceil_mode"] = int(str(given["rounding_type"]).lower().startswith("ceil"))
    if "exclude-pad" in given:
        found["count_include_pad"] = int(not given["exclude-pad"])
    return found


def _gelu(given: Attributes) -> dict[str, Any]:
    return {"approximate": "tanh" if str(given.get("approximation_mode", "erf")).lower() == "tanh" else "none"}


def _depth_to_space(given: Attributes) -> dict[str, Any]:
    mode = "DCR" if str(given.get("mode")).lower() == "blocks_first" else "CRD"
    return {"blocksize": given["block_size"], "mode": mode}


def _pad(given: Attributes) -> dict[str, Any]:
    mode = str(given.get("pad_mode", "constant")).lower()
    if mode not in ("constant", "edge", "reflect"):
        raise Unsupported(f"Pad (pad_mode={mode})")
    return {"mode": mode}


def _interpolate(given: Attributes) -> dict[str, Any]:
    mode = str(given["mode"]).lower()
    if mode not in ("nearest", "linear", "linear_onnx", "cubic") or any([*given["pads_begin"], *given["pads_end"]]):
        raise Unsupported(f"Interpolate (mode={mode}, or padded)")
    return {
        "mode": mode.removesuffix("_onnx"),
        "coordinate_transformation_mode": str(given["coordinate_transformation_mode"]).lower(),
        "nearest_mode": str(given["nearest_mode"]).lower(),
        "antialias": int(bool(given["antialias"])),
        "cubic_coeff_a": float(given["cube_coeff"]),
        "axes": given["axes"],
    }


def _top_k(given: Attributes) -> dict[str, Any]:
    return {"axis": given["axis"], "largest": int(str(given["mode"]).lower() == "max")}


_ATTRIBUTES: Mapping[str, Callable[[Attributes], dict[str, Any]]] = {
    **dict.fromkeys(("Convolution", "GroupConvolution", "ConvolutionBackpropData"), _window),
    **dict.fromkeys(("GroupConvolutionBackpropData", "MaxPool", "AvgPool"), _window),
    "BatchNormInference": lambda given: {"epsilon": given["epsilon"]},
    "CumSum": lambda given: {name: int(bool(given[name])) for name in ("exclusive", "reverse")},
    "DepthToSpace": _depth_to_space,
    "FloorMod": lambda _given: {},
    "Gelu": _gelu,
    "Interpolate": _interpolate,
    "LRN": lambda given: {name: given[name] for name in ("alpha", "beta", "bias", "size")},
    "Pad": _pad,
    "Reshape": lambda given: {"allowzero": int(not given.get("special_zero", False))},
    "ShapeOf": lambda _given: {},
    "SpaceToDepth": lambda given: {"blocksize": given["block_size"]},
    "TopK": _top_k,
    "Transpose": dict,
}
