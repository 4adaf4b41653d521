"""What an adversary may do, and what became of the files."""

from __future__ import annotations

from typing import Literal

from edgeprune.records.artifacts import RuntimeInfo
from edgeprune.records.base import PairedDrop, Proportion, Record, Sha256


class AttackPart(Record):
    """One part of an attack and its effort on an image: gradient `steps` of each of `restarts` starts.

    `targets`: other classes tried, nearest first, or all where the network has fewer. `queries`: questions asked of the
    runtime by a part that follows no gradient.
    """

    name: str
    steps: int | None = None
    restarts: int = 1
    targets: int | None = None
    queries: int | None = None


class ThreatModel(Record):
    """What the adversary may do. `epsilon` is exact ("8/255"), in pixel units inside `bounds`.

    `parts` are what the attack runs, in their order; `steps` and `restarts` the largest of them. An image that falls is
    not attacked by the parts that follow. `target`: the class that images are pushed into; None: any but their own.
    `seconds`: the time that an attack on one file may take.
    """

    norm: Literal["linf", "l2", "l1"]
    epsilon: str
    epsilon_value: float
    bounds: tuple[float, float]
    attack: str
    steps: int
    restarts: int
    seed: int
    samples: int
    samples_digest: Sha256
    parts: tuple[AttackPart, ...] = ()
    target: int | None = None
    seconds: float | None = None


class AttackedFile(Record):
    """One file's fate under the threat model.

    `fell` counts images the runtime got right before and wrong under attack; `rounded` those that stay wrong after
    rounding to 8 bits; `rejected` claims that the second look refused (outside epsilon or the pixel range, or not
    misclassified again). `dead_gradients` counts attacked images without a usable gradient. `grade`: an attack that
    followed gradients, or one that could only ask (weaker evidence). `unfinished`: what was still to do when the time
    was up.
    """

    sha256: Sha256
    clean: Proportion
    robust: Proportion
    fell: int
    rounded: int
    rejected: int
    dead_gradients: int
    gradient_source: str
    twin_disagreement: float
    seconds: float
    grade: Literal["gradients", "black box"] = "gradients"
    unfinished: tuple[str, ...] = ()


class Replay(Record):
    """The dense file's adversarials, shown to the compressed one as they are: `robust` is what they leave standing.

    `gap` is that share less what the attack on the compressed file itself left: how far a replay overestimates.
    """

    robust: Proportion
    gap: float


class Divergence(Record):
    """Images inside epsilon that the dense file gets right and the compressed one wrong, looked for with both at hand.

    `found` counts them among the images that both get right when clean; `replayed` of them were found by the attack on
    the compressed file already. `finished` is False where the time was up.
    """

    found: Proportion
    replayed: int
    steps: int
    restarts: int
    finished: bool = True


class Sequential(Record):
    """An attack that looked at its bound `looks` times at most, and ended at look `at` once that had decided.

    `planned` images would have been attacked in all. Every look spends the same part of the allowed error, so `spent`
    is the confidence of each bound; the first bound within `tolerance`, or beyond it for certain, ends the attack.
    """

    looks: int
    at: int
    planned: int
    tolerance: float
    spent: float
    decided: Literal["within", "beyond", "no"]


class RobustnessComparison(Record):
    """Both files under the same attack on the same images. `warnings` say why a result is inconclusive."""

    runtime: RuntimeInfo
    threat: ThreatModel
    dense: AttackedFile
    compressed: AttackedFile
    drop: PairedDrop
    clean_drop: PairedDrop
    conclusive: bool
    warnings: tuple[str, ...] = ()
    replay: Replay | None = None
    divergence: Divergence | None = None
    sequential: Sequential | None = None
