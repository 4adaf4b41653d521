"""What a layer is to a runtime: the operator, the size it works on, and a small ONNX file of nothing but it.

The file holds several copies of the layer with different weights, all reading the same input and added up behind each
other with a ReLU, so that the runtime fuses what it fuses in a network. The time of one more copy is the layer's own:
starting the session, converting the input to the runtime's layout and the pooling at the end are in every file alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeprune.records import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from edgeprune.types import Floats, ModelBundle

POOL = "pooled"
WEIGHTS = "weights.bin"
PAGE = 4096
"""Where a constant may begin: runtimes map the file into memory, and memory goes by pages."""


class Operator(Record):
    """A layer without its channel counts.

    conv and depthwise work on `size` (height, width of their input), linear on `size[0]` positions. `pads` are top,
    left, bottom, right. `groups` of a convolution; a depthwise one has as many as channels.
    """

    kind: Literal["conv", "depthwise", "linear"]
    size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def key(self) -> str:
        """One line that tells it from every other operator: what a cost is filed under."""
        if self.kind == "linear":
            return f"linear @{self.size[0]}"
        parts = ["x".join(map(str, part)) for part in (self.kernel, self.stride, self.pads, self.dilation)]
        size = "x".join(map(str, self.size))
        return f"{self.kind} k{parts[0]} s{parts[1]} p{parts[2]} d{parts[3]} g{self.groups} @{size}"

    def image(self, batch: int, inputs: int) -> Floats:
        """An input for the file, float32."""
        return np.random.default_rng(0).random((batch, *self.image_shape(inputs)), dtype=np.float32)

    def image_shape(self, inputs: int) -> tuple[int, ...]:
        """The shape of one input."""
        return (self.size[0], inputs) if self.kind == "linear" else (inputs, *self.size)


def operators_of(bundle: ModelBundle) -> dict[str, Operator]:
    """Layer name -> its operator, for the layers that the cost model knows and that run once an image.

    2-D convolutions and linear layers. Others (1-D, 3-D, transposed, called several times) are left out.
    """
    import torch
    from torch import nn

    seen: dict[str, list[tuple[int, ...]]] = {}
    hooks = []
    for name, layer in bundle.module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):

            def note(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                seen.setdefault(name, []).append(tuple(inputs[0].shape))

            hooks.append(layer.register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            bundle.module(torch.zeros(1, *bundle.input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    found = {
        name: _operator(bundle.module.get_submodule(name), shapes[0])
        for name, shapes in seen.items()
        if len(shapes) == 1
    }
    return {name: operator for name, operator in found.items() if operator is not None}


def _operator(layer: nn.Module, shape: tuple[int, ...]) -> Operator | None:
    from torch import nn

    if isinstance(layer, nn.Linear):
        return Operator(kind="linear", size=(int(np.prod(shape[:-1])), 1))
    assert isinstance(layer, nn.Conv2d)
    if len(shape) != 4 or shape[0] != 1:
        return None
    kernel, stride, dilation = _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.dilation)
    if isinstance(layer.padding, str):
        whole = [d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        before, after = [total // 2 for total in whole], [total - total // 2 for total in whole]
    else:
        before = after = list(_pair(layer.padding))
    depthwise = layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels
    return Operator(
        kind="depthwise" if depthwise else "conv",
        size=(shape[2], shape[3]),
        kernel=kernel,
        stride=stride,
        pads=(before[0], before[1], after[0], after[1]),
        dilation=dilation,
        groups=1 if depthwise else layer.groups,
    )


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return value[0], value[1]


def write_copies(operator: Operator, outputs: int, inputs: int, copies: int, path: Path) -> None:
    """Write the ONNX file of `copies` layers from `inputs` to `outputs` channels, batch size open."""
    from onnx import numpy_helper, save

    draw = np.random.default_rng(0)

    def drawn(name: str, shape: tuple[int, ...]) -> Any:
        return numpy_helper.from_array((0.05 * draw.standard_normal(shape)).astype(np.float32), name)

    save(_network(operator, (outputs, inputs), copies, drawn), str(path))


def bare_copies(operator: Operator, outputs: int, inputs: int, copies: int) -> tuple[bytes, int]:
    """The same file without its weights, for a device that makes random ones itself; and the bytes that it reads.

    Weights are ONNX's external data, out of one file `WEIGHTS` beside it: each constant begins a page further, so that
    no two are equal and no runtime takes two copies for one.
    """
    from onnx import TensorProto

    ends: list[int] = []

    def windowed(name: str, shape: tuple[int, ...]) -> Any:
        offset, length = PAGE * len(ends), 4 * int(np.prod(shape))
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        ends.append(offset + length)
        return tensor

    proto = _network(operator, (outputs, inputs), copies, windowed)
    return proto.SerializeToString(deterministic=True), max(ends)


def _network(
    operator: Operator, widths: tuple[int, int], copies: int, constant: Callable[[str, tuple[int, ...]], Any]
) -> Any:
    """The copies as an ONNX ModelProto; `constant` makes a named tensor of a shape."""
    from onnx import TensorProto, helper, numpy_helper

    outputs, inputs = widths
    nodes: list[Any] = []
    weights: list[Any] = []
    last = ""
    for copy in range(copies):
        weights += [
            constant(f"weight{copy}", _weight_shape(operator, outputs, inputs)),
            constant(f"bias{copy}", (outputs,)),
        ]
        nodes += _layer_nodes(operator, outputs, copy)
        made = f"made{copy}"
        if last:
            nodes.append(helper.make_node("Add", [made, last], [f"sum{copy}"]))
            made = f"sum{copy}"
        last = f"active{copy}"
        nodes.append(helper.make_node("Relu", [made], [last]))
    axes = [1] if operator.kind == "linear" else [2, 3]
    weights.append(numpy_helper.from_array(np.array(axes, dtype=np.int64), "axes"))
    nodes.append(helper.make_node("ReduceMean", [last, "axes"], [POOL], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "copies",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *operator.image_shape(inputs)])],
        [helper.make_tensor_value_info(POOL, TensorProto.FLOAT, ["batch", outputs])],
        weights,
    )
    # IR 10 and opset 18: old enough for every runtime version that edgeprune admits.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _weight_shape(operator: Operator, outputs: int, inputs: int) -> tuple[int, ...]:
    if operator.kind == "linear":
        return inputs, outputs
    groups = outputs if operator.kind == "depthwise" else operator.groups
    return outputs, inputs // groups, *operator.kernel


def _layer_nodes(operator: Operator, outputs: int, copy: int) -> list[Any]:
    from onnx import helper

    weight, bias, made = f"weight{copy}", f"bias{copy}", f"made{copy}"
    if operator.kind == "linear":
        product = f"product{copy}"
        return [
            helper.make_node("MatMul", ["images", weight], [product]),
            helper.make_node("Add", [product, bias], [made]),
        ]
    attributes = {
        "kernel_shape": operator.kernel,
        "strides": operator.stride,
        "pads": operator.pads,
        "dilations": operator.dilation,
        "group": outputs if operator.kind == "depthwise" else operator.groups,
    }
    return [helper.make_node("Conv", ["images", weight, bias], [made], **attributes)]
