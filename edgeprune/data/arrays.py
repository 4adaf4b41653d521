"""Images and labels in one `.npz` file.

Accepted: `images` and `labels`, or the same with the role in front (`train_images`, `test_labels`, ...), so that one
file can hold both roles. uint8 images are (N, H, W, C) or (N, H, W) and are stretched over the pixel bounds: 0 is the
lower bound, 255 the upper. Float images are (N, C, H, W) or (N, H, W) and must lie inside the bounds. An array
`group` or `track` beside them (the role may stand in front) says which of them belong together (`groups.py`).
Pickled arrays are never opened.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.data.archives import Archive, Array
from edgeprune.data.groups import groups_in
from edgeprune.errors import DataError

if TYPE_CHECKING:
    from edgeprune.types import Floats, InputForm, Ints, ModelBundle, Role, Shape

BLOCK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class ArraySource:
    """Images held as the file holds them; decoded to float32 (N, C, H, W) when they are read.

    `groups`: int64 (N,), or None where the data names none.
    """

    images: Array
    labels: Ints
    bounds: tuple[float, float]
    groups: Ints | None = None

    def read(self, ids: Ints) -> Floats:
        """Pixels float32 (len(ids), C, H, W) inside the bounds."""
        part = self.images[ids]
        if part.dtype != np.uint8:
            pixels = part.astype(np.float32, copy=False)
            return pixels[:, None] if pixels.ndim == 3 else pixels
        part = part[:, None] if part.ndim == 3 else part.transpose(0, 3, 1, 2)
        return stretch(np.ascontiguousarray(part), self.bounds)


def stretch(images: Array, bounds: tuple[float, float]) -> Floats:
    """uint8 0..255 to float32, linearly over the bounds."""
    low, high = bounds
    pixels: Floats = images.astype(np.float32) / np.float32(255)
    if (low, high) == (0, 1):
        return pixels
    stretched: Floats = (pixels * np.float32(high - low) + np.float32(low)).clip(low, high).astype(np.float32)
    return stretched


def open_npz(path: Path, role: Role, model: ModelBundle | InputForm) -> ArraySource:
    """Open an `.npz` file for the network `model`; DataError says what does not fit and what was expected."""
    archive = Archive(path)
    try:
        for pair in (("images", "labels"), (f"{role}_images", f"{role}_labels"), (f"x_{role}", f"y_{role}")):
            if set(pair) <= set(archive.names):
                source = arrays_source(archive.array(pair[0]), archive.array(pair[1]), path, model)
                return replace(source, groups=_groups(archive, role, source.labels))
    finally:
        archive.close()
    raise DataError(
        f"{path.name} does not hold the arrays images and labels",
        where=f"it holds: {', '.join(archive.names) or 'nothing'}",
        hint=f"name them images and labels, or {role}_images and {role}_labels",
    )


def _groups(archive: Archive, role: Role, labels: Ints) -> Ints | None:
    known = {name.removeprefix(f"{role}_"): name for name in archive.names}
    return groups_in(known, lambda name: archive.array(known[name]), labels, archive.path.name)


def arrays_source(images: Array, labels: Array, path: Path, model: ModelBundle | InputForm) -> ArraySource:
    """Images and labels as a source for the network `model`; `path` is what errors call them by."""
    labels = _as_labels(labels, path)
    if images.ndim == 0 or len(images) != len(labels):
        count = len(images) if images.ndim else "no list of"
        raise DataError(
            f"{path.name} holds {count} images and {len(labels)} labels", hint="there must be one label an image"
        )
    if not len(labels):
        raise DataError(f"{path.name} holds no images")
    _check_layout(images, model.input_shape, path)
    if images.dtype != np.uint8:
        check_range(images, model.preprocessing.bounds, path)
    return ArraySource(images, labels, model.preprocessing.bounds)


def _as_labels(labels: Array, path: Path) -> Ints:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"the labels in {path.name} are {labels.dtype} of shape {labels.shape}",
            hint="labels are whole numbers, one an image: the index of the class",
        )
    return labels.astype(np.int64)


def _check_layout(images: Array, shape: Shape, path: Path) -> None:
    channels, height, width = shape
    found = images.shape[1:]
    last, first = (height, width, channels), (channels, height, width)
    gray = channels == 1 and found == (height, width)
    if images.dtype == np.uint8:
        if gray or found == last:
            return
        expected, layout = last, "uint8 images are (N, height, width, channels)"
        hint = "channels first: images.transpose(0, 2, 3, 1) puts them last" if found == first else ""
    elif np.issubdtype(images.dtype, np.floating):
        if gray or found == first:
            return
        expected, layout = first, "float images are (N, channels, height, width)"
        hint = "channels last: images.transpose(0, 3, 1, 2) puts them first" if found == last else ""
    else:
        raise DataError(
            f"the images in {path.name} are {images.dtype}", hint="images are uint8, or float inside the pixel bounds"
        )
    raise DataError(
        f"the images in {path.name} have the shape {found}, the network takes {expected}",
        where=f"{layout}; the network's input shape is {','.join(map(str, shape))} (channels, height, width)",
        hint=hint or "resize the images, or set --input-shape",
    )


def check_range(images: Array, bounds: tuple[float, float], path: Path, first: int = 0) -> None:
    """DataError when a float image is not finite or leaves the bounds; `first` is the index of images[0]."""
    low, high = bounds
    for start in range(0, len(images), BLOCK):
        part = images[start : start + BLOCK]
        flat = part.reshape(len(part), -1)
        with np.errstate(invalid="ignore"):
            bad = ~((flat >= low) & (flat <= high)).all(axis=1)
        if not bad.any():
            continue
        index = int(np.argmax(bad))
        pixels, name = flat[index], f"image {first + start + index} of {path.name}"
        if not np.isfinite(pixels).all():
            raise DataError(f"{name} has pixels that are not numbers (NaN or infinite)")
        lowest, highest = float(pixels.min()), float(pixels.max())
        raise DataError(
            f"{name} has pixels from {lowest:g} to {highest:g}",
            where=f"the pixel bounds are {low:g} to {high:g}",
            hint=_range_hint(lowest, highest),
        )


def _range_hint(low: float, high: float) -> str:
    if low >= 0 and 1 < high <= 255:
        return "divide by 255, store them as uint8, or set --pixel-bounds"
    if low < 0:
        return "they look normalised: bring the pixels and give --mean and --std, or set --pixel-bounds"
    return "scale them, or set --pixel-bounds"
