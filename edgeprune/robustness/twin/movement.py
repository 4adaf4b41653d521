"""Operators that move elements, or compute with shapes: nothing here does arithmetic on pixels.

Shapes and axes are small tensors of whole numbers on the CPU, computed anew for every batch, so that a graph that
reads its batch size from its input works for any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from edgeprune.robustness.twin.elementwise import plain
from edgeprune.robustness.twin.node import Compute, Node, Rule, Unsupported, numbers, require_reasonable


def _reshape(node: Node) -> Compute:
    copy_zero = not node.integer("allowzero", 0)

    def reshape(x: Tensor, shape: Tensor) -> Tensor:
        sizes = numbers(shape) or []
        if copy_zero:
            sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
        return x.reshape(sizes)

    return reshape


def _flatten(node: Node) -> Compute:
    axis = node.integer("axis", 1)

    def flatten(x: Tensor) -> Tensor:
        split = axis % x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:]))

    return flatten


def _axes(node: Node, given: Tensor | None) -> list[int] | None:
    fixed = node.integers("axes")
    return list(fixed) if fixed is not None else numbers(given)


def _squeeze(node: Node) -> Compute:
    def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = _axes(node, axes)
        return x.squeeze() if chosen is None else x.squeeze(chosen)

    return squeeze


def _unsqueeze(node: Node) -> Compute:
    def unsqueeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = _axes(node, axes) or []
        for axis in sorted(axis % (x.ndim + len(chosen)) for axis in chosen):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


def _transpose(node: Node) -> Compute:
    order = node.integers("perm")
    return lambda x: x.permute(order or tuple(reversed(range(x.ndim))))


def _concat(node: Node) -> Compute:
    axis = node.integer("axis", 0)
    return lambda *tensors: torch.cat(tensors, axis)


def _split(node: Node) -> Compute:
    axis, fixed, parts = node.integer("axis", 0), node.integers("split"), len(node.outputs)

    def split(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        chosen = list(fixed) if fixed is not None else numbers(sizes)
        length = x.shape[axis]
        each = -(-length // parts)
        lengths = chosen or [min(each, length - each * part) for part in range(parts)]
        return torch.split(x, lengths, axis)

    return split


def _slice(node: Node) -> Compute:
    if node.opset < 10:
        starts, ends, axes = node.integers("starts") or (), node.integers("ends") or (), node.integers("axes")
        return lambda x: _cut(x, starts, ends, axes, None)

    def cut(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
        return _cut(x, numbers(starts) or (), numbers(ends) or (), numbers(axes), numbers(steps))

    return cut


def _cut(
    x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None, steps: Sequence[int] | None
) -> Tensor:
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = axes[index] if axes else index, steps[index] if steps else 1
        kept = range(x.shape[axis])[_clamped(start) : _clamped(end) : step]
        if step > 0:
            part: list[slice] = [slice(None)] * x.ndim
            part[axis] = slice(kept.start, max(kept.stop, kept.start), step)
            x = x[tuple(part)]
        else:
            x = x.index_select(axis, torch.tensor(list(kept), dtype=torch.int64, device=x.device))
    return x


def _clamped(bound: int) -> int:
    return min(max(bound, -(2**31)), 2**31)  # "to the end" is written as the largest number there is


def _gather(node: Node) -> Compute:
    axis = node.integer("axis", 0)

    def gather(x: Tensor, index: Tensor) -> Tensor:
        size = x.shape[axis]
        dim = axis % x.ndim
        flat = index.reshape(-1).to(torch.int64)
        picked = x.index_select(dim, torch.where(flat < 0, flat + size, flat).to(x.device))
        return picked.reshape([*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]])

    return gather


def _gather_elements(node: Node) -> Compute:
    axis = node.integer("axis", 0)

    def gather(x: Tensor, index: Tensor) -> Tensor:
        return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index).to(torch.int64))

    return gather


def _gather_nd(node: Node) -> Compute:
    node.refuse("batch_dims", 0)
    return lambda x, index: x[tuple(index.to(torch.int64).unbind(-1))]


def _scatter_nd(node: Node) -> Compute:
    node.refuse("reduction", "none")
    return lambda x, index, updates: x.index_put(tuple(index.to(torch.int64).unbind(-1)), updates)


def _pad(node: Node) -> Compute:
    mode, value = node.text("mode", "constant"), node.real("value", 0.0)
    fixed = node.integers("pads")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise Unsupported(f"mode={mode}")

    def pad(x: Tensor, pads: Tensor | None = None, fill: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        amounts = list(fixed) if fixed is not None else numbers(pads) or []
        chosen = [axis % x.ndim for axis in numbers(axes) or range(x.ndim)]
        around = [(0, 0)] * x.ndim
        for place, axis in enumerate(chosen):
            around[axis] = (amounts[place], amounts[place + len(chosen)])
        require_reasonable([size + sum(pair) for size, pair in zip(x.shape, around, strict=True)])
        if mode == "constant":
            flat = [size for pair in reversed(around) for size in pair]
            return torch.nn.functional.pad(x, flat, value=value if fill is None else float(fill))
        for axis, (before, after) in enumerate(around):
            if before or after:
                x = x.index_select(axis, _outside(x.shape[axis], before, after, mode).to(x.device))
        return x

    return pad


def _outside(size: int, before: int, after: int, mode: str) -> Tensor:
    """Where each pixel of a padded axis comes from."""
    index = torch.arange(-before, size + after)
    if mode == "edge":
        return index.clamp(0, size - 1)
    if mode == "wrap":
        return index % size
    period = max(2 * (size - 1), 1)
    folded = index % period
    return torch.where(folded < size, folded, period - folded)


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    wanted = np.broadcast_shapes(x.shape, tuple(numbers(shape) or ()))
    require_reasonable(wanted)
    return x.expand(wanted)


def _tile(x: Tensor, repeats: Tensor) -> Tensor:
    times = numbers(repeats) or []
    require_reasonable([size * count for size, count in zip(x.shape, times, strict=True)])
    return x.repeat(times)


def _shape(node: Node) -> Compute:
    start, end = node.integer("start", 0), node.attributes.get("end")
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


def _range(start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    first, last, by = start.item(), limit.item(), step.item()
    require_reasonable([math.ceil((last - first) / by)])
    return torch.arange(first, last, by, dtype=start.dtype)


def _one_hot(node: Node) -> Compute:
    axis = node.integer("axis", -1)

    def one_hot(index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        count = int(depth.reshape(-1)[0])
        hot = (index.long() % count).unsqueeze(axis) == torch.arange(count, device=index.device).view(
            [-1 if place == axis % (index.ndim + 1) else 1 for place in range(index.ndim + 1)]
        )
        return torch.where(hot, values[1], values[0])

    return one_hot


def _trilu(node: Node) -> Compute:
    function = torch.triu if node.integer("upper", 1) else torch.tril
    return lambda x, k=None: function(x, 0 if k is None else int(k))


def _depth_to_space(node: Node) -> Compute:
    block, mode = node.integer("blocksize", 1), node.text("mode", "DCR")

    def spread(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        deep = c // block**2
        if mode == "DCR":
            parts = x.reshape(n, block, block, deep, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            parts = x.reshape(n, deep, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(n, deep, h * block, w * block)

    return spread


def _space_to_depth(node: Node) -> Compute:
    block = node.integer("blocksize", 1)

    def gather(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * block**2, h // block, w // block)

    return gather


def _dropout(node: Node) -> Compute:
    node.only_first_output()
    return lambda x, *_ratio_and_mode: x


RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": plain(_expand),
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": plain(lambda x: x),
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": plain(_range),
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": plain(_size),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": plain(_tile),
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}

HOST_INPUTS: Mapping[str, frozenset[int]] = {
    "CumSum": frozenset({1}),
    "Expand": frozenset({1}),
    "Gather": frozenset({1}),
    "OneHot": frozenset({1}),
    "Pad": frozenset({1, 2, 3}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "TopK": frozenset({1}),
    "Trilu": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    "Upsample": frozenset({1}),
}
"""Inputs that are shapes, axes or sizes: read as numbers, so they stay on the CPU. Also every Reduce*'s second."""
