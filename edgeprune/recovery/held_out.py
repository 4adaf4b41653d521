"""The part of the training split that decides what is kept; the test split never does.

Promise: images that are held out are never trained on and never calibrated on. Without labels, the dense network's
answers stand in their place: agreement with it is what is measured. Where the data says which images show the same
thing (`data/groups.py`), such a group is held out as a whole, or not at all.

A few hundred images tell an accuracy to a point or so, and the distance from a teacher far better. So states whose
accuracies lie within a standard error of the best one count as equal (Breiman et al. 1984, "Classification and
Regression Trees", the one standard error rule), and the one that is nearest to the teacher is kept.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgeprune.recovery.adversary import CHECK_STEPS, Adversary, perturb
from edgeprune.recovery.images import on_device
from edgeprune.types import Split

if TYPE_CHECKING:
    from edgeprune.types import Ints

_SHARE, _MOST = 0.1, 400  # more would choose little better, and is not trained on
_ATTACKED, _BATCH = 128, 256


def hold_out(split: Split, seed: int) -> tuple[Split, Split]:
    """(training part, held-out part): a tenth of the images, or groups, of every class, about 400 images at most.

    A group with images of several classes counts for the first of them.
    """
    share = min(_SHARE, _MOST / max(len(split), 1))
    groups, firsts = _groups(split)
    labels = split.labels()[firsts]
    generator = np.random.default_rng(seed)
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[: max(1, round(share * int((labels == label).sum())))]
        for label in np.unique(labels)
        if (labels == label).sum() > 1
    ]
    return _parted(split, groups, np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64))


def hold_out_unlabelled(split: Split, seed: int) -> tuple[Split, Split]:
    """`hold_out` without a look at the labels: a tenth of the images, or groups, about 400 images at most."""
    groups, firsts = _groups(split)
    count = round(min(_SHARE, _MOST / max(len(split), 1)) * len(firsts))
    return _parted(split, groups, np.random.default_rng(seed).permutation(len(firsts))[:count])


def _groups(split: Split) -> tuple[Ints, Ints]:
    """The group of every image, numbered from 0, and each group's first image: every image is one, unless told."""
    given = split.groups()
    if given is None:
        return np.arange(len(split)), np.arange(len(split))
    _, firsts, groups = np.unique(given, return_index=True, return_inverse=True)
    return groups, firsts


def _parted(split: Split, groups: Ints, chosen: Ints) -> tuple[Split, Split]:
    away = np.isin(groups, chosen)
    return dataclasses.replace(split, ids=split.ids[~away]), dataclasses.replace(split, ids=split.ids[away])


