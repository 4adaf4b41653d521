"""A graph as a list of steps: constants folded, batch norm folded into convolutions, everything unused left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.robustness.twin.node import Compute, Node, Unsupported
from edgeprune.robustness.twin.reading import Network, branch
from edgeprune.robustness.twin.table import compute_of, host_inputs

_FOLDED_AT_MOST = 2**26
"""Elements of a constant that is made ahead: larger ones (an Expand of a constant, say) are made when needed."""
_WIDE = 64
"""Channels from which convolutions are laid out channels-last: narrower networks are faster without (76 to 66
microseconds an image for forward and backward of VNN-COMP's mnist_robust_cnn_a, 87 to 79 of resnet_2b)."""
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
_MONOTONE = {"Softmax", "LogSoftmax", "Sigmoid"}
_PASSING = {"Identity", "QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operator to run. `branches` are those of an If (then, else); `frees` what nothing reads afterwards."""

    node: Node
    compute: Compute | None
    frees: tuple[str, ...] = ()
    branches: tuple[Program, ...] = ()

    @property
    def reads(self) -> set[str]:
        """Names that the step needs, those of its branches included."""
        inner = {name for part in self.branches for step in part.steps for name in step.reads}
        return {*filter(None, self.node.inputs), *inner, *(part.output for part in self.branches)}


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """Steps in order, and the name of the result."""

    steps: tuple[Step, ...]
    output: str


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A network as steps and constants; `unsupported` names what the table has no rule for."""

    steps: tuple[Step, ...]
    constants: Mapping[str, Tensor]
    unsupported: tuple[str, ...]


def compile_network(network: Network, path: Path) -> Compiled:
    """Steps of a network, with everything that follows from constants alone computed now."""
    constants: dict[str, Tensor] = dict(network.constants)
    unsupported: dict[str, None] = {}
    steps = _steps(network, constants, dict(network.kinds), unsupported, path)
    steps = _fold_batch_norm(steps, constants, network.output)
    weights = {name for step in steps if step.node.op == "Conv" for name in step.node.inputs[1:2]}
    kernels = [name for name in weights & constants.keys() if constants[name].ndim == 4]
    wide = any(len(constants[name]) >= _WIDE for name in kernels)
    for name in kernels:
        if wide:  # the convolutions of a CPU are faster so, and most so backwards
            constants[name] = constants[name].contiguous(memory_format=torch.channels_last)
    return Compiled(tuple(steps), constants, tuple(unsupported))


def _steps(
    network: Network, constants: dict[str, Tensor], kinds: dict[str, int], unsupported: dict[str, None], path: Path
) -> list[Step]:
    steps: list[Step] = []
    for node in network.nodes:
        node = replace(node, kinds=tuple(kinds.get(name, 0) for name in node.inputs))
        try:
            if node.op == "If" and not node.domain:
                steps.extend(_if(node, constants, kinds, unsupported, path))
                continue
            step = Step(node, compute_of(node))
            made = _known(step, constants)
        except Unsupported as error:
            unsupported[str(error)] = None
            continue
        if made is None:
            steps.append(step)
        else:
            constants.update(made)
            if node.op in ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze"):  # the type stays
                kinds.update(zip(node.outputs, node.kinds[:1], strict=False))
    return steps


def _if(
    node: Node, constants: dict[str, Tensor], kinds: dict[str, int], unsupported: dict[str, None], path: Path
) -> list[Step]:
    """An If: the steps of the branch that is taken where that is known, else one step that holds both."""
    if len(node.outputs) != 1 or len(node.inputs) != 1:
        raise Unsupported("If (several outputs)")
    if not all(hasattr(node.attributes.get(name), "node") for name in ("then_branch", "else_branch")):
        raise Unsupported("If (without its branches)")
    opsets = {"": node.opset}
    parts = []
    taken = constants.get(node.inputs[0])
    names = ("then_branch", "else_branch") if taken is None else (("then_branch" if bool(taken) else "else_branch"),)
    for name in names:
        inner = branch(node.attributes[name], opsets, path)
        constants.update(inner.constants)
        kinds.update(inner.kinds)
        parts.append(Program(tuple(_steps(inner, constants, kinds, unsupported, path)), inner.output))
    if taken is None:
        return [Step(node, None, branches=tuple(parts))]
    result = Node("Identity", "", (parts[0].output,), node.outputs)
    if parts[0].output in constants:
        constants[node.outputs[0]] = constants[parts[0].output]
        return []
    return [*parts[0].steps, Step(result, compute_of(result))]


def _known(step: Step, constants: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """What the step makes, where that follows from constants; None where it does not, or is too large to keep."""
    node = step.node
    if node.op in _RANDOM or not all(name in constants for name in node.inputs if name):
        return None
    assert step.compute is not None
    try:
        result = step.compute(*(constants[name] if name else None for name in node.inputs))
    except Unsupported as error:
        raise Unsupported(f"{node.label} ({error})") from None
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise Unsupported(f"{node.label} (fails on its constants: {str(error).splitlines()[0]})") from error
    made = dict(zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=False))
    return made if all(tensor.numel() <= _FOLDED_AT_MOST for tensor in made.values()) else None


def _fold_batch_norm(steps: list[Step], constants: dict[str, Tensor], output: str) -> list[Step]:
    """Batch norm after a convolution that nothing else reads becomes part of its weights, computed in float64."""
    readers: dict[str, int] = {output: 1}
    for step in steps:
        for name in step.reads:
            readers[name] = readers.get(name, 0) + 1
    makers = {step.node.outputs[0]: index for index, step in enumerate(steps) if step.node.op == "Conv"}
    kept: list[Step | None] = list(steps)
    for index, step in enumerate(steps):
        node = step.node
        place = makers.get(node.inputs[0]) if node.op == "BatchNormalization" and node.inputs else None
        if place is None or readers[node.inputs[0]] > 1:
            continue
        folded = _folded(steps[place].node, node, constants)
        if folded is not None:
            kept[place], kept[index] = None, Step(folded, compute_of(folded))
    return [step for step in kept if step is not None]


def _folded(conv: Node, norm: Node, constants: dict[str, Tensor]) -> Node | None:
    """The convolution with the batch norm in it; None where a part is not constant, or the numbers do not allow it."""
    whole = len(conv.inputs) > 1 and len(norm.inputs) == 5
    if not whole or not all(name in constants for name in (*conv.inputs[1:], *norm.inputs[1:]) if name):
        return None
    scale, bias, mean, var = (constants[name].double() for name in norm.inputs[1:5])
    weight = constants[conv.inputs[1]]
    factor = scale / torch.sqrt(var + norm.real("epsilon", 1e-5))
    has_bias = len(conv.inputs) > 2 and bool(conv.inputs[2])
    before = constants[conv.inputs[2]].double() if has_bias else torch.zeros_like(mean)
    folded = (weight.double() * factor.view(-1, *(1,) * (weight.ndim - 1))).to(weight.dtype)
    shift = ((before - mean) * factor + bias).to(weight.dtype)
    if not (bool(folded.isfinite().all()) and bool(shift.isfinite().all())):
        return None
    names = (f"{norm.outputs[0]}//weight", f"{norm.outputs[0]}//bias")
    constants[names[0]], constants[names[1]] = folded, shift
    return replace(conv, inputs=(conv.inputs[0], *names), outputs=norm.outputs[:1], kinds=())


def with_free_batch(compiled: Compiled, batch: int) -> Compiled:
    """The same for any batch, where all that fixes it is the first number of a Reshape's constant shape."""
    constants, steps = dict(compiled.constants), []
    for step in compiled.steps:
        target = step.node.inputs[1:2] if step.node.op == "Reshape" else ()
        shape = constants.get(target[0]) if target else None
        if shape is not None and shape.numel() and int(shape[0]) == batch:
            free = shape.clone()
            free[0] = 0 if bool((shape[1:] == -1).any()) else -1
            name = f"{step.node.outputs[0]}//shape"
            constants[name] = free
            node = replace(step.node, inputs=(step.node.inputs[0], name))
            step = Step(node, compute_of(node))
        steps.append(step)
    return Compiled(tuple(steps), constants, compiled.unsupported)


def before_softmax(steps: Iterable[Step], output: str) -> str:
    """The name of the result before a last softmax, log-softmax or sigmoid: the same order, gradients that live."""
    makers = {name: step.node for step in steps for name in step.node.outputs}
    name, found = output, output
    while name in makers and makers[name].op in (_MONOTONE | _PASSING):
        node = makers[name]
        if node.op in _MONOTONE and node.op != "Sigmoid" and node.integer("axis", -1) not in (-1, 1):
            break
        name = node.inputs[0]
        if node.op in _MONOTONE:
            found = name
    return found


class Graph(nn.Module):
    """A program that runs. Floating constants are its buffers; whole numbers, shapes and scales stay on the CPU."""

    def __init__(self, compiled: Compiled, input: str, output: str) -> None:
        super().__init__()
        self._program = trimmed(compiled.steps, output)
        self._input = input
        wanted = {output, *(name for step in self._program.steps for name in step.reads)}
        stay = _read_as_numbers(self._program)
        self._names: dict[str, str] = {}
        self._numbers: dict[str, Tensor] = {}
        for name in sorted(wanted & compiled.constants.keys()):
            tensor = compiled.constants[name]
            if name in stay or not tensor.is_floating_point():
                self._numbers[name] = tensor
                continue
            self._names[name] = f"constant_{len(self._names)}"
            self.register_buffer(self._names[name], tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph on its input; the result as the file gives it."""
        values: dict[str, Any] = dict(self._numbers)
        values.update((name, self._buffers[place]) for name, place in self._names.items())
        values[self._input] = x
        self._run(self._program, values, x.device)
        result: Tensor = values[self._program.output]
        return result

    def _run(self, program: Program, values: dict[str, Any], device: torch.device) -> None:
        for step in program.steps:
            node = step.node
            if step.compute is None:
                chosen = step.branches[0 if bool(values[node.inputs[0]]) else 1]
                self._run(chosen, values, device)
                values[node.outputs[0]] = values[chosen.output]
                continue
            given = [values[name] if name else None for name in node.inputs]
            try:
                result = step.compute(*(given if device.type == "cpu" else _together(node, given, device)))
            except Unsupported as error:
                raise Unsupported(f"{node.label} ({error})") from None
            except Exception as error:
                error.add_note(f"in {node.label}, which makes {node.outputs[0]}")
                raise
            values.update(zip(node.outputs, result if isinstance(result, tuple) else (result,), strict=False))
            for name in step.frees:
                del values[name]


def _read_as_numbers(program: Program) -> set[str]:
    """Names that are read as numbers only (scales, fill values): on a device they would be fetched every time."""
    numbers: set[str] = set()
    others: set[str] = {program.output}
    for step in program.steps:
        places = host_inputs(step.node)
        numbers.update(name for place, name in enumerate(step.node.inputs) if place in places)
        others.update(name for place, name in enumerate(step.node.inputs) if place not in places)
        others.update(name for part in step.branches for inner in part.steps for name in inner.reads)
    return numbers - others


def _together(node: Node, given: list[Any], device: torch.device) -> list[Any]:
    """Inputs on one device where some are on it: shapes that meet pixels follow them."""
    if all(value is None or value.device.type == "cpu" for value in given):
        return given
    stay = host_inputs(node)
    return [v if v is None or place in stay else v.to(device) for place, v in enumerate(given)]


def trimmed(steps: tuple[Step, ...], output: str) -> Program:
    """The steps that the output needs, each with the names that can be forgotten after it."""
    needed, kept = {output}, []
    made = {name for step in steps for name in step.node.outputs if name}
    for step in reversed(steps):
        if needed.isdisjoint(step.node.outputs):
            continue
        last = step.reads - needed
        kept.append(replace(step, frees=tuple(sorted(last & made))))
        needed |= step.reads
    return Program(tuple(reversed(kept)), output)
