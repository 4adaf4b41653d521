"""Data from code: a function that the user names and trusts, or one of torchvision's data sets on disk.

A function ``package.module:function`` is called with the role ("train" or "test") and returns (images, labels) as
arrays, an object with `labels` and `read(ids)`, or a map-style data set of (image, label). Torchvision's sets are
``torchvision:NAME:FOLDER``; nothing is fetched.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.data.arrays import arrays_source, check_range, stretch
from edgeprune.data.pictures import fitted
from edgeprune.errors import DataError, RuntimeMissingError, UsageError
from edgeprune.protocols import did_you_mean

if TYPE_CHECKING:
    from edgeprune.types import Floats, ImageSource, InputForm, Ints, ModelBundle, Role

TORCHVISION = (
    *("CIFAR10", "CIFAR100", "DTD", "EMNIST", "EuroSAT", "FGVCAircraft", "FashionMNIST", "Flowers102", "Food101"),
    *("GTSRB", "ImageNet", "KMNIST", "MNIST", "OxfordIIITPet", "QMNIST", "STL10", "SVHN", "StanfordCars", "USPS"),
)
"""Sets that hold one label an image and open nothing but images, arrays, or pickles of a known checksum."""


@dataclass(frozen=True, slots=True, eq=False)
class DatasetSource:
    """A map-style data set of (image, label): Pillow images, uint8 (H, W, C) or (H, W), or floats (C, H, W)."""

    dataset: Any
    labels: Ints
    model: ModelBundle | InputForm
    name: str

    def read(self, ids: Ints) -> Floats:
        """Pixels float32 (len(ids), C, H, W) inside the bounds."""
        images = [self._one(int(index)) for index in ids]
        return np.stack(images) if images else np.zeros((0, *self.model.input_shape), np.float32)

    def _one(self, index: int) -> Floats:
        image, name, how = self.dataset[index][0], f"image {index} of {self.name}", self.model.preprocessing
        if hasattr(image, "convert"):
            return stretch(fitted(image, self.model.input_shape, how, name), how.bounds)
        array = np.asarray(image)
        if array.dtype == np.uint8:
            array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
            pixels = stretch(np.ascontiguousarray(array), how.bounds)
        else:
            pixels = array.astype(np.float32)
            check_range(pixels[None], how.bounds, Path(self.name), index)
        if pixels.shape != self.model.input_shape:
            raise DataError(f"{name} has the shape {pixels.shape}, the network takes {self.model.input_shape}")
        return pixels


def open_function(name: str, role: Role, model: ModelBundle | InputForm, trust: tuple[str, ...]) -> ImageSource:
    """Call ``package.module:function`` and take what it returns; UsageError unless `trust` covers it."""
    from edgeprune.models.trust import Trust, import_named

    package, _, leaf = name.rpartition(":")
    admitted = Trust.of(trust)
    if not (admitted.covers(package) or admitted.names(f"{package}.{leaf}")):
        raise UsageError(f"the data {name} is code that was not admitted", hint=f"if you trust it: --trust {package}")
    function = getattr(import_named(package, admitted), leaf, None)
    if not callable(function):
        raise UsageError(f"{package} has no function {leaf}")
    try:
        made = function(role)
    except Exception as error:  # code of the user's: whatever it raises, it is not ours to interpret
        raise DataError(f"{name} failed: {type(error).__name__}: {error}") from error
    if isinstance(made, tuple) and len(made) == 2:
        return arrays_source(np.asarray(made[0]), np.asarray(made[1]), Path(name), model)
    if hasattr(made, "read") and hasattr(made, "labels"):
        source: ImageSource = made
        return source
    if hasattr(made, "__getitem__") and hasattr(made, "__len__"):
        return _dataset(made, model, name)
    raise DataError(
        f"{name} returned a {type(made).__name__}",
        hint="return (images, labels), a map-style data set, or an object with labels and read(ids)",
    )


def open_torchvision(name: str, role: Role, model: ModelBundle | InputForm) -> DatasetSource:
    """``torchvision:NAME:FOLDER``: a data set that torchvision has stored in that folder."""
    _, _, rest = name.partition(":")
    kind, _, folder = rest.partition(":")
    if kind not in TORCHVISION:
        raise UsageError(f"no torchvision data set {kind}", hint=did_you_mean(kind, TORCHVISION))
    if not folder or not Path(folder).is_dir():
        raise UsageError(f"no such folder: {folder or '(none given)'}", hint=f"write torchvision:{kind}:FOLDER")
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:
        raise RuntimeMissingError(
            f"torchvision cannot be imported: {error}",
            hint="pip install edgeprune[zoo]; beside a CPU torch, torchvision must be its CPU build",
        ) from error
    make = getattr(datasets, kind)
    known = inspect.signature(make).parameters
    options: dict[str, Any] = {"download": False} if "download" in known else {}
    if "train" in known:
        options["train"] = role == "train"
    elif "split" in known:
        options["split"] = role if kind != "ImageNet" or role == "train" else "val"
    try:
        return _dataset(make(folder, **options), model, name)
    except (RuntimeError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"cannot open {name}: {reason}", hint="store it there with torchvision first") from error


def _dataset(dataset: Any, model: ModelBundle | InputForm, name: str) -> DatasetSource:
    known = next((getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key)), None)
    try:
        labels = np.asarray([dataset[index][1] for index in range(len(dataset))] if known is None else known)
    except Exception as error:  # code of the user's: whatever it raises, it is not ours to interpret
        raise DataError(f"the labels of {name} cannot be read: {type(error).__name__}: {error}") from error
    if labels.ndim != 1 or len(labels) != len(dataset) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"the labels of {name} are not one whole number an image")
    return DatasetSource(dataset, labels.astype(np.int64), model, name)
