"""One exported file on its own: timed, checked and attacked in the runtime that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune import preflight, protocols
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
    from collections.abc import Callable

    from edgeprune.robustness.twin import Gradients
    from edgeprune.types import Floats

    Attach = Callable[[protocols.Session, Floats], Gradients]

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
    preflight.check_threads(config.latency.threads)
    if against and not against.is_file():
        raise UsageError(f"no such file: {against}", hint="--against takes an exported file")
    if against and against.suffix != file.suffix:
        raise UsageError(
            f"{file.name} and {against.name} are not of one kind", hint="both files are timed in one runtime"
        )
    runtime, session = open_file(file, config.latency.threads)
    form = _form(file, config, session)
    split = _split(config, form) if config.data.test else None
    images = _images(config, form, split)
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
    """Attack `file` on the test data; its gradients come from its twin, which needs nothing but the file.

    `gradients` names a bundle or model file to take them from instead. It must have the digest that the file names as
    its parent: another network's gradients would make a weak attack look like a robust file.
    Errors: UsageError (no data, no bundle), ModelError (no twin, or the bundle is another network's), ParityError (the
    twin is not what the runtime computes).
    """
    from edgeprune.robustness.evaluate import attack_file, attack_subset, threat_model
    from edgeprune.robustness.health import warnings
    from edgeprune.robustness.twin.source import CHECKED

    if config.data.test is None:
        raise UsageError("an attack needs test data", hint="give --test")
    protocols.find("attack", config.attack.attack)
    preflight.check_device(config.run.device)
    runtime, session = open_file(file, config.latency.threads)
    form, attach = _by_bundle(file, session, gradients, config) if gradients else _by_twin(file, config)
    subset = attack_subset(_split(config, form), config.attack.samples, config.run.seed)
    source = attach(session, subset.source.read(subset.ids[:CHECKED]))
    threat = threat_model(config.attack, form.preprocessing.bounds, subset, config.run.seed)
    with console.task(f"attacking in {runtime.name}") as progress:
        outcome = attack_file(
            source.session,
            source.module,
            subset,
            threat,
            sha256=sha256_of(file),
            gradient_source=source.said,
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
        raise UsageError(f"no such file: {file}", hint="give an exported file, such as a run's model.onnx")
    known = []
    for name in protocols.names("runtime"):
        runtime: protocols.Runtime = protocols.find("runtime", name)
        known.append(runtime.suffix)
        if file.suffix == runtime.suffix:
            return runtime, runtime.open(file, threads=threads)
    raise UsageError(
        f"no runtime serves {file.suffix or 'files without an ending'}: {file}", hint=f"known: {', '.join(known)}"
    )


def _by_twin(file: Path, config: Config) -> tuple[InputForm, Attach]:
    """The file's own word on its images and classes, and how its twin is brought to its session."""
    from edgeprune.models.preprocessing import check_channels
    from edgeprune.robustness.twin import gradients_of, twin_of

    said = config.model
    twin = twin_of(file, said.input_shape)
    preprocessing = Preprocessing(said.mean, said.std, said.bounds, said.fit, said.resize, said.interpolation)
    check_channels(preprocessing, twin.layout.shape[0])
    preflight.check_epsilon(said.bounds, config)
    classes = said.classes if len(said.classes) == twin.classes else tuple(map(str, range(twin.classes)))
    form = InputForm(twin.layout.shape, preprocessing, classes)
    return form, lambda session, images: gradients_of(twin, file, session, images, preprocessing)


def _by_bundle(file: Path, session: protocols.Session, gradients: Path, config: Config) -> tuple[ModelBundle, Attach]:
    """The bundle that the file was exported from, and its network as the source of gradients."""
    from edgeprune.robustness.twin.source import EXPORTED_MODULE, Gradients

    bundle = _gradient_bundle(file, gradients, config)
    preflight.check_model(bundle, config)
    _check_same_form(file, session, bundle)
    return bundle, lambda opened, _images: Gradients(bundle.network(), opened, EXPORTED_MODULE)


def _gradient_bundle(file: Path, path: Path, config: Config) -> ModelBundle:
    from edgeprune.export.onnx import parent_of
    from edgeprune.models import load

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


def _form(file: Path, config: Config, session: protocols.Session) -> InputForm:
    """What images must look like for the file: what it declares itself, else what the settings say.

    Mean and std are inside the file; bounds and the way of image files to the input shape are not.
    """
    said = config.model
    shape = session.input_shape or said.input_shape
    if shape is None:
        raise UsageError(f"{file} leaves its input size open", hint="give --input-shape C,H,W")
    if said.input_shape not in (None, shape):
        raise UsageError(
            f"{file} takes images of shape {_words(shape)}, the settings say {_words(said.input_shape or ())}",
            hint="leave --input-shape out, or name the file that belongs to the settings",
        )
    names = tuple(map(str, range(_count_logits(file, session, shape))))
    classes = said.classes if len(said.classes) == len(names) else names
    pixels = Preprocessing(bounds=said.bounds, fit=said.fit, resize=said.resize, interpolation=said.interpolation)
    return InputForm(shape, pixels, classes)


def _check_same_form(file: Path, session: protocols.Session, bundle: ModelBundle) -> None:
    """ModelError unless the file takes and gives what the bundle takes and gives."""
    found = session.input_shape or bundle.input_shape
    count = _count_logits(file, session, found) if found == bundle.input_shape else 0
    if count != len(bundle.classes):
        gives = f"{count} classes" if count else f"images of shape {_words(found)}"
        wanted = f"{len(bundle.classes)} classes" if count else _words(bundle.input_shape)
        raise ModelError(
            f"{bundle.source} is not the network of {file}",
            where=f"the file has {gives}, the network {wanted}",
            hint="give the right one with --gradients",
        )


def _count_logits(file: Path, session: protocols.Session, shape: tuple[int, int, int]) -> int:
    """How many logits the file gives an image; ModelError when it takes none of that shape, or gives something else."""
    try:
        logits = session.logits(np.zeros((1, *shape), np.float32))
    except Exception as error:  # each runtime raises its own, undocumented, classes
        raise ModelError(
            f"{session.info.name} cannot run {file} on an image of shape {_words(shape)}",
            where=(str(error).strip().splitlines() or [type(error).__name__])[-1][:200],
            hint="it must take float32 images (N, C, H, W)",
        ) from error
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ModelError(f"{file} returns an output of shape {logits.shape}", hint="a classifier returns (N, classes)")
    return int(logits.shape[1])


def _split(config: Config, form: ModelBundle | InputForm) -> Split:
    assert config.data.test is not None
    split = open_split(
        config.data.test, "test", form, samples=config.data.samples, seed=config.run.seed, trust=config.model.trust
    )
    preflight.check_samples(split, config)
    return split


def _images(config: Config, form: InputForm, split: Split | None) -> Floats:
    if split is not None:
        return split.source.read(split.ids[:_TIMING_IMAGES])
    low, high = config.model.bounds
    noise = np.random.default_rng(config.run.seed).random((_TIMING_IMAGES, *form.input_shape), dtype=np.float32)
    return np.asarray(low + noise * np.float32(high - low), np.float32)


def _words(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


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
