"""Resize and Upsample: along each axis a linear map, whose matrix follows from the sizes and the node's attributes.

Source of the formulas: the reference implementation in ONNX's specification of Resize (opsets 10 to 19). Cropping
(tf_crop_and_resize) needs the region as a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from edgeprune.robustness.twin.node import Compute, Node, Rule, Unsupported, numbers, require_reasonable

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
_NEAREST = ("simple", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
_REACH = {"nearest": 1, "linear": 1, "cubic": 2}

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an axis is sampled: the attributes of Resize that do not depend on the axis."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    extrapolation: float
    antialias: bool


@dataclass(frozen=True, slots=True)
class Axis:
    """Old and new size of an axis, the scale between them, and the region (start, end) where one is given."""

    old: int
    new: int
    scale: float
    region: tuple[float, float] = (0.0, 1.0)


def _resize(node: Node) -> Compute:
    sampling = _sampling(node)
    chosen, policy = node.integers("axes"), node.text("keep_aspect_ratio_policy", "stretch")
    if policy not in ("stretch", "not_larger", "not_smaller"):
        raise Unsupported(f"keep_aspect_ratio_policy={policy}")

    def resize(
        x: Tensor, second: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
    ) -> Tensor:
        region, factors = (None, second) if node.opset < 11 else (second, scales)
        places = [axis % x.ndim for axis in chosen or range(x.ndim)]
        axes = _axes(x, places, factors, sizes, policy)
        if sampling.coordinates == "tf_crop_and_resize" and region is not None:
            corners = region.tolist()
            regions = {place: (corners[i], corners[i + len(places)]) for i, place in enumerate(places)}
            axes = {place: Axis(a.old, a.new, a.scale, regions[place]) for place, a in axes.items()}
        return _apply(x, axes, sampling)

    return resize


def _upsample(node: Node) -> Compute:
    mode = node.text("mode", "nearest")
    sampling = Sampling("linear" if mode == "bilinear" else mode, "asymmetric", "floor", -0.75, False, 0.0, False)
    fixed = node.attributes.get("scales")

    def upsample(x: Tensor, scales: Tensor | None = None) -> Tensor:
        factors = torch.tensor(fixed) if fixed is not None else scales
        return _apply(x, _axes(x, list(range(x.ndim)), factors, None, "stretch"), sampling)

    return upsample


def _sampling(node: Node) -> Sampling:
    coordinates = "asymmetric" if node.opset < 11 else node.text("coordinate_transformation_mode", "half_pixel")
    nearest = "simple" if node.opset < 11 else node.text("nearest_mode", "round_prefer_floor")
    mode = node.text("mode", "nearest")
    if mode not in _REACH or coordinates not in _COORDINATES or nearest not in _NEAREST:
        raise Unsupported(f"mode={mode}, coordinate_transformation_mode={coordinates}, nearest_mode={nearest}")
    return Sampling(
        mode=mode,
        coordinates=coordinates,
        nearest=nearest,
        cubic=node.real("cubic_coeff_a", -0.75),
        exclude_outside=bool(node.integer("exclude_outside", 0)),
        extrapolation=node.real("extrapolation_value", 0.0),
        antialias=bool(node.integer("antialias", 0)),
    )


def _axes(x: Tensor, places: list[int], factors: Tensor | None, sizes: Tensor | None, policy: str) -> dict[int, Axis]:
    """The axes that are resized, by place. Sizes win over scales, as in the specification."""
    wanted = numbers(sizes)
    old = [x.shape[place] for place in places]
    if wanted:
        scales = [new / size for new, size in zip(wanted, old, strict=True)]
        if policy != "stretch":
            scale = min(scales) if policy == "not_larger" else max(scales)
            scales = [scale] * len(old)
            wanted = [int(size * scale + 0.5) for size in old]
    else:
        scales = [] if factors is None else [float(factor) for factor in factors.reshape(-1).tolist()]
        wanted = [int(np.floor(size * scale)) for size, scale in zip(old, scales, strict=True)]
    require_reasonable([*wanted, *(x.shape[i] for i in range(x.ndim) if i not in places)])
    rows = zip(places, old, wanted, scales, strict=True)
    return {place: Axis(size, new, scale) for place, size, new, scale in rows}


def _apply(x: Tensor, axes: Mapping[int, Axis], sampling: Sampling) -> Tensor:
    for place, axis in axes.items():
        if axis.old == axis.new and axis.scale == 1.0 and axis.region == (0.0, 1.0):
            continue
        if sampling.mode == "nearest":
            x = x.index_select(place, torch.from_numpy(_sources(axis, sampling)).to(x.device))
            continue
        matrix = torch.from_numpy(_matrix(axis, sampling)).to(x)
        x = torch.movedim(torch.movedim(x, place, -1) @ matrix.T, -1, place)
    return x


def _origins(axis: Axis, sampling: Sampling) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Where each new pixel lies among the old ones (n,)."""
    new = np.arange(axis.new, dtype=np.float64)
    how, length = sampling.coordinates, axis.scale * axis.old
    if how == "align_corners":
        return new * (axis.old - 1) / (axis.new - 1) if axis.new != 1 else new * 0.0
    if how == "asymmetric":
        return new / axis.scale
    if how == "tf_half_pixel_for_nn":
        return (new + 0.5) / axis.scale
    if how == "tf_crop_and_resize":
        start, end = axis.region
        if axis.new == 1:
            return new * 0.0 + 0.5 * (start + end) * (axis.old - 1)
        return start * (axis.old - 1) + new * (end - start) * (axis.old - 1) / (axis.new - 1)
    if how == "pytorch_half_pixel" and axis.new == 1:
        return new * 0.0
    shift = 0.0
    if how == "half_pixel_symmetric":
        shift = axis.old / 2 * (1 - axis.new / length)
    return shift + (new + 0.5) / axis.scale - 0.5


