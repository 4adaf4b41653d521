"""What each operator does to labels: which dimensions of its inputs and outputs are the same, split, joined or summed.

An operator that is not listed freezes whatever goes through it: its channels are left alone, with its name as reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edgeprune.pruning.axes import FIXED, OPEN, Labels
from edgeprune.pruning.flow import Contraction, Flow, Maker, Mark, Mixing

Rule = Callable[[Flow, tuple[Any, ...], dict[str, Any], Any], None]
RULES: dict[str, Rule] = {}


def note(flow: Flow, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Mark an operator's output, and note what it says of its inputs."""
    name = func._schema.name.partition("::")[2]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        return
    rule = RULES.get(name)
    if rule is None and torch.Tag.pointwise in func.tags:
        rule = _pointwise
    try:
        if rule is not None:
            rule(flow, args, kwargs, output)
            return
    except (ValueError, IndexError, TypeError, KeyError):  # a form of the operator that its rule does not know
        rule = None
    for tensor in tensors:
        flow.freeze(tensor, f"its channels cannot be followed through {name}")
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            flow.put(leaf, Mark([None] * leaf.dim()))


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


# ----------------------------------------------------------------------------------------------- index by index


@_rule("where", "addcmul", "addcdiv", "lerp", "masked_fill", "masked_fill_", "copy_", "fill_")
def _pointwise(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Broadcast together, dimension by dimension."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    dims: list[Labels | None] = []
    for back in range(output.dim(), 0, -1):
        size = output.shape[-back]
        found = [flow.mark(each).dims[-back] for each in tensors if each.dim() >= back and each.shape[-back] == size > 1]
        together = found[0] if found else None
        for labels in found[1:]:
            together = flow.axes.same(together, labels)
        dims.append(together)
    flow.put(output, Mark(dims, _makers(flow, *tensors)))


@_rule("clone", "_to_copy", "alias", "detach", "lift_fresh", "contiguous", "native_dropout", "dropout", "as_strided_",
       "zero_",
       "hardswish", "hardswish_", "hardtanh", "hardtanh_", "hardsigmoid_", "leaky_relu_", "elu_", "silu_", "mish_")  # fmt: skip
def _handed_on(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark = flow.mark(args[0])
    first = output[0] if isinstance(output, tuple) else output
    if len(mark.dims) != first.dim():
        raise ValueError("another shape")
    flow.put(first, Mark(list(mark.dims), mark.makers, mark.weight))


@_rule("zeros_like", "ones_like", "rand_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty",
       "new_full", "_local_scalar_dense", "is_same_size", "sym_size")  # fmt: skip
def _new(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """A constant: anything fits it."""


# ----------------------------------------------------------------------------------------------------- views


@_rule("view", "_unsafe_view", "_reshape_alias", "_reshape_copy", "reshape")
def _view(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, old, new = flow.mark(args[0]), list(args[0].shape), list(output.shape)
    dims: list[Labels | None] = []
    for before, after in _blocks(old, new):
        if len(before) == len(after) == 1:
            dims.append(mark.dims[before[0]])
        else:
            merged = flow.axes.merge([old[i] for i in before], [mark.dims[i] for i in before])
            dims += flow.axes.split(merged, [new[i] for i in after])
    flow.put(output, Mark(dims, mark.makers, mark.weight))


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of dimensions that hold the same elements before and after."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after, left, right = [], [], 1, 1
        while not before or not after or left != right:
            if (left <= right and i < len(old)) or j >= len(new):
                if i >= len(old):
                    break
                before.append(i)
                left *= old[i]
                i += 1
            else:
                after.append(j)
                right *= new[j]
                j += 1
        blocks.append((before, after))
    return blocks


@_rule("permute", "permute_copy")
def _permute(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _reordered(flow, args[0], output, list(args[1]))


@_rule("t")
def _t(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _reordered(flow, args[0], output, list(range(args[0].dim()))[::-1])


@_rule("transpose")
def _transpose(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    order = list(range(args[0].dim()))
    order[args[1]], order[args[2]] = order[args[2]], order[args[1]]
    _reordered(flow, args[0], output, order)


def _reordered(flow: Flow, tensor: Tensor, output: Tensor, order: Sequence[int]) -> None:
    mark = flow.mark(tensor)
    flow.put(output, Mark([mark.dims[i] for i in order], mark.makers, mark.weight))


@_rule("unsqueeze")
def _unsqueeze(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, dims = flow.mark(args[0]), list(flow.mark(args[0]).dims)
    dims.insert(args[1] % output.dim(), None)
    flow.put(output, Mark(dims, mark.makers, mark.weight))


@_rule("squeeze")
def _squeeze(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, shape = flow.mark(args[0]), args[0].shape
    gone = range(len(shape)) if len(args) < 2 else [args[1]] if isinstance(args[1], int) else args[1]
    dropped = {dim % len(shape) for dim in gone if shape[dim] == 1}
    flow.put(output, Mark([d for i, d in enumerate(mark.dims) if i not in dropped], mark.makers, mark.weight))


@_rule("expand")
def _expand(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, old = flow.mark(args[0]), args[0].shape
    more = output.dim() - len(old)
    empty = flow.mark(torch.empty(output.shape, device="meta")).dims
    dims = [
        mark.dims[i - more] if i >= more and old[i - more] == size else empty[i] for i, size in enumerate(output.shape)
    ]
    flow.put(output, Mark(dims, mark.makers, mark.weight))


@_rule("repeat")
def _repeat(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, times = flow.mark(args[0]), list(args[1])
    dims = [None] * (len(times) - len(mark.dims)) + list(mark.dims)
    labels = [None if each is None else np.tile(each, count) for each, count in zip(dims, times, strict=True)]
    flow.put(output, Mark(labels, mark.makers))


@_rule("select")
def _select(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _picked(flow, args[0], output, args[1], args[2])


@_rule("unbind")
def _unbind(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    for index, part in enumerate(output):
        _picked(flow, args[0], part, dim, index)


def _picked(flow: Flow, tensor: Tensor, output: Tensor, dim: int, index: int) -> None:
    mark, dim = flow.mark(tensor), dim % tensor.dim()
    labels = mark.dims[dim]
    flow.axes.freeze(labels, "one of it is picked by its number")
    makers = mark.makers if labels is None else _within(flow, mark.makers, int(labels[index]))
    flow.put(output, Mark([*mark.dims[:dim], *mark.dims[dim + 1 :]], makers, mark.weight))


def _within(flow: Flow, makers: frozenset[Maker], term: int) -> frozenset[Maker]:
    return frozenset((name, slice_ | flow.axes.atoms(term)) for name, slice_ in makers)


@_rule("slice")
def _slice(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, dim, start, end, step = flow.mark(args[0]), *_slice_bounds(args)
    labels, dims, makers = mark.dims[dim], list(mark.dims), mark.makers
    size, taken = args[0].shape[dim], output.shape[dim]
    if labels is not None and taken != size:
        part = int(start or 0) % size
        if step == 1 and size % taken == 0 and part % taken == 0:
            first, dims[dim] = _parts(flow, labels, size // taken)
            makers = makers if first is None else _within(flow, makers, int(first[part // taken]))
        else:
            dims[dim] = labels[start:end:step]
    flow.put(output, Mark(dims, makers, mark.weight))


def _slice_bounds(args: tuple[Any, ...]) -> tuple[int, int | None, int | None, int]:
    _, dim, start, end, step = (*args, *(0, None, None, 1)[len(args) - 1 :])
    return dim % args[0].dim(), start, end, step


@_rule("split", "split_with_sizes", "chunk")
def _split(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark = flow.mark(args[0])
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % args[0].dim()
    labels, start, sizes = mark.dims[dim], 0, [part.shape[dim] for part in output]
    even = labels is not None and len(set(sizes)) == 1 < len(sizes)
    first, rest = _parts(flow, labels, len(sizes)) if even and labels is not None else (None, None)
    for index, part in enumerate(output):
        dims, makers = list(mark.dims), mark.makers
        if even:
            dims[dim] = rest
            makers = makers if first is None else _within(flow, makers, int(first[index]))
        elif labels is not None:
            dims[dim] = labels[start : start + sizes[index]]
        start += sizes[index]
        flow.put(part, Mark(dims, makers, mark.weight))


def _parts(flow: Flow, labels: Labels, count: int) -> tuple[Labels | None, Labels | None]:
    """A dimension that is taken apart into equal parts: each loses what the others lose."""
    first, rest = flow.axes.split(labels, [count, len(labels) // count])
    flow.axes.freeze(first, "one of it is picked by its number")
    return first, rest


@_rule("cat")
def _cat(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensors = [tensor for tensor in args[0] if tensor.dim() == output.dim()]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.dim()
    dims: list[Labels | None] = list(flow.mark(tensors[0]).dims)
    for tensor in tensors[1:]:
        for i, labels in enumerate(flow.mark(tensor).dims):
            if i != dim and output.shape[i] > 1:
                dims[i] = flow.axes.same(dims[i], labels)
    parts = [_filled(flow.mark(tensor).dims[dim], tensor.shape[dim]) for tensor in tensors]
    joined = np.concatenate(parts)
    dims[dim] = joined if joined.any() else None
    flow.put(output, Mark(dims, _makers(flow, *tensors)))


def _filled(labels: Labels | None, size: int) -> Labels:
    return np.full(size, FIXED, dtype=np.int64) if labels is None else labels


@_rule("stack")
def _stack(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.dim()
    dims: list[Labels | None] = list(flow.mark(args[0][0]).dims)
    for tensor in args[0][1:]:
        dims = [flow.axes.same(a, b) for a, b in zip(dims, flow.mark(tensor).dims, strict=True)]
    dims.insert(dim, None)
    flow.put(output, Mark(dims, _makers(flow, *args[0])))


@_rule("flip")
def _flip(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, turned = flow.mark(args[0]), {dim % output.dim() for dim in args[1]}
    dims = [d[::-1] if i in turned and d is not None else d for i, d in enumerate(mark.dims)]
    flow.put(output, Mark(dims, mark.makers))


@_rule("roll", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "cumsum", "sort", "_softmax", "_log_softmax",
       "tril", "triu")  # fmt: skip
def _positions(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Works along some dimensions, which must be positions; the others are handed on."""
    tensor, mark = args[0], flow.mark(args[0])
    name = "along its channels something is computed that is not a sum or a mean (softmax, padding, a shift)"
    changed = _changed(args, tensor, output)
    for dim in changed:
        flow.axes.freeze(mark.dims[dim], name)
    flow.put(output, Mark([None if i in changed else d for i, d in enumerate(mark.dims)], mark.makers))


def _changed(args: tuple[Any, ...], tensor: Tensor, output: Tensor) -> set[int]:
    if tensor.shape != output.shape:
        return {i for i in range(tensor.dim()) if tensor.shape[i] != output.shape[i]}
    given = args[2] if len(args) > 2 and isinstance(args[2], list | tuple) else args[1]
    along = given if isinstance(given, list | tuple) else [given]
    return {int(dim) % tensor.dim() for dim in along}


@_rule("index")
def _index(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, indices = flow.mark(args[0]), list(args[1]) + [None] * (args[0].dim() - len(args[1]))
    places = [i for i, index in enumerate(indices) if index is not None]
    for i in places:
        flow.axes.freeze(mark.dims[i], "one of it is picked by its number")
    new = output.dim() - (args[0].dim() - len(places))
    together = places == list(range(places[0], places[-1] + 1))
    kept = [(i, d) for i, d in enumerate(mark.dims) if i not in places]
    cut = places[0] if together else 0
    before, after = [d for i, d in kept if i < cut], [d for i, d in kept if i >= cut]
    flow.put(output, Mark([*before, *[None] * new, *after], _makers(flow, args[0])))


@_rule("index_select", "gather")
def _index_select(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, dim = flow.mark(args[0]), args[1] % output.dim()
    flow.axes.freeze(mark.dims[dim], "one of it is picked by its number")
    flow.put(output, Mark([None if i == dim else d for i, d in enumerate(mark.dims)], _makers(flow, args[0])))


@_rule("embedding")
def _embedding(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    rows, columns = flow.mark(args[0]).dims
    flow.axes.freeze(rows, "one of it is picked by its number")
    flow.put(output, Mark([*[None] * args[1].dim(), columns], _makers(flow, args[0])))


@_rule("im2col")
def _im2col(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark = flow.mark(args[0])
    channels, times = mark.dims[1], output.shape[1] // args[0].shape[1]
    repeated = None if channels is None else np.repeat(channels, times)
    flow.put(output, Mark([mark.dims[0], repeated, None], mark.makers))


# ------------------------------------------------------------------------------------------- pooling and resizing


@_rule("avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_bilinear2d",
       "upsample_nearest2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "avg_pool1d",
       "avg_pool3d", "_adaptive_avg_pool3d", "grid_sampler_2d")  # fmt: skip
def _pooled(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, first = flow.mark(args[0]), output[0] if isinstance(output, tuple) else output
    for labels in mark.dims[2:]:
        flow.axes.freeze(labels, "it is pooled over its channels")
    flow.put(first, Mark([*mark.dims[:2], *[None] * (first.dim() - 2)], mark.makers))


@_rule("mean", "var", "std", "var_mean")
def _mean(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensor, mark = args[0], flow.mark(args[0])
    over = _over(args, tensor)
    for dim in over:
        if mark.dims[dim] is not None and _mixes(flow, "MIX", mark.dims[dim]) is None:
            flow.axes.freeze(mark.dims[dim], "a mean over its channels is taken")
    for each in output if isinstance(output, tuple) else (output,):
        _reduced(flow, mark, each, over)


@_rule("sum", "linalg_vector_norm", "norm")
def _sum(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensor, mark = args[0], flow.mark(args[0])
    over = _over(args, tensor) if len(args) < 3 or not isinstance(args[2], list | tuple) else _over(args[1:], tensor)
    for dim in over:
        labels = mark.dims[dim]
        if labels is not None:
            flow.contractions.append(Contraction(labels, mark.makers, mark.makers))
    _reduced(flow, mark, output, over)


@_rule("amax", "amin", "max", "min", "argmax", "topk", "any", "all", "logsumexp", "prod")
def _extreme(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    if len(args) > 1 and isinstance(args[1], Tensor):
        _pointwise(flow, args, kwargs, output)
        return
    tensor, mark = args[0], flow.mark(args[0])
    over = _over(args, tensor)
    for dim in over:
        flow.axes.freeze(mark.dims[dim], "the largest of its channels is taken")
    for each in output if isinstance(output, tuple) else (output,):
        _reduced(flow, mark, each, over)


def _over(args: tuple[Any, ...], tensor: Tensor) -> set[int]:
    given = args[1] if len(args) > 1 and args[1] is not None else list(range(tensor.dim()))
    along = given if isinstance(given, list | tuple) and given else [given]
    return {int(dim) % tensor.dim() for dim in along}


def _reduced(flow: Flow, mark: Mark, output: Tensor, over: set[int]) -> None:
    kept = output.dim() == len(mark.dims)
    dims = [None if i in over else d for i, d in enumerate(mark.dims) if kept or i not in over]
    if len(dims) != output.dim():
        raise ValueError("a reduction of another form")
    flow.put(output, Mark(dims, mark.makers))


# ---------------------------------------------------------------------------------------------------- norms


@_rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensor, shape, mark = args[0], args[1], flow.mark(args[0])
    last = mark.dims[-1]
    if len(shape) > 1:
        for labels in mark.dims[-len(shape) :]:
            flow.axes.freeze(labels, "a LayerNorm runs over more than its channels")
        last = None
    affine = [each for each in args[2:4] if isinstance(each, Tensor)]
    for each in affine if len(shape) == 1 else ():
        last = flow.axes.same(last, flow.mark(each).dims[0], "a LayerNorm runs over positions")
    if last is not None and _mixes(flow, "LN", last) is None:
        flow.axes.freeze(last, "a LayerNorm that stands in no module of its own mixes its channels")
    dims = [*mark.dims[: tensor.dim() - len(shape)], *[None] * (len(shape) - 1), last]
    flow.put(output[0], Mark(dims, _makers(flow, tensor, *affine)))


@_rule("native_group_norm")
def _group_norm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensor, groups, mark = args[0], args[6], flow.mark(args[0])
    channels = mark.dims[1]
    affine = [each for each in args[1:3] if isinstance(each, Tensor)]
    for each in affine:
        channels = flow.axes.same(channels, flow.mark(each).dims[0], "a GroupNorm runs over positions")
    if channels is not None and groups > 1:
        first, rest = flow.axes.split(channels, [groups, len(channels) // groups])
        flow.axes.freeze(first, "the number of a GroupNorm's groups stays")
    if channels is not None and _mixes(flow, "GN", channels) is None:
        flow.axes.freeze(channels, "a GroupNorm that stands in no module of its own mixes its channels")
    for labels in mark.dims[2:]:
        flow.axes.freeze(labels, "a GroupNorm runs over it")
    dims = [mark.dims[0], channels, *[None] * (tensor.dim() - 2)]
    flow.put(output[0], Mark(dims, _makers(flow, tensor, *affine)))


@_rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
       "batch_norm")  # fmt: skip
def _batch_norm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark = flow.mark(args[0])
    channels = mark.dims[1]
    own = [each for each in args[1:5] if isinstance(each, Tensor)]
    for each in own:
        channels = flow.axes.same(channels, flow.mark(each).dims[0], "a batch norm runs over positions")
    first = output[0] if isinstance(output, tuple) else output
    flow.put(first, Mark([mark.dims[0], channels, *mark.dims[2:]], _makers(flow, args[0], *args[1:3])))


def _mixes(flow: Flow, kind: str, labels: Labels) -> Mixing | None:
    """Notes a mean over channels when it stands in a module of its own: one without weighted layers inside."""
    name = flow.running[-1] if flow.running else ""
    layer = flow.layers[name]
    weighted = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
    if not name or any(isinstance(each, weighted) for each in layer.modules()):
        return None
    known = {"LN": isinstance(layer, nn.LayerNorm), "GN": isinstance(layer, nn.GroupNorm)}.get(kind, False)
    flow.mixing.append(Mixing(name, kind if known else "MIX", labels))
    return flow.mixing[-1]


# ----------------------------------------------------------------------------------------------- contractions


@_rule("convolution", "conv2d", "_convolution", "mkldnn_convolution")
def _convolution(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensor, weight, bias, groups = args[0], args[1], args[2], args[8]
    mark, own, transposed = flow.mark(tensor), flow.mark(weight), bool(args[6])
    for labels in mark.dims[2:]:
        flow.axes.freeze(labels, "a convolution runs over it")
    if not own.weight or (transposed and groups > 1):
        raise ValueError("a convolution whose weight is computed")
    taken_in, made = (0, 1) if transposed else (1, 0)
    channels, outputs = mark.dims[1], own.dims[made]
    if groups == 1:
        channels = flow.axes.same(channels, own.dims[taken_in], "its channels are those of the network's input")
    elif tensor.shape[1] == groups == output.shape[1]:
        outputs = channels = flow.axes.same(channels, outputs, "its channels are those of the network's input")
    else:
        parts, rest = flow.axes.split(channels, [groups, tensor.shape[1] // groups])
        others, outputs_rest = flow.axes.split(outputs, [groups, output.shape[1] // groups])
        flow.axes.freeze(parts, "the number of a convolution's groups stays")
        flow.axes.freeze(others, "the number of a convolution's groups stays")
        if tensor.shape[1] > groups:
            flow.axes.same(rest, own.dims[1], "its channels are those of the network's input")
    flow.inputs[own.weight] = channels
    flow.read.add((own.weight, taken_in))
    if bias is not None and outputs is not None:
        outputs = flow.axes.same(outputs, flow.mark(bias).dims[0])
    made_by = frozenset((flow.mark(each).weight, frozenset[int]()) for each in (weight, bias) if each is not None)
    flow.put(output, Mark([mark.dims[0], outputs, *[None] * (output.dim() - 2)], made_by))


@_rule("mm")
def _mm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _product(flow, args[0], args[1], output)


@_rule("bmm")
def _bmm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _product(flow, args[0], args[1], output)


@_rule("addmm", "baddbmm", "addbmm")
def _addmm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _product(flow, args[1], args[2], output, bias=args[0])


@_rule("linear")
def _linear(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    weight = flow.mark(args[1])
    turned = Mark(weight.dims[::-1], weight.makers, weight.weight)
    _contract(flow, flow.mark(args[0]), turned, output, args[2] if len(args) > 2 else None)


def _product(flow: Flow, left: Tensor, right: Tensor, output: Tensor, bias: Tensor | None = None) -> None:
    _contract(flow, flow.mark(left), flow.mark(right), output, bias)


def _contract(flow: Flow, left: Mark, right: Mark, output: Tensor, bias: Tensor | None) -> None:
    """A matrix product over the last dimension of one and the last but one of the other."""
    inner = flow.axes.same(left.dims[-1], right.dims[-2], "its channels are those of the network's input")
    batch = [left.dims[0] if len(left.dims) == 3 == len(right.dims) else None][: output.dim() - 2]
    if len(left.dims) == 3 == len(right.dims):
        batch = [flow.axes.same(left.dims[0], right.dims[0])]
    elif len(left.dims) > 2:
        batch = list(left.dims[:-2])
    outer = [left.dims[-2] if len(left.dims) > 1 else None, right.dims[-1]]
    weights = [(mark.weight, dim) for mark, dim in ((left, left.dims[-1]), (right, right.dims[-2])) if mark.weight]
    for name, labels in weights:
        _reads(flow, name, labels)
    if not weights and inner is not None:
        flow.contractions.append(Contraction(inner, left.makers, right.makers))
    made_by: frozenset[Maker] = frozenset((name, frozenset[int]()) for name, _ in weights)
    if not weights:
        made_by = left.makers | right.makers
    dims = [*batch, *outer]
    if bias is not None:
        own = flow.mark(bias)
        dims[-1] = flow.axes.same(dims[-1], own.dims[-1]) if bias.shape[-1] == output.shape[-1] > 1 else dims[-1]
        made_by |= frozenset({(own.weight, frozenset[int]())} if own.weight else own.makers)
    flow.put(output, Mark(dims, made_by))


def _reads(flow: Flow, name: str, labels: Labels | None) -> None:
    """Notes which dimension of a parameter takes these in."""
    wanted = set() if labels is None else set(labels.tolist()) - {FIXED, OPEN}
    for dim, own in enumerate(flow.weights[name].dims):
        if own is not None and wanted & set(own.tolist()):
            flow.read.add((name, dim))


@_rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
       "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math_for_mps")  # fmt: skip
def _attention(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    query, key, value = (flow.mark(each) for each in args[:3])
    both = [flow.axes.same(a, b) for a, b in zip(query.dims[:-2], key.dims[:-2], strict=True)]
    batch = [flow.axes.same(a, b) for a, b in zip(both, value.dims[:-2], strict=True)]
    inner = flow.axes.same(query.dims[-1], key.dims[-1])
    if inner is not None:
        flow.contractions.append(Contraction(inner, query.makers, key.makers))
    for mark in (query, key, value):
        flow.axes.freeze(mark.dims[-2], "attention runs over it")
    bias = args[5] if len(args) > 5 else kwargs.get("attn_mask")
    if isinstance(bias, Tensor):
        for back in range(3, bias.dim() + 1):
            if bias.shape[-back] > 1:
                batch[1 - back + 2] = flow.axes.same(batch[1 - back + 2], flow.mark(bias).dims[-back])
    flow.put(output[0], Mark([*batch, None, value.dims[-1]], value.makers))


def _makers(flow: Flow, *tensors: Any) -> frozenset[Maker]:
    found: frozenset[Maker] = frozenset()
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            mark = flow.mark(tensor)
            found |= {(mark.weight, frozenset[int]())} if mark.weight else mark.makers
    return found
