"""What crosses a file boundary: plans, artifacts, measurements, reports, verdicts.

Every record is frozen, refuses unknown keys, round-trips through JSON and has a JSON Schema. A number stands
beside the file (sha256), runtime, precision, target and data that it belongs to; what was not measured is an
`Unmeasured` with its reason, never a default.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeprune.errors import UsageError

SCHEMA_VERSION: Final = "1"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Literal["dense", "compressed"]
R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """Base of everything that is written to a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> str:
        """Stable JSON: keys in field order, two spaces, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


class Unmeasured(Record):
    """Stands where a measurement would: there is none, and this is why."""

    unmeasured: str


class Interval(Record):
    """A two-sided confidence interval."""

    low: float
    high: float
    confidence: float = 0.95


class Proportion(Record):
    """`count` of `total`, with its Clopper-Pearson interval."""

    count: int
    total: int
    interval: Interval

    @property
    def value(self) -> float:
        return self.count / self.total


class PairedDrop(Record):
    """Dense minus compressed on the same images.

    `dense_only` images are right in the dense file alone, `compressed_only` in the compressed one alone. `upper`
    is a one-sided bound on the drop at `confidence`; `p_value` is McNemar's exact two-sided test.
    """

    total: int
    dense_only: int
    compressed_only: int
    upper: float
    confidence: float
    p_value: float

    @property
    def value(self) -> float:
        return (self.dense_only - self.compressed_only) / self.total


# ---------------------------------------------------------------------------------------------- the plan


class GroupPlan(Record):
    """Channel indices of one group that stay, ascending. `width` is the dense width."""

    name: str
    width: int
    kept: tuple[int, ...]


class RefusalRecord(Record):
    """A group that was left alone."""

    name: str
    reason: str
    layers: tuple[str, ...] = ()


class PrunePlan(Record):
    """What surgery removes from the network whose weights have the digest `parent`."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    parent: Sha256
    goal: str
    goal_value: float
    criterion: str
    normalisation: str
    channel_multiple: int
    seed: int
    groups: tuple[GroupPlan, ...]
    removed_blocks: tuple[str, ...] = ()
    refusals: tuple[RefusalRecord, ...] = ()
    dense_macs: int
    dense_parameters: int
    macs: int
    parameters: int
    notes: tuple[str, ...] = ()

    @property
    def removed_channels(self) -> int:
        return sum(group.width - len(group.kept) for group in self.groups)


# ------------------------------------------------------------------------------------- files and runtimes


class Artifact(Record):
    """An exported file. `path` is relative to the run folder; `companions` are files that belong to it."""

    side: Side
    path: str
    format: str
    precision: Literal["float32", "int8"] = "float32"
    sha256: Sha256
    size_bytes: int
    companions: tuple[tuple[str, Sha256, int], ...] = ()
    opset: int | None = None
    parent_digest: Sha256

    @property
    def total_bytes(self) -> int:
        """Size of everything that ships: the file and its companions."""
        return self.size_bytes + sum(size for _, _, size in self.companions)


class RuntimeInfo(Record):
    """What ran a file. `precision` is what the runtime says that it really computes in."""

    name: str
    version: str
    precision: str
    threads: int
    options: dict[str, str] = Field(default_factory=dict)


class Parity(Record):
    """Largest absolute difference between the logits of the torch module and of the file in its runtime."""

    sha256: Sha256
    runtime: RuntimeInfo
    batch_sizes: tuple[int, ...]
    max_difference: float
    tolerance: float
    same_labels: bool
    inputs: Literal["real", "random"]


# -------------------------------------------------------------------------------------------- accuracy


class AccuracyComparison(Record):
    """Clean accuracy of both files, same images, same runtime."""

    runtime: RuntimeInfo
    dense_sha256: Sha256
    compressed_sha256: Sha256
    dense: Proportion
    compressed: Proportion
    drop: PairedDrop


# --------------------------------------------------------------------------------------------- latency


class LatencyFile(Record):
    """A file to time, by absolute path, and the sha256 that it must have; `companions` belong to it (weights)."""

    path: str
    sha256: Sha256
    companions: tuple[tuple[str, Sha256], ...] = ()


class LatencyRequest(Record):
    """What a device is asked to time: interleaved blocks of two files in fresh processes.

    `compressed` None times one file alone (the A/A control remains). `images` is an .npy of float32 pixels
    (M, C, H, W) to draw batches from.
    """

    runtime: str
    dense: LatencyFile
    compressed: LatencyFile | None
    images: str
    batch_size: int = 1
    threads: int = 1
    processes: int = 5
    blocks: int = 12
    block_ms: float = 60.0
    seed: int = 0


class BlockSamples(Record):
    """Raw times of one block, in order. `preempted[i]` marks an iteration that lost the processor.

    Every round holds one block of each label, in random order: blocks of one round are neighbours in time.
    `cores` the process was pinned to (empty: the system cannot pin); `settled` False when the warm-up reached its
    cap before this file's times settled. `peak_rss_bytes` is the process's, which holds all files.
    """

    process: int
    round: int
    position: int
    label: Literal["dense", "control", "compressed"]
    samples_ms: tuple[float, ...]
    preempted: tuple[bool, ...]
    runtime: RuntimeInfo
    cores: tuple[int, ...] = ()
    settled: bool = True
    peak_rss_bytes: int
    cold_start_ms: float


