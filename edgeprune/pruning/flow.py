"""What every index of every weight stands for, found by running the network once and watching each operator.

torch-pruning follows layers along autograd's graph; it cannot see into a function that is handed a layer's weight, and
does not know what becomes of a dimension that is viewed as heads. This walk watches operators instead of layers, and
labels what they hand on (`edgeprune.pruning.axes`). It decides nothing: what it finds is proved like any other group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgeprune.pruning.axes import OPEN, Axes, Labels
from edgeprune.types import Shape

Maker = tuple[str, frozenset[int]]
"""A parameter's name, and the atoms of the slice of it that was taken (q of a fused qkv)."""


@dataclass(slots=True, eq=False)
class Mark:
    """What is known of a tensor: labels of its dimensions, what made its values, the parameter that it is a view of."""

    dims: list[Labels | None]
    makers: frozenset[Maker] = frozenset()
    weight: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Mixing:
    """A module that computes a mean over labelled indices: a norm. `kind`: LN, GN or MIX (any other)."""

    module: str
    kind: str
    labels: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Contraction:
    """A sum over labelled indices of two activations (queries and keys), or of one: what its factors were made by."""

    labels: Labels
    first: frozenset[Maker]
    second: frozenset[Maker]


@dataclass(slots=True, eq=False)
class Flow:
    """Everything that one forward pass showed."""

    axes: Axes = field(default_factory=Axes)
    weights: dict[str, Mark] = field(default_factory=dict)
    """Parameters and buffers by name."""
    parameters: frozenset[str] = frozenset()
    read: set[tuple[str, int]] = field(default_factory=set)
    """(parameter, dimension) that takes an activation's channels in."""
    inputs: dict[str, Labels | None] = field(default_factory=dict)
    """Convolution's weight -> labels of all of its input channels (its weight only has those of one of its groups)."""
    mixing: list[Mixing] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    """Names of the modules whose forward pass is running, the innermost last."""

    def mark(self, tensor: torch.Tensor) -> Mark:
        """A tensor's mark; of one that came from nowhere (a constant), an open one."""
        found: Mark | None = getattr(tensor, "_edgeprune_mark", None)
        return found or Mark([_open(size) for size in tensor.shape])

    def put(self, tensor: torch.Tensor, mark: Mark) -> None:
        """Mark a tensor. Of dimensions of size 1 nothing needs to be known."""
        mark.dims = [None if size == 1 else labels for size, labels in zip(tensor.shape, mark.dims, strict=True)]
        tensor._edgeprune_mark = mark  # type: ignore[attr-defined]

    def freeze(self, tensor: torch.Tensor, reason: str) -> None:
        """No index of the tensor ever goes."""
        for labels in self.mark(tensor).dims:
            self.axes.freeze(labels, reason)


def watch(module: nn.Module, input_shape: Shape) -> Flow:
    """Run `module` (a copy: its tensors get marks) on one image and return what was seen.

    Errors: whatever its forward pass raises.
    """
    names = frozenset(name for name, _ in module.named_parameters())
    flow = Flow(layers=dict(module.named_modules()), parameters=names)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.dim():
            mark = Mark([_labels(flow, name, tensor, dim) for dim in range(tensor.dim())], weight=name)
            flow.weights[name] = mark
            flow.put(tensor, mark)
    image = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0))
    flow.put(image, Mark([None] * image.dim()))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole encoder layer: nothing to be seen in it
    try:
        with torch.no_grad(), _named(flow), _Watch(flow):
            output = module(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for leaf in tree_leaves(output):
        if isinstance(leaf, torch.Tensor):
            flow.freeze(leaf, "it makes the network's output")
    return flow


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operator to its rule once it has run."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = flow

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from edgeprune.pruning import operators_sums  # noqa: F401  # registers its rules
        from edgeprune.pruning.operators import note

        output = func(*args, **(kwargs or {}))
        note(self.flow, func, args, kwargs or {}, output)
        return output


@contextlib.contextmanager
def _named(flow: Flow) -> Iterator[None]:
    """Keeps the names of the modules that are running."""
    hooks = []
    for name, layer in flow.layers.items():

        def enter(layer: nn.Module, inputs: Any, name: str = name) -> None:
            flow.running.append(name)

        def leave(layer: nn.Module, inputs: Any, output: Any) -> None:
            flow.running.pop()

        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _labels(flow: Flow, name: str, tensor: torch.Tensor, dim: int) -> Labels | None:
    owner = flow.layers[name.rpartition(".")[0]]
    kernel = isinstance(owner, nn.modules.conv._ConvNd) and dim > 1
    return (
        None
        if tensor.shape[dim] == 1 or kernel or isinstance(owner, nn.RNNBase)
        else flow.axes.fresh(tensor.shape[dim])
    )


def _open(size: int) -> Labels | None:
    return None if size == 1 else np.full(size, OPEN, dtype=np.int64)
