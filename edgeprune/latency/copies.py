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
    from torch import Tensor, nn

    from edgeprune.types import Floats, ModelBundle

POOL = "pooled"


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
        shape = (batch, self.size[0], inputs) if self.kind == "linear" else (batch, inputs, *self.size)
        return np.random.default_rng(0).random(shape, dtype=np.float32)


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
    from onnx import TensorProto, helper, numpy_helper, save

    draw = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: list[Any] = []
    last = ""
    for copy in range(copies):
        bias = draw.standard_normal(outputs).astype(np.float32)
        weight = (0.05 * draw.standard_normal(_weight_shape(operator, outputs, inputs))).astype(np.float32)
        weights += [numpy_helper.from_array(weight, f"weight{copy}"), numpy_helper.from_array(bias, f"bias{copy}")]
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
    shape = list(operator.image(1, inputs).shape[1:])
    graph = helper.make_graph(
        nodes,
        "copies",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(POOL, TensorProto.FLOAT, ["batch", outputs])],
        weights,
    )
    # IR 10 and opset 18: old enough for every runtime version that edgeprune admits.
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


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
