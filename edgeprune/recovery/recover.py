"""Recovery: what is free first, then training by a recipe, and what helps on held-out images is kept.

Free: batch norm is measured again, and layers are fitted to the dense network in closed form; neither needs labels.
Then the recipe trains (`recipes.py`, each with its paper), on time (`training.py`). The state that does best on a
held-out part of the training split is kept, never judged on the test split; when training does worse than what was
free, by more than chance, what was free is what is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.models import digest
from edgeprune.records import Correction, RecoveryInfo, Unmeasured
from edgeprune.recovery.adversary import Adversary
from edgeprune.recovery.calibration import recalibrate
from edgeprune.recovery.corrections import correct, steps_to_come, worth_fitting
from edgeprune.recovery.held_out import Judged, Jury, hold_out, hold_out_unlabelled
from edgeprune.recovery.images import images_of, placed
from edgeprune.recovery.recipes import Lesson, recognised, teacher_of
from edgeprune.recovery.settings import Augmentation, RecoverConfig
from edgeprune.recovery.training import Trained, Workshop, train
from edgeprune.types import ModelBundle, Progress, Split

_REACH = 2 / 255  # of the pixels' range: how natural recipes are looked at under attack
_RECOGNISED = 0.8  # of changed images, by the dense network: fewer are no images of the same things
_MILDER: dict[Augmentation, Augmentation] = {"vary": "shift", "shift": "none"}


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What recovery works with: settings, images, seed, torch device and where to keep checkpoints (or None).

    `kept`: for every layer that lost outputs, which of the dense layer's it kept; without it (None) nothing is
    reconstructed.
    """

    settings: RecoverConfig
    train: Split | None
    seed: int
    device: str = "cpu"
    checkpoints: Path | None = None
    kept: Mapping[str, Sequence[int]] | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """What a recovery did: (training, held-out) part, what the jury said before and after, and how it went.

    `notes`: what there is to say that the training itself does not.
    """

    parts: tuple[Split, Split]
    judged: tuple[Judged, Judged]
    corrections: tuple[Correction, ...]
    trained: Trained | None
    seconds: float
    notes: tuple[str, ...] = ()


def recover(
    pruned: ModelBundle, teacher: ModelBundle, task: Task, *, progress: Progress | None = None
) -> tuple[ModelBundle, RecoveryInfo | Unmeasured]:
    """The recovered bundle and what was done; neither bundle that is given is changed.

    Errors: RecoveryError when training diverges twice; UsageError when an adversary's epsilon is missing.
    """
    settings = task.settings
    if settings.recipe == "none":
        return pruned, Unmeasured(unmeasured="the recipe is none: nothing was recovered")
    if task.train is None:
        return pruned, Unmeasured(unmeasured="no training data was given: nothing was recovered")
    if settings.robust and settings.reach is None:
        raise UsageError(f"recipe {settings.recipe} needs an epsilon", hint="set recover.eps")
    started = time.perf_counter()
    parts = (hold_out if settings.labels else hold_out_unlabelled)(task.train, task.seed)
    if len(parts[0]) < 2:
        return pruned, Unmeasured(unmeasured="there are fewer than two training images: nothing was recovered")
    student, dense = placed(pruned, task.device), placed(teacher, task.device)
    network, guide = student.network(), dense.network()
    jury = _jury(parts[1], guide, teacher, task)
    before, look = _timed_look(jury, network, robust=settings.trains)
    recalibrate(network, parts[0], task.device, seed=task.seed)
    left = None if settings.minutes is None else 60 * settings.minutes - look - (time.perf_counter() - started)
    steps = steps_to_come(network, parts[0], task, left)
    corrections = correct(student, dense, jury, parts[0], task) if worth_fitting(task, steps) else ()
    trained: Trained | None = None
    notes: tuple[str, ...] = ()
    if settings.trains:
        key = _task_key(task, pruned.digest, teacher.digest)
        task = dataclasses.replace(task, settings=settings.in_steps(steps, len(parts[0])))
        workshop, notes = _workshop(guide, parts[0], jury, task, key)
        start = jury.judge(network, robust=settings.robust)
        workshop = dataclasses.replace(workshop, before=time.perf_counter() - started, look=look)
        trained = train(network, start, workshop, progress)
        network.load_state_dict(trained.state)
    after = trained.judged if trained and settings.robust else jury.judge(network, robust=settings.trains)
    network.to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    for name, parameter in student.module.named_parameters():
        parameter.requires_grad_(pruned.module.get_parameter(name).requires_grad)
        parameter.grad = None
    made = _Made(parts, (before, after), corrections, trained, time.perf_counter() - started, notes)
    return dataclasses.replace(student, digest=digest(student.module)), _info(settings, made, jury)


