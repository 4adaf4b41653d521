"""Points that an attack climbs from: one pass through the network serves the verdict on a point and its gradient.

Promise: a verdict stays the word of the file's own session. A look is the same runtime on the file's graph, which also
hands out where units were on; its logits are those of the session, usually bit by bit, and it is believed where it says
that a point stands by more than `DOUBT`. Of points inside the ball the session itself is asked about every one that
seems to fall, about every one within `DOUBT` of the line, and, where all points of a pass are inside, about the nearest
of each image that stands at the end. Where the two differ by more than rounding, no look is believed again.

Refusal: no look for files that are not float32, or whose runtime is not the one that looks
(`edgeprune.robustness.twin.source`): there every point is asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgeprune.robustness.verdicts import checked_logits
from edgeprune.types import Looked, Victim

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

DOUBT = 1e-3
"""Margin, as a share of a point's largest logit, up to which a look is no verdict: a thousand times what rounding in
float32 does."""
_ROUNDING = 1e-4


@dataclass(slots=True, eq=False)
class Watch:
    """What was seen of images (N,) by looks alone in the present pass: the lowest margin of each, and the point."""

    victim: Victim
    believed: bool
    lowest: Reals
    points: Floats

    @classmethod
    def over(cls, victim: Victim, images: Floats) -> Watch:
        believed = victim.look is not None
        return cls(victim, believed, np.full(len(images), np.inf), np.empty_like(images if believed else images[:0]))

    def look(self, points: Floats) -> Looked | None:
        """The pass that serves verdicts and gradients at these points, or None where the session is to be asked."""
        if not self.believed or self.victim.look is None:
            return None
        looked = self.victim.look(torch.from_numpy(points))
        return looked if bool(np.isfinite(looked.logits).all()) else None

    def asked(self, looked: Looked, points: Floats, doubtful: Bools) -> Floats:
        """The logits of a look, those of the `doubtful` points replaced by the session's."""
        if not doubtful.any():
            return looked.logits
        logits, said = looked.logits.copy(), checked_logits(self.victim.logits, points[doubtful])
        if not bool((np.abs(said - logits[doubtful]).max(axis=1) <= _ROUNDING * _sizes(said)).all()):
            self.believed = False
        logits[doubtful] = said
        return logits

    def note(self, rows: Ints, points: Floats, margin: Reals) -> None:
        """Keep those of the points, all inside the ball, that are nearer to falling than what was seen before."""
        nearer = margin < self.lowest[rows]
        if nearer.any():
            self.lowest[rows[nearer]], self.points[rows[nearer]] = margin[nearer], points[nearer]

    def nearest(self, rows: Ints) -> tuple[Ints, Floats]:
        """The pass over these images ends: those of which a point was kept, and that point; forgotten here."""
        known = rows[np.isfinite(self.lowest[rows])]
        self.lowest[known] = np.inf
        return known, self.points[known]


def doubtful(logits: Floats, margin: Reals) -> Bools:
    """Where a look with these logits (M, K) and margins (M,) is no verdict: bool (M,)."""
    return np.asarray(~(margin > DOUBT * _sizes(logits)))


def _sizes(logits: Floats) -> Floats:
    return np.asarray(np.abs(logits).max(axis=1))
