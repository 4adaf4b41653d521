"""How far each image is from an exported file's decision boundary.

Promise: a distance is that of a point which the runtime, asked once more, answers otherwise than the image itself, and
which lies inside the pixel bounds; so it is an upper bound of the true distance. Where no such point was found, it is
infinite, never guessed. Not searched: NaN.

The boundary is that of the file's own answer, right or wrong: an image that the file gets wrong has a distance, too.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from edgeprune.errors import DataError
from edgeprune.files import replacing
from edgeprune.robustness.archives import write_arrays
from edgeprune.robustness.attacks import batch_size
from edgeprune.robustness.attacks.nearest import nearest
from edgeprune.robustness.evaluate import on_device, predict
from edgeprune.robustness.norms import distances
from edgeprune.robustness.verdicts import checked_logits, predictions
from edgeprune.types import AttackBudget, Progress, Split, Victim

if TYPE_CHECKING:
    from edgeprune.records import DistanceSearch
    from edgeprune.robustness.twin import Gradients
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

NORMS: Final = ("linf", "l2")
"""Norms that the search knows."""
TARGETS = 4
"""Classes that the search goes to one by one. With none, gtsrb_net_std's curve was up to 6 points above the attack at
the points between (100 images), with 4 it met it at all five; the search took five times as long (10 s for 100)."""
_ARRAYS = ("ids", "labels", "predictions", "distances")


@dataclass(frozen=True, slots=True, eq=False)
class Distances:
    """One file's distances; arrays share their first dimension N, in the order of `ids`.

    ids, labels, predictions (the runtime's, clean): int64. distances: float64; inf: nothing found, NaN: not searched.
    """

    ids: Ints
    labels: Ints
    predictions: Ints
    distances: Reals

    @property
    def right(self) -> Bools:
        """Right on the clean image, bool (N,)."""
        return np.asarray(self.predictions == self.labels)

    def at(self, rows: Ints) -> Distances:
        """Some of the images."""
        return Distances(*(getattr(self, name)[rows] for name in _ARRAYS))

    def known(self, ids: Ints, smaller: Reals) -> Distances:
        """With adversarials found by others: `smaller` distances (float64) of the right images `ids`, all in here."""
        rows = rows_of(self.ids, ids)
        nearer = self.distances.copy()
        nearer[rows] = np.fmin(nearer[rows], smaller)
        return replace(self, distances=nearer)

    def save(self, path: Path) -> None:
        """Write to an .npz, whole or not at all."""
        with replacing(path) as beside:
            write_arrays(beside, {name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, path: Path) -> Distances:
        """Read what `save` wrote; DataError when it is something else."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays: dict[str, Any] = {name: archive[name] for name in _ARRAYS}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path} does not hold distances: {type(error).__name__}", hint="delete it and run again"
            ) from error
        return cls(**arrays)


def rows_of(ids: Ints, wanted: Ints) -> Ints:
    """Where each of `wanted` stands in `ids` (ascending, int64); ValueError when one does not."""
    rows = np.searchsorted(ids, wanted)
    if len(wanted) and (rows.max(initial=0) >= len(ids) or not np.array_equal(ids[rows], wanted)):
        raise ValueError("an image is not among those that were measured")
    return np.asarray(rows, np.int64)


def search(
    source: Gradients,
    split: Split,
    how: DistanceSearch,
    bounds: tuple[float, float],
    wanted: Ints | None = None,
    *,
    device: str = "cpu",
    progress: Progress,
) -> Distances:
    """Distances of the images of `split` in the file behind `source`.

    `wanted`: ids of images whose boundary is searched only where the file gets them right (default: the boundary of
    every image is searched, right or wrong). Judged by the runtime, gradients by the twin on `device`.
    """
    assert source.module is not None  # a run falls back to the network that was exported
    images = np.array(split.source.read(split.ids), np.float32)
    labels, clean = split.labels(), predict(source.session, split)
    rows = np.arange(len(split))
    if wanted is not None:
        rows = np.flatnonzero((clean == labels) & np.isin(split.ids, wanted))
    far = np.full(len(split), np.nan)
    if len(rows):
        victim = Victim(
            source.session.logits, on_device(source.module, device), bounds, source.pull if device == "cpu" else None
        )
        budget = AttackBudget(how.norm, 0.0, how.steps, how.restarts, how.seed, targets=TARGETS)
        pixels, answers = torch.from_numpy(images[rows]), torch.from_numpy(clean[rows])
        found = nearest(victim, pixels, answers, budget, progress=lambda text, share: progress(text, 0.95 * share))
        progress("verifying the nearest points again", 0.95)
        held = _verified(source, found.points, clean[rows], bounds)
        exact = distances(found.points, images[rows], budget.norm)
        far[rows] = np.where(held & np.isfinite(found.distances), exact, np.inf)
    return Distances(split.ids, labels, clean, far)


def _verified(source: Gradients, points: Floats, answers: Ints, bounds: tuple[float, float]) -> Bools:
    """Whether each point is inside the bounds and answered otherwise, asked once more; bool (M,)."""
    size, who = batch_size(points.shape[1:]), source.session.info.name
    said = [
        predictions(checked_logits(source.session.logits, points[start : start + size], who=who))
        for start in range(0, len(points), size)
    ]
    flat = points.reshape(len(points), -1)
    inside = (flat >= np.float32(bounds[0])).all(axis=1) & (flat <= np.float32(bounds[1])).all(axis=1)
    return np.asarray(inside & (np.concatenate(said) != answers))
