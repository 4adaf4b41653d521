"""Where a module's input goes on its way to its output: along a shortcut, past the branches that are added to it.

One forward pass is followed backwards through autograd's graph, which holds what really ran: no source code is read,
and control flow, drop path and functional activations are no obstacle. The result says what a module would be without
its branches; whether that is so is for `edgeprune.pruning.block_proof` to find out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from edgeprune.errors import PruningError
from edgeprune.types import Shape

Step = tuple[Literal["module", "activation"], str]
_HEAVY = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
_SUMS = ("AddBackward", "SubBackward")
_HANDS_ON = ("View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose", "Clone", "Contiguous", "Alias", "ToCopy")
"""Autograd nodes that move values and change none: a shortcut through them is tried as if they were not there."""


@dataclass(frozen=True, slots=True)
class Residual:
    """`keep` is what an input meets on the shortcut, in order; `silencers` the parameters whose zeros end the branches.

    Names are relative to the module. `source` is the autograd node of its input.
    """

    keep: tuple[Step, ...]
    silencers: tuple[str, ...]
    source: Any


@dataclass(slots=True)
class _Call:
    """What one module took and gave, as nodes of autograd's graph; `odd` says why it cannot be followed."""

    runs: int = 0
    source: Any = None
    result: Any = None
    taken: tuple[int, ...] = ()
    given: tuple[int, ...] = ()
    odd: str = ""


@dataclass(slots=True)
class _Walk:
    """On the way from a module's output to its input: what was met so far, the last first."""

    keep: list[Step] = field(default_factory=list)
    branches: list[Any] = field(default_factory=list)


