"""What each operator does to labels: which dimensions of its inputs and outputs are the same, split, joined or summed.

An operator that is not listed freezes whatever goes through it: its channels are left alone, with its name as reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from edgeprune.pruning.axes import FIXED, Labels
from edgeprune.pruning.flow import Flow, Maker, Mark

Rule = Callable[[Flow, tuple[Any, ...], dict[str, Any], Any], None]
RULES: dict[str, Rule] = {}


def note(flow: Flow, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Mark an operator's output, and note what it says of its inputs."""
    name = func._schema.name.partition("::")[2]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        return
    known = RULES.get(name)
    if known is None and torch.Tag.pointwise in func.tags:
        known = pointwise
    try:
        if known is not None:
            known(flow, args, kwargs, output)
            return
    except (ValueError, IndexError, TypeError, KeyError):  # a form of the operator that its rule does not know
        known = None
    for tensor in tensors:
        flow.freeze(tensor, f"its channels cannot be followed through {name}")
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            flow.put(leaf, Mark([None] * leaf.dim()))


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of operators, by their names in torch.ops.aten."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# ----------------------------------------------------------------------------------------------- index by index


@rule("where", "addcmul", "addcdiv", "lerp", "masked_fill", "masked_fill_", "copy_", "fill_")
def pointwise(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Tensors that broadcast together: the same indices, dimension by dimension."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    dims: list[Labels | None] = []
    for back in range(output.dim(), 0, -1):
        size = output.shape[-back]
        found = [
            flow.mark(each).dims[-back] for each in tensors if each.dim() >= back and each.shape[-back] == size > 1
        ]
        together = found[0] if found else None
        for labels in found[1:]:
            together = flow.axes.same(together, labels)
        dims.append(together)
    flow.put(output, Mark(dims, makers_of(flow, *tensors)))


@rule("clone", "_to_copy", "alias", "detach", "lift_fresh", "contiguous", "native_dropout", "dropout", "as_strided_",
       "zero_", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "hardsigmoid_", "leaky_relu_", "silu_")  # fmt: skip
def _handed_on(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark = flow.mark(args[0])
    first = output[0] if isinstance(output, tuple) else output
    if len(mark.dims) != first.dim():
        raise ValueError("another shape")
    flow.put(first, Mark(list(mark.dims), mark.makers, mark.weight))


@rule("zeros_like", "ones_like", "rand_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty",
       "new_full", "_local_scalar_dense", "is_same_size", "sym_size")  # fmt: skip
def _new(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """A constant: anything fits it."""


# ----------------------------------------------------------------------------------------------------- views


@rule("view", "_unsafe_view", "_reshape_alias", "_reshape_copy", "reshape")
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
        before: list[int] = []
        after: list[int] = []
        left = right = 1
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


@rule("permute", "permute_copy")
def _permute(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _reordered(flow, args[0], output, list(args[1]))


@rule("t")
def _t(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _reordered(flow, args[0], output, list(range(args[0].dim()))[::-1])


@rule("transpose")
def _transpose(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    order = list(range(args[0].dim()))
    order[args[1]], order[args[2]] = order[args[2]], order[args[1]]
    _reordered(flow, args[0], output, order)


def _reordered(flow: Flow, tensor: Tensor, output: Tensor, order: Sequence[int]) -> None:
    mark = flow.mark(tensor)
    flow.put(output, Mark([mark.dims[i] for i in order], mark.makers, mark.weight))


@rule("unsqueeze")
def _unsqueeze(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, dims = flow.mark(args[0]), list(flow.mark(args[0]).dims)
    dims.insert(args[1] % output.dim(), None)
    flow.put(output, Mark(dims, mark.makers, mark.weight))


@rule("squeeze")
def _squeeze(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, shape = flow.mark(args[0]), args[0].shape
    gone = range(len(shape)) if len(args) < 2 else [args[1]] if isinstance(args[1], int) else args[1]
    dropped = {dim % len(shape) for dim in gone if shape[dim] == 1}
    flow.put(output, Mark([d for i, d in enumerate(mark.dims) if i not in dropped], mark.makers, mark.weight))


@rule("expand")
def _expand(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, old = flow.mark(args[0]), args[0].shape
    more = output.dim() - len(old)
    empty = flow.mark(torch.empty(output.shape, device="meta")).dims
    dims = [
        mark.dims[i - more] if i >= more and old[i - more] == size else empty[i] for i, size in enumerate(output.shape)
    ]
    flow.put(output, Mark(dims, mark.makers, mark.weight))


@rule("repeat")
def _repeat(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, times = flow.mark(args[0]), list(args[1])
    dims = [None] * (len(times) - len(mark.dims)) + list(mark.dims)
    labels = [None if each is None else np.tile(each, count) for each, count in zip(dims, times, strict=True)]
    flow.put(output, Mark(labels, mark.makers))


@rule("select")
def _select(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _picked(flow, args[0], output, args[1], args[2])


@rule("unbind")
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


@rule("slice")
def _slice(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    dim, start, end, step = _slice_bounds(args)
    mark = flow.mark(args[0])
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
    given: list[Any] = [*args[1:], *(0, None, None, 1)[len(args) - 1 :]]
    return int(given[0]) % args[0].dim(), given[1], given[2], int(given[3])


@rule("split", "split_with_sizes", "chunk")
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


@rule("cat")
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
    flow.put(output, Mark(dims, makers_of(flow, *tensors)))


def _filled(labels: Labels | None, size: int) -> Labels:
    return np.full(size, FIXED, dtype=np.int64) if labels is None else labels


@rule("stack")
def _stack(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % output.dim()
    dims: list[Labels | None] = list(flow.mark(args[0][0]).dims)
    for tensor in args[0][1:]:
        dims = [flow.axes.same(a, b) for a, b in zip(dims, flow.mark(tensor).dims, strict=True)]
    dims.insert(dim, None)
    flow.put(output, Mark(dims, makers_of(flow, *args[0])))


@rule("flip")
def _flip(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, turned = flow.mark(args[0]), {dim % output.dim() for dim in args[1]}
    dims = [d[::-1] if i in turned and d is not None else d for i, d in enumerate(mark.dims)]
    flow.put(output, Mark(dims, mark.makers))


@rule("roll", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "cumsum", "sort", "_softmax", "_log_softmax",
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


@rule("index")
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
    flow.put(output, Mark([*before, *[None] * new, *after], makers_of(flow, args[0])))


@rule("index_select", "gather")
def _index_select(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, dim = flow.mark(args[0]), args[1] % output.dim()
    flow.axes.freeze(mark.dims[dim], "one of it is picked by its number")
    flow.put(output, Mark([None if i == dim else d for i, d in enumerate(mark.dims)], makers_of(flow, args[0])))


@rule("embedding")
def _embedding(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    rows, columns = flow.mark(args[0]).dims
    flow.axes.freeze(rows, "one of it is picked by its number")
    flow.put(output, Mark([*[None] * args[1].dim(), columns], makers_of(flow, args[0])))


@rule("im2col")
def _im2col(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark = flow.mark(args[0])
    channels, times = mark.dims[1], output.shape[1] // args[0].shape[1]
    repeated = None if channels is None else np.repeat(channels, times)
    flow.put(output, Mark([mark.dims[0], repeated, None], mark.makers))


def makers_of(flow: Flow, *tensors: Any) -> frozenset[Maker]:
    """What made the values of these tensors: parameters, or what made the activations."""
    found: frozenset[Maker] = frozenset()
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            mark = flow.mark(tensor)
            found |= {(mark.weight, frozenset[int]())} if mark.weight else mark.makers
    return found
