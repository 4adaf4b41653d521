"""One exported file on its own: opened, timed and checked in the runtime that serves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune import preflight, protocols
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.data import open_split
from edgeprune.errors import ModelError, UsageError
from edgeprune.latency.attaching import attached, check_there
from edgeprune.latency.measure import Bench, latency_file, measure
from edgeprune.latency.profiles import load_profile
from edgeprune.records import LatencyComparison, LatencyFile, Parity, Proportion, Record
from edgeprune.there import sample_of
from edgeprune.types import InputForm, ModelBundle, Preprocessing, Split

if TYPE_CHECKING:
    from edgeprune.types import Floats

_TIMING_IMAGES = 256


class Measured(Record):
    """What `edgeprune measure` found. `inputs`: real images, or noise where no data was given.

    `accuracy` is the runtime's on the target, on the images that `samples_digest` names. `parity`: what a device over
    ssh gave, against the same runtime here.
    """

    file: str
    sha256: str
    inputs: str
    latency: LatencyComparison
    accuracy: Proportion | None
    samples_digest: str | None
    parity: Parity | None = None


def measure_file(file: Path, against: Path | None, config: Config, *, accuracy: bool, console: Console) -> Measured:
    """Time `file` alone, or `against` (the dense one) and `file` interleaved; the accuracy of `file` if asked for.

    Errors: UsageError (no such file, no data for the accuracy), those of the runtime and of the measurement.
    """
    profile = load_profile(config.run.target)
    if not profile.is_local and config.remote.host is None:
        raise UsageError(
            f"{profile.name} is not this machine, and no device is attached",
            hint="measure on it with --host user@address, or here with --target cpu",
        )
    if accuracy and config.data.test is None:
        raise UsageError("--accuracy needs test data", hint="give --test")
    if profile.is_local:
        preflight.check_threads(config.latency.threads)
    if against and not against.is_file():
        raise UsageError(f"no such file: {against}", hint="--against takes an exported file")
    if against and against.suffix != file.suffix:
        raise UsageError(
            f"{file.name} and {against.name} are not of one kind", hint="both files are timed in one runtime"
        )
    runtime, session = open_file(file, config.latency.threads)
    form = form_of(file, config, session)
    split = split_of(config, form) if config.data.test else None
    images = _images(config, form, split)
    timed = latency_file(file, _companions(file))
    dense = latency_file(against, _companions(against)) if against else timed
    with attached(profile, config.remote) as device:
        there = _on_device(device, timed, session, (split, images), config, console)
        with console.task(f"timing in {runtime.name}") as progress:
            latency = measure(
                dense,
                timed if against else None,
                runtime.name,
                images,
                config.latency,
                bench=Bench(profile.name, device),
                seed=config.run.seed,
                progress=progress,
            )
    found = there.accuracy if there else _accuracy(session, split, config, console) if accuracy and split else None
    return Measured(
        file=str(file),
        sha256=timed.sha256,
        inputs="real" if split else "random",
        latency=latency,
        accuracy=found if accuracy else None,
        samples_digest=(there.samples_digest if there and accuracy else split.digest) if split else None,
        parity=there.parity if there else None,
    )


@dataclass(frozen=True, slots=True)
class _There:
    """What a device gave: parity with this machine, accuracy on the images that `samples_digest` names."""

    parity: Parity
    accuracy: Proportion | None
    samples_digest: str | None


def _on_device(
    device: protocols.Device | None,
    file: LatencyFile,
    session: protocols.Session,
    data: tuple[Split | None, Floats],
    config: Config,
    console: Console,
) -> _There | None:
    """Run the file on a device that is not this machine, on a sample of the test data; None where there is none."""
    from edgeprune.robustness.statistics import proportion

    if device is None or device.kind == "measured-local":
        return None
    split, images = data
    sample = sample_of(split, config.remote.samples, config.run.seed, (images, "random"))
    with console.task(f"comparing {device.name} with this machine"):
        parity, logits = check_there(device, file, session, sample.pixels, load_profile(config.run.target).name)
    if sample.labels is None:
        return _There(parity, None, None)
    right = int(np.sum(logits.argmax(1) == sample.labels))
    return _There(parity, proportion(right, len(sample.labels), config.budget.confidence), sample.digest)


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


def form_of(file: Path, config: Config, session: protocols.Session) -> InputForm:
    """What images must look like for the file: what it declares itself, else what the settings say.

    Mean and std are inside the file; bounds and the way of image files to the input shape are not.
    """
    said = config.model
    shape = session.input_shape or said.input_shape
    if shape is None:
        raise UsageError(f"{file} leaves its input size open", hint="give --input-shape C,H,W")
    if said.input_shape not in (None, shape):
        raise UsageError(
            f"{file} takes images of shape {in_words(shape)}, the settings say {in_words(said.input_shape or ())}",
            hint="leave --input-shape out, or name the file that belongs to the settings",
        )
    names = tuple(map(str, range(count_logits(file, session, shape))))
    classes = said.classes if len(said.classes) == len(names) else names
    pixels = Preprocessing(bounds=said.bounds, fit=said.fit, resize=said.resize, interpolation=said.interpolation)
    return InputForm(shape, pixels, classes)


def count_logits(file: Path, session: protocols.Session, shape: tuple[int, int, int]) -> int:
    """How many logits the file gives an image; ModelError when it takes none of that shape, or gives something else."""
    try:
        logits = session.logits(np.zeros((1, *shape), np.float32))
    except Exception as error:  # each runtime raises its own, undocumented, classes
        raise ModelError(
            f"{session.info.name} cannot run {file} on an image of shape {in_words(shape)}",
            where=(str(error).strip().splitlines() or [type(error).__name__])[-1][:200],
            hint="it must take float32 images (N, C, H, W)",
        ) from error
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ModelError(f"{file} returns an output of shape {logits.shape}", hint="a classifier returns (N, classes)")
    return int(logits.shape[1])


def split_of(config: Config, form: ModelBundle | InputForm) -> Split:
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


def in_words(shape: tuple[int, ...]) -> str:
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
