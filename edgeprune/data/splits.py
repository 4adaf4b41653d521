"""From a path to a `Split`: which samples, in which role, under which digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.data.arrays import open_npz
from edgeprune.errors import DataError, UsageError
from edgeprune.types import Role, Split

if TYPE_CHECKING:
    from edgeprune.types import ImageSource, Ints, ModelBundle

BLOCK = 256


def open_split(path: Path, role: Role, model: ModelBundle, *, samples: int | None = None, seed: int = 0) -> Split:
    """Open the images and labels at `path` for the network `model`.

    `samples` draws that many of them, stratified by class, by `seed` (all of them when there are fewer).
    UsageError: no such file, or a kind that is not supported. DataError: images or labels that do not fit the
    network's input shape, pixel bounds or classes.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"no such {role} data: {path}", hint=f"set data.{role} in edgeprune.toml, or --{role}")
    if path.suffix != ".npz":
        raise UsageError(
            f"cannot open {role} data {path.name}: its kind is not known",
            hint="bring an .npz file with images and labels",
        )
    source = open_npz(path, role, model)
    check_labels(source.labels, len(model.classes), path)
    ids = stratified(source.labels, samples, seed)
    return Split(role=role, name=path.name, source=source, ids=ids, digest=_digest(source, ids))


def stratified(labels: Ints, samples: int | None, seed: int) -> Ints:
    """Ascending ids of `samples` samples, every class in proportion (largest remainders), drawn by `seed`."""
    total = len(labels)
    if samples is None or samples >= total:
        return np.arange(total, dtype=np.int64)
    random = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * (samples / total)
    take = np.floor(shares).astype(np.int64)
    order = np.lexsort((random.permutation(len(classes)), -(shares - take)))
    take[order[: samples - int(take.sum())]] += 1
    picked = [
        random.permutation(np.flatnonzero(labels == label))[:count] for label, count in zip(classes, take, strict=True)
    ]
    return np.sort(np.concatenate(picked)).astype(np.int64)


def overlap(train: Split, test: Split) -> int:
    """How many test images are also training images, pixel for pixel."""
    known = set(_pixel_hashes(train))
    return sum(one in known for one in _pixel_hashes(test))


def check_labels(labels: Ints, classes: int, path: Path) -> None:
    """DataError unless there are labels and all of them are classes of the network."""
    if not len(labels):
        raise DataError(f"{path.name} holds no images")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"label {high if high >= classes else low} in {path.name} is not a class of the network",
            where=f"the network has {classes} classes: labels go from 0 to {classes - 1}",
            hint="check that data and network belong together",
        )


def _pixel_hashes(split: Split) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for pixels, _ in split.batches(BLOCK) for image in pixels]


def _digest(source: ImageSource, ids: Ints) -> str:
    total = hashlib.sha256()
    total.update(ids.astype("<i8").tobytes())
    total.update(source.labels[ids].astype("<i8").tobytes())
    for start in range(0, len(ids), BLOCK):
        pixels = source.read(ids[start : start + BLOCK])
        total.update(repr(pixels.shape[1:]).encode())
        total.update(pixels.astype("<f4", copy=False).tobytes())
    return total.hexdigest()