class Tape:
    """One recorded forward pass of a network in eval mode: `read` says what a module is without its branches."""

    def __init__(self, module: nn.Module, input_shape: Shape) -> None:
        self.module = module
        self.calls: dict[str, _Call] = defaultdict(_Call)
        output = self._run(input_shape)
        self.operands: dict[Any, tuple[Any, ...]] = {}
        self._explore(output.grad_fn)
        self.reached = self._from_images()
        self.names: dict[int, list[str]] = defaultdict(list)
        for name, parameter in module.named_parameters(remove_duplicate=False):
            self.names[id(parameter)].append(name)
        self.makers: dict[Any, list[str]] = defaultdict(list)
        for name, _ in module.named_modules():
            call = self.calls.get(name)
            if call and call.runs == 1 and not call.odd and call.result is not call.source:
                self.makers[call.result].append(name)
        self._known: dict[str, Residual | str | None] = {}

    def read(self, name: str) -> Residual | str | None:
        """The module without its branches; a reason why it cannot be without them; None when nothing is added in it."""
        if name not in self._known:
            self._known[name] = None  # a module is no part of itself
            self._known[name] = self._read(name)
        return self._known[name]

    def same_activation(self, source: Any, activation: str) -> bool:
        """Was what comes out at `source` made by this very activation, and only moved or max-pooled since?

        Then the activation, applied again, changes nothing. ReLU and ReLU6 only.
        """
        while source in self.operands:
            if _activation(source) == activation:
                return activation in ("ReLU", "ReLU6")
            onward = [node for node in self.operands[source] if node in self.reached]
            if len(onward) != 1 or not source.name().startswith(("MaxPool", *_HANDS_ON)):
                return False
            source = onward[0]
        return False

    def _run(self, input_shape: Shape) -> Any:
        hooks = []
        for name, part in self.module.named_modules():

            def before(part: nn.Module, inputs: Any, kwargs: Any, name: str = name) -> None:
                call = self.calls[name]
                call.runs += 1
                if len(inputs) != 1 or kwargs or not isinstance(inputs[0], torch.Tensor):
                    call.odd = "it takes something else than one tensor"
                else:
                    call.source, call.taken = inputs[0].grad_fn, tuple(inputs[0].shape)

            def after(part: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                call = self.calls[name]
                if not isinstance(output, torch.Tensor):
                    call.odd = call.odd or "it returns something else than one tensor"
                else:
                    call.result, call.given = output.grad_fn, tuple(output.shape)

            hooks += [part.register_forward_pre_hook(before, with_kwargs=True), part.register_forward_hook(after)]
        images = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        self.images = images.clone()
        self.origin: Any = self.images.grad_fn
        try:
            with torch.enable_grad():
                output = self.module(self.images)
        except Exception as error:  # the user's forward pass
            raise PruningError(f"the network does not run with gradients: {error}") from error
        finally:
            for hook in hooks:
                hook.remove()
        if not isinstance(output, torch.Tensor) or output.grad_fn is None:
            raise PruningError("no gradient flows from the network's output: its blocks cannot be followed")
        return output

    def _explore(self, last: Any) -> None:
        waiting = [last, *(call.result for call in self.calls.values() if call.result is not None)]
        while waiting:
            node = waiting.pop()
            if node not in self.operands:
                self.operands[node] = tuple(onward for onward, _ in node.next_functions if onward is not None)
                waiting.extend(self.operands[node])

    def _from_images(self) -> set[Any]:
        """Nodes that depend on the images; the rest are weights."""
        users: dict[Any, list[Any]] = defaultdict(list)
        for node, operands in self.operands.items():
            for operand in operands:
                users[operand].append(node)
        reached, waiting = set(), [self.origin]
        while waiting:
            node = waiting.pop()
            if node not in reached:
                reached.add(node)
                waiting.extend(users[node])
        return reached

    def _read(self, name: str) -> Residual | str | None:
        call = self.calls.get(name)
        if call is None or call.runs != 1 or call.odd or call.source is None or call.result is None:
            return None
        if type(self.module.get_submodule(name)) is nn.Sequential:
            return None  # it adds nothing itself
        walk, node = _Walk(), call.result
        while node is not call.source:
            found = self._step(name, node, call.source, walk)
            if found is None or isinstance(found, str):
                return found if walk.branches else None
            node = found[0]
        if not walk.branches:
            return None
        silencers = self._silencers(name, walk.branches, call.source)
        return silencers if isinstance(silencers, str) else Residual(tuple(walk.keep[::-1]), silencers, call.source)

    def _step(self, name: str, node: Any, source: Any, walk: _Walk) -> tuple[Any] | str | None:
        """One step towards the input, noted in `walk`; None or the reason when there is no way on."""
        inside = name + "."
        child = next((each for each in self.makers[node] if each.startswith(inside)), None)
        if child is not None:
            heavy = self.is_heavy(child)
            if not (heavy and isinstance(self.read(child), Residual)) and (walk.branches or not heavy):
                walk.keep.append(("module", child.removeprefix(inside)))
                return (self.calls[child].source,)
            if not walk.branches:
                return None  # its last part is a block, or a layer: nothing is added after it
        operands = [operand for operand in self.operands.get(node, ()) if operand in self.reached]
        weights = len(self.operands.get(node, ())) - len(operands)
        if len(operands) == 2 and node.name().startswith(_SUMS):
            sizes = [self._size(operand, source) for operand in operands]
            walk.branches.append(operands[sizes.index(max(sizes))])
            if sizes[0] == sizes[1]:
                return "two branches of the same size are added: neither is a shortcut"
            return (operands[sizes.index(min(sizes))],)
        if len(operands) != 1 or weights:
            return "its shortcut is computed by no module of its own"
        activation = _activation(node)
        if activation is not None:
            walk.keep.append(("activation", activation))
        elif not node.name().startswith(_HANDS_ON):
            return f"its shortcut goes through {node.name().rstrip('0123456789')}, which no module does"
        return (operands[0],)

    def is_heavy(self, name: str) -> bool:
        """Is there a convolution or a linear layer in it?"""
        return any(isinstance(part, _HEAVY) for part in self.module.get_submodule(name).modules())

    def is_gate(self, name: str) -> bool:
        """Is the module's output a product with its own input?"""
        call = self.calls[name]
        operands = self.operands.get(call.result, ())
        return call.result is not None and call.result.name().startswith("MulBackward") and call.source in operands

    def _size(self, node: Any, source: Any) -> int:
        """Values of the weight matrices between a node and the module's input."""
        seen, waiting, size = {source}, [node], 0
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            waiting.extend(self.operands.get(node, ()))
            weight = getattr(node, "variable", None)
            if weight is not None and weight.dim() > 1 and id(weight) in self.names:
                size += weight.numel()
        return size

    def _silencers(self, name: str, branches: list[Any], source: Any) -> tuple[str, ...] | str:
        """The parameters nearest to the ends of the branches; zeroed, nothing comes out of them."""
        found: dict[str, None] = {}
        seen, waiting = {source}, list(branches)
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            images = [operand for operand in self.operands.get(node, ()) if operand in self.reached]
            weights = self._weights([each for each in self.operands.get(node, ()) if each not in self.reached])
            for weight in weights:
                owners = self.names.get(id(weight), [])
                if len(owners) != 1 or not owners[0].startswith(name + "."):
                    return "its branch ends in weights that another part of the network has too"
                found[owners[0].removeprefix(name + ".")] = None
            if not weights or node.name().startswith((*_SUMS, "CatBackward", "StackBackward")):
                waiting.extend(images)
        return tuple(sorted(found)) or "its branch has no weights that could silence it"

    def _weights(self, nodes: list[Any]) -> list[torch.Tensor]:
        """Parameters that a computation of weights alone starts from."""
        found, waiting = [], list(nodes)
        while waiting:
            node = waiting.pop()
            if hasattr(node, "variable"):
                found.append(node.variable)
            waiting.extend(self.operands.get(node, ()))
        return found


def _activation(node: Any) -> str | None:
    """The class of torch.nn that computes what an autograd node stands for; None for what is not an activation."""
    name = node.name().rstrip("0123456789").removesuffix("Backward")
    if name == "Hardtanh":
        return "ReLU6" if (node._saved_min_val, node._saved_max_val) == (0, 6) else None
    if name == "Gelu":
        return "GELU" if node._saved_approximate == "none" else None
    return {"Relu": "ReLU", "Silu": "SiLU", "Hardswish": "Hardswish"}.get(name)
