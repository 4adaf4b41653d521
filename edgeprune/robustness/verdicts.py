"""A runtime's word on images: logits that are logits, predictions, margins.

Refusal: logits that are not finite, or not one row an image with at least two classes, are an error that names who
returned them. They are never counted as a wrong or a right answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.errors import DataError, MeasurementError

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def checked_logits(
    logits: Callable[[Floats], Floats], images: Floats, *, who: str = "the file", classes: int | None = None
) -> Floats:
    """`logits(images)`: float32 (N, K), finite, K at least 2 and `classes` where given; else MeasurementError."""
    found = np.asarray(logits(images))
    if found.ndim != 2 or len(found) != len(images) or found.shape[1] < 2:
        raise MeasurementError(
            f"{who} returned an output of shape {found.shape} for {len(images)} images",
            hint="a classifier returns (images, classes) with at least two classes",
        )
    if classes is not None and found.shape[1] != classes:
        raise MeasurementError(
            f"{who} returned {found.shape[1]} logits an image where the network has {classes} classes",
            hint="check the class names of the configuration against the network",
        )
    finite = np.isfinite(found)
    if not finite.all():
        broken = ~finite.all(axis=1)
        raise MeasurementError(
            f"{who} returned NaN or infinite logits on {int(broken.sum())} of {len(images)} images",
            hint="such a file must not ship: look for overflow or NaN weights, and export it again",
        )
    return found.astype(np.float32, copy=False)


def predictions(logits: Floats) -> Ints:
    """The class of each row, int64 (N,); the lowest index where logits tie."""
    return np.asarray(logits.argmax(axis=1), dtype=np.int64)


def margins(logits: Floats, labels: Ints) -> Reals:
    """True logit minus the best other one, float64 (N,): below 0 the image is misclassified."""
    exact = logits.astype(np.float64)
    rows = np.arange(len(exact))
    true = exact[rows, labels]
    exact[rows, labels] = -np.inf
    return np.asarray(true - exact.max(axis=1))


def mistaken(logits: Floats, labels: Ints, margin: Reals) -> Bools:
    """Which rows are misclassified: bool (N,). `margin`: theirs, which says it all but where it is 0 (a tie)."""
    wrong = margin < 0
    tied = margin == 0
    if tied.any():
        wrong[tied] = predictions(logits[tied]) != labels[tied]
    return np.asarray(wrong)


def require_known(labels: Ints, classes: int) -> None:
    """DataError unless every label (int64 (N,)) is one of `classes` classes."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = int(labels.min()) if labels.min() < 0 else int(labels.max())
        raise DataError(
            f"a label is {wrong}, but the file has {classes} classes",
            hint=f"labels are class indices from 0 to {classes - 1}: check that file and data belong together",
        )
