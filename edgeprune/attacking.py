"""`edgeprune attack`: one exported file, ours or foreign, attacked in the runtime that serves it.

Promise: nothing but the file is needed. Gradients come from its twin; where an operator has no rule, or the twin is not
what the runtime computes, the reason is said, the attack asks the runtime alone (scores, then labels), and the result
is inconclusive: a black box is weaker evidence, and a gate must not take it for more.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune import preflight, protocols
from edgeprune.config import AttackConfig, Config
from edgeprune.console import Console
from edgeprune.errors import ModelError, ParityError, UsageError
from edgeprune.files import sha256_of
from edgeprune.records import AttackedFile, Record, RuntimeInfo, ThreatModel
from edgeprune.robustness.suites import BLACK_BOX
from edgeprune.single import count_logits, in_words, open_file, split_of
from edgeprune.types import InputForm, ModelBundle, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeprune.robustness.twin import Gradients, Twin
    from edgeprune.types import Floats

    Attach = Callable[[protocols.Session, Floats], Gradients]


class Attacked(Record):
    """What `edgeprune attack` found."""

    file: str
    runtime: RuntimeInfo
    threat: ThreatModel
    result: AttackedFile
    conclusive: bool
    warnings: tuple[str, ...]


def attack_one(
    file: Path, gradients: Path | None, config: Config, *, evidence: Path | None, journal: Path | None, console: Console
) -> Attacked:
    """Attack `file` on the test data; its gradients come from its twin, which needs nothing but the file.

    `gradients` names a bundle or model file to take them from instead. It must have the digest that the file names as
    its parent: another network's gradients would make a weak attack look like a robust file. `evidence`: where the
    adversarials are written. `journal`: where a killed attack goes on from.
    Errors: UsageError (no data, no bundle), ModelError (no file that can be attacked, or the bundle is another
    network's).
    """
    from edgeprune import spreading
    from edgeprune.robustness.evaluate import as_run, attack_subset, threat_model
    from edgeprune.robustness.evidence import write_evidence
    from edgeprune.robustness.health import warnings
    from edgeprune.robustness.twin.source import CHECKED

    if config.data.test is None:
        raise UsageError("an attack needs test data", hint="give --test")
    protocols.find("attack", config.attack.attack)
    preflight.check_device(config.run.device)
    runtime, session = open_file(file, config.latency.threads)
    form, attach = _by_bundle(file, session, gradients, config) if gradients else _by_twin(file, config)
    wanted, target = config.attack, config.attack.target
    subset = attack_subset(split_of(config, form), wanted.samples, config.run.seed, without=target)
    source = attach(session, subset.source.read(subset.ids[:CHECKED]))
    if source.module is None and wanted.attack not in BLACK_BOX:
        console.warn(f"gradients come from {source.said}; black-box attacks are run in place of {wanted.attack}")
        wanted = asking_only(wanted)
    spreading.warn_if_alone(source, wanted, console)
    threat = threat_model(wanted, form.preprocessing.bounds, subset, config.run.seed)
    with console.task(f"attacking in {runtime.name}") as progress:
        outcome = spreading.attack(
            source,
            subset,
            threat,
            wanted,
            sha256=sha256_of(file),
            device=config.run.device,
            journal=journal,
            progress=progress,
        )
    if evidence:
        write_evidence(evidence, {"file": outcome}, threat)
    found = warnings("compressed", outcome.health)
    return Attacked(
        file=str(file),
        runtime=session.info,
        threat=as_run(threat, outcome.record),
        result=outcome.record,
        conclusive=not found,
        warnings=tuple(found),
    )


def asking_only(config: AttackConfig) -> AttackConfig:
    """The same threat for a file without gradients: the suite that asks the runtime alone."""
    names = ("norm", "eps", "samples", "target", "minutes", "processes", "engine", "address")
    return AttackConfig(attack="black-box", **{name: getattr(config, name) for name in names})


def form_of(file: Path, session: protocols.Session, config: Config) -> tuple[InputForm, protocols.Session]:
    """What images must look like for a file, and its session on images in the user's pixels, without any gradients."""
    from edgeprune.robustness.twin.source import any_twin, unguided

    said = config.model
    preprocessing = Preprocessing(said.mean, said.std, said.bounds, said.fit, said.resize, said.interpolation)
    served = unguided(any_twin(file, said.input_shape), file, session, preprocessing, "").session
    assert served.input_shape is not None or said.input_shape is not None
    shape = served.input_shape or said.input_shape
    assert shape is not None
    names = tuple(map(str, range(count_logits(file, served, shape))))
    return InputForm(shape, preprocessing, names), served


def _by_twin(file: Path, config: Config) -> tuple[InputForm, Attach]:
    """The file's own word on its images and classes, and how its twin is brought to its session."""
    from edgeprune.models.preprocessing import check_channels
    from edgeprune.robustness.twin.source import any_twin, gradients_of, unguided

    said = config.model
    twin = any_twin(file, said.input_shape)
    preprocessing = Preprocessing(said.mean, said.std, said.bounds, said.fit, said.resize, said.interpolation)
    check_channels(preprocessing, twin.layout.shape[0])
    preflight.check_epsilon(said.bounds, config)
    count = twin.classes or _asked_for_classes(file, twin, preprocessing, config)
    classes = said.classes if len(said.classes) == count else tuple(map(str, range(count)))
    form = InputForm(twin.layout.shape, preprocessing, classes)

    def attach(session: protocols.Session, images: Floats) -> Gradients:
        if twin.unsupported:
            return unguided(twin, file, session, preprocessing, f"no rule for {', '.join(twin.unsupported)}")
        try:
            return gradients_of(twin, file, session, images, preprocessing)
        except ParityError as error:
            return unguided(twin, file, session, preprocessing, error.what)

    return form, attach


def _asked_for_classes(file: Path, twin: Twin, preprocessing: Preprocessing, config: Config) -> int:
    """How many logits the runtime gives, where the twin cannot say."""
    from edgeprune.robustness.twin.source import unguided

    _, session = open_file(file, config.latency.threads)
    return count_logits(file, unguided(twin, file, session, preprocessing, "").session, twin.layout.shape)


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


def _check_same_form(file: Path, session: protocols.Session, bundle: ModelBundle) -> None:
    """ModelError unless the file takes and gives what the bundle takes and gives."""
    found = session.input_shape or bundle.input_shape
    count = count_logits(file, session, found) if found == bundle.input_shape else 0
    if count != len(bundle.classes):
        gives = f"{count} classes" if count else f"images of shape {in_words(found)}"
        wanted = f"{len(bundle.classes)} classes" if count else in_words(bundle.input_shape)
        raise ModelError(
            f"{bundle.source} is not the network of {file}",
            where=f"the file has {gives}, the network {wanted}",
            hint="give the right one with --gradients",
        )