@dataclass(frozen=True, slots=True)
class Judged:
    """Shares of the held-out images that a network gets right: as they are, and under PGD (None: not looked at).

    `error`: standard error of the score. `far`: mean KL divergence from the teacher's answers, in nats, and `further`
    that of the attacked ones; None without a teacher.
    """

    accuracy: float | None
    robust: float | None = None
    error: float = 0.0
    far: float | None = None
    further: float | None = None

    @property
    def nats(self) -> float | None:
        """`far` where it is a number: a network may answer with none."""
        return _finite(self.far)

    @property
    def distance(self) -> float | None:
        """What tells apart what the score does not: `nats`, or its mean with `further` where that was looked at."""
        if self.far is None or self.further is None:
            return self.nats
        return _finite((self.far + self.further) / 2)

    @property
    def score(self) -> float | None:
        """What is compared: the accuracy, or its mean with the robust accuracy where that was looked at."""
        if self.accuracy is None or self.robust is None:
            return self.accuracy
        return (self.accuracy + self.robust) / 2


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, slots=True, eq=False)
class Jury:
    """Judges networks (pixels to logits) on the held-out images. `wanted`: int64 (N,), labels or their stand-ins.

    `taught`: logarithms of the teacher's probabilities, float64 (N, K), where there is one. Up to 128 images are also
    attacked, by PGD with 10 steps, where there is an `adversary` to go by.
    """

    split: Split
    wanted: torch.Tensor
    taught: torch.Tensor | None
    device: str
    adversary: Adversary | None
    seed: int

    @classmethod
    def of(
        cls,
        split: Split,
        teacher: nn.Module | None,
        device: str,
        adversary: Adversary | None,
        seed: int,
        *,
        labels: bool = True,
    ) -> Jury:
        """A jury by the labels, or else by the answers of the teacher, which it knows the distance from."""
        taught = None
        if teacher is not None and len(split):
            with torch.no_grad():
                parts = [_answers(teacher, on_device(images, device)) for images, _ in split.batches(_BATCH)]
            taught = torch.cat(parts)
        wanted = torch.from_numpy(split.labels()) if labels or taught is None else taught.argmax(1).cpu()
        return cls(split, wanted, taught, device, adversary, seed)

    def judge(self, network: nn.Module, *, robust: bool) -> Judged:
        """What the network gets right, in eval mode, and how far it is from the teacher."""
        network.eval()
        if not len(self.split):
            return Judged(None)
        right, far = self._looked_at(network)
        attacked = self._attacked(network, CHECK_STEPS, _ATTACKED) if robust else None
        if attacked is None:
            return Judged(_mean(right), None, _error(right), far)
        stood, further = attacked
        error = math.hypot(_error(right), _error(stood)) / 2
        return Judged(_mean(right), _mean(stood), error, far, further)

    def distance(self, network: nn.Module) -> float:
        """Mean KL divergence of the network's answers from the teacher's, over the held-out images, in nats."""
        _, far = self._looked_at(network)
        assert far is not None
        return far

    def under_attack(self, network: nn.Module, steps: int, most: int = _ATTACKED) -> float | None:
        """Share of up to `most` images that stand against so many steps; None without images or an adversary."""
        found = self._attacked(network, steps, most)
        return None if found is None else _mean(found[0])

    def _attacked(self, network: nn.Module, steps: int, most: int) -> tuple[torch.Tensor, float | None] | None:
        """Which of up to `most` images stand, bool, and how far from the teacher's answers the attacked ones are."""
        if self.adversary is None or not len(self.split):
            return None
        adversary = dataclasses.replace(self.adversary, steps=steps)
        chosen = np.random.default_rng(self.seed).permutation(len(self.split))[:most]
        images = on_device(self.split.source.read(self.split.ids[chosen]), self.device)
        wanted = self.wanted[torch.from_numpy(chosen)].to(self.device)
        generator = torch.Generator().manual_seed(self.seed)

        def loss(logits: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(logits, wanted, reduction="sum")

        attacked = perturb(network, images, loss, adversary, generator)
        with torch.no_grad():
            given = _answers(network, attacked)
            stood = (given.argmax(1) == wanted) & (network(images).argmax(1) == wanted)
        far = None if self.taught is None else _apart(given, self.taught[torch.from_numpy(chosen).to(self.device)])
        return stood, None if far is None else far / len(chosen)

    def _looked_at(self, network: nn.Module) -> tuple[torch.Tensor, float | None]:
        """Which of the images are right, bool (N,), and how far from the teacher's answers they are."""
        right, total = [], 0.0
        with torch.no_grad():
            for start in range(0, len(self.split), _BATCH):
                part = slice(start, start + _BATCH)
                given = _answers(network, on_device(self.split.source.read(self.split.ids[part]), self.device))
                right.append(given.argmax(1).cpu() == self.wanted[part])
                total += 0.0 if self.taught is None else _apart(given, self.taught[part])
        return torch.cat(right), None if self.taught is None else total / len(self.split)


def _answers(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logarithms of the network's probabilities, float64 (N, K)."""
    return nn.functional.log_softmax(network(images).double(), 1)


def _apart(given: torch.Tensor, wanted: torch.Tensor) -> float:
    """KL divergence, summed over the images, in nats."""
    return float(nn.functional.kl_div(given, wanted, reduction="sum", log_target=True))


def _mean(right: torch.Tensor) -> float:
    return int(right.sum()) / len(right)


def _error(right: torch.Tensor) -> float:
    """Standard error of the share, by one right and one wrong image more: that all are right proves little, too."""
    share = (int(right.sum()) + 1) / (len(right) + 2)
    return math.sqrt(share * (1 - share) / len(right))
