"""A sequential attack: look at the paired bound after parts of the images, and stop once it has decided the budget.

Looking until a bound holds would make it hold too often. So the allowed error is spent in equal parts on the looks (an
alpha-spending function that is a step at each look: Lan and DeMets 1983, Discrete sequential boundaries for clinical
trials; by the union bound the level holds whatever the dependence between looks). Each bound is exact for its sample
size. Stopping because the budget is missed for certain spends nothing: it can only fail a gate, never pass it.

Promise: the images come in an order drawn by the seed, so that every part is a sample of all; pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeprune.records import PairedDrop
from edgeprune.robustness.statistics import upper_bound

if TYPE_CHECKING:
    from edgeprune.types import Ints

Decision = Literal["within", "beyond", "no"]


def confidence_of_a_look(confidence: float, looks: int) -> float:
    """The one-sided confidence that each of `looks` bounds must have, for all of them together to have `confidence`."""
    return 1 - (1 - confidence) / looks


def parts_of_images(ids: Ints, looks: int, seed: int) -> tuple[Ints, ...]:
    """The ids (int64 (N,)) in `looks` parts of a size, drawn by the seed, each ascending; fewer parts of few images."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(ids))
    parts = np.array_split(np.asarray(ids)[order], min(looks, max(len(ids), 1)))
    return tuple(np.sort(part) for part in parts)


def decide(drop: PairedDrop, tolerance: float, spent: float) -> Decision:
    """What a look decides about the budget: the drop is within the tolerance, beyond it, or neither at this level."""
    counts = (drop.dense_only, drop.compressed_only)
    if upper_bound(*counts, drop.total, spent) <= tolerance:
        return "within"
    return "beyond" if -upper_bound(*reversed(counts), drop.total, spent) > tolerance else "no"
