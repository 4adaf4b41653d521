"""How a file wants its images, and its runtime behind one face: any number of images (N, C, H, W) in, logits out.

A foreign file may be channels-last, flat, or made for one image at a time; the input that it declares says which. What
cannot be told from it is asked for, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeprune.errors import ModelError, UsageError
from edgeprune.protocols import Session
from edgeprune.records import RuntimeInfo
from edgeprune.types import Preprocessing, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from edgeprune.types import Floats

_CHANNELS = (1, 3, 4)
_TYPES = {1: "float32", 10: "float16", 11: "float64"}


@dataclass(frozen=True, slots=True)
class Layout:
    """`shape` (C, H, W) of an image; `batch` images at once (None: any); `inner` what an image is for the file.

    `order` is how a file with channels lays out an image; a flat one counts as NCHW. `batched` is False where the
    file's input has no batch axis at all.
    """

    shape: Shape
    order: Literal["NCHW", "NHWC"]
    inner: tuple[int, ...]
    batch: int | None
    batched: bool = True
    dtype: str = "float32"

    @property
    def plain(self) -> bool:
        """Whether images go in as they are, in any number."""
        return self.inner == self.shape and self.order == "NCHW" and self.batch is None and self.dtype == "float32"

    def feed(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) as the file takes them; n is `batch` where that is fixed."""
        import torch

        ordered = images.permute(0, 2, 3, 1) if self.order == "NHWC" else images
        shape = (len(images), *self.inner) if self.batched else self.inner
        return ordered.reshape(shape).to(getattr(torch, self.dtype))

    def feed_array(self, images: Floats) -> Floats:
        """The same for numpy's arrays."""
        ordered = images.transpose(0, 2, 3, 1) if self.order == "NHWC" else images
        shape = (len(images), *self.inner) if self.batched else self.inner
        return np.ascontiguousarray(ordered.reshape(shape), self.dtype)


def layout_of(
    dimensions: tuple[int | None, ...], element: int, wanted: Shape | None, *, transposed: bool, file: str
) -> Layout:
    """The layout of a file that declares these input `dimensions` (None: open) and ONNX `element` type.

    `wanted` is the image shape that the user names, if any; `transposed` says that the graph begins by bringing
    channels to the front. UsageError where the shape cannot be told, or does not fit; ModelError for what is no batch
    of images.
    """
    if element not in _TYPES:
        raise ModelError(
            f"{file} does not take floating-point pixels (ONNX element type {element})",
            hint="an attack changes pixels by fractions: give the file from before its input was made whole numbers",
        )
    shown = f"({', '.join('?' if size is None else str(size) for size in dimensions)})"
    dtype = _TYPES[element]
    if wanted is not None and dimensions and dimensions[0] is not None and _fits(dimensions, wanted):
        inner = tuple(int(size or 0) for size in dimensions)
        return Layout(wanted, _order(inner, wanted), inner, 1, batched=False, dtype=dtype)
    if len(dimensions) < 2:
        raise ModelError(f"{file} declares the input {shown}, which is no batch of images")
    batch, rest = dimensions[0], dimensions[1:]
    if wanted is None:
        order = "NHWC" if len(rest) == 3 and _channels_last(rest, transposed) else "NCHW"
        wanted = _told(rest, order)
        if wanted is None:
            raise UsageError(
                f"{file} declares the input {shown}: the shape of an image cannot be told from that",
                hint="give --input-shape C,H,W",
            )
    if len(rest) == 3 and all(size is None or size == w for size, w in zip(rest, wanted, strict=True)):
        keep_first = not (transposed and _matches_last(rest, wanted))
        inner = wanted if keep_first else (wanted[1], wanted[2], wanted[0])
        return Layout(wanted, "NCHW" if keep_first else "NHWC", inner, batch, dtype=dtype)
    if len(rest) == 3 and _matches_last(rest, wanted):
        return Layout(wanted, "NHWC", (wanted[1], wanted[2], wanted[0]), batch, dtype=dtype)
    if None not in rest and math.prod(int(size or 0) for size in rest) == math.prod(wanted):
        return Layout(wanted, "NCHW", tuple(int(size or 0) for size in rest), batch, dtype=dtype)
    raise UsageError(
        f"{file} declares the input {shown}, which does not hold images of shape {','.join(map(str, wanted))}",
        hint="check --input-shape C,H,W",
    )


def _fits(dimensions: tuple[int | None, ...], wanted: Shape) -> bool:
    """An input without a batch axis: everything in it is one image."""
    has_batch = dimensions[0] == 1 or (len(dimensions) == 4)
    return not has_batch and None not in dimensions and math.prod(int(d or 0) for d in dimensions) == math.prod(wanted)


def _order(inner: tuple[int, ...], wanted: Shape) -> Literal["NCHW", "NHWC"]:
    return "NHWC" if inner != wanted and inner == (wanted[1], wanted[2], wanted[0]) else "NCHW"


def _matches_last(rest: tuple[int | None, ...], wanted: Shape) -> bool:
    last = (wanted[1], wanted[2], wanted[0])
    return all(size is None or size == w for size, w in zip(rest, last, strict=True))


def _channels_last(rest: tuple[int | None, ...], transposed: bool) -> bool:
    return transposed or (rest[2] in _CHANNELS and rest[0] not in _CHANNELS)


def _told(rest: tuple[int | None, ...], order: str) -> Shape | None:
    """(C, H, W) from what follows the batch, where that says it: three sizes, or two of a gray image."""
    if None in rest or len(rest) not in (2, 3):
        return None
    sizes = tuple(int(size or 0) for size in rest)
    if len(sizes) == 2:  # (height, width); a flat image times one is no picture
        return (1, *sizes) if min(sizes) > 1 else None
    return (sizes[2], sizes[0], sizes[1]) if order == "NHWC" else (sizes[0], sizes[1], sizes[2])


class Served:
    """A session behind its layout: images (N, C, H, W), any N, in the user's pixels; logits (N, K) out.

    `preprocessing` (mean and std) goes before a foreign file, which has none of its own inside.
    """

    def __init__(self, session: Session, layout: Layout, preprocessing: Preprocessing | None = None) -> None:
        self.info: RuntimeInfo = session.info
        self.input_shape: Shape | None = layout.shape
        self._layout = layout
        self._run: Callable[[Floats], Floats] = session.logits
        self._statistics = _statistics(preprocessing)

    def logits(self, images: Floats) -> Floats:
        """Pixels float32 (N, C, H, W) to logits float32 (N, K), as many images at once as the file takes."""
        ready = images
        if self._statistics is not None:
            mean, std = self._statistics
            ready = (images - mean) / std
        size = self._layout.batch
        if size is None:
            return self._rows(ready)
        parts = []
        for start in range(0, len(ready), size):
            part = ready[start : start + size]
            whole = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            parts.append(self._rows(whole)[: len(part)])
        return np.concatenate(parts)

    def _rows(self, images: Floats) -> Floats:
        found = np.asarray(self._run(self._layout.feed_array(images)), np.float32)
        return np.array(found.reshape(len(images), -1))


def _statistics(preprocessing: Preprocessing | None) -> tuple[Floats, Floats] | None:
    if preprocessing is None or not preprocessing.mean:
        return None
    mean, std = (
        np.asarray(values, np.float32).reshape(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    return mean, std
