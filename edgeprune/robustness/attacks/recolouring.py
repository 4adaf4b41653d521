"""Square's proposals for linf: squares of an image in other colours, drawn for many queries at once.

What a query proposes does not depend on what was found before, only on the draws of the image. So the places and the
colours of many queries are laid out together: a network's pass leaves nothing of what Python needs in the caches, and
each small array operation then costs several times what it costs alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

    Signs = np.ndarray[tuple[int, ...], np.dtype[np.int8]]

_AT_ONCE = 2**17
"""Pixels that are laid out together."""
_MOST = 64


@dataclass(frozen=True, slots=True, eq=False)
class Recolouring:
    """Squares of side `side` for queries from `first` on, with P pixels in all channels: `places` int64 (Q, N, P), flat
    in the array of all images, and `colours` float32 (Q, N, P)."""

    first: int
    side: int
    places: Ints
    colours: Floats

    @classmethod
    def drawn(cls, query: int, side: int, draws: Floats, signs: Signs, limits: tuple[Floats, Floats]) -> Recolouring:
        """As many queries as are worth laying out, from `query` on.

        draws: float32 (N, >Q, >=2), where in [0, 1) a square's upper left corner lies; signs: int8 (N, >Q, C), above 0
        for the upper limit; limits: both ends of every pixel, float32 (N, C, H, W).
        """
        count, channels, height, width = limits[0].shape
        queries = min(max(_AT_ONCE // (count * channels * side * side), 1), _MOST)
        part = slice(query, query + queries)
        free = (height - side + 1, width - side + 1)
        rows, columns = ((draws[:, part, k] * free[k]).astype(np.int64).T[..., None, None] for k in (0, 1))
        planes = np.arange(count * channels).reshape(count, channels, 1) * (height * width)
        places = planes + (rows * width + columns) + _offsets(side, width)
        upper = signs[:, part].transpose(1, 0, 2)[..., None] > 0
        colours = np.where(upper, limits[1].take(places), limits[0].take(places))
        shape = (len(places), count, -1)
        return cls(query, side, places.reshape(shape), colours.reshape(shape))

    def of(self, query: int, side: int) -> tuple[Ints, Floats] | None:
        """Places and colours (N, P) of a query; None where it is not among these."""
        at = query - self.first
        return (self.places[at], self.colours[at]) if 0 <= at < len(self.places) and side == self.side else None


@lru_cache(maxsize=64)
def _offsets(side: int, width: int) -> Ints:
    return (np.arange(side)[:, None] * width + np.arange(side)).reshape(-1)
