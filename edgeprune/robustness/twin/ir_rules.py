"""Operators of OpenVINO's IR that ONNX has no word for: the rules of the domain "openvino".

What ONNX does have a word for is translated when the IR is read (`edgeprune.robustness.twin.ir`). FakeQuantize passes
the gradient straight through inside its range and stops it outside (Bengio et al. 2013), as the quantised operators of
ONNX do. Each rule follows the operation set's specification (docs.openvino.ai, "Available Operation Sets").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.robustness.twin.elementwise import plain, straight_through
from edgeprune.robustness.twin.node import Compute, Node, Rule, Unsupported, numbers

DOMAIN = "openvino"

_TYPES: Mapping[str, torch.dtype] = {
    "f16": torch.float32,
    "bf16": torch.float32,
    "f32": torch.float32,
    "f64": torch.float64,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "u16": torch.int32,
    "u32": torch.int64,
    "u64": torch.int64,
    "boolean": torch.bool,
}
"""IR element type to the torch type that carries it: half floats as float32, in which the runtime is told to
compute."""


def _listed(values: Tensor) -> list[int]:
    return numbers(values) or []


def _clamp(node: Node) -> Compute:
    low, high = node.real("min", -torch.inf), node.real("max", torch.inf)
    return lambda x: x.clamp(low, high)


def _convert(node: Node) -> Compute:
    name = node.text("destination_type", "f32")
    if name not in _TYPES:
        raise Unsupported(f"destination_type={name}")
    return lambda x: x.to(_TYPES[name])


def _fake_quantize(node: Node) -> Compute:
    levels = node.integer("levels", 256)

    def quantise(x: Tensor, low: Tensor, high: Tensor, out_low: Tensor, out_high: Tensor) -> Tensor:
        inside = torch.minimum(torch.maximum(x, low), high)
        step = (high - low) / (levels - 1)
        level = (inside - low) / torch.where(step == 0, 1.0, step)
        scale = (out_high - out_low) / (levels - 1)
        return straight_through(level.detach().round(), level) * scale + out_low

    return quantise


def _matmul(node: Node) -> Compute:
    first, second = bool(node.integer("transpose_a", 0)), bool(node.integer("transpose_b", 0))

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        a = a.transpose(-1, -2) if first and a.ndim > 1 else a
        return a @ (b.transpose(-1, -2) if second and b.ndim > 1 else b)

    return multiply


def _merge_groups(_node: Node) -> Compute:
    """Weights (G, O, I, ...) of a grouped convolution as ONNX has them: (G * O, I, ...)."""
    return lambda weight: weight.flatten(0, 1)


def _mvn(node: Node) -> Compute:
    epsilon, spread = node.real("eps", 1e-6), bool(node.integer("normalize_variance", 1))
    inside = node.text("eps_mode", "inside_sqrt").lower() == "inside_sqrt"

    def normalise(x: Tensor, axes: Tensor) -> Tensor:
        chosen = [axis % x.ndim for axis in _listed(axes)]
        if 0 in chosen:
            raise Unsupported("statistics over the batch")
        centred = x - x.mean(chosen, keepdim=True)
        if not spread:
            return centred
        variance = centred.square().mean(chosen, keepdim=True)
        return centred / (torch.sqrt(variance + epsilon) if inside else torch.sqrt(variance) + epsilon)

    return normalise


def _normalize_l2(node: Node) -> Compute:
    epsilon, largest = node.real("eps", 1e-12), node.text("eps_mode", "add").lower() == "max"

    def normalise(x: Tensor, axes: Tensor) -> Tensor:
        squares = x.square().sum(_listed(axes) or list(range(x.ndim)), keepdim=True)
        return x / torch.sqrt(squares.clamp_min(epsilon) if largest else squares + epsilon)

    return normalise


def _gather(node: Node) -> Compute:
    if node.integer("batch_dims", 0):
        raise Unsupported("batch_dims")

    def gather(x: Tensor, indices: Tensor, axis: Tensor) -> Tensor:
        place = _listed(axis)[0] % x.ndim
        rows = torch.where(indices < 0, indices + x.shape[place], indices).to(torch.int64).to(x.device)
        taken = x.index_select(place, rows.reshape(-1))
        return taken.reshape(*x.shape[:place], *rows.shape, *x.shape[place + 1 :])

    return gather


def _split(node: Node) -> Compute:
    parts = node.integer("num_splits", 1)
    return lambda x, axis: tuple(torch.chunk(x, parts, _listed(axis)[0]))


def _variadic_split(_node: Node) -> Compute:
    def split(x: Tensor, axis: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        place, sizes = _listed(axis)[0], _listed(lengths)
        left = x.shape[place] - sum(size for size in sizes if size >= 0)
        return torch.split(x, [left if size < 0 else size for size in sizes], place)

    return split


def _strided_slice(node: Node) -> Compute:
    """Begins, ends and steps of the first axes; a mask's 1 says: from the start, to the end, a new axis, one index."""
    masks = {name: node.integers(f"{name}_mask") or () for name in ("begin", "end", "new_axis", "shrink_axis")}
    if any(node.integers("ellipsis_mask") or ()):
        raise Unsupported("ellipsis_mask")

    def masked(name: str, axis: int) -> bool:
        return len(masks[name]) > axis and bool(masks[name][axis])

    def cut(x: Tensor, begin: Tensor, end: Tensor, strides: Tensor | None = None) -> Tensor:
        begins, ends = _listed(begin), _listed(end)
        steps = [1] * len(begins) if strides is None else _listed(strides)
        where: list[Any] = []
        for axis, (first, last, step) in enumerate(zip(begins, ends, steps, strict=True)):
            if step < 0:
                raise Unsupported("a step backwards")
            if masked("new_axis", axis):
                where.append(None)
            elif masked("shrink_axis", axis):
                where.append(first)
            else:
                where.append(
                    slice(None if masked("begin", axis) else first, None if masked("end", axis) else last, step)
                )
        return x[tuple(where)]

    return cut


