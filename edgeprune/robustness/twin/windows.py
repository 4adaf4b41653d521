"""Operators with a sliding window: convolution and pooling, with every way ONNX has to say where the window goes.

Padding that torch has no word for (asymmetric, `auto_pad`, the overhang of `ceil_mode`) is laid around the image
first; the common case goes to torch's own operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.robustness.twin.elementwise import plain
from edgeprune.robustness.twin.halving import halved, halves
from edgeprune.robustness.twin.node import Compute, Node, Rule, Unsupported

_CONV: tuple[Callable[..., Tensor], ...] = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED: tuple[Callable[..., Tensor], ...] = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)
_AVERAGE: tuple[Callable[..., Tensor], ...] = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
_MAX: tuple[Callable[..., Tensor], ...] = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


@dataclass(frozen=True, slots=True)
class Window:
    """Where a window of a fixed kernel size stands, per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    ceil: bool

    @classmethod
    def of(cls, node: Node, kernel: tuple[int, ...]) -> Window:
        axes = len(kernel)
        if not 1 <= axes <= 3:
            raise Unsupported(f"a window with {axes} axes")
        return cls(
            kernel=kernel,
            strides=node.integers("strides") or (1,) * axes,
            dilations=node.integers("dilations") or (1,) * axes,
            pads=node.integers("pads") or (0,) * (2 * axes),
            auto_pad=node.text("auto_pad", "NOTSET"),
            ceil=bool(node.integer("ceil_mode", 0)),
        )

    @property
    def reach(self) -> tuple[int, ...]:
        """Pixels from the first to the last tap, inclusive."""
        return tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))

    def padding(self, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """(before, after) of each spatial axis for an image of these sizes; after may be less than asked for."""
        if self.auto_pad == "VALID":
            return ((0, 0),) * len(sizes)
        if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            return tuple(self._same(axis, size) for axis, size in enumerate(sizes))
        return tuple(zip(self.pads[: len(sizes)], self.pads[len(sizes) :], strict=True))

    def overhang(self, sizes: tuple[int, ...], padding: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
        """Pixels that the last window of `ceil_mode` reaches beyond image and padding; it never starts out there."""
        return tuple(
            max(0, self._end(axis, size, before, after) - (before + size + after))
            for axis, (size, (before, after)) in enumerate(zip(sizes, padding, strict=True))
        )

    def _end(self, axis: int, size: int, before: int, after: int) -> int:
        stride, reach = self.strides[axis], self.reach[axis]
        steps = (before + size + after - reach) / stride
        count = (math.ceil(steps) if self.ceil else math.floor(steps)) + 1
        if self.ceil and (count - 1) * stride >= size + before:
            count -= 1
        return (count - 1) * stride + reach

    def _same(self, axis: int, size: int) -> tuple[int, int]:
        stride = self.strides[axis]
        total = max((math.ceil(size / stride) - 1) * stride + self.reach[axis] - size, 0)
        small = total // 2
        return (small, total - small) if self.auto_pad == "SAME_UPPER" else (total - small, small)


def pad(x: Tensor, padding: tuple[tuple[int, int], ...], value: float = 0.0) -> Tensor:
    """Constant padding of the last axes; (before, after) of each."""
    flat = [size for pair in reversed(padding) for size in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[2:])


def _symmetric(padding: tuple[tuple[int, int], ...]) -> bool:
    return all(before == after for before, after in padding)


def conv(node: Node) -> Compute:
    """Convolution of 1 to 3 spatial axes."""
    group = node.integer("group", 1)

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        window = Window.of(node, tuple(weight.shape[2:]))
        padding = window.padding(_spatial(x))
        if _symmetric(padding):
            inner = tuple(before for before, _ in padding)
        else:
            x, inner = pad(x, padding), (0,) * len(padding)
        if group == 1 and x.requires_grad and halves(window, weight):
            return halved(x, weight, bias, inner)
        function = _CONV[len(padding) - 1]
        return function(x, weight, bias, window.strides, inner, window.dilations, group)

    return convolve


def _conv_transpose(node: Node) -> Compute:
    group, shape = node.integer("group", 1), node.integers("output_shape")

    def spread(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        window = Window.of(node, tuple(weight.shape[2:]))
        axes = len(window.kernel)
        extra = node.integers("output_padding") or (0,) * axes
        function = _TRANSPOSED[axes - 1]
        full = function(x, weight, None, window.strides, 0, 0, group, window.dilations)
        full = pad(full, tuple((0, size) for size in extra))
        crop = _cropping(window, full, _spatial(x), shape)
        full = pad(full, tuple((-before, -after) for before, after in crop))
        return full if bias is None else full + bias.view(-1, *(1,) * axes)

    return spread


def _cropping(
    window: Window, full: Tensor, sizes: tuple[int, ...], shape: tuple[int, ...] | None
) -> tuple[tuple[int, int], ...]:
    """What a transposed convolution cuts off its full result: (before, after) of each spatial axis."""
    if shape is None and window.auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return window.padding(sizes)
    wanted = shape[-len(sizes) :] if shape else tuple(a * b for a, b in zip(sizes, window.strides, strict=True))
    crop = []
    for have, want in zip(_spatial(full), wanted, strict=True):
        total = have - want
        small = total // 2
        crop.append((small, total - small) if window.auto_pad == "SAME_UPPER" else (total - small, small))
    return tuple(crop)


def _kernel(node: Node) -> tuple[int, ...]:
    kernel = node.integers("kernel_shape")
    if kernel is None:
        raise Unsupported("no kernel_shape")
    return kernel


def _max_pool(node: Node) -> Compute:
    node.only_first_output()
    window = Window.of(node, _kernel(node))
    function = _MAX[len(window.kernel) - 1]

    def pool(x: Tensor) -> Tensor:
        padding = window.padding(_spatial(x))
        hang = window.overhang(_spatial(x), padding)
        fits = all(before <= size // 2 for (before, _), size in zip(padding, window.kernel, strict=True))
        if _symmetric(padding) and fits and not any(hang):
            inner: tuple[int, ...] = tuple(before for before, _ in padding)
        else:
            outer = tuple((before, after + more) for (before, after), more in zip(padding, hang, strict=True))
            x, inner = pad(x, outer, -math.inf), (0,) * len(padding)
        return function(x, window.kernel, window.strides, inner, window.dilations)

    return pool


def _window_sum(x: Tensor, window: Window) -> Tensor:
    """Sum of every window; no padding of its own."""
    axes = len(window.kernel)
    if all(step == 1 for step in window.dilations):
        return _AVERAGE[axes - 1](x, window.kernel, window.strides) * math.prod(window.kernel)
    planes = x.reshape(-1, 1, *x.shape[2:])
    ones = torch.ones(1, 1, *window.kernel, dtype=x.dtype, device=x.device)
    sums = _CONV[axes - 1](planes, ones, None, window.strides, 0, window.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def _average_pool(node: Node) -> Compute:
    window, include = Window.of(node, _kernel(node)), bool(node.integer("count_include_pad", 0))
    function, dilated = _AVERAGE[len(window.kernel) - 1], any(step != 1 for step in window.dilations)

    def pool(x: Tensor) -> Tensor:
        padding = window.padding(_spatial(x))
        hang = window.overhang(_spatial(x), padding)
        fits = all(before <= size // 2 for (before, _), size in zip(padding, window.kernel, strict=True))
        if _symmetric(padding) and fits and not any(hang) and not dilated:
            inner = tuple(before for before, _ in padding)
            return function(x, window.kernel, window.strides, inner, False, include)
        counted = torch.ones(1, 1, *_spatial(x), dtype=x.dtype, device=x.device)
        counted = pad(counted, padding, 1.0 if include else 0.0)
        beyond = tuple((0, more) for more in hang)
        sums = _window_sum(pad(pad(x, padding), beyond), window)
        return sums / _window_sum(pad(counted, beyond), window)

    return pool


def _lp_pool(node: Node) -> Compute:
    window, p = Window.of(node, _kernel(node)), node.integer("p", 2)

    def pool(x: Tensor) -> Tensor:
        padding = window.padding(_spatial(x))
        beyond = tuple((0, more) for more in window.overhang(_spatial(x), padding))
        powers = pad(pad(x.abs().pow(p), padding), beyond)
        return _window_sum(powers, window).clamp_min(torch.finfo(x.dtype).tiny).pow(1 / p)

    return pool


def _all_pixels(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _global_lp_pool(node: Node) -> Compute:
    p = node.integer("p", 2)
    return lambda x: torch.linalg.vector_norm(x, p, _all_pixels(x), keepdim=True)


def _global(function: Callable[..., Any]) -> Rule:
    return plain(lambda x: function(x, _all_pixels(x), keepdim=True))


RULES: Mapping[str, Rule] = {
    "AveragePool": _average_pool,
    "Conv": conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalLpPool": _global_lp_pool,
    "GlobalMaxPool": _global(torch.amax),
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
