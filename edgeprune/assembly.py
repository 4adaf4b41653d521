"""The two ends of a run: what the user gave becomes a `Run`, and what the stages found becomes a `Report`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import UsageError
from edgeprune.files import sha256_of, write_text
from edgeprune.latency.profiles import load_profile
from edgeprune.records import (
    AccuracyComparison,
    LatencyComparison,
    ModelInfo,
    Report,
    RobustnessComparison,
    SplitInfo,
    Unmeasured,
)
from edgeprune.runfolder import RunFolder
from edgeprune.steps import EVIDENCE, Exported, Planned, Recovered, Run
from edgeprune.types import Split

REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Found:
    """What the stages of a run found."""

    planned: Planned
    recovered: Recovered
    exported: Exported
    accuracy: tuple[AccuracyComparison, ...] | Unmeasured
    latency: tuple[LatencyComparison, ...] | Unmeasured
    robustness: RobustnessComparison | Unmeasured


def open_run(model: Path, config: Config, folder: RunFolder, console: Console, command: str) -> Run:
    """Open the model, the data and the target; say at once what the budgets cannot be judged on."""
    from edgeprune.data import open_split, overlap
    from edgeprune.gate import unsupported
    from edgeprune.models import load

    _set_threads(config.run.torch_threads)
    profile = load_profile(config.run.target)
    if config.prune.goal().kind in ("speedup", "latency_ms") and not profile.is_local:
        raise UsageError(
            f"a goal in time needs a device to measure on, and {profile.name} is not this machine",
            hint="use --macs-ratio or --ratio, or --target cpu",
        )
    bundle = load(model, config.model)
    data, seed = config.data, config.run.seed
    train = open_split(data.train, "train", bundle, seed=seed) if data.train else None
    test = open_split(data.test, "test", bundle, samples=data.samples, seed=seed) if data.test else None
    warnings: list[str] = []
    if train and test and (shared := overlap(train, test)):
        warnings.append(f"{shared} of the {len(test)} test images are training images, too")
    if test:
        attacked = min(len(test), config.attack.samples or len(test))
        warnings.extend(unsupported(config.budget, len(test), attacked))
    for warning in warnings:
        console.warn(warning)
    return Run(
        bundle=bundle,
        file_sha256=sha256_of(model),
        train=train,
        test=test,
        profile=profile,
        config=config,
        folder=folder,
        console=console,
        command=command,
        warnings=tuple(warnings),
    )


def finish(run: Run, found: Found) -> Report:
    """Gather what was found, judge it where there are budgets, write report.json and its renderings."""
    from edgeprune.environment import environment
    from edgeprune.gate import judge
    from edgeprune.reporting import render

    attacked = not isinstance(found.robustness, Unmeasured)
    bundle, budget = run.bundle, run.config.budget
    report = Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=run.command,
        seed=run.config.run.seed,
        environment=environment(),
        target=run.profile.info(run.config.latency.runtimes[0]),
        model=ModelInfo(
            name=Path(bundle.source).name,
            file_sha256=run.file_sha256,
            digest=bundle.digest,
            input_shape=bundle.input_shape,
            classes=bundle.classes,
            mean=bundle.preprocessing.mean,
            std=bundle.preprocessing.std,
            bounds=bundle.preprocessing.bounds,
        ),
        data=tuple(_split_info(split) for split in (run.train, run.test) if split),
        plan=found.planned.plan,
        layers=found.planned.layers,
        recovery=found.recovered.info,
        artifacts=found.exported.artifacts,
        parity=found.exported.parity,
        accuracy=found.accuracy,
        latency=found.latency,
        robustness=found.robustness,
        evidence_sha256=sha256_of(run.folder.path / EVIDENCE) if attacked else None,
        budgets=budget.model_dump(exclude_none=True),
        verdict=None,
        warnings=run.warnings,
    )
    if budget.limits():
        verdict = judge(report, budget, report.artifact("compressed").sha256)
        report = report.model_copy(update={"verdict": verdict})
    write_text(run.folder.path / REPORT, report.to_json())
    render(report, run.folder.path)
    return report


def _split_info(split: Split) -> SplitInfo:
    return SplitInfo(role=split.role, name=split.name, samples=len(split), digest=split.digest)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
