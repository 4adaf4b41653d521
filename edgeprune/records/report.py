"""Everything one run learned: what report.json holds."""

from __future__ import annotations

from typing import Literal

from edgeprune.records.artifacts import AccuracyComparison, Artifact, Parity
from edgeprune.records.base import SCHEMA_VERSION, Record, Sha256, Side, Unmeasured
from edgeprune.records.boundary import SecurityCurve, ThinIce
from edgeprune.records.latency import LatencyComparison, LatencyEstimate, LayerProfile
from edgeprune.records.machine import Environment
from edgeprune.records.plan import PrunePlan
from edgeprune.records.robustness import RobustnessComparison
from edgeprune.records.verdict import Verdict

_NOT_YET = Unmeasured(unmeasured="the version that wrote this report did not measure it")


class ModelInfo(Record):
    """The network that came in.

    `fit`, `resize` and `interpolation` say how image files became pixels; `held` names the inputs beside the images,
    which every file holds at one value (the values are part of the digest).
    """

    name: str
    file_sha256: Sha256
    digest: Sha256
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bounds: tuple[float, float]
    fit: Literal["exact", "crop", "squash"] = "exact"
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    held: tuple[str, ...] = ()


class SplitInfo(Record):
    """A split behind the numbers. `digest` covers pixels, labels and sample ids."""

    role: Literal["train", "test"]
    name: str
    samples: int
    digest: Sha256


class Correction(Record):
    """A closed-form correction, on `held_out` images of the training split: it was `kept` where it helped.

    Distances are mean KL divergences from the dense network's answers, in nats (None: those of answers that are no
    numbers). `skipped`: (layer, reason).
    """

    name: str
    layers: int
    skipped: tuple[tuple[str, str], ...] = ()
    accuracy_before: float
    accuracy_after: float
    distance_before: float | None
    distance_after: float | None
    kept: bool


class RecoveryInfo(Record):
    """What recovery did. Accuracies are on `held_out` images of the training split, in torch.

    Without `labels`, agreement with the dense network stands in their place. Robust accuracies are under PGD with 10
    steps, linf, at `robust_eps`, on up to 128 of these images. Distances are mean KL divergences of its answers from
    the dense network's, in nats. `notes`: what did not go as planned.
    """

    recipe: str
    epochs: int
    minutes: float | None = None
    train_samples: int
    held_out: int
    labels: bool = True
    accuracy_before: float | None
    accuracy_after: float | None
    robust_before: float | None = None
    robust_after: float | None = None
    robust_eps: float | None = None
    distance_before: float | None = None
    distance_after: float | None = None
    corrections: tuple[Correction, ...] = ()
    precision: Literal["float32", "bfloat16"] = "float32"
    images_per_second: float | None = None
    notes: tuple[str, ...] = ()
    seconds: float


class StepRecord(Record):
    """What one of several steps left, and what recovery made of it. `channels`: kept, of all groups."""

    macs: int
    channels: int
    recovery: RecoveryInfo | Unmeasured

    @classmethod
    def of(cls, plan: PrunePlan, recovery: RecoveryInfo | Unmeasured) -> StepRecord:
        """The record of the step after which `plan` was what is kept of the dense network."""
        return cls(macs=plan.macs, channels=sum(len(group.kept) for group in plan.groups), recovery=recovery)


class LayerChange(Record):
    """One layer before and after."""

    name: str
    kind: str
    dense_channels: int
    channels: int
    dense_macs: int
    macs: int


class TargetInfo(Record):
    """The hardware profile that was aimed at."""

    name: str
    description: str
    channel_multiple: int


class Report(Record):
    """Everything one run learned; the HTML, Markdown and JUnit files are renderings of it."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    created: str
    command: str
    seed: int
    environment: Environment
    target: TargetInfo
    model: ModelInfo
    data: tuple[SplitInfo, ...]
    plan: PrunePlan
    layers: tuple[LayerChange, ...]
    steps: tuple[StepRecord, ...] = ()
    recovery: RecoveryInfo | Unmeasured
    artifacts: tuple[Artifact, ...]
    parity: tuple[Parity, ...]
    accuracy: tuple[AccuracyComparison, ...] | Unmeasured
    latency: tuple[LatencyComparison, ...] | Unmeasured
    estimates: tuple[LatencyEstimate, ...] = ()
    layer_times: LayerProfile | Unmeasured = Unmeasured(unmeasured="the layers were not profiled")
    robustness: RobustnessComparison | Unmeasured
    thin_ice: ThinIce | Unmeasured = _NOT_YET
    curve: SecurityCurve | Unmeasured = _NOT_YET
    evidence_sha256: Sha256 | None
    budgets: dict[str, float | str | bool]
    verdict: Verdict | None
    warnings: tuple[str, ...] = ()

    def artifact(self, side: Side, format: str = "onnx") -> Artifact:
        """The exported file of that side and format; KeyError when there is none."""
        for artifact in self.artifacts:
            if (artifact.side, artifact.format) == (side, format):
                return artifact
        raise KeyError((side, format))
