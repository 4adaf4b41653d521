"""From a path to a `Split`: which samples, in which role, under which digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.data.arrays import open_npz
from edgeprune.data.folders import open_folder, open_index
from edgeprune.data.providers import open_function, open_torchvision
from edgeprune.errors import DataError, UsageError
from edgeprune.types import Role, Split

if TYPE_CHECKING:
    from edgeprune.types import ImageSource, InputForm, Ints, ModelBundle

BLOCK = 256


def open_split(
    path: Path | str,
    role: Role,
    model: ModelBundle | InputForm,
    *,
    samples: int | None = None,
    seed: int = 0,
    trust: tuple[str, ...] = (),
) -> Split:
    """Open the images and labels at `path` for the network `model`.

    `path` is an .npz file, a folder of class folders, a .csv index, ``torchvision:NAME:FOLDER``, or
    ``package.module:function`` where `trust` covers it. `samples` draws that many, stratified by class, by `seed`
    (all of them when there are fewer).
    UsageError: no such file, or a kind that is not supported. DataError: images or labels that do not fit the
    network's input shape, pixel bounds or classes.
    """
    source = _open(path, role, model, trust)
    name = Path(path).name
    check_labels(source.labels, len(model.classes), name)
    ids = stratified(source.labels, samples, seed)
    return Split(role=role, name=name, source=source, ids=ids, digest=_digest(role, source, ids))


def _open(path: Path | str, role: Role, model: ModelBundle | InputForm, trust: tuple[str, ...]) -> ImageSource:
    place = Path(path)
    if place.is_dir():
        return open_folder(place, role, model)
    if place.is_file():
        if place.suffix.lower() == ".npz":
            return open_npz(place, role, model)
        if place.suffix.lower() == ".csv":
            return open_index(place, role, model)
        raise UsageError(
            f"cannot open the {role} data {place.name}: its kind is not known",
            hint="bring an .npz file with images and labels, a folder of class folders, or a .csv index",
        )
    words = str(path)
    if words.startswith("torchvision:"):
        return open_torchvision(words, role, model)
    package, _, function = words.rpartition(":")
    if function.isidentifier() and package and all(part.isidentifier() for part in package.split(".")):
        return open_function(words, role, model, trust)
    raise UsageError(f"no such {role} data: {path}", hint=f"set data.{role} in edgeprune.toml, or --{role}")


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
    """How many test images are also training images: by file where both are image files, else pixel for pixel."""
    names = all(hasattr(split.source, "fingerprints") for split in (train, test))
    known = set(_hashes(train, names))
    return sum(one in known for one in _hashes(test, names))


def check_labels(labels: Ints, classes: int, name: str) -> None:
    """DataError unless there are labels and all of them are classes of the network."""
    if not len(labels):
        raise DataError(f"{name} holds no images")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"label {high if high >= classes else low} in {name} is not a class of the network",
            where=f"the network has {classes} classes: labels go from 0 to {classes - 1}",
            hint="check that data and network belong together",
        )


def _hashes(split: Split, by_file: bool) -> Iterator[bytes]:
    """One hash a sample, in order."""
    for start in range(0, len(split), BLOCK):
        ids = split.ids[start : start + BLOCK]
        if by_file:
            yield from split.source.fingerprints(ids)  # type: ignore[attr-defined]  # asked for with hasattr
        else:
            for image in split.source.read(ids):
                yield hashlib.sha256(repr(image.shape).encode() + image.astype("<f4", copy=False).tobytes()).digest()


def _digest(role: Role, source: ImageSource, ids: Ints) -> str:
    """sha256 over ids, labels and what names each sample: its file, or its pixels."""
    total = hashlib.sha256()
    total.update(ids.astype("<i8").tobytes())
    total.update(source.labels[ids].astype("<i8").tobytes())
    for one in _hashes(Split(role, "", source, ids, ""), hasattr(source, "fingerprints")):
        total.update(one)
    return total.hexdigest()
