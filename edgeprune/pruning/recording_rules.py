"""What every operation does to the labels of channels, by the name of torch's operator (its ATen packet).

A rule is a function of a `Call`. What moves values about is applied to the labels as it is; what mixes values along
a dimension ties their labels; what has weights notes which labels it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch_pruning.ops import OPTYPE, module2type

from edgeprune.pruning.dependencies import Own
from edgeprune.pruning.labels import compact, segments, spread, together, varies

if TYPE_CHECKING:
    from edgeprune.pruning.recording import Recorder

_MADE_LIKE = ("zeros_like", "empty_like", "ones_like", "full_like", "rand_like", "randn_like")
_INDEXED_BY = 1  # the second argument of an indexing operation


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One operation that has just run."""

    recorder: Recorder
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def label(self, position: int) -> Tensor | None:
        """The labels of an argument."""
        return self.recorder.label(self.args[position]) if position < len(self.args) else None

    def put(self, label: Tensor | None) -> None:
        """Label what came out."""
        self.recorder.put(self.out, label)

    def lose(self, reason: str) -> None:
        """All channels that came in are lost."""
        self.recorder.lose((self.args, self.kwargs), reason)


Rule = Callable[[Call], None]


def nothing(call: Call) -> None:
    """What comes out has no channels."""


def made(call: Call) -> None:
    """A new tensor: its elements belong to no channel until something is written there."""
    if isinstance(call.out, Tensor) and call.out.dim() > 1:
        call.put(torch.zeros(call.out.shape, dtype=torch.float64))


def made_like(call: Call) -> None:
    """A new tensor in the shape of another: its elements go with the other's."""
    label = call.label(0)
    call.put(None if label is None else label.clone(memory_format=torch.contiguous_format))


def moved(call: Call) -> None:
    """Moves values about; labels move with them. The one labelled argument comes first (a list, for cat and stack)."""
    recorder = call.recorder
    first = call.args[0]
    many = isinstance(first, list | tuple)
    labels = [recorder.label(item) for item in (first if many else [first])]
    if all(label is None for label in labels):
        return
    items = first if many else [first]
    filled = [
        torch.zeros(item.shape, dtype=torch.float64) if label is None else label
        for item, label in zip(items, labels, strict=True)
    ]
    kwargs = {
        key: value for key, value in call.kwargs.items() if key not in ("dtype", "layout", "device", "pin_memory")
    }
    out = call.func(filled if many else filled[0], *call.args[1:], **kwargs)
    for tensor, label in zip(
        *(each if isinstance(each, list | tuple) else [each] for each in (call.out, out)), strict=True
    ):
        recorder.put(tensor, label if _is_view(call) else spread(label))


def _is_view(call: Call) -> bool:
    """Does the output share memory with the input? Then its labels must, too: what is written there is seen here."""
    return call.func._schema.returns and any(item.alias_info is not None for item in call.func._schema.arguments)


def copied(call: Call) -> None:
    """As it was: clone, contiguous, another dtype."""
    label = call.label(0)
    call.put(None if label is None else label.clone() if label.is_contiguous() else label)


def reshaped(call: Call) -> None:
    """view and reshape. A dimension of channels that becomes several keeps its rectangle: the last of them shrinks."""
    label = call.label(0)
    if label is None:
        return
    after = label.reshape(call.out.shape)
    for before, dims in segments(tuple(label.shape), tuple(call.out.shape)):
        changing = [dim for dim in dims if varies(after, dim)]
        for dim in changing[:-1] if len(before) < len(dims) else ():
            call.recorder.notes.ties.tie_along(compact(after), dim)
    call.put(after)


