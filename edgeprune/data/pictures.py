"""Image files as pixels: decoding, and the one way in which a file gets the network's input shape.

Decoded as torchvision's default loader does (Pillow, RGB or gray, no EXIF rotation), resized and cropped as its
`Resize` and `CenterCrop` do on such images. uint8 until the very end; then stretched over the pixel bounds.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.data.arrays import stretch
from edgeprune.errors import DataError, RuntimeMissingError, UsageError

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints, Preprocessing, Shape

SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
KEPT_BYTES = 256 * 2**20
"""Decoded images are kept in memory when all of them together are no larger than this."""
_DEEP = ("I;16", "I;16B", "I;16L", "I", "F")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class PictureSource:
    """Image files, decoded when they are read, on several threads. Small sets are decoded once."""

    paths: tuple[Path, ...]
    labels: Ints
    shape: Shape
    preprocessing: Preprocessing
    groups: Ints | None = None
    _kept: dict[int, Pixels] = field(default_factory=dict)

    def read(self, ids: Ints) -> Floats:
        """Pixels float32 (len(ids), C, H, W) inside the bounds; DataError names a file that cannot be used."""
        wanted = [int(index) for index in ids]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            images = list(pool.map(self._one, wanted))
        if len(self.paths) * int(np.prod(self.shape)) <= KEPT_BYTES:
            self._kept.update(zip(wanted, images, strict=True))
        stacked = np.stack(images) if images else np.zeros((0, *self.shape), np.uint8)
        return stretch(stacked, self.preprocessing.bounds)

    def fingerprints(self, ids: Ints) -> list[bytes]:
        """What names each sample: sha256 of its file and of the way it is made to fit."""
        how = self.preprocessing
        way = f"{self.shape} {how.fit} {how.resize} {how.interpolation}".encode()

        def one(index: int) -> bytes:
            return hashlib.sha256(way + self.paths[index].read_bytes()).digest()

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(one, (int(index) for index in ids)))

    def _one(self, index: int) -> Pixels:
        kept = self._kept.get(index)
        return decode(self.paths[index], self.shape, self.preprocessing) if kept is None else kept


def decode(path: Path, shape: Shape, how: Preprocessing) -> Pixels:
    """One image file as uint8 (C, H, W) of the input shape; DataError says what is wrong with it."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # Pillow's remarks about palettes and EXIF
            with Image.open(path) as image:
                return fitted(image, shape, how, str(path))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is too large to be an image for this network: {error}") from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError) as error:
        raise DataError(f"cannot read the image {path}: {error}", hint="remove the file, or bring it whole") from error


def fitted(image: Any, shape: Shape, how: Preprocessing, name: str) -> Pixels:
    """A Pillow image as uint8 (C, H, W) of the input shape."""
    from PIL import Image

    channels, height, width = shape
    if channels not in (1, 3):
        raise UsageError(f"image files have 1 or 3 channels, the network takes {channels}", hint="bring an .npz file")
    if image.mode in _DEEP:
        raise DataError(f"{name} has more than 8 bits a channel ({image.mode})", hint="bring floats in an .npz file")
    image = image.convert("RGB" if channels == 3 else "L")
    method = Image.Resampling.BICUBIC if how.interpolation == "bicubic" else Image.Resampling.BILINEAR
    if how.fit == "squash" and image.size != (width, height):
        image = image.resize((width, height), method)
    if how.fit == "crop":
        image = _cropped(image, width, height, how.resize, method)
    if image.size != (width, height):
        raise DataError(
            f"{name} is {image.size[0]}x{image.size[1]}, the network takes {width}x{height} (width x height)",
            hint="set --fit crop (with --resize) or --fit squash, as in training",
        )
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _cropped(image: Any, width: int, height: int, resize: int | None, method: Any) -> Any:
    """Shorter side to `resize` (where given), then the centre, in torchvision's rounding."""
    if resize is not None:
        short, long = sorted(image.size)
        longer = int(resize * long / short)
        size = (resize, longer) if image.size[0] <= image.size[1] else (longer, resize)
        image = image.resize(size, method) if size != image.size else image
    if image.size[0] < width or image.size[1] < height:
        return image
    left, top = round((image.size[0] - width) / 2.0), round((image.size[1] - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


def need_pillow() -> None:
    """RuntimeMissingError when Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise RuntimeMissingError("image files need the package pillow", hint="pip install pillow") from error


def pictures_in(folder: Path) -> Sequence[Path]:
    """Image files in a folder and its subfolders, sorted; hidden ones left out."""
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
