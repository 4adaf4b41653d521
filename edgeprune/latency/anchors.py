"""Networks that a device is calibrated with: small MobileNets and plain ones, with random weights, as ONNX.

Promise: the same network gives the same bytes. Weights do not matter for the time of float32 kernels; none is a
denormal, which would.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.latency.estimate import choose_anchors

WIDTHS, RESOLUTIONS = (0.25, 0.5, 0.75, 1.0), (64, 96, 128)
BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
"""Channels and stride of each block at width 1."""
STEM, CLASSES = 16, 100
NETWORKS = tuple((width, resolution) for width in WIDTHS for resolution in RESOLUTIONS)
FITTED = choose_anchors(NETWORKS)
TESTED = tuple(one for one in NETWORKS if one[0] not in {width for width, _ in FITTED})


@dataclass(slots=True)
class _Graph:
    """Nodes and weights so far; `tensor` is the last output."""

    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    tensor: str = "images"

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        """A convolution with "same" padding, and a ReLU."""
        from onnx import helper

        name = f"c{len(self.nodes)}"
        self._weight(f"{name}.weight", (outputs, inputs // groups, kernel, kernel))
        settings = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": groups}
        self.nodes.append(helper.make_node("Conv", [self.tensor, f"{name}.weight"], [name], **settings))
        self.nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"]))
        self.tensor = f"{name}.relu"

    def head(self, inputs: int) -> None:
        """Pooling and a linear layer."""
        from onnx import helper

        self._weight("head.weight", (inputs, CLASSES))
        self.nodes.append(helper.make_node("GlobalAveragePool", [self.tensor], ["pooled"]))
        self.nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
        self.nodes.append(helper.make_node("MatMul", ["flat", "head.weight"], ["logits"]))

    def _weight(self, name: str, shape: tuple[int, ...]) -> None:
        from onnx import numpy_helper

        values = np.random.default_rng(len(self.weights)).normal(0, np.prod(shape[1:]) ** -0.5, shape)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))


def name_of(width: float, resolution: int) -> str:
    """What an anchor is called in a profile."""
    return f"separable {width:g} {resolution}"


def write_anchor(folder: Path, width: float, resolution: int) -> Path:
    """Write the network of that width and resolution to `folder`: a depthwise separable one behind a plain stem."""
    from onnx import TensorProto, helper, save

    graph, inputs = _Graph(), max(8, int(STEM * width))
    graph.conv(3, inputs, 3, 2)
    graph.conv(inputs, inputs, 3)
    for channels, stride in BLOCKS:
        outputs = max(8, int(channels * width))
        graph.conv(inputs, inputs, 3, stride, inputs)
        graph.conv(inputs, outputs, 1)
        inputs = outputs
    graph.head(inputs)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, resolution, resolution])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    made = helper.make_graph(graph.nodes, "anchor", [images], [logits], graph.weights)
    path = folder / f"{name_of(width, resolution).replace(' ', '-')}.onnx"
    # IR 8 and opset 13: old enough for the runtimes of old boards.
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path