def pointwise(call: Call) -> None:
    """Values at the same position meet: their labels go together, and none may meet a constant of fixed size."""
    inplace = call.func.overloadpacket.__name__.endswith("_") and not call.func.overloadpacket.__name__.endswith("__")
    tensors = [item for item in (*call.args, *call.kwargs.values()) if isinstance(item, Tensor) and item.dim()]
    labels = [(item, call.recorder.label(item)) for item in tensors]
    known = [label for _, label in labels if label is not None]
    if not known or not isinstance(call.out, Tensor):
        return
    result = compact(known[0]).clone()
    ties = call.recorder.notes.ties
    for more in known[1:]:
        ties.tie(result, more)
        one, other = together(result, more)
        result = torch.where(one == 0, other, one)
    result = torch.broadcast_to(result, call.out.shape)
    for item, label in labels:
        _meets_constants(call, item, label, result)
    if inplace:
        _written(call, call.args[0], result)
    else:
        call.put(result)


def _meets_constants(call: Call, item: Tensor, label: Tensor | None, result: Tensor) -> None:
    """Channels that meet elements of no channel, of a tensor as wide as they are many, have to stay."""
    own = torch.zeros([1] * item.dim(), dtype=torch.float64).expand(item.shape) if label is None else label
    for dim in range(1, item.dim() + 1):
        if item.shape[-dim] > 1 and varies(result, result.dim() - dim):
            mine, theirs = together(torch.broadcast_to(own, result.shape), result)
            call.recorder.notes.ties.fix(theirs[mine == 0])
            return


def _written(call: Call, target: Tensor, label: Tensor) -> None:
    """Labels of a tensor that is written to, and of what it is a view of."""
    recorder, old = call.recorder, call.recorder.label(target)
    if target._base is None and old is None:
        recorder.put(target, label)
    elif old is not None and not torch.equal(old, label):
        try:
            old.copy_(label)
        except RuntimeError:  # the labels of a part of something repeat themselves: they cannot be written one by one
            if target._base is None:
                recorder.put(target, label)
            else:
                recorder.notes.ties.lose(label, "it is written into a part of another tensor")
                recorder.notes.ties.lose(old, "a part of it is written to")
    elif old is None:
        recorder.notes.ties.lose(label, "it is written into a part of another tensor")


def written(call: Call) -> None:
    """copy_: the target's labels are those of what is written."""
    source = call.label(1)
    if source is None and call.label(0) is None:
        return
    source = torch.zeros(call.args[1].shape, dtype=torch.float64) if source is None else source
    _written(call, call.args[0], torch.broadcast_to(source, call.args[0].shape))


