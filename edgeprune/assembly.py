"""The two ends of a run: what the user gave becomes a `Run`, and what the stages found becomes a `Report`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgeprune import preflight
from edgeprune.boundary import Surveyed
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.files import sha256_of, write_text, writing
from edgeprune.latency.attaching import attached
from edgeprune.latency.profiles import load_profile
from edgeprune.records import (
    AccuracyComparison,
    LatencyComparison,
    LatencyEstimate,
    LayerProfile,
    ModelInfo,
    Report,
    RobustnessComparison,
    SplitInfo,
    Unmeasured,
)
from edgeprune.runfolder import RunFolder
from edgeprune.stages import EVIDENCE, Exported, Planned, Recovered
from edgeprune.steps import Run
from edgeprune.sweeping.sharing import Shared
from edgeprune.there import OnDevice
from edgeprune.types import ModelBundle, Split

REPORT, ATTESTATION = "report.json", "attestation.json"
_DOUBT_IMAGES = 256


@dataclass(frozen=True, slots=True)
class Found:
    """What the stages of a run found."""

    planned: Planned
    recovered: Recovered
    exported: Exported
    accuracy: tuple[AccuracyComparison, ...] | Unmeasured
    latency: tuple[LatencyComparison, ...] | Unmeasured
    robustness: RobustnessComparison | Unmeasured
    layer_times: LayerProfile | Unmeasured
    surveyed: Surveyed
    there: tuple[OnDevice, ...] = ()


@contextmanager
def open_run(model: Path, config: Config, out: Path, console: Console, command: str, shared: Shared) -> Iterator[Run]:
    """Open the target, the model, the data, then the run folder; say at once what the budgets cannot be judged on.

    Nothing is written before everything was opened. The report of the run before goes: a folder with a report in it
    is a finished run.
    """
    from edgeprune.models import load

    _set_threads(config.run.torch_threads)
    profile = load_profile(config.run.target)
    preflight.check_settings(config, profile)
    bundle = load(model, config.model)
    preflight.check_model(bundle, config)
    train, test = open_data(bundle, config)
    with console.task("looking over the model and the data"):
        warnings = _doubts(bundle, train, test, config)
    for warning in warnings:
        console.warn(warning)
    with attached(profile, config.remote) as device, RunFolder.opened(out, console.say) as folder:
        _remove_report(folder.path)
        yield Run(
            bundle=bundle,
            file_sha256=sha256_of(model),
            train=train,
            test=test,
            profile=profile,
            config=config,
            folder=folder,
            console=console,
            command=command,
            warnings=warnings,
            device=device,
            shared=shared,
        )


def finish(run: Run, found: Found) -> Report:
    """Gather what was found, judge it where there are budgets, write report.json and its renderings."""
    from edgeprune.environment import environment
    from edgeprune.gate import judge
    from edgeprune.reporting import render

    attacked = not isinstance(found.robustness, Unmeasured)
    budget = run.config.budget
    report = Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=run.command,
        seed=run.config.run.seed,
        environment=environment(),
        target=run.profile.info(run.config.latency.runtimes[0]),
        model=_model_info(run),
        data=tuple(_split_info(split) for split in (run.train, run.test) if split),
        plan=found.planned.plan,
        layers=found.planned.layers,
        steps=found.planned.steps,
        recovery=found.recovered.info,
        artifacts=found.exported.artifacts,
        parity=(*found.exported.parity, *(item for there in found.there for item in there.parity)),
        accuracy=_everywhere(found),
        latency=found.latency,
        estimates=_estimates(run, found) if isinstance(found.latency, Unmeasured) else (),
        layer_times=found.layer_times,
        robustness=found.robustness,
        thin_ice=found.surveyed.thin_ice,
        curve=found.surveyed.curve,
        evidence_sha256=sha256_of(run.folder.path / EVIDENCE) if attacked else None,
        budgets=budget.stated(),
        verdict=None,
        warnings=run.warnings,
    )
    if budget.rules():
        verdict = judge(report, budget, report.artifact("compressed").sha256)
        report = report.model_copy(update={"verdict": verdict})
    write_text(run.folder.path / REPORT, report.to_json())
    _attest(report, run)
    render(report, run.folder.path)
    return report


def _attest(report: Report, run: Run) -> None:
    from edgeprune.attestation import attest

    configured = hashlib.sha256(run.config.model_dump_json(exclude={"sweep"}).encode()).hexdigest()
    statement = attest(report, sha256_of(run.folder.path / REPORT), run.config.budget, configured)
    write_text(run.folder.path / ATTESTATION, statement.to_json())


def _estimates(run: Run, found: Found) -> tuple[LatencyEstimate, ...]:
    """What a calibration of the target says, where no device was attached."""
    from edgeprune.estimated import estimates

    shape = run.bundle.input_shape
    return estimates(run.profile, found.exported.artifacts, run.folder.path, shape, run.config, run.console)


def _everywhere(found: Found) -> tuple[AccuracyComparison, ...] | Unmeasured:
    """Accuracy on this machine, then on the device."""
    if isinstance(found.accuracy, Unmeasured):
        return found.accuracy
    return (*found.accuracy, *(there.accuracy for there in found.there if there.accuracy is not None))


def open_data(bundle: ModelBundle, config: Config) -> tuple[Split | None, Split | None]:
    """The training and the test split, where they are given; the test images are enough to be judged on."""
    from edgeprune.data import open_split

    data, seed, trust = config.data, config.run.seed, config.model.trust
    train = open_split(data.train, "train", bundle, seed=seed, trust=trust) if data.train else None
    if data.test is None:
        return train, None
    test = open_split(data.test, "test", bundle, samples=data.samples, seed=seed, trust=trust)
    preflight.check_samples(test, config)
    return train, test


def _doubts(bundle: ModelBundle, train: Split | None, test: Split | None, config: Config) -> tuple[str, ...]:
    """What makes the coming numbers doubtful, said before they are measured."""
    from edgeprune.data import overlap
    from edgeprune.gate import unsupported
    from edgeprune.models import doubt_preprocessing

    found = []
    if labelled := train or test:
        found.append(doubt_preprocessing(bundle, labelled, samples=_DOUBT_IMAGES))
    if train and test and (shared := overlap(train, test)):
        found.append(f"{shared} of the {len(test)} test images are training images, too")
    if test:
        found.append(preflight.doubt_epsilon(bundle, config))
        found.extend(unsupported(config.budget, len(test), min(len(test), config.attack.samples or len(test))))
    return tuple(doubt for doubt in found if doubt)


def _remove_report(folder: Path) -> None:
    from edgeprune.reporting import FORMATS

    for name in (REPORT, EVIDENCE, ATTESTATION, *FORMATS.values()):
        with writing(folder / name):
            (folder / name).unlink(missing_ok=True)


def _model_info(run: Run) -> ModelInfo:
    from edgeprune.models.inputs import held_in

    bundle, pixels = run.bundle, run.bundle.preprocessing
    return ModelInfo(
        name=Path(bundle.source).name,
        file_sha256=run.file_sha256,
        digest=bundle.digest,
        input_shape=bundle.input_shape,
        classes=bundle.classes,
        mean=pixels.mean,
        std=pixels.std,
        bounds=pixels.bounds,
        fit=pixels.fit,
        resize=pixels.resize,
        interpolation=pixels.interpolation,
        held=tuple(held_in(bundle.module)),
    )


def _split_info(split: Split) -> SplitInfo:
    return SplitInfo(role=split.role, name=split.name, samples=len(split), digest=split.digest)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
