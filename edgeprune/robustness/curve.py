"""The security curve: robust accuracy over epsilon, from each file's own distances, checked at points.

Promise: an upper bound everywhere. A distance is that of an adversarial that was found, so a file is right under attack
at epsilon on at most the images whose distance is larger. At each check the attack itself is tried on what the
distances leave standing; where it finds more, the lower value stands, there and at every larger epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.records import CurveCheck, CurveSide, Record
from edgeprune.robustness.distances import Distances
from edgeprune.robustness.evaluate import attack_file
from edgeprune.robustness.health import warnings
from edgeprune.robustness.norms import distances
from edgeprune.robustness.statistics import holm, paired_drop, proportion
from edgeprune.types import Progress, Split

if TYPE_CHECKING:
    from edgeprune.records import Side, ThreatModel
    from edgeprune.robustness.outcome import FileOutcome
    from edgeprune.robustness.twin import Gradients

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Fallen(Record):
    """What the attack found at one epsilon beyond the distances: ids, and how far the adversarials are."""

    ids: tuple[int, ...]
    distances: tuple[float, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """One epsilon of the curve: what the distances `alone` say of each file, and what is `known` with the attack."""

    threat: ThreatModel
    alone: tuple[Distances, Distances]
    known: tuple[Distances, Distances]
    warnings: tuple[str, ...]


def standing(of: Distances, epsilon: float) -> Bools:
    """Right, and no adversarial within epsilon is known: bool (N,)."""
    return of.right & ~(of.distances <= epsilon)


def fallen(outcome: FileOutcome, split: Split, threat: ThreatModel, side: Side) -> Fallen:
    """What an attack found, with its distances; `split` holds the images of the outcome, in any order."""
    rows = np.flatnonzero(outcome.fell)
    ids, doubts = outcome.ids[rows], warnings(side, outcome.health)
    if not len(ids):
        return Fallen(ids=(), distances=(), warnings=doubts)
    far = distances(outcome.adversarials[rows], np.asarray(split.source.read(ids), np.float32), threat.norm)
    far = np.minimum(far, threat.epsilon_value)  # an attack may use the slack of its second look
    return Fallen(ids=tuple(map(int, ids)), distances=tuple(map(float, far)), warnings=doubts)


def attack_standing(
    source: Gradients, split: Split, threat: ThreatModel, *, side: Side, sha256: str, device: str, progress: Progress
) -> Fallen:
    """Attack every image of `split`, which is what the distances leave standing at the threat's epsilon."""
    if not len(split):
        return Fallen(ids=(), distances=())
    outcome = attack_file(source, split, threat, sha256=sha256, device=device, progress=progress)
    return fallen(outcome, split, threat, side)


def with_fallen(of: Distances, found: Fallen) -> Distances:
    """The distances, smaller where the attack found a nearer adversarial."""
    return of.known(np.array(found.ids, np.int64), np.array(found.distances, np.float64))


def checks(done: Sequence[Check], confidence: float) -> tuple[CurveCheck, ...]:
    """The checks as records, in their order, with p-values adjusted for their number (Holm)."""
    stood = [[standing(of, each.threat.epsilon_value) for of in each.known] for each in done]
    drops = [paired_drop(dense, compressed, confidence) for dense, compressed in stood]
    adjusted = holm([drop.p_value for drop in drops])
    return tuple(
        CurveCheck(
            epsilon=each.threat.epsilon,
            epsilon_value=each.threat.epsilon_value,
            attack=each.threat.attack,
            dense_alone=int(standing(each.alone[0], each.threat.epsilon_value).sum()),
            compressed_alone=int(standing(each.alone[1], each.threat.epsilon_value).sum()),
            dense=proportion(int(stands[0].sum()), len(stands[0]), confidence),
            compressed=proportion(int(stands[1].sum()), len(stands[1]), confidence),
            drop=drop,
            p_holm=p_holm,
            warnings=each.warnings,
        )
        for each, stands, drop, p_holm in zip(done, stood, drops, adjusted, strict=True)
    )


def curve_side(sha256: str, known: Distances) -> CurveSide:
    """One file's curve from all that is known of it in the end."""
    far = known.distances[known.right]
    found = np.sort(far[np.isfinite(far)])
    return CurveSide(sha256=sha256, right=len(far), distances=tuple(float(f"{value:.6g}") for value in found))
