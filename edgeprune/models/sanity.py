"""Does the declared mean and std look like the ones of training? Asked of the network itself.

A wrong normalisation often still gives a plausible accuracy, and everything measured after it is measured on the
wrong network. So the declared one is set against its usual rivals on the same labelled images.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import binomtest

from edgeprune.models.preprocessing import with_preprocessing

if TYPE_CHECKING:
    from edgeprune.types import Ints, ModelBundle, Preprocessing, Split

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def doubt_preprocessing(bundle: ModelBundle, split: Split, *, samples: int = 512, significance: float = 0.001) -> str:
    """A warning when another normalisation is right on significantly more images than the declared one; else "".

    Rivals: none, the common 0.5/0.5, ImageNet's, and pixels of 0..255. At most `samples` images, evenly drawn from the
    split; McNemar's exact one-sided test, Bonferroni-corrected over the rivals.
    """
    ids = split.ids[np.unique(np.linspace(0, len(split) - 1, min(samples, len(split))).astype(np.int64))]
    images, labels = torch.from_numpy(split.source.read(ids)), split.source.labels[ids]
    declared = _right(bundle, bundle.preprocessing, images, labels)
    rivals = _rivals(bundle)
    best, worst_case = "", significance / max(1, len(rivals))
    best_count = int(declared.sum())
    for name, preprocessing in rivals.items():
        right = _right(bundle, preprocessing, images, labels)
        gained, lost = int((right & ~declared).sum()), int((declared & ~right).sum())
        better = gained > lost and binomtest(gained, gained + lost, alternative="greater").pvalue < worst_case
        if better and int(right.sum()) > best_count:
            best, best_count = name, int(right.sum())
    if not best:
        return ""
    share, other = declared.mean() * 100, best_count / len(ids) * 100
    said = "the declared mean and std" if bundle.preprocessing.mean else "no mean and std (none are declared)"
    return (
        f"the network is right on {share:.1f} % of {len(ids)} images with {said}, and on {other:.1f} % with {best}: "
        "check --mean and --std"
    )


def _rivals(bundle: ModelBundle) -> dict[str, Preprocessing]:
    declared, (low, high) = bundle.preprocessing, bundle.preprocessing.bounds
    plain = replace(declared, mean=(), std=())
    half, span = (low + high) / 2, (high - low) / 2
    rivals = {
        "none": plain,
        "mean and std of half the pixel range": replace(declared, mean=(half,), std=(span,)),
        "pixels of 0 to 255": replace(declared, mean=(low,), std=((high - low) / 255,)),
    }
    if bundle.input_shape[0] == 3:
        mean, std = ([low + value * (high - low) for value in _IMAGENET[0]], [v * (high - low) for v in _IMAGENET[1]])
        rivals["ImageNet's mean and std"] = replace(declared, mean=tuple(mean), std=tuple(std))
    return {name: rival for name, rival in rivals.items() if rival != declared}


def _right(bundle: ModelBundle, preprocessing: Preprocessing, images: torch.Tensor, labels: Ints) -> Bools:
    network = with_preprocessing(bundle.module, preprocessing)
    with torch.no_grad():
        guesses = [network(images[start : start + 128]).argmax(1) for start in range(0, len(images), 128)]
    right: Bools = torch.cat(guesses).numpy() == labels
    return right
