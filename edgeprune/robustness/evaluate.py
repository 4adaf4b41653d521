"""Accuracy and robust accuracy of exported files, image by image, both files on the same images.

Promise: every verdict is the runtime's, every adversarial is verified again, and what is compared is paired. A broken
attack makes the result inconclusive (`edgeprune.robustness.health`), and no number is filled in.
"""

from __future__ import annotations

import copy
import hashlib
import time
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.data.splits import stratified
from edgeprune.errors import DataError, UsageError
from edgeprune.records import AccuracyComparison, AttackedFile, RobustnessComparison, RuntimeInfo, ThreatModel
from edgeprune.robustness.health import warnings
from edgeprune.robustness.outcome import FileOutcome, FilePredictions
from edgeprune.robustness.stage import Stage
from edgeprune.robustness.statistics import paired_drop, proportion
from edgeprune.robustness.suites import parts_of
from edgeprune.robustness.verdicts import checked_logits, predictions, require_known
from edgeprune.types import Course, Split

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from edgeprune.config import AttackConfig
    from edgeprune.protocols import Session
    from edgeprune.robustness.twin import Gradients
    from edgeprune.types import Ints, Progress

__all__ = [
    "FileOutcome",
    "FilePredictions",
    "accuracy_comparison",
    "as_run",
    "attack_file",
    "attack_subset",
    "compare",
    "on_device",
    "part_of",
    "predict",
    "threat_model",
]

BATCH = 256


def predict(
    session: Session, split: Split, batch: int = BATCH, progress: Progress | None = None, *, classes: int | None = None
) -> Ints:
    """The file's class for every image of the split, int64 (N,), in the split's order.

    MeasurementError, naming the runtime, for NaN or infinite logits and for logits of another number of classes than
    `classes` (where given) or than the labels need.
    """
    found = []
    for images, labels in split.batches(batch):
        logits = checked_logits(session.logits, images, who=session.info.name, classes=classes)
        require_known(labels, logits.shape[1])
        found.append(predictions(logits))
        if progress:
            done = sum(map(len, found))
            progress(f"{session.info.name}: {done} of {len(split)} images", done / len(split))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def accuracy_comparison(
    dense: FilePredictions, compressed: FilePredictions, labels: Ints, confidence: float = 0.95
) -> AccuracyComparison:
    """Clean accuracy of both files on the same images in the same runtime; DataError when there is no image."""
    if dense.runtime.name != compressed.runtime.name:
        raise ValueError(f"not the same runtime: {dense.runtime.name} and {compressed.runtime.name}")
    right = [np.asarray(one.predictions == labels) for one in (dense, compressed)]
    shares = [proportion(int(each.sum()), len(labels), confidence) for each in right]
    return AccuracyComparison(
        runtime=compressed.runtime,
        dense_sha256=dense.sha256,
        compressed_sha256=compressed.sha256,
        dense=shares[0],
        compressed=shares[1],
        drop=paired_drop(right[0], right[1], confidence),
    )


def attack_subset(split: Split, samples: int | None, seed: int, *, without: int | None = None) -> Split:
    """The images to attack: `samples` of them, stratified by class, drawn by `seed`, ascending; None: all of them.

    `without`: a class whose images are left out, since they cannot be pushed into it. The digest is the sha256 of the
    split's own digest and the drawn ids, so it covers the pixels too.
    """
    if without is not None and bool((split.labels() == without).any()):
        split = part_of(split, split.ids[split.labels() != without])
    if samples is None or samples >= len(split):
        return split
    return part_of(split, split.ids[stratified(split.labels(), samples, seed)])