def _broadcast(node: Node) -> Compute:
    if node.text("mode", "numpy").lower() not in ("numpy", "bidirectional"):
        raise Unsupported(f"mode={node.text('mode', '')}")

    def expand(x: Tensor, shape: Tensor) -> Tensor:
        return x + torch.zeros(_listed(shape), dtype=x.dtype, device=x.device)

    return expand


def _adaptive_average(_node: Node) -> Compute:
    def pool(x: Tensor, sizes: Tensor) -> Tensor:
        height, width = _listed(sizes)
        return functional.adaptive_avg_pool2d(x, (height, width))

    return pool


def _shuffle_channels(node: Node) -> Compute:
    axis, group = node.integer("axis", 1), node.integer("group", 1)

    def shuffle(x: Tensor) -> Tensor:
        place = axis % x.ndim
        parts = x.reshape(*x.shape[:place], group, -1, *x.shape[place + 1 :])
        return parts.transpose(place, place + 1).reshape(x.shape)

    return shuffle


def _attention(node: Node) -> Compute:
    causal = bool(node.integer("causal", 0))

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        given = None if mask is None or (mask.ndim == 0 and not bool(mask)) or causal else mask
        factor = None if scale is None else float(scale)
        return functional.scaled_dot_product_attention(q, k, v, given, is_causal=causal, scale=factor)

    return attend


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    shaped = slope.view(-1, *[1] * (x.ndim - 2)) if slope.ndim == 1 and slope.numel() > 1 and x.ndim > 2 else slope
    return torch.where(x < 0, x * shaped, x)


def _swish(x: Tensor, beta: Tensor | None = None) -> Tensor:
    return x * torch.sigmoid(x if beta is None else beta * x)


def _selu(x: Tensor, alpha: Tensor, factor: Tensor) -> Tensor:
    return factor * torch.where(x > 0, x, alpha * torch.expm1(x.clamp_max(0)))


def _hard_sigmoid(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _roll(x: Tensor, shift: Tensor, axes: Tensor) -> Tensor:
    places, moves = _listed(axes), _listed(shift)
    return torch.roll(x, moves * len(places) if len(moves) == 1 else moves, places)


RULES: Mapping[str, Rule] = {
    "AdaptiveAvgPool": _adaptive_average,
    "Broadcast": _broadcast,
    "Clamp": _clamp,
    "Convert": _convert,
    "ConvertLike": plain(lambda x, like: x.to(like.dtype)),
    "FakeQuantize": _fake_quantize,
    "Gather": _gather,
    "HSigmoid": plain(lambda x: (x + 3).clamp(0, 6) / 6),
    "HardSigmoid": plain(_hard_sigmoid),
    "MVN": _mvn,
    "MatMul": _matmul,
    "MergeGroups": _merge_groups,
    "NormalizeL2": _normalize_l2,
    "NotEqual": plain(torch.ne),
    "PRelu": plain(_prelu),
    "Roll": plain(_roll),
    "ScaledDotProductAttention": _attention,
    "Selu": plain(_selu),
    "ShuffleChannels": _shuffle_channels,
    "Split": _split,
    "SquaredDifference": plain(lambda a, b: (a - b).square()),
    "StridedSlice": _strided_slice,
    "Swish": plain(_swish),
    "VariadicSplit": _variadic_split,
}
