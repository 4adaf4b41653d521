"""What a recipe trains on: the loss of a batch.

finetune: cross-entropy on the labels. distill: the dense network's softened outputs and a little of the labels (Hinton
et al. 2015), the teacher looking at the very image that the student sees (Beyer et al. 2022). adversarial: the labels
of perturbed images (Madry et al. 2018; one step: Wong et al. 2020). robust-distill: the student's outputs on perturbed
images, and on clean ones, follow the teacher's on clean ones; the adversary drives the two apart (TRADES, Zhang et al.
2019; ARD, Goldblum et al. 2020; RSLAD, Zi et al. 2021), with a share of the labels where they may be looked at. It
needs none, and leaves a quarter of each batch as it is (mixed batches: Goodfellow et al. 2015, "Explaining and
harnessing adversarial examples").
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from edgeprune.models.folding import NOTHING, Folding
from edgeprune.recovery.adversary import Adversary, Loss, perturb
from edgeprune.recovery.images import Images
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.recovery.views import View

if TYPE_CHECKING:
    from edgeprune.types import Ints

_TAUGHT = ("distill", "robust-distill")
_LOOKED_AT, _CHUNK = 256, 64


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What every batch of a training has in common. `labels`: int64 (N,), on the device.

    `view`: how images are augmented; without one, each batch is augmented anew. `folding`: what the adversary need not
    compute of the network.
    """

    settings: RecoverConfig
    images: Images
    labels: torch.Tensor
    teacher: Teacher | None
    bounds: tuple[float, float]
    precision: str = "float32"
    view: View | None = None
    folding: Folding = NOTHING

    def loss(self, network: nn.Module, positions: Ints, steps: int, generator: torch.Generator) -> torch.Tensor:
        """The loss of the images at these positions, network in training mode.

        Where the recipe is robust the adversary of the first of them (`perturbed_of`) takes `steps`; with none, all
        images are as they are.
        """
        images, settings = self._augmented(positions, generator), self.settings
        labels = self.labels[torch.from_numpy(positions).to(self.labels.device)]
        taught = self.teacher(images, positions, self.precision) if self.teacher else None
        with autocast(self.precision, self.images.device):
            if not settings.robust or not steps:
                return taught_loss(network(images).float(), labels, taught, settings)
            assert settings.reach is not None  # the pipeline fills it in, and `recover` refuses without
            adversary = Adversary(settings.reach, steps, self.bounds)
            count = settings.perturbed_of(len(images))
            driven = self._driven(labels[:count], None if taught is None else taught[:count])
            with self.folding.done():
                hard = perturb(network, images[:count], driven, adversary, generator)
            hard = torch.cat([hard, images[count:]]) if count < len(images) else hard
            weight = settings.robust_weight
            if taught is None or weight == 1:
                return taught_loss(network(hard).float(), labels, taught, settings)
            both = network(torch.cat([images, hard])).float().chunk(2)
            near, far = (taught_loss(each, labels, taught, settings) for each in both)
            return (1 - weight) * near + weight * far

    def _driven(self, labels: torch.Tensor, taught: torch.Tensor | None) -> Loss:
        """What the adversary raises: the distance from the teacher, or from the labels where there is none."""
        if taught is None:
            return lambda logits: cross_entropy(logits.float(), labels)
        wanted = log_softmax(taught, 1)
        return lambda logits: apart(logits.float(), wanted)

    def drawn(self, count: int, like: torch.Tensor, generator: torch.Generator) -> View:
        """A view of `count` images of the size of `like`, (N, C, H, W)."""
        height, width = like.shape[-2:]
        return View.drawn(count, (height, width), self.settings, self.bounds, generator)

    def _augmented(self, positions: Ints, generator: torch.Generator) -> torch.Tensor:
        images = self.images.batch(positions)
        if self.view:
            return self.view.of(images, positions)
        return self.drawn(len(images), images, generator).of(images, np.arange(len(images)))


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """The dense network, frozen. Its outputs (float32) are computed once an image where images are never changed."""

    network: nn.Module
    device: str
    kept: torch.Tensor | None = None

    def __call__(self, images: torch.Tensor, positions: Ints, precision: str = "float32") -> torch.Tensor:
        """Its logits for a batch, float32 (N, K)."""
        if self.kept is not None:
            return self.kept[torch.from_numpy(positions).to(self.device)]
        with torch.no_grad(), autocast(precision, self.device):
            logits: torch.Tensor = self.network(images).float()
        return logits


def recognised(network: nn.Module, lesson: Lesson, seed: int) -> float:
    """Share of up to 256 training images that a network answers alike as they are and changed as the lesson has it."""
    count = min(_LOOKED_AT, len(lesson.images))
    some = np.random.default_rng(seed).permutation(len(lesson.images))[:count]
    images, alike = lesson.images.batch(some), 0
    view = lesson.drawn(count, images, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for part in np.array_split(np.arange(count), -(-count // _CHUNK)):
            shown = images[torch.from_numpy(part).to(images.device)]
            alike += int((network(shown).argmax(1) == network(view.of(shown, part)).argmax(1)).sum())
    return alike / count


def teacher_of(network: nn.Module, settings: RecoverConfig, images: Images) -> Teacher | None:
    """The teacher of a recipe that has one; its outputs are kept where no augmentation changes what it looks at."""
    if settings.recipe not in _TAUGHT:
        return None
    teacher = Teacher(network, images.device)
    if not settings.changes and images.held is not None:
        every = np.arange(len(images))
        parts = np.array_split(every, max(1, len(every) // settings.batch_of(len(every))))
        return replace(teacher, kept=torch.cat([teacher(images.batch(part), part) for part in parts]))
    return teacher


def taught_loss(
    logits: torch.Tensor, labels: torch.Tensor, taught: torch.Tensor | None, settings: RecoverConfig
) -> torch.Tensor:
    """Cross-entropy, or distillation with a share of it where there is something to distil. Scalar."""
    smoothing = settings.label_smoothing
    if taught is None:
        return cross_entropy(logits, labels, label_smoothing=smoothing)
    weight = settings.label_share
    far = distance(logits, taught, settings.temperature)
    return weight * cross_entropy(logits, labels, label_smoothing=smoothing) + (1 - weight) * far if weight else far


def distance(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """`apart` of both outputs (N, K) softened by the temperature; its square keeps gradients as long. Scalar."""
    return apart(logits / temperature, log_softmax(taught / temperature, 1)) * temperature**2


def apart(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean KL divergence of softmax(logits) from the distribution whose logarithm is `wanted` (N, K). Scalar."""
    return kl_div(log_softmax(logits, 1), wanted, reduction="batchmean", log_target=True)


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """bfloat16 autocast, where that is the precision."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16")
