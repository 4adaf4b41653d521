"""A network's way back as a graph of its own: pixels and seeds in, scores and the gradient of their product out.

Promise: the graph computes what torch's backward pass through the twin computes, from the same constants, up to the
order of sums; it is held against it on real images before it is used (`edgeprune.robustness.twin.pulling`). Why not
torch alone: on one thread a runtime lays convolutions out in blocks and fuses what follows them, forwards and
backwards, and is up to twice as fast on the small networks that are attacked most.

Refusal: an operator or a variant without a rule here is `Unsupported`; then torch goes on computing the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.robustness.twin.node import Node, Unsupported
from edgeprune.robustness.twin.program import Compiled, trimmed

OPSET = 17
SEEDS, SCORES, GRADIENT = "~seeds", "~scores", "~gradient"
Back = Callable[[str], list[tuple[int, str]]]
"""The gradient of a node's result to those of its inputs: (place of the input, name of its gradient)."""
Rule = Callable[["Draft", Node], Back]


@dataclass(frozen=True, slots=True, eq=False)
class Wiring:
    """What a twin was made of, with the names of its input and of its result."""

    compiled: Compiled
    input: str
    output: str


@dataclass(slots=True, eq=False)
class Draft:
    """A graph that is being written. `shapes` are those of a pass with two images; `constants` what does not vary."""

    constants: Mapping[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    nodes: list[Any] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)

    def put(self, op: str, inputs: list[str], output: str | None = None, outputs: int = 1, **attributes: Any) -> str:
        """One more node; the name of its first result."""
        from onnx import helper

        name = output or f"~{len(self.nodes)}"
        names = [name, *(f"{name}~{place}" for place in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return name

    def fixed(self, values: Tensor | np.ndarray[Any, Any]) -> str:
        """A constant of the graph."""
        from onnx import numpy_helper

        array = values.contiguous().numpy() if isinstance(values, Tensor) else values
        name = f"#{len(self.tensors)}"
        self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def whole(self, *numbers: int) -> str:
        return self.fixed(np.array(numbers, np.int64))

    def varies(self, name: str) -> bool:
        return name not in self.constants

    def given(self, name: str) -> str:
        """The name under which an input of the network's node is known here."""
        if self.varies(name):
            if name not in self.shapes:
                raise Unsupported("whole numbers that vary")
            return name
        known = f"={name}"
        if known not in self.tensors:
            from onnx import numpy_helper

            array = np.ascontiguousarray(self.constants[name].contiguous().numpy())
            self.tensors[known] = numpy_helper.from_array(array, known)
        return known

    def like(self, gradient: str, name: str) -> str:
        """A gradient in the shape of `name`, any number of images."""
        return self.put("Reshape", [gradient, self.whole(-1, *self.shapes[name][1:])])


def drafted(wiring: Wiring, shape: tuple[int, ...], rules: Mapping[str, Rule]) -> bytes:
    """The graph as an ONNX model: pixels (N, *shape) and seeds (N, K) to scores (N, K) and a gradient (N, *shape).

    `shape` is what an image is for the file. Unsupported, naming the operator, where a rule is missing.
    """
    from onnx import helper

    program = trimmed(wiring.compiled.steps, wiring.output)
    draft = Draft(wiring.compiled.constants, _shapes(wiring, shape))
    backs: list[tuple[Node, Back]] = []
    for step in program.steps:
        node, rule = step.node, rules.get(step.node.op)
        if node.outputs[0] not in draft.shapes:  # a size that is computed: reshapes take what they saw
            continue
        if step.compute is None or rule is None or node.domain:
            raise Unsupported(node.label)
        backs.append((node, rule(draft, node)))
    draft.put("Identity", [wiring.output], SCORES)
    draft.put("Identity", [_way_back(draft, backs, wiring)], GRADIENT)
    classes, pixels = draft.shapes[wiring.output][1], [None, *shape]
    value = helper.make_tensor_value_info
    inputs = [value(wiring.input, 1, pixels), value(SEEDS, 1, [None, classes])]
    outputs = [value(SCORES, 1, [None, classes]), value(GRADIENT, 1, pixels)]
    graph = helper.make_graph(draft.nodes, "way back", inputs, outputs, list(draft.tensors.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return bytes(model.SerializeToString())


def _way_back(draft: Draft, backs: list[tuple[Node, Back]], wiring: Wiring) -> str:
    found: dict[str, list[str]] = {wiring.output: [SEEDS]}
    for node, back in reversed(backs):
        arrived = found.pop(node.outputs[0], [])
        if not arrived:
            continue
        for place, gradient in back(_sum(draft, arrived)):
            found.setdefault(node.inputs[place], []).append(gradient)
    if wiring.input not in found:
        raise Unsupported("a network that its input does not reach")
    return _sum(draft, found[wiring.input])


def _sum(draft: Draft, names: list[str]) -> str:
    return names[0] if len(names) == 1 else draft.put("Sum", names)


def _shapes(wiring: Wiring, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of all values in a pass with two images; Unsupported for what is not float32, or fixes its batch."""
    constants = wiring.compiled.constants
    values: dict[str, Tensor] = {wiring.input: torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))}
    for step in trimmed(wiring.compiled.steps, wiring.output).steps:
        if step.compute is None:
            raise Unsupported(step.node.label)
        given = [None if not name else constants.get(name, values.get(name)) for name in step.node.inputs]
        result = step.compute(*given)
        if isinstance(result, tuple):
            raise Unsupported(f"{step.node.label} (several outputs)")
        values[step.node.outputs[0]] = result
        if result.is_floating_point() and (result.dtype != torch.float32 or result.ndim < 2 or result.shape[0] != 2):
            raise Unsupported(f"{step.node.label} ({result.dtype}, {tuple(result.shape)})")
    return {name: tuple(value.shape) for name, value in values.items() if value.is_floating_point()}
