"""A short training of a candidate, to tell which plan recovers best before one is chosen.

Every candidate sees the same images in the same order, unmoved, so that the dense network looks at them once for all;
two passes (one, where more takes too long), by the whole schedule, without labels. What counts is the KL divergence of
the answers on held-out images from the dense network's: it is less noisy than accuracy. Proposals that are trained a
little and then compared: T.-J. Yang et al., NetAdapt, ECCV 2018. `docs/decisions/knapsack-without-a-solver.md` has what
it told here.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch

from edgeprune.recovery.calibration import recalibrate
from edgeprune.recovery.held_out import Jury, hold_out_unlabelled
from edgeprune.recovery.images import images_of, placed
from edgeprune.recovery.recipes import Lesson, teacher_of
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.recovery.training import train_briefly
from edgeprune.types import ModelBundle, Split

_IMAGES, _PASSES = 6400, 2
_FEWEST = 500  # less tells nothing
_MACS = 2.5e11  # of the dense network in one trial: seconds of a processor
_ELSEWHERE = 100  # times as many on an accelerator


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """The same short training for every candidate."""

    lesson: Lesson
    jury: Jury
    seed: int

    @classmethod
    def opened(cls, dense: ModelBundle, macs: float, train: Split, seed: int, device: str) -> Trial | None:
        """A trial on training images of a dense network with so many MACs an image; None where it would tell nothing,
        or take too long: at least 500 images in what is seconds of a processor."""
        affordable = _MACS * (1 if torch.device(device).type == "cpu" else _ELSEWHERE) / max(macs, 1.0)
        part, held_out = hold_out_unlabelled(train, seed)
        count = int(min(len(part), _IMAGES, affordable))
        if count < _FEWEST or not len(held_out):
            return None
        drawn = np.sort(np.random.default_rng(seed).permutation(part.ids)[:count])
        passes = _PASSES if count * _PASSES <= affordable else 1
        settings = RecoverConfig(recipe="distill", labels=False, epochs=passes, augment="none", precision="float32")
        guide = placed(dense, device).network()
        images = images_of(dataclasses.replace(part, ids=drawn), device)
        labels = torch.zeros(count, dtype=torch.int64, device=device)  # nobody looks at them
        jury = Jury.of(held_out, guide, device, None, seed, labels=False)
        lesson = Lesson(settings, images, labels, teacher_of(guide, settings, images), dense.preprocessing.bounds)
        return cls(lesson, jury, seed)

    @property
    def images(self) -> int:
        """How many images one candidate is trained on."""
        return len(self.lesson.images)

    @property
    def passes(self) -> int:
        """How often it sees each."""
        return self.lesson.settings.epochs

    def distance(self, pruned: ModelBundle) -> float:
        """Mean KL divergence from the dense network on held-out images after the training, in nats; infinity where it
        diverged. The bundle is left as it was."""
        network = placed(pruned, self.lesson.images.device).network()
        recalibrate(network, self.lesson.images.split, self.lesson.images.device, seed=self.seed)
        if not train_briefly(network, self.lesson, self.seed):
            return math.inf
        found = self.jury.distance(network.eval())
        return found if math.isfinite(found) else math.inf