class LatencyStats(Record):
    """Quantiles of one file's samples, preempted ones left out. A quantile without enough samples is None.

    `samples` counts what the figures rest on, `preempted` the iterations that lost the processor; where more than
    half did, the figures hold them, too, and the comparison is inconclusive. `cold_start_ms` (load and first
    inference) is the median of the processes. `throughput_per_s` is in images, one inference after the other.
    """

    sha256: Sha256
    p50_ms: float
    p50_interval: Interval
    p90_ms: float | None
    p99_ms: float | None
    min_ms: float
    throughput_per_s: float
    cold_start_ms: float
    samples: int
    preempted: int


class Ratio(Record):
    """A ratio of medians with its bootstrap interval."""

    value: float
    interval: Interval


class QuickRatio(Ratio):
    """A speed-up from a short run, to steer by; never for a report."""

    dense_p50_ms: float
    compressed_p50_ms: float
    conclusive: bool


class LatencyComparison(Record):
    """Dense and compressed, timed in the same interleaved run.

    `speedup` is dense over compressed, from pairs of neighbouring blocks. `control` is the same for dense against
    dense, so it shows the error of the method: when its interval is wider than `control_limit` or misses 1, the
    verdict is inconclusive, and a difference counts only beyond it. `notes` say why a verdict is inconclusive and
    what else was odd. `peak_rss_bytes` is the largest of the timing processes, which hold both files.
    """

    kind: Literal["measured-local", "measured-remote"]
    target: str
    runtime: RuntimeInfo
    batch_size: int
    processes: int
    cores: tuple[int, ...]
    dense: LatencyStats
    compressed: LatencyStats | None
    speedup: Ratio | None
    control: Ratio
    control_limit: float
    peak_rss_bytes: int
    verdict: Literal["faster", "slower", "no significant difference", "inconclusive", "alone"]
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------ robustness


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
    not attacked by the parts that follow.
    """

    norm: Literal["linf", "l2"]
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


class AttackedFile(Record):
    """One file's fate under the threat model.

    `fell` counts images the runtime got right before and wrong under attack; `rounded` those that stay wrong
    after rounding to 8 bits; `rejected` claims that the second look refused (outside epsilon or the pixel
    range, or not misclassified again). `dead_gradients` counts attacked images without a usable gradient.
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


# ------------------------------------------------------------------------------------------- gate


class GateRow(Record):
    """One budget, judged.

    `actual` is the point and `bound` the value that was judged against `limit`, all in `unit`: drops are
    fractions (0.02 reads "2 pt"). `confidence` is one-sided, None for an exact value. `distance` is what is left
    until the limit, negative beyond it. `reason` says what was judged, or why nothing could be; `remedy` which
    command or setting would help. stale: the report measured another file.
    """

    metric: str
    subject: str
    operator: Literal["<=", ">="]
    limit: float
    unit: Literal["fraction", "ms", "x", "bytes"]
    actual: float | None
    bound: float | None
    confidence: float | None
    status: Literal["pass", "fail", "stale", "missing", "inconclusive"]
    distance: float | None
    reason: str
    remedy: str


class Verdict(Record):
    """All rows, failures first, about the file `artifact_sha256`.

    passed: every row passes. inconclusive: nothing fails, is stale or is missing, but something is unclear.
    `reason` sums it up in a line, and says what to write where there are no budgets.
    """

    status: Literal["passed", "failed", "inconclusive", "no budgets"]
    artifact_sha256: Sha256
    rows: tuple[GateRow, ...]
    reason: str


# ------------------------------------------------------------------------------------------ the report


class Environment(Record):
    """The machine and the versions behind the numbers."""

    edgeprune: str
    python: str
    system: str
    cpu: str
    cores: int
    cpu_features: tuple[str, ...]
    packages: dict[str, str]


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


class RecoveryInfo(Record):
    """What recovery did. Accuracies are on `held_out` images of the training split, in torch."""

    recipe: str
    epochs: int
    train_samples: int
    held_out: int
    accuracy_before: float | None
    accuracy_after: float | None
    seconds: float


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
    recovery: RecoveryInfo | Unmeasured
    artifacts: tuple[Artifact, ...]
    parity: tuple[Parity, ...]
    accuracy: tuple[AccuracyComparison, ...] | Unmeasured
    latency: tuple[LatencyComparison, ...] | Unmeasured
    robustness: RobustnessComparison | Unmeasured
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


def read_record(kind: type[R], path: Path) -> R:
    """Read a record from a JSON file; UsageError says what is wrong with it and where."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise UsageError(
            f"{path} is not a {kind.__name__} of this version of edgeprune",
            where=f"{place}: {first['msg']}",
            hint="make it again with this version, or use the version that wrote it",
        ) from error