def padded(call: Call) -> None:
    """Constants at the borders: they belong to no channel, unless the border runs along a channel."""
    label = call.label(0)
    if label is None:
        return
    pads = list(call.args[1])
    for position in range(len(pads) // 2):
        dim = label.dim() - 1 - position
        if pads[2 * position] == pads[2 * position + 1] == 0:
            continue
        size = label.shape[dim] + pads[2 * position] + pads[2 * position + 1]
        if not varies(label, dim):
            label = label.narrow(dim, 0, 1).expand(*label.shape[:dim], size, *label.shape[dim + 1 :])
        else:
            both = [0, 0] * position + [pads[2 * position], pads[2 * position + 1]]
            label = nn.functional.pad(label.contiguous(), both)
    call.put(label)


def reduced(call: Call) -> None:
    """Sum, mean, largest: what is taken together goes together."""
    label = call.label(0)
    if label is None:
        return
    at = 2 if "norm" in call.func.overloadpacket.__name__ else 1
    dims = call.args[at] if len(call.args) > at and call.args[at] not in (None, []) else list(range(label.dim()))
    if isinstance(dims, bool) or not isinstance(dims, int | list | tuple):
        call.lose(f"there is no rule for this form of {call.func.overloadpacket.__name__}")
        return
    gone = sorted({dim % label.dim() for dim in ([dims] if isinstance(dims, int) else dims)}, reverse=True)
    for dim in gone:
        label = call.recorder.notes.ties.tie_along(label, dim) if varies(label, dim) else label.narrow(dim, 0, 1)
    for out in call.out if isinstance(call.out, tuple | list) else [call.out]:
        flat = label
        for dim in gone if out.dim() < label.dim() else ():
            flat = flat.squeeze(dim)
        call.recorder.put(out, flat.expand(out.shape))


def normalised(call: Call) -> None:
    """softmax, cumsum: values along a dimension depend on each other."""
    label = call.label(0)
    if label is not None:
        dim = call.args[1] % label.dim()
        if varies(label, dim):
            call.recorder.notes.ties.tie_along(label, dim)
        call.put(label)


def spatial(call: Call) -> None:
    """Pooling and resizing: channel by channel, over positions."""
    label = call.label(0)
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    if label is None:
        return
    per_position = label.dim() - (out.dim() - 2)
    for dim in range(per_position, label.dim()):
        label = call.recorder.notes.ties.tie_along(label, dim) if varies(label, dim) else label.narrow(dim, 0, 1)
    call.recorder.put(out, label.expand(out.shape))


def convolution(call: Call) -> None:
    """Reads the channels of its input and makes new ones; one that is depthwise hands them on."""
    recorder, label = call.recorder, call.label(0)
    owner = recorder.owner(call.args[1])
    layer = recorder.module.get_submodule(owner[1]) if owner else None
    if owner is None or owner[2] != "weight" or not isinstance(layer, nn.modules.conv._ConvNd):
        call.lose(f"{owner[0]} reads it in a function: no layer owns it" if owner else "a computed weight reads it")
        return
    if layer.groups != call.args[8]:
        call.lose(f"{owner[1]} is run with other groups than its own")
        return
    if 1 < layer.groups == layer.out_channels != layer.in_channels:
        call.lose(f"{owner[1]} makes one channel of several that no other reads")
        return
    depthwise = 1 < layer.groups == layer.in_channels
    kind = OPTYPE.DEPTHWISE_CONV if depthwise else OPTYPE.CONV
    width, ties = call.out.shape[1], recorder.notes.ties
    outputs = recorder.made(owner[1], width, kind)
    inputs = torch.zeros(layer.in_channels, dtype=torch.float64) if label is None else ties.of_slices(label, 1)
    if depthwise:
        handed_on = inputs.repeat_interleave(width // len(inputs))
        ties.tie(outputs, handed_on)
        ties.tie(outputs.view(len(inputs), -1), outputs.view(len(inputs), -1)[:, :1])
        ties.fix(outputs[handed_on == 0])
    elif label is not None:
        recorder.read(owner[1], inputs, kind, outward=False)
    call.put(outputs.view(1, width, *[1] * (call.out.dim() - 2)).expand(call.out.shape))


def transposed(call: Call) -> None:
    """t and its kin: of a layer's weight, it is still that weight."""
    owner = call.recorder.owner(call.args[0])
    if owner and owner[2] == "weight" and isinstance(call.recorder.module.get_submodule(owner[1]), nn.Linear):
        call.recorder.turned(call.out, owner[1])
    else:
        moved(call)


def product(call: Call) -> None:
    """addmm, mm, bmm: a linear layer reads and makes channels; else both operands meet along what is summed over."""
    offset = 1 if call.func.overloadpacket.__name__ in ("addmm", "baddbmm") else 0
    one, other = call.args[offset], call.args[offset + 1]
    name = call.recorder.turned_by(other)
    if name is not None:
        label = call.recorder.label(one)
        outputs = call.recorder.made(name, call.out.shape[-1], OPTYPE.LINEAR)
        if label is not None:
            inputs = call.recorder.notes.ties.of_slices(label, label.dim() - 1)
            call.recorder.read(name, inputs, OPTYPE.LINEAR, outward=False)
        call.put(outputs.expand(call.out.shape))
        return
    left, right = call.recorder.label(one), call.recorder.label(other)
    if left is None and right is None:
        return
    ties = call.recorder.notes.ties
    left = torch.zeros([1] * one.dim(), dtype=torch.float64).expand(one.shape) if left is None else left
    right = torch.zeros([1] * other.dim(), dtype=torch.float64).expand(other.shape) if right is None else right
    left_summed, right_summed = varies(left, -1 % left.dim()), varies(right, -2 % right.dim())
    if left_summed or right_summed:
        ties.tie(left.transpose(-1, -2).amax(-1, keepdim=True), right.amax(-1, keepdim=True))
        ties.tie_along(left, left.dim() - 2)
        ties.tie_along(right, right.dim() - 1)
        _meets_constants_when_summed(call, left, right)
    rows = torch.zeros_like(left[..., :1]) if left_summed else left[..., :1]
    columns = torch.zeros_like(right[..., :1, :]) if right_summed else right[..., :1, :]
    if varies(rows, rows.dim() - 2) and varies(columns, columns.dim() - 1):
        call.lose("a matrix product has channels on both sides")
        return
    shape = torch.broadcast_shapes(rows.shape, columns.shape)  # type: ignore[no-untyped-call]
    rows, columns = rows.expand(shape), columns.expand(shape)
    ties.tie(rows, columns)
    call.put(spread(torch.where(rows == 0, columns, rows)).expand(call.out.shape))


def _meets_constants_when_summed(call: Call, left: Tensor, right: Tensor) -> None:
    a, b = together(left.transpose(-1, -2).amax(-1, keepdim=True), right.amax(-1, keepdim=True))
    call.recorder.notes.ties.fix(a[b == 0])
    call.recorder.notes.ties.fix(b[a == 0])


def batch_norm(call: Call) -> None:
    """A value a channel: its channels are those of what it normalises."""
    label = call.label(0)
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    if label is None:
        return
    inputs = call.recorder.notes.ties.of_slices(label, 1)
    owner = next(
        (found for item in call.args[1:5] if isinstance(item, Tensor) and (found := call.recorder.owner(item))), None
    )
    if owner is not None:
        layer = call.recorder.module.get_submodule(owner[1])
        call.recorder.read(owner[1], inputs, module2type(layer), outward=True)
    else:
        for item in call.args[1:5]:
            held = call.recorder.label(item)
            if held is not None:
                call.recorder.notes.ties.tie(held, inputs)
            elif isinstance(item, Tensor) and item.numel():
                call.recorder.notes.ties.fix(inputs)
    call.recorder.put(out, label)


def layer_norm(call: Call) -> None:
    """LayerNorm and GroupNorm: statistics over channels; whether that can be cut is for `units` to say."""
    label, name = call.label(0), call.func.overloadpacket.__name__
    if label is None:
        return
    weight = call.args[2] if name == "native_layer_norm" else call.args[1]
    owner = call.recorder.owner(weight) if isinstance(weight, Tensor) else None
    dim = label.dim() - 1 if name == "native_layer_norm" else 1
    if owner is None or (name == "native_layer_norm" and len(call.args[1]) > 1):
        call.lose("a normalisation without weights mixes its channels")
        return
    layer = call.recorder.module.get_submodule(owner[1])
    call.recorder.read(owner[1], call.recorder.notes.ties.of_slices(label, dim), module2type(layer), outward=True)
    call.recorder.put(call.out[0], label)


def taken_apart(call: Call) -> None:
    """split and slice: as `moved`, and noted where it cuts across channels."""
    moved(call)
    label = call.label(0)
    if label is None:
        return
    pieces = isinstance(call.out, tuple | list)
    named = call.kwargs.get("dim", call.args[2 if pieces else 1] if len(call.args) > (2 if pieces else 1) else 0)
    dim, width = named % label.dim(), label.shape[named]
    sizes = [piece.shape[dim] for piece in (call.out if pieces else [call.out])]
    step = call.args[4] if not pieces and len(call.args) > 4 else 1
    if sizes[0] == width or not varies(label, dim):
        return
    channels = call.recorder.notes.ties.of_slices(label, dim)
    if step != 1:  # every other one: what lies between them is taken by another slice
        call.recorder.took_apart(channels, torch.arange(width) % step, pieces=False, even=True)
        return
    start = 0
    if not pieces and len(call.args) > 2 and call.args[2]:
        start = max(call.args[2] + width, 0) if call.args[2] < 0 else call.args[2]
    edges = torch.tensor([start, *sizes]).cumsum(0)
    parts = torch.bucketize(torch.arange(width), edges, right=True)
    call.recorder.took_apart(channels, parts, pieces=pieces)


_MOVED = (
    "permute", "squeeze", "unsqueeze", "expand", "select", "unbind", "cat", "stack", "flip", "roll",
    "alias", "detach", "repeat", "repeat_interleave", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle", "index_select", "index", "gather", "unfold", "im2col", "reflection_pad1d",
    "reflection_pad2d", "replication_pad1d", "replication_pad2d", "diagonal", "movedim", "rot90", "embedding",
    "select_scatter", "tril", "triu", "squeeze_", "unsqueeze_",
)  # fmt: skip
_SPATIAL = (
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d",
    "upsample_linear1d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "grid_sampler_2d", "mkldnn_max_pool2d",
)  # fmt: skip
_REDUCED = (
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "linalg_vector_norm", "norm", "prod",
    "logsumexp", "argmax", "any", "all",
)  # fmt: skip
_MADE = (
    "zeros", "empty", "ones", "full", "rand", "randn", "new_zeros", "new_empty", "new_full", "new_ones", "arange",
    "scalar_tensor", "linspace", "eye", "fill", "empty_strided", "new_empty_strided",
)  # fmt: skip
_NOTHING = ("lift_fresh", "as_strided_", "fill_", "zero_", "uniform_", "normal_", "bernoulli_", "_local_scalar_dense")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_MOVED, moved),
    **dict.fromkeys(_SPATIAL, spatial),
    **dict.fromkeys(_REDUCED, reduced),
    **dict.fromkeys(_MADE, made),
    **dict.fromkeys(_MADE_LIKE, made_like),
    **dict.fromkeys(_NOTHING, nothing),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), reshaped),
    **dict.fromkeys(("split", "split_with_sizes", "slice"), taken_apart),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum", "_safe_softmax"), normalised),
    **dict.fromkeys(("clone", "_to_copy", "contiguous"), copied),
    **dict.fromkeys(("t", "transpose"), transposed),
    **dict.fromkeys(("addmm", "mm", "bmm", "baddbmm"), product),
    **dict.fromkeys(("hardswish_", "_prelu_kernel", "hardswish", "rrelu_with_noise", "native_dropout"), pointwise),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"), batch_norm
    ),
    **dict.fromkeys(("native_layer_norm", "native_group_norm"), layer_norm),
    "convolution": convolution,
    "constant_pad_nd": padded,
    "copy_": written,
}


