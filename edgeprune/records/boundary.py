"""How far each image is from the decision boundary, what flipped there, and robust accuracy over epsilon."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from edgeprune.records.artifacts import RuntimeInfo
from edgeprune.records.base import Interval, PairedDrop, Proportion, Record, Sha256

Thumbnail = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$")]
Kind = Literal["lost", "won", "lost at epsilon", "won at epsilon"]


class DistanceSearch(Record):
    """How distances were searched, and on which images. A distance is the runtime's: the file answers otherwise there.

    `attack` looks for the nearest such point in `norm`; what it finds is an upper bound of the true distance.
    """

    attack: str
    norm: Literal["linf", "l2", "l1"]
    steps: int
    restarts: int
    seed: int
    samples: int
    samples_digest: Sha256
    gradient_source: str = ""


class FlipRank(Record):
    """Do flips happen near the dense file's boundary? `auroc`: how often a flip is nearer than an image that kept.

    lost: right in the dense file, wrong in the compressed one; won: the reverse. At epsilon: the same of images that
    stand under attack (lost: stood in the dense file alone). `images` could flip that way, `flipped` did. `interval`
    is Newcombe's, `p_value` the Mann-Whitney test's (`exact`: by all rearrangements). None, and `unmeasured` says why,
    where one of the groups is empty.
    """

    kind: Kind
    images: int
    flipped: int
    auroc: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    exact: bool = True
    unmeasured: str = ""


class Decile(Record):
    """A tenth of the images that the dense file gets right, nearest first.

    Distances go from `low` to `high` (None: nothing was found for the farthest). `lost`: wrong in the compressed file.
    `lost_at_epsilon`: of those that stand in the dense file under attack, fallen in the compressed one; None where none
    stands.
    """

    low: float | None
    high: float | None
    lost: Proportion
    lost_at_epsilon: Proportion | None


class ImageAtRisk(Record):
    """One image near the boundary, or one that flipped.

    `distance` to the dense file's boundary (None: none was found). `dense`, `compressed`: the files' classes of the
    clean image. `fate`: what became of it in the compressed file. `thumbnail`: a small PNG, base64.
    """

    id: int
    label: int
    dense: int
    compressed: int
    distance: float | None
    fate: Literal["lost", "lost at epsilon", "held"]
    thumbnail: Thumbnail


class ThinIce(Record):
    """Distance to the dense file's boundary, against what flipped when the network was compressed.

    `right`: images that the dense file gets right; `censored` of all images have no distance: the search found no point
    where the file answers otherwise. `quartiles` of the distances of the images that it gets right (None: beyond what
    was found). `net_lost` and `net_lost_at_epsilon` are lost minus won. `conclusive`: of the attack at epsilon.
    """

    dense_sha256: Sha256
    compressed_sha256: Sha256
    runtime: RuntimeInfo
    search: DistanceSearch
    epsilon: str
    right: int
    censored: int
    quartiles: tuple[float | None, float | None, float | None] | None
    ranks: tuple[FlipRank, ...]
    deciles: tuple[Decile, ...]
    net_lost: int
    net_lost_at_epsilon: int
    at_risk: tuple[ImageAtRisk, ...]
    conclusive: bool


class CurveSide(Record):
    """One file's curve: its images that are right, at their smallest known adversarial distance, ascending.

    Robust accuracy at epsilon is at most (`right` minus the distances up to epsilon) over the samples. `right` images
    without a distance stood against everything that was tried.
    """

    sha256: Sha256
    right: int
    distances: tuple[float, ...]


class CurveCheck(Record):
    """Both files at one epsilon, attacked there with the run's own attack.

    `dense_alone` and `compressed_alone` count what the distances alone left standing; `dense` and `compressed` what
    stands against both, the lower of the two. `p_holm`: McNemar's exact test, adjusted for the number of checks.
    `warnings` say why a check is inconclusive.
    """

    epsilon: str
    epsilon_value: float
    attack: str
    dense_alone: int
    compressed_alone: int
    dense: Proportion
    compressed: Proportion
    drop: PairedDrop
    p_holm: float
    warnings: tuple[str, ...] = ()


class SecurityCurve(Record):
    """Robust accuracy over epsilon, an upper bound: from each file's own distances, checked at points."""

    runtime: RuntimeInfo
    search: DistanceSearch
    confidence: float
    dense: CurveSide
    compressed: CurveSide
    checks: tuple[CurveCheck, ...]
