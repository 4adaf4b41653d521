"""What crosses a file boundary: plans, artifacts, measurements, reports, verdicts.

Every record is frozen, refuses unknown keys, round-trips through JSON and has a JSON Schema. A number stands
beside the file (sha256), runtime, precision, target and data that it belongs to; what was not measured is an
`Unmeasured` with its reason, never a default.
"""

from edgeprune.records.artifacts import AccuracyComparison, Artifact, Parity, RuntimeInfo
from edgeprune.records.attestation import Digest, Predicate, Resource, Statement
from edgeprune.records.base import (
    SCHEMA_VERSION,
    Interval,
    PairedDrop,
    Proportion,
    Record,
    Sha256,
    Side,
    Unmeasured,
    read_record,
)
from edgeprune.records.boundary import (
    CurveCheck,
    CurveSide,
    Decile,
    DistanceSearch,
    FlipRank,
    ImageAtRisk,
    SecurityCurve,
    ThinIce,
)
from edgeprune.records.certificate import Certified, CertifiedAt, Noise
from edgeprune.records.comparison import LayerPair, Paired, RunComparison, RunName, TimesCompared, Unpaired, Weighed
from edgeprune.records.latency import (
    BlockSamples,
    LatencyComparison,
    LatencyEstimate,
    LatencyFile,
    LatencyRequest,
    LatencyStats,
    LayerProfile,
    LayerTime,
    NodeTime,
    QuickRatio,
    Ratio,
)
from edgeprune.records.machine import Drift, Environment, Heat, Warmth
from edgeprune.records.plan import GroupPlan, PrunePlan, RefusalRecord
from edgeprune.records.report import (
    LayerChange,
    ModelInfo,
    RecoveryInfo,
    Report,
    SplitInfo,
    StepRecord,
    TargetInfo,
)
from edgeprune.records.robustness import (
    AttackedFile,
    AttackPart,
    Divergence,
    Replay,
    RobustnessComparison,
    Sequential,
    ThreatModel,
)
from edgeprune.records.verdict import GateRow, Verdict

__all__ = [
    "SCHEMA_VERSION",
    "AccuracyComparison",
    "Artifact",
    "AttackPart",
    "AttackedFile",
    "BlockSamples",
    "Certified",
    "CertifiedAt",
    "CurveCheck",
    "CurveSide",
    "Decile",
    "Digest",
    "DistanceSearch",
    "Divergence",
    "Drift",
    "Environment",
    "FlipRank",
    "GateRow",
    "GroupPlan",
    "Heat",
    "ImageAtRisk",
    "Interval",
    "LatencyComparison",
    "LatencyEstimate",
    "LatencyFile",
    "LatencyRequest",
    "LatencyStats",
    "LayerChange",
    "LayerPair",
    "LayerProfile",
    "LayerTime",
    "ModelInfo",
    "NodeTime",
    "Noise",
    "Paired",
    "PairedDrop",
    "Parity",
    "Predicate",
    "Proportion",
    "PrunePlan",
    "QuickRatio",
    "Ratio",
    "Record",
    "RecoveryInfo",
    "RefusalRecord",
    "Replay",
    "Report",
    "Resource",
    "RobustnessComparison",
    "RunComparison",
    "RunName",
    "RuntimeInfo",
    "SecurityCurve",
    "Sequential",
    "Sha256",
    "Side",
    "SplitInfo",
    "Statement",
    "StepRecord",
    "TargetInfo",
    "ThinIce",
    "ThreatModel",
    "TimesCompared",
    "Unmeasured",
    "Unpaired",
    "Verdict",
    "Warmth",
    "Weighed",
    "read_record",
]