def recurrent(recorder: Recorder, name: str, layer: nn.RNNBase, inputs: Any, output: Any) -> None:
    """A recurrent layer reads features and makes hidden units, which go from every layer and direction at once."""
    ties, label = recorder.notes.ties, recorder.label(inputs[0])
    if layer.proj_size or not isinstance(output[0], Tensor):
        recorder.lose(list(inputs), f"{name}: there is no rule for projections and packed sequences")
        return
    if label is not None:
        recorder.read(name, ties.of_slices(label, label.dim() - 1), Own.RNN, outward=False)
    recorder.lose(list(inputs[1:]), f"it is the first state of {name}")
    hidden = recorder.made(name, output[0].shape[-1], Own.RNN)
    recorder.read(name, hidden, Own.STATE, outward=False)
    units = hidden[: layer.hidden_size]
    ties.tie(hidden.view(-1, layer.hidden_size), units.view(1, -1))
    recorder.put(output[0], hidden.expand(output[0].shape))
    for state in output[1] if isinstance(output[1], tuple) else (output[1],):
        recorder.put(state, units.expand(state.shape))


def whole(recorder: Recorder, name: str, inputs: Any) -> None:
    """A module that is not looked into: what goes into it cannot be followed."""
    recorder.lose(list(inputs), f"{name} is not looked into")
