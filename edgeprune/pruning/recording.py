"""Where channels go, seen by running the network once: every tensor carries the labels of its channels with it.

torch-pruning maps indices from layer to layer and goes wrong, or without end, on channel shuffles, splits, slice
assignments and flattened maps. Here an operation that moves values about moves their labels in the same way, so there
is nothing to map. Layers give their outputs new labels and note what they read; additions tie labels; an operation
without a rule loses them, with its name as the reason. What comes out is proved like any other group.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch_pruning.ops import OPTYPE

from edgeprune.errors import PruningError
from edgeprune.pruning.cropping import Cropped
from edgeprune.pruning.dependencies import Own
from edgeprune.pruning.labels import Ties, compact
from edgeprune.pruning.recording_rules import RULES, Call, pointwise, recurrent, whole
from edgeprune.types import Shape

WHOLE = -1
_OPAQUE = (nn.RNNBase, nn.MultiheadAttention)
_EVEN = frozenset({torch.chunk, torch.Tensor.chunk, torch.tensor_split, torch.Tensor.tensor_split})


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A layer's channels and their labels, float64 (channels,).

    Of a bare parameter the labels of all elements, in its shape: `dim` is WHOLE.
    """

    name: str
    kind: Any
    outward: bool
    dim: int
    module: Any
    labels: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Channels that were taken apart: the label and the part of each, and the modules that were running.

    `pieces`: every part comes out (a split), else one of them does (a slice). `even`: as many equal parts as asked for,
    whatever their size.
    """

    labels: Tensor
    parts: Tensor
    stack: tuple[str, ...]
    pieces: bool
    even: bool


@dataclass(slots=True, eq=False)
class Recording:
    """What one forward pass showed."""

    ties: Ties = field(default_factory=Ties)
    seen: list[Seen] = field(default_factory=list)
    apart: list[Parts] = field(default_factory=list)
    makers: dict[str, Tensor] = field(default_factory=dict)
    output: list[Tensor] = field(default_factory=list)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch hands operations to subclasses only
    """Watches every operation below autograd and keeps the labels of the tensors that come out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes, self.module, self.even = Recording(), module, False
        self.stack: list[str] = []
        self.opaque = 0
        self.first: dict[tuple[str, Any, bool, int], Tensor] = {}
        self.kept: dict[int, tuple[Any, Tensor]] = {}
        self.weights: dict[int, tuple[Any, str]] = {}
        self.owners = {
            id(tensor): (f"{name}.{leaf}".lstrip("."), name, leaf)
            for name, layer in module.named_modules()
            for leaf, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.opaque:
            name = func.overloadpacket.__name__
            rule = RULES.get(name) or (pointwise if torch.Tag.pointwise in func.tags else None)
            if rule is None:
                self.lose((args, kwargs), f"there is no rule for what {name} does to channels")
            else:
                rule(Call(self, func, args, kwargs, out))
        return out

    def label(self, tensor: Any) -> Tensor | None:
        """The labels of a tensor; None where it has none."""
        if not isinstance(tensor, Tensor):
            return None
        known = self.kept.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        return self._owned(tensor)

    def put(self, tensor: Any, label: Tensor | None) -> None:
        """Label a tensor."""
        if label is not None and isinstance(tensor, Tensor):
            if label.shape != tensor.shape:
                raise PruningError(f"labels of shape {tuple(label.shape)} for a tensor of {tuple(tensor.shape)}")
            key = id(tensor)
            self.kept[key] = (weakref.ref(tensor, lambda _: self.kept.pop(key, None)), label)

    def lose(self, inputs: Any, reason: str) -> None:
        """All channels in these tensors are lost."""
        for item in tree_flatten(inputs)[0]:
            label = self.label(item)
            if label is not None:
                self.notes.ties.lose(label, reason)

    def owner(self, tensor: Any) -> tuple[str, str, str] | None:
        """(full name, layer name, leaf) of a parameter or buffer of the network."""
        return self.owners.get(id(tensor))

    def read(self, name: str, labels: Tensor, kind: Any, *, outward: bool, dim: int = 0) -> None:
        """Note that a layer's channels are the ones of these labels (channels,): in every call the same ones."""
        key = (name, kind, outward, dim)
        if key in self.first:
            before = self.first[key]
            self.notes.ties.tie(before, labels)
            self.notes.ties.fix(before[labels == 0])
            self.notes.ties.fix(labels[before == 0])
            return
        self.first[key] = labels
        self.notes.seen.append(Seen(name, kind, outward, dim, self.module.get_submodule(name), labels))

    def made(self, name: str, width: int, kind: Any) -> Tensor:
        """The labels of a layer's outputs (width,): the same ones in every call."""
        if name not in self.notes.makers:
            labels = self.notes.makers[name] = self.notes.ties.fresh(width)
            self.read(name, labels, kind, outward=True)
        return self.notes.makers[name]

    def turned(self, weight: Tensor, name: str) -> None:
        """Note a linear layer's weight, transposed."""
        self.weights[id(weight)] = (weakref.ref(weight), name)

    def turned_by(self, tensor: Tensor) -> str | None:
        """The linear layer whose weight this is, transposed."""
        known = self.weights.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def took_apart(self, labels: Tensor, parts: Tensor, *, pieces: bool, even: bool = False) -> None:
        """Note that channels (their labels, and the part that each goes to) are taken apart."""
        self.notes.apart.append(Parts(labels, parts, tuple(self.stack), pieces, even or self.even))

    def _owned(self, tensor: Tensor) -> Tensor | None:
        """A parameter that is used by itself: every element has a label of its own, and so every index of each dim."""
        found = self.owner(tensor)
        if found is None or not tensor.dim() or not tensor.is_floating_point() or tensor.numel() < 2:
            return None
        full, *_ = found
        labels = self.notes.ties.fresh(tensor.numel()).view(tensor.shape)
        self.put(tensor, labels)
        self.notes.seen.append(Seen(full, OPTYPE.PARAMETER, True, WHOLE, tensor, labels))
        return labels


class _Even(TorchFunctionMode):
    """Knows while `chunk` runs: below it looks like a split at a fixed size."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, self.recorder.even = self.recorder.even, func in _EVEN
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.recorder.even = before


def record(module: nn.Module, input_shape: Shape) -> Recording:
    """Run the network once on two images of noise and note where channels go.

    Errors: PruningError when a label goes astray; else whatever the network's forward pass raises.
    """
    recorder = Recorder(module)
    images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), _watched(module, recorder), _Even(recorder), recorder:
        output = module(images)
    notes = recorder.notes
    notes.output = [label for item in tree_flatten(output)[0] if (label := recorder.label(item)) is not None]
    return notes


def _own_channels(recorder: Recorder, name: str, layer: nn.Module, output: Any) -> None:
    """Channels of no layer that come out of a module without weights, beside others: they may be left out behind it."""
    inside = isinstance(recorder.module.get_submodule(name.rpartition(".")[0]), Cropped)
    label = None if inside or next(layer.parameters(), None) is not None else recorder.label(output)
    if label is None or label.dim() < 2 or output._base is not None:
        return
    slices = compact(label).movedim(1, 0).flatten(1)
    own = (slices == 0).all(1)
    if own.all() or not own.any() or len(own) != label.shape[1]:
        return
    label = label.contiguous().clone()
    fresh = recorder.notes.ties.fresh(int(own.sum()))
    label[:, own] = fresh.view(1, -1, *[1] * (label.dim() - 2))
    recorder.put(output, label)
    found = recorder.notes.ties.of_slices(label, 1)
    for kind, mine in ((Own.MADE, own), (Own.CARRIED, ~own)):
        recorder.read(name, torch.where(mine, found, 0.0), kind, outward=True)


@contextlib.contextmanager
def _watched(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Keeps the recorder's stack of running modules; recurrent layers are one step to it."""
    hooks = []
    for name, layer in module.named_modules():

        def enter(layer: nn.Module, inputs: Any, name: str = name) -> None:
            recorder.stack.append(name)
            recorder.opaque += isinstance(layer, _OPAQUE)

        def leave(layer: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            recorder.stack.pop()
            recorder.opaque -= isinstance(layer, _OPAQUE)
            if isinstance(layer, nn.RNNBase):
                recurrent(recorder, name, layer, inputs, output)
            elif isinstance(layer, _OPAQUE):
                whole(recorder, name, inputs)
            elif name and not recorder.opaque:
                _own_channels(recorder, name, layer, output)

        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
