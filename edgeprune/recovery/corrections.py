"""When layers are fitted in closed form, and which corrections are kept.

Those are kept that bring held-out answers nearer to the dense network's. Reconstruction of every layer, and where that
did not help, bias correction; batch norm is measured again after either. Nearer is a smaller mean KL divergence, and no
fewer held-out images right.
"""

from __future__ import annotations

import copy
import math
import time
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from edgeprune.records import Correction
from edgeprune.recovery.calibration import recalibrate
from edgeprune.recovery.held_out import Jury
from edgeprune.recovery.images import on_device
from edgeprune.recovery.learner import optimizer_of, state_of
from edgeprune.recovery.reconstruction import reconstruct
from edgeprune.types import ModelBundle, Split

if TYPE_CHECKING:
    from edgeprune.recovery.recover import Task

_IMAGES, _LEAST = 512, 64
_SHARE = 0.5  # of what one pass of training costs: a fit may take no more
_FEW_STEPS = 128  # of training: after more, a network that was fitted first ends no better
_STEP_COST = 3  # forward passes that a training image costs


def affordable(module: nn.Module, train: int) -> int:
    """How many images a fit may look at: both networks run half-way, on average, once a layer.

    At most 512; fewer in deep networks, where the passes would cost more than half an epoch of training.
    """
    layers = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules())
    return min(_IMAGES, max(_LEAST, int(_SHARE * _STEP_COST * train / max(1, layers))))


def worth_fitting(task: Task, steps: float) -> bool:
    """Whether layers are to be fitted first: as asked, or where there are few training steps to come, or none."""
    if task.kept is None:
        return False
    return steps <= _FEW_STEPS if task.settings.reconstruct is None else task.settings.reconstruct


def steps_to_come(network: nn.Module, train: Split, task: Task, left: float | None) -> float:
    """Training steps that there will be, of the usual batch.

    In `left` seconds (None: the epochs decide), about as many as one that is timed on a copy of the network says.
    """
    settings, batch = task.settings, task.settings.batch_of(len(train))
    if not settings.trains:
        return 0.0
    if left is None:
        return settings.epochs * math.ceil(len(train) / batch)
    trial = copy.deepcopy(network)
    optimizer = optimizer_of(trial, settings.optimizer)  # at a rate of zero
    images = on_device(train.source.read(train.ids[:batch]), task.device)

    def seconds() -> float:
        started = time.perf_counter()
        for _ in range(1 + (settings.adversary_steps if settings.robust else 0)):
            loss = trial(images).logsumexp(1).sum()
            loss.backward()
        optimizer.step()
        loss.item()  # an accelerator has come to its end, too
        return time.perf_counter() - started

    return max(0.0, left) / min(seconds(), seconds())  # the first one may be a slow start


def correct(student: ModelBundle, teacher: ModelBundle, jury: Jury, train: Split, task: Task) -> tuple[Correction, ...]:
    """What was tried on `student`, in place, and what came of it. Nothing is tried without held-out images."""
    if not len(jury.split) or task.kept is None:
        return ()
    drawn = np.random.default_rng(task.seed).permutation(train.ids)[: affordable(student.module, len(train))]
    images = on_device(train.source.read(drawn), task.device)
    network = student.network()
    made = []
    for name in ("reconstruction", "bias correction"):
        saved, before = state_of(network), jury.judge(network, robust=False)
        fitted = reconstruct(student, teacher, task.kept, images, bias_only=name == "bias correction", seed=task.seed)
        if not fitted.layers:
            continue
        recalibrate(network, train, task.device, seed=task.seed)
        after = jury.judge(network, robust=False)
        helped = _nearer(after.nats, before.nats) and (after.accuracy or 0) >= (before.accuracy or 0)
        if not helped:
            network.load_state_dict(saved)
        made.append(
            Correction(
                name=name,
                layers=len(fitted.layers),
                skipped=fitted.skipped,
                accuracy_before=before.accuracy or 0.0,
                accuracy_after=after.accuracy or 0.0,
                distance_before=before.nats,
                distance_after=after.nats,
                kept=helped,
            )
        )
        if helped:  # it has corrected the means, too
            break
    return tuple(made)


def _nearer(after: float | None, before: float | None) -> bool:
    """Whether a distance shrank; None is that of answers that are no numbers, further away than any."""
    return after is not None and (before is None or after < before)
