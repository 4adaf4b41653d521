"""A network's way there and back as two graphs: pixels to scores, and seeds to the gradient of `seeds * scores`.

The first hands out what the second needs to know of the pass (where a unit was on, say), so that one forward pass
serves both the verdict on a point and the gradient there, and a loss may be computed from the scores in between.

Promise: they compute what torch's backward pass through the twin computes, from the same constants, up to the
order of sums; they are held against it on real images before they are used (`edgeprune.robustness.twin.pulling`). Why
not torch alone: on one thread a runtime lays convolutions out in blocks and fuses what follows them, forwards and
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
FLOAT, INT64, BOOL = 1, 7, 9  # ONNX's numbers of these types
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


@dataclass(frozen=True, slots=True, eq=False)
class Drafted:
    """Both graphs as ONNX models. `there`: pixels (N, *shape) to scores (N, K) and all of `kept`; `back`: `kept` and
    seeds (N, K) to a gradient (N, *shape). `kept` holds one row an image where `by_row`; else only whole batches make
    sense of it. The pixels themselves may be among it, under their own name."""

    there: bytes
    back: bytes
    kept: tuple[str, ...]
    by_row: bool


@dataclass(slots=True, eq=False)
class Draft:
    """A graph that is being written. `shapes` are those of a pass with two images; `constants` what does not vary;
    `kinds` the ONNX types of what is no float."""

    constants: Mapping[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    nodes: list[Any] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)

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


def drafted(wiring: Wiring, shape: tuple[int, ...], rules: Mapping[str, Rule]) -> Drafted:
    """The two graphs; `shape` is what an image is for the file. Unsupported, naming the operator, where a rule is
    missing."""
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
    turn = len(draft.nodes)
    draft.put("Identity", [_way_back(draft, backs, wiring)], GRADIENT)
    return _cut(draft, turn, wiring.input, shape)


def _cut(draft: Draft, turn: int, pixels: str, shape: tuple[int, ...]) -> Drafted:
    """What was written before `turn` as one model, the rest as another; between them goes what the rest reads."""
    there, back = draft.nodes[:turn], draft.nodes[turn:]
    known = {pixels, *(name for node in there for name in node.output)}
    kept = tuple(sorted({name for node in back for name in node.input} & known))
    values = {name: (draft.kinds.get(name, FLOAT), _open(draft.shapes.get(name))) for name in kept}
    images, classes = (FLOAT, [None, *shape]), (FLOAT, [None, draft.shapes[draft.nodes[turn - 1].input[0]][1]])
    handed = {name: value for name, value in values.items() if name != pixels}
    return Drafted(
        _model(draft, there, {pixels: images}, {SCORES: classes, **handed}),
        _model(draft, back, {SEEDS: classes, **values}, {GRADIENT: images}),
        kept,
        by_row=all(kind != INT64 for kind, _ in values.values()),
    )


def _open(shape: tuple[int, ...] | None) -> list[int | None] | None:
    """A shape of any number of images."""
    return None if shape is None else [None, *shape[1:]]


def _model(draft: Draft, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> bytes:
    from onnx import helper

    read = {name for node in nodes for name in node.input}
    values = [
        [helper.make_tensor_value_info(name, *value) for name, value in each.items()] for each in (inputs, outputs)
    ]
    constants = [tensor for name, tensor in draft.tensors.items() if name in read]
    graph = helper.make_graph(nodes, "way", *values, constants)
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
