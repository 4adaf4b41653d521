"""Thin ice: do images flip where the dense network's boundary was near?

Promise: pure. Distances of the dense file against what both files answered, clean and under attack; losses and gains
apart, since a net change hides both. What no image supports is said, not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgeprune.records import Decile, FlipRank, ImageAtRisk, Interval
from edgeprune.robustness.ranks import rank_test
from edgeprune.robustness.statistics import proportion

if TYPE_CHECKING:
    from edgeprune.records.boundary import Kind
    from edgeprune.robustness.distances import Distances
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

SHOWN: Final = 12
"""Images listed of each fate."""
_TENTHS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Fates:
    """What became of the N images of `dense`, whose every image has a distance or none was found.

    compressed: int64 (N,), the compressed file's classes of the clean images. dense_stands, compressed_stands: bool
    (M,), right and standing under attack, of the images in the `attacked` rows (int64 (M,)).
    """

    dense: Distances
    compressed: Ints
    attacked: Ints
    dense_stands: Bools
    compressed_stands: Bools

    @property
    def lost(self) -> Bools:
        """Right in the dense file alone, bool (N,)."""
        return np.asarray(self.dense.right & (self.compressed != self.dense.labels))

    @property
    def won(self) -> Bools:
        """Right in the compressed file alone, bool (N,)."""
        return np.asarray(~self.dense.right & (self.compressed == self.dense.labels))

    def attacked_mask(self, values: Bools) -> Bools:
        """`values` (M,) of the attacked images as bool (N,), False elsewhere."""
        mask = np.zeros(len(self.compressed), np.bool_)
        mask[self.attacked] = values
        return mask


def ranks(fates: Fates, confidence: float) -> tuple[FlipRank, ...]:
    """A rank statistic for each way to flip: lost and won, clean and at epsilon."""
    far, right = fates.dense.distances, fates.dense.right
    stood, stands = fates.attacked_mask(fates.dense_stands), fates.attacked_mask(fates.compressed_stands)
    fell = fates.attacked_mask(~fates.dense_stands)
    groups: tuple[tuple[Kind, Bools, Bools], ...] = (
        ("lost", right, fates.lost),
        ("won", ~right, fates.won),
        ("lost at epsilon", stood, stood & ~stands),
        ("won at epsilon", fell, fell & stands),
    )
    return tuple(_rank(kind, far[able & ~flipped], far[flipped], confidence) for kind, able, flipped in groups)


def _rank(kind: Kind, kept: Reals, flipped: Reals, confidence: float) -> FlipRank:
    total = len(kept) + len(flipped)
    found = rank_test(flipped, kept, confidence)
    if found is None:
        why = "no image flipped this way" if len(kept) else "every image that could flip this way did"
        why = why if total else "no image could flip this way"
        return FlipRank(kind=kind, images=total, flipped=len(flipped), unmeasured=why)
    return FlipRank(
        kind=kind,
        images=total,
        flipped=len(flipped),
        auroc=found.auroc,
        interval=Interval(low=found.low, high=found.high, confidence=confidence),
        p_value=found.p_value,
        exact=found.exact,
    )


def deciles(fates: Fates, confidence: float) -> tuple[Decile, ...]:
    """Flip rates of the images that the dense file gets right, a tenth at a time, nearest first; () below ten."""
    right = np.flatnonzero(fates.dense.right)
    if len(right) < _TENTHS:
        return ()
    order = right[np.argsort(fates.dense.distances[right], kind="stable")]
    stood, stands = fates.attacked_mask(fates.dense_stands), fates.attacked_mask(fates.compressed_stands)
    found = []
    for rows in np.array_split(order, _TENTHS):
        far, standing = fates.dense.distances[rows], rows[stood[rows]]
        fallen = int(np.sum(~stands[standing]))
        found.append(
            Decile(
                low=_finite(far[0]),
                high=_finite(far[-1]),
                lost=proportion(int(fates.lost[rows].sum()), len(rows), confidence),
                lost_at_epsilon=proportion(fallen, len(standing), confidence) if len(standing) else None,
            )
        )
    return tuple(found)


def quartiles(distances: Reals) -> tuple[float | None, float | None, float | None] | None:
    """Of the distances (inf: beyond what was found, and then so may a quartile be); None without an image."""
    if not len(distances):
        return None
    low, middle, high = (_finite(np.quantile(distances, share, method="lower")) for share in (0.25, 0.5, 0.75))
    return low, middle, high


def at_risk(fates: Fates, thumbnails: Callable[[Ints], Mapping[int, str]]) -> tuple[ImageAtRisk, ...]:
    """The nearest images of each fate: lost, lost at epsilon, and held, where the ice is thinnest.

    Only images that the dense file gets right. `thumbnails` makes the small pictures of some ids.
    """
    right, far = fates.dense.right, fates.dense.distances
    stood, stands = fates.attacked_mask(fates.dense_stands), fates.attacked_mask(fates.compressed_stands)
    fallen = stood & ~stands & ~fates.lost
    chosen: list[tuple[str, Ints]] = []
    for fate, mask in (("lost", fates.lost), ("lost at epsilon", fallen), ("held", right & ~fates.lost & ~fallen)):
        rows = np.flatnonzero(mask)
        chosen.append((fate, rows[np.argsort(far[rows], kind="stable")][:SHOWN]))
    pictures = thumbnails(np.sort(fates.dense.ids[np.concatenate([rows for _, rows in chosen])]))
    return tuple(
        ImageAtRisk(
            id=int(fates.dense.ids[row]),
            label=int(fates.dense.labels[row]),
            dense=int(fates.dense.predictions[row]),
            compressed=int(fates.compressed[row]),
            distance=_finite(far[row]),
            fate=fate,  # type: ignore[arg-type]  # one of the three above
            thumbnail=pictures[int(fates.dense.ids[row])],
        )
        for fate, rows in chosen
        for row in rows
    )


def net(fates: Fates) -> tuple[int, int]:
    """Lost minus won: clean, and of the attacked images at epsilon."""
    clean = int(fates.lost.sum()) - int(fates.won.sum())
    return clean, int(fates.dense_stands.sum()) - int(fates.compressed_stands.sum())


def thumbnail(image: Floats, bounds: tuple[float, float], largest: int = 64) -> str:
    """A PNG of at most `largest` pixels a side, base64, of pixels float32 (C, H, W): gray where C is not 3."""
    import base64
    import io

    from PIL import Image

    low, high = bounds
    levels = np.clip((image.astype(np.float64) - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    picture = Image.fromarray(levels.transpose(1, 2, 0)) if len(levels) == 3 else Image.fromarray(levels[0])
    picture.thumbnail((largest, largest), Image.Resampling.BOX)
    page = io.BytesIO()
    picture.save(page, "PNG", optimize=True)
    return base64.b64encode(page.getvalue()).decode()


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