def _timed_look(jury: Jury, network: nn.Module, *, robust: bool) -> tuple[Judged, float]:
    """What the jury says, and the seconds that it took."""
    started = time.perf_counter()
    return jury.judge(network, robust=robust), time.perf_counter() - started


def _jury(held_out: Split, guide: nn.Module, teacher: ModelBundle, task: Task) -> Jury:
    low, high = bounds = teacher.preprocessing.bounds
    reach = _REACH * (high - low) if task.settings.reach is None else task.settings.reach
    adversary, labels = Adversary(reach, 1, bounds), task.settings.labels
    return Jury.of(held_out, guide, task.device, adversary, task.seed, labels=labels)


def _workshop(guide: nn.Module, part: Split, jury: Jury, task: Task, key: str) -> tuple[Workshop, tuple[str, ...]]:
    """What training works with, and what is to be said about it."""
    settings, images = task.settings, images_of(part, task.device)
    labels = torch.from_numpy(part.labels()).to(task.device)
    assert jury.adversary is not None
    lesson = Lesson(settings, images, labels, None, jury.adversary.bounds)
    settings, notes = _recognisable(lesson, guide, task.seed)
    lesson = dataclasses.replace(lesson, settings=settings, teacher=teacher_of(guide, settings, images))
    return Workshop(lesson, jury, task.seed, task.checkpoints, key), notes


def _recognisable(lesson: Lesson, guide: nn.Module, seed: int) -> tuple[RecoverConfig, tuple[str, ...]]:
    """The lesson's settings, with milder changes where the dense network answers too few changed images as before.

    A spectrum that is turned, or moved, is no spectrum of the same word; no setting knows what a pixel is. What was
    asked for stands.
    """
    settings, kinds = lesson.settings, {"vary": "varied", "shift": "shifted"}
    if settings.augment is not None:
        return settings, ()
    known: list[str] = []
    while (kind := settings.augmentation) in _MILDER:
        unmirrored = settings.model_copy(update={"flip": False})  # which was asked for
        share = recognised(guide, dataclasses.replace(lesson, settings=unmirrored), seed)
        if share >= _RECOGNISED:
            break
        known.append(f"{share:.0%} of the {kinds[kind]} ones")
        settings = settings.model_copy(update={"augment": _MILDER[kind]})
    if not known:
        return settings, ()
    instead = "shifted, not varied" if settings.augmentation == "shift" else "neither varied nor shifted"
    return settings, (f"images were {instead}: the dense network knows {' and '.join(known)} again",)


def _info(settings: RecoverConfig, made: _Made, jury: Jury) -> RecoveryInfo:
    (before, after), trained = made.judged, made.trained
    course = trained.course if trained else None
    reach = jury.adversary.reach if jury.adversary else None
    return RecoveryInfo(
        recipe=settings.recipe,
        epochs=trained.epochs if trained else 0,
        minutes=settings.minutes if trained else None,
        train_samples=len(made.parts[0]),
        held_out=len(made.parts[1]),
        labels=settings.labels,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        robust_before=before.robust,
        robust_after=after.robust,
        distance_before=before.nats,
        distance_after=after.nats,
        robust_eps=reach if after.robust is not None else None,
        corrections=made.corrections,
        precision=course.precision if course else "float32",
        images_per_second=course.seen / course.training if course and course.training else None,
        notes=(*made.notes, *(course.notes if course else ())),
        seconds=made.seconds,
    )


def _task_key(task: Task, *digests: str) -> str:
    """Digest of everything that training depends on, for the checkpoint."""
    data = task.train.digest if task.train else None
    kept = {name: list(channels) for name, channels in task.kept.items()} if task.kept else None
    parts = [task.settings.model_dump(mode="json"), data, task.seed, task.device, kept, *digests]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
