"""One exported file on its own: timed, checked and attacked in the runtime that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune import protocols
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.data import open_split
from edgeprune.errors import ModelError, UsageError
from edgeprune.files import sha256_of
from edgeprune.latency.measure import latency_file, measure
from edgeprune.latency.profiles import load_profile
from edgeprune.records import AttackedFile, LatencyComparison, Proportion, Record, RuntimeInfo, ThreatModel
from edgeprune.types import InputForm, ModelBundle, Preprocessing, Split

if TYPE_CHECKING:
    from edgeprune.types import Floats

_TIMING_IMAGES = 256


class Measured(Record):
    """What `edgeprune measure` found. `inputs`: real images, or noise where no data was given."""

    file: str
    sha256: str
    inputs: str
    latency: LatencyComparison
    accuracy: Proportion | None
    samples_digest: str | None


class Attacked(Record):
    """What `edgeprune attack` found."""

    file: str
    runtime: RuntimeInfo
    threat: ThreatModel
    result: AttackedFile
    conclusive: bool
    warnings: tuple[str, ...]


def measure_file(file: Path, against: Path | None, config: Config, *, accuracy: bool, console: Console) -> Measured:
    """Time `file` alone, or `against` (the dense one) and `file` interleaved; the accuracy of `file` if asked for.

    Errors: UsageError (no such file, no data for the accuracy), those of the runtime and of the measurement.
    """
    profile = load_profile(config.run.target)
    if not profile.is_local:
        raise UsageError(f"{profile.name} is not this machine, and no device is attached", hint="use --target cpu")
    if accuracy and config.data.test is None:
        raise UsageError("--accuracy needs test data", hint="give --test")
    runtime, session = open_file(file, config.latency.threads)
    split = _split(config, session) if config.data.test else None
    images = _images(config, session, split)
    timed = latency_file(file, _companions(file))
    dense = latency_file(against, _companions(against)) if against else timed
    with console.task(f"timing in {runtime.name}") as progress:
        latency = measure(
            dense,
            timed if against else None,
            runtime.name,
            images,
            config.latency,
            target=profile.name,
            seed=config.run.seed,
            progress=progress,
        )
    return Measured(
        file=str(file),
        sha256=timed.sha256,
        inputs="real" if split else "random",
        latency=latency,
        accuracy=_accuracy(session, split, config, console) if accuracy and split else None,
        samples_digest=split.digest if split else None,
    )


def attack_one(
    file: Path, gradients: Path | None, config: Config, *, evidence: Path | None, console: Console
) -> Attacked:
    """Attack `file` on the test data; gradients from the bundle that it was exported from.

    `gradients` defaults to pruned.pt beside the file, which must have the digest that the file names as its parent:
    another network's gradients would make a weak attack look like a robust file.
    Errors: UsageError (no data, no bundle), ModelError (the bundle is another network's).
    """
    from edgeprune.robustness.evaluate import attack_file, attack_subset, threat_model
    from edgeprune.robustness.health import warnings

    if config.data.test is None:
        raise UsageError("an attack needs test data", hint="give --test")
    runtime, session = open_file(file, config.latency.threads)
    bundle = _gradient_bundle(file, gradients, config)
    split = open_split(config.data.test, "test", bundle, samples=config.data.samples, seed=config.run.seed)
    subset = attack_subset(split, config.attack.samples, config.run.seed)
    threat = threat_model(config.attack, bundle.preprocessing.bounds, subset, config.run.seed)
    with console.task(f"attacking in {runtime.name}") as progress:
        outcome = attack_file(
            session,
            bundle.network(),
            subset,
            threat,
            sha256=sha256_of(file),
            gradient_source="the torch module that was exported",
            device=config.run.device,
            progress=progress,
        )
    if evidence:
        outcome.save(evidence)
    found = warnings("compressed", outcome.health)
    return Attacked(
        file=str(file),
        runtime=session.info,
        threat=threat,
        result=outcome.record,
        conclusive=not found,
        warnings=tuple(found),
    )


def open_file(file: Path, threads: int) -> tuple[protocols.Runtime, protocols.Session]:
    """The runtime that serves files of this ending, and the file opened in it.

    Errors: UsageError when the file does not exist or no runtime serves its ending.
    """
    if not file.is_file():
        raise UsageError(f"no such file: {file}")
    known = []
    for name in protocols.names("runtime"):
        runtime: protocols.Runtime = protocols.find("runtime", name)
        known.append(runtime.suffix)
        if file.suffix == runtime.suffix:
            return runtime, runtime.open(file, threads=threads)
    raise UsageError(
        f"no runtime serves {file.suffix or 'files without an ending'}: {file}", hint=f"known: {', '.join(known)}"
    )


def _gradient_bundle(file: Path, gradients: Path | None, config: Config) -> ModelBundle:
    from edgeprune.export.onnx import parent_of
    from edgeprune.models import load

    path = gradients or file.with_name("pruned.pt")
    if not path.is_file():
        raise UsageError(
            f"no bundle to take gradients from: {path}",
            hint="give --gradients: the pruned.pt or the model file that this file was exported from",
        )
    bundle = load(path, config.model)
    onnx = file.with_suffix(".onnx")
    parent = parent_of(onnx) if onnx.is_file() else None
    if parent is not None and parent != bundle.digest:
        raise ModelError(
            f"{path} is not the network that {file} was exported from",
            where=f"the file names the weights {parent[:12]}, the bundle has {bundle.digest[:12]}",
            hint="give the right one with --gradients (for dense/model.onnx the original model file)",
        )
    return bundle


def _split(config: Config, session: protocols.Session) -> Split:
    assert config.data.test is not None
    shape = config.model.input_shape or session.input_shape
    if shape is None:
        raise UsageError("the file leaves its input size open", hint="give --input-shape C,H,W")
    probe = session.logits(np.zeros((1, *shape), np.float32))
    classes = config.model.classes or tuple(str(index) for index in range(probe.shape[1]))
    form = InputForm(shape, Preprocessing(bounds=config.model.bounds), classes)
    return open_split(config.data.test, "test", form, samples=config.data.samples, seed=config.run.seed)


def _images(config: Config, session: protocols.Session, split: Split | None) -> Floats:
    if split is not None:
        return split.source.read(split.ids[:_TIMING_IMAGES])
    shape = config.model.input_shape or session.input_shape
    if shape is None:
        raise UsageError("the file leaves its input size open", hint="give --input-shape C,H,W, or --test")
    low, high = config.model.bounds
    noise = np.random.default_rng(config.run.seed).random((_TIMING_IMAGES, *shape), dtype=np.float32)
    return np.asarray(low + noise * np.float32(high - low), np.float32)


def _accuracy(session: protocols.Session, split: Split, config: Config, console: Console) -> Proportion:
    from edgeprune.robustness.evaluate import predict
    from edgeprune.robustness.statistics import proportion

    with console.task("accuracy") as progress:
        right = int(np.sum(predict(session, split, progress=progress) == split.labels()))
    return proportion(right, len(split), config.budget.confidence)


def _companions(file: Path) -> tuple[Path, ...]:
    """OpenVINO's weights stand beside the graph under the same name."""
    weights = file.with_suffix(".bin")
    return (weights,) if file.suffix == ".xml" and weights.is_file() else ()
