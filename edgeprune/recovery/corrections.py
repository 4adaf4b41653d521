"""Which closed-form corrections are kept: those that bring held-out answers nearer to the dense network's.

Reconstruction of every layer, and where that did not help, bias correction; batch norm is measured again after either.
Nearer is a smaller mean KL divergence, and no fewer held-out images right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from edgeprune.records import Correction
from edgeprune.recovery.calibration import recalibrate
from edgeprune.recovery.held_out import Jury
from edgeprune.recovery.images import on_device
from edgeprune.recovery.learner import state_of
from edgeprune.recovery.reconstruction import reconstruct
from edgeprune.types import ModelBundle, Split

if TYPE_CHECKING:
    from edgeprune.recovery.recover import Task

_IMAGES, _LEAST = 512, 64
_SHARE = 0.5  # of what one pass of training costs: a fit may take no more
_STEP_COST = 3  # forward passes that a training image costs


def affordable(module: nn.Module, train: int) -> int:
    """How many images a fit may look at: both networks run half-way, on average, once a layer.

    At most 512; fewer in deep networks, where the passes would cost more than half an epoch of training.
    """
    layers = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules())
    return min(_IMAGES, max(_LEAST, int(_SHARE * _STEP_COST * train / max(1, layers))))


def correct(student: ModelBundle, teacher: ModelBundle, jury: Jury, train: Split, task: Task) -> tuple[Correction, ...]:
    """What was tried on `student`, in place, and what came of it. Nothing is tried without held-out images."""
    if not len(jury.split) or task.kept is None:
        return ()
    drawn = np.random.default_rng(task.seed).permutation(train.ids)[: affordable(student.module, len(train))]
    images = on_device(train.source.read(drawn), task.device)
    network, guide = student.network(), teacher.network()
    made = []
    for name in ("reconstruction", "bias correction"):
        saved, before = state_of(network), (jury.judge(network, robust=False), jury.distance(network, guide))
        fitted = reconstruct(student, teacher, task.kept, images, bias_only=name == "bias correction", seed=task.seed)
        if not fitted.layers:
            continue
        recalibrate(network, train, task.device, seed=task.seed)
        after = jury.judge(network, robust=False), jury.distance(network, guide)
        helped = after[1] < before[1] and (after[0].accuracy or 0) >= (before[0].accuracy or 0)
        if not helped:
            network.load_state_dict(saved)
        made.append(
            Correction(
                name=name,
                layers=len(fitted.layers),
                skipped=fitted.skipped,
                accuracy_before=before[0].accuracy or 0.0,
                accuracy_after=after[0].accuracy or 0.0,
                distance_before=before[1],
                distance_after=after[1],
                kept=helped,
            )
        )
        if helped:  # it has corrected the means, too
            break
    return tuple(made)
