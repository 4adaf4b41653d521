"""The part of the training split that decides what is kept; the test split never does.

Promise: images that are held out are never trained on and never calibrated on. Without labels, the dense network's
answers stand in their place: agreement with it is what is measured. Where the data says which images show the same
thing (`data/groups.py`), such a group is held out as a whole, or not at all.
"""

from __future__ import annotations

import dataclasses
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
    """Shares of the held-out images that a network gets right: as they are, and under PGD (None: not looked at)."""

    accuracy: float | None
    robust: float | None = None

    def score(self, robust: bool) -> float | None:
        """What is compared: the accuracy, or its mean with the robust accuracy where that is what is trained for."""
        if self.accuracy is None or not robust or self.robust is None:
            return self.accuracy
        return (self.accuracy + self.robust) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Jury:
    """Judges networks (pixels to logits) on the held-out images. `wanted`: int64 (N,), labels or their stand-ins.

    Up to 128 images are also attacked, by PGD with 10 steps, where there is an `adversary` to go by.
    """

    split: Split
    wanted: torch.Tensor
    device: str
    adversary: Adversary | None
    seed: int

    @classmethod
    def of(cls, split: Split, teacher: nn.Module | None, device: str, adversary: Adversary | None, seed: int) -> Jury:
        """A jury by the labels, or by the answers of `teacher` where one is given."""
        if teacher is None or not len(split):
            wanted = torch.from_numpy(split.labels())
        else:
            with torch.no_grad():
                parts = [teacher(on_device(images, device)).argmax(1).cpu() for images, _ in split.batches(_BATCH)]
            wanted = torch.cat(parts)
        return cls(split, wanted, device, adversary, seed)

    def judge(self, network: nn.Module, *, robust: bool) -> Judged:
        """What the network gets right, in eval mode."""
        network.eval()
        return Judged(self._accuracy(network), self.under_attack(network, CHECK_STEPS) if robust else None)

    def distance(self, network: nn.Module, teacher: nn.Module) -> float:
        """Mean KL divergence of the network's answers from the teacher's, over the held-out images, in nats."""
        total = 0.0
        with torch.no_grad():
            for batch, _ in self.split.batches(_BATCH):
                images = on_device(batch, self.device)
                given, wanted = (nn.functional.log_softmax(one(images).double(), 1) for one in (network, teacher))
                total += float(nn.functional.kl_div(given, wanted, reduction="sum", log_target=True))
        return total / len(self.split)

    def under_attack(self, network: nn.Module, steps: int, most: int = _ATTACKED) -> float | None:
        """Share of up to `most` images that stand against so many steps; None without images or an adversary."""
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
            stood = (network(attacked).argmax(1) == wanted) & (network(images).argmax(1) == wanted)
        return float(stood.float().mean())

    def _accuracy(self, network: nn.Module) -> float | None:
        if not len(self.split):
            return None
        right = 0
        with torch.no_grad():
            for start in range(0, len(self.split), _BATCH):
                images = on_device(self.split.source.read(self.split.ids[start : start + _BATCH]), self.device)
                right += int((network(images).argmax(1).cpu() == self.wanted[start : start + _BATCH]).sum())
        return right / len(self.split)
