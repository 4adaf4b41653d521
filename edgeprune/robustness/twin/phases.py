"""A strided convolution's way back as plain convolutions: one for each phase of the pixels, then woven together.

Of the pixels of an image, those whose place has the same remainder by the stride (a phase) are reached by the same taps
of the kernel, so that their gradient is a plain convolution with these taps. A runtime runs that in its blocked layout,
where a transposed convolution is a product of matrices whose result is added up pixel by pixel. There are as many
multiplications in all. Weaving joins the phases along an axis of their own, first the columns, then the rows.

Refusal: groups, dilations, other than two axes, phases that no tap reaches or that differ in size, and few channels,
whose blocks would be mostly padding; these stay transposed convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from edgeprune.robustness.twin.drafting import Draft
    from edgeprune.robustness.twin.windows import Window

FEWEST = 16
"""Channels of the gradient from which it pays: a block of the widest registers."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Of one axis, the pixels with one remainder: the `taps` that reach them, in the order of a plain convolution over
    the gradient, and that one's padding (`before`, `after`)."""

    taps: tuple[int, ...]
    before: int
    after: int


def phases_of(size: int, results: int, kernel: int, stride: int, before: int) -> tuple[Phase, ...] | None:
    """The phases of an axis of `size` pixels that a convolution with `before` pixels of padding makes into `results`.

    None where they are not of one size, no tap reaches one, or one would have to be cropped.
    """
    if size % stride:
        return None
    found = []
    for place in range(stride):
        first, shift = (place + before) % stride, (place + before) // stride
        taps = tuple(reversed(range(first, kernel, stride)))
        ends = (len(taps) - 1 - shift, size // stride + shift - results)
        if not taps or min(ends) < 0:
            return None
        found.append(Phase(taps, *ends))
    return tuple(found)


def phased(window: Window, group: int, sizes: tuple[int, ...], results: tuple[int, ...]) -> list[tuple[Phase, ...]]:
    """The phases of rows and columns where this way back is for the convolution, else none."""
    if group != 1 or len(sizes) != 2 or set(window.dilations) != {1} or min(window.strides) < 2:
        return []
    axes = zip(sizes, results, window.kernel, window.strides, window.padding(sizes), strict=True)
    found = [phases_of(size, count, taps, step, before) for size, count, taps, step, (before, _) in axes]
    return [each for each in found if each is not None] if all(found) else []


def woven(draft: Draft, gradient: str, weight: Tensor, phases: list[tuple[Phase, ...]], sizes: tuple[int, ...]) -> str:
    """The gradient of a convolution's input, `sizes` (H, W) pixels, from that of its result; weight (O, I, h, w)."""
    rows, columns = phases
    channels, tall = weight.shape[1], sizes[0] // len(rows)
    turned, lines = weight.transpose(0, 1), draft.whole(-1, tall, 1, sizes[1] * channels)
    found = []
    for row in rows:
        planes = []
        for column in columns:
            kernel = turned[:, :, list(row.taps)][:, :, :, list(column.taps)]
            pads = [row.before, column.before, row.after, column.after]
            taps = [len(row.taps), len(column.taps)]
            planes.append(draft.put("Conv", [gradient, draft.fixed(kernel)], kernel_shape=taps, pads=pads))
        line = draft.put("Transpose", [draft.put("Concat", planes, axis=1)], perm=[0, 2, 3, 1])
        found.append(draft.put("Reshape", [line, lines]))
    whole = draft.put("Reshape", [draft.put("Concat", found, axis=2), draft.whole(-1, *sizes, channels)])
    return draft.put("Transpose", [whole], perm=[0, 3, 1, 2])
