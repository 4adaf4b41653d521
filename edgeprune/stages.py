"""What the stages of a run leave: their files by name, and the records that `edgeprune.steps` keeps of them."""

from __future__ import annotations

from collections.abc import Mapping

from edgeprune.records import (
    Artifact,
    LayerChange,
    Parity,
    PrunePlan,
    Record,
    RecoveryInfo,
    Side,
    StepRecord,
    Unmeasured,
)

PRUNED, PLAN, EVIDENCE = "pruned.pt", "plan.json", "evidence.npz"
START = "steps/last.pt"
"""Where the recovery after the last of several steps begins."""
STEMS: Mapping[Side, str] = {"dense": "dense/model", "compressed": "model"}


class Step(Record):
    """One step of several: the plan so far, relative to the dense network; its weights are in steps/."""

    plan: PrunePlan | None
    recovery: RecoveryInfo | Unmeasured
    digest: str


class Planned(Record):
    """The plan, every layer before and after, and the steps that came before the last one."""

    plan: PrunePlan
    layers: tuple[LayerChange, ...]
    steps: tuple[StepRecord, ...] = ()


class Recovered(Record):
    """What recovery did; the weights are in pruned.pt and have this digest."""

    info: RecoveryInfo | Unmeasured
    digest: str


class Exported(Record):
    """The files of both networks for every runtime."""

    artifacts: tuple[Artifact, ...]
    parity: tuple[Parity, ...]

    def of(self, side: Side, format: str) -> Artifact:
        """The file of that side and format."""
        return next(a for a in self.artifacts if (a.side, a.format) == (side, format))

    def digests(self) -> dict[str, str]:
        """Path to sha256: what every measurement depends on."""
        return {artifact.path: artifact.sha256 for artifact in self.artifacts}