def part_of(split: Split, ids: Ints) -> Split:
    """These samples of the split; the digest is the sha256 of the split's own and the ids."""
    digest = hashlib.sha256(bytes.fromhex(split.digest) + np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest()
    return Split(role=split.role, name=split.name, source=split.source, ids=ids, digest=digest)


def threat_model(config: AttackConfig, bounds: tuple[float, float], split: Split, seed: int) -> ThreatModel:
    """What the adversary may do, and on which images: `split` is what `attack_subset` returned."""
    parts = parts_of(config)
    return ThreatModel(
        norm=config.norm,
        epsilon=config.eps,
        epsilon_value=config.epsilon,
        bounds=bounds,
        attack=config.attack,
        steps=max(part.steps or 0 for part in parts),
        restarts=max(part.restarts for part in parts),
        seed=seed,
        samples=len(split),
        samples_digest=split.digest,
        parts=parts,
        target=config.target,
        seconds=None if config.minutes is None else 60 * config.minutes,
    )


def attack_file(
    source: Gradients,
    split: Split,
    threat: ThreatModel,
    *,
    sha256: str,
    device: str = "cpu",
    journal: Path | None = None,
    progress: Progress,
) -> FileOutcome:
    """Attack the file behind `source` on every image of `split` that it gets right; verify, round, probe.

    The gradients of `source` are computed on `device`; without a module there are none, and the attack must be one that
    asks for none. `journal`: where the attack notes how far it got, and goes on from; it is removed at the end.
    DataError when there is no image; MeasurementError when the file's logits are no logits.
    """
    session, module = source.session, source.module
    began = time.perf_counter()
    if not len(split):
        raise DataError("no images to attack", hint="give test data, or a larger --attack-samples")
    images = np.array(split.source.read(split.ids), np.float32)  # a copy: torch wants to be able to write
    labels, clean = split.labels(), predict(session, split)
    right = np.flatnonzero(clean == labels)
    course = Course(threat.seconds, journal, _key(sha256, threat, source.said))
    ways = (source.pull, source.look) if device == "cpu" else (None, None)
    stage = Stage(session, None if module is None else on_device(module, device), threat, course, *ways)
    given = (images, labels, clean)
    if threat.target is not None:  # from here on class 1 is the target, class 0 all others
        stage, none = stage.towards(threat.target), np.zeros(len(right), np.int64)
        given = (images[right], none, none)
    aimed = given[1][given[1] == given[2]]
    found = stage.attack(images[right], aimed, lambda text, share: progress(text, 0.9 * share))
    progress("verifying the adversarials again", 0.9)
    claims = stage.look_again(found, images[right], aimed)
    progress("probing the attack", 0.95)
    watched = stage.watch(found, claims, *given)
    fell, rounded, dead = (np.zeros(len(labels), bool) for _ in range(3))
    fell[right], rounded[right] = claims.believed, claims.rounded
    dead[right] = ~found.gradient_health.numpy()
    adversarials, said = images.copy(), clean.copy()
    adversarials[fell] = found.adversarials.numpy()[claims.believed]
    said[fell] = claims.predicted[claims.believed] if threat.target is None else threat.target
    if journal is not None:
        journal.unlink(missing_ok=True)
    record = AttackedFile(
        sha256=sha256,
        clean=proportion(len(right), len(labels)),
        robust=proportion(len(right) - int(fell.sum()), len(labels)),
        fell=int(fell.sum()),
        rounded=int(rounded.sum()),
        rejected=watched.rejected,
        dead_gradients=watched.dead,
        gradient_source=source.said,
        twin_disagreement=watched.twin_disagreements / len(labels),
        seconds=time.perf_counter() - began,
        grade="black box" if stage.asks_only else "gradients",
        unfinished=found.unfinished,
    )
    return FileOutcome(record, watched, split.ids, labels, clean, adversarials, said, fell, rounded, dead)


def compare(
    dense: FileOutcome,
    compressed: FileOutcome,
    threat: ThreatModel,
    runtime: RuntimeInfo,
    confidence: float = 0.95,
) -> RobustnessComparison:
    """Both files side by side, with the flips both ways; inconclusive when either attack shows signs of failure."""
    if not (np.array_equal(dense.ids, compressed.ids) and np.array_equal(dense.labels, compressed.labels)):
        raise DataError("the two files were attacked on different images", hint="attack both again, on the same data")
    doubts = warnings("dense", dense.health) + warnings("compressed", compressed.health)
    return RobustnessComparison(
        runtime=runtime,
        threat=as_run(threat, dense.record, compressed.record),
        dense=_at(dense.record, confidence),
        compressed=_at(compressed.record, confidence),
        drop=paired_drop(dense.robust_right, compressed.robust_right, confidence),
        clean_drop=paired_drop(dense.clean_right, compressed.clean_right, confidence),
        conclusive=not doubts,
        warnings=doubts,
    )


def as_run(threat: ThreatModel, *files: AttackedFile) -> ThreatModel:
    """The threat model under the name that it has earned: a suite that was not finished is not that suite."""
    whole = not any(file.unfinished for file in files)
    return threat if whole else threat.model_copy(update={"attack": f"{threat.attack} (unfinished)"})


def _key(sha256: str, threat: ThreatModel, gradient_source: str) -> str:
    """What a journal must have been written under to be gone on from; the time that is allowed may change."""
    same = threat.model_copy(update={"seconds": None}).to_json()
    return hashlib.sha256(f"{sha256}\n{same}\n{gradient_source}".encode()).hexdigest()


def _at(record: AttackedFile, confidence: float) -> AttackedFile:
    """The record with its intervals at another confidence."""
    shares = {name: getattr(record, name) for name in ("clean", "robust")}
    again = {name: proportion(share.count, share.total, confidence) for name, share in shares.items()}
    return record.model_copy(update=again)


def on_device(module: nn.Module, device: str) -> nn.Module:
    """The module on `device`: itself where it is there already, else a copy; the caller's stays where it is."""
    import torch

    try:
        wanted = torch.device(device)
        there = all(tensor.device.type == wanted.type for tensor in (*module.parameters(), *module.buffers()))
        return module if there else copy.deepcopy(module).to(wanted)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UsageError(f"torch cannot use the device {device}: {reason}", hint="set --device cpu") from error