@lru_cache(maxsize=256)
def _sources(axis: Axis, sampling: Sampling) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    places = _origins(axis, sampling).astype(np.float32).astype(np.float64)  # a tie is a tie in float32
    down, up = np.floor(places), np.ceil(places)
    rounded = {
        "simple": up if axis.scale < 1 else down,  # what ONNX Runtime does before opset 11
        "floor": down,
        "ceil": up,
        "round_prefer_floor": np.where(places - down > 0.5, up, down),
        "round_prefer_ceil": np.where(up - places > 0.5, down, up),
    }[sampling.nearest]
    outside = (places < 0) | (places > axis.old - 1)
    if sampling.coordinates == "tf_crop_and_resize" and outside.any():
        raise Unsupported("nearest with a region beyond the image")
    return np.clip(rounded, 0, axis.old - 1).astype(np.int64)


@lru_cache(maxsize=256)
def _matrix(axis: Axis, sampling: Sampling) -> Matrix:
    """Weights (new, old) of every old pixel in every new one."""
    stretch = min(axis.scale, 1.0) if sampling.antialias else 1.0
    reach = int(np.ceil(_REACH[sampling.mode] / stretch))
    matrix = np.zeros((axis.new, axis.old))
    for row, place in enumerate(_origins(axis, sampling)):
        if sampling.coordinates == "tf_crop_and_resize" and not 0 <= place <= axis.old - 1:
            if sampling.extrapolation:
                raise Unsupported("an extrapolation_value outside the image")
            continue
        taps = np.arange(int(np.floor(place)) - reach, int(np.floor(place)) + reach + 2)
        weights = _weights((taps - place) * stretch, sampling)
        if sampling.exclude_outside:
            weights = np.where((taps >= 0) & (taps < axis.old), weights, 0.0)
        np.add.at(matrix[row], np.clip(taps, 0, axis.old - 1), weights / weights.sum())
    return matrix.astype(np.float32)


def _weights(
    distances: np.ndarray[tuple[int], np.dtype[np.float64]], sampling: Sampling
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    d, a = np.abs(distances), sampling.cubic
    if sampling.mode == "linear":
        falling: np.ndarray[tuple[int], np.dtype[np.float64]] = np.maximum(1 - d, 0)
        return falling
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    return result


RULES: Mapping[str, Rule] = {"Resize": _resize, "Upsample": _upsample}
