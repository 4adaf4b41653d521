"""The networks that recovery is measured on, each with its data.

Keyword spotting has one file of 500 patterns: 350 are for training, 150 for the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from edgeprune.config import AttackConfig, DataConfig, LatencyConfig, ModelConfig
from edgeprune.data import open_split
from edgeprune.gauging import Range
from edgeprune.models import load
from edgeprune.types import ModelBundle, Split


@dataclasses.dataclass(frozen=True)
class Source:
    """Files (training, test), input shape, epsilon in units of the input, and its bounds.

    `peak`: of the plain loop's learning rate, where the usual one diverges.
    """

    train: str
    test: str
    shape: tuple[int, int, int]
    eps: str
    bounds: tuple[float, float] = (0.0, 1.0)
    recipes: tuple[str, ...] = ("distill",)
    peak: float | None = None


_BOTH = ("distill", "robust-distill")
_MFCC, _ZERO = 0.5847029, 83  # of the keyword network's int8 input
CASES = {
    "gtsrb_net_std": Source("gtsrb_train.npz", "gtsrb_test_a.npz", (3, 32, 32), "2/255"),
    "gtsrb_net_adv": Source("gtsrb_train.npz", "gtsrb_test_a.npz", (3, 32, 32), "2/255", recipes=_BOTH),
    "cifar10_resnet20_A": Source("cifar10_train4k.npz", "cifar10_test_a.npz", (3, 32, 32), "2/255"),
    "kws_dscnn_mlperftiny": Source(
        "kws_a.npz", "kws_a.npz", (1, 49, 10), "0.1", (-(128 + _ZERO) * _MFCC, (127 - _ZERO) * _MFCC), peak=2e-4
    ),
    "mnist_robust_cnn_a_adv": Source("mnist.npz", "mnist.npz", (1, 28, 28), "0.3", recipes=_BOTH),
}
_KWS_TRAIN = 350


@dataclasses.dataclass(frozen=True)
class Case:
    """One network with its data, and where it is timed."""

    name: str
    dense: ModelBundle
    train: Split
    test: Split
    range: Range
    attack: AttackConfig
    recipes: tuple[str, ...]
    ratio: float | None


def opened(name: str, options: argparse.Namespace) -> Case:
    """The network and its data."""
    sys.path.insert(0, str(options.shared / "models"))
    import nets

    source = CASES[name]
    path = options.out.parent / f"{name}.pt"
    if not path.exists():
        nets.save_pt(name, path, "module")
    known = json.loads((options.shared / "models" / f"{name}.json").read_text())
    scale = {key: tuple(known[key]) for key in ("mean", "std") if known.get(key)}
    dense = load(path, ModelConfig(trust=("nets",), input_shape=source.shape, bounds=source.bounds, **scale))
    files = [str(options.shared / "data" / file) for file in (source.train, source.test)]
    if name.startswith("kws"):
        files = [str(options.out.parent / "kws.npz")] * 2
        keywords(options.shared / "data" / source.train, Path(files[0]), source.bounds)
    config = DataConfig.model_validate(dict(zip(("train", "test"), files, strict=True)))
    train = open_split(str(config.train), "train", dense)
    test = open_split(str(config.test), "test", dense)
    images = test.source.read(test.ids[:256])
    attack = AttackConfig(attack=options.attack, eps=source.eps, samples=min(options.samples, len(test)))
    timing = Range(dense, images, "real", LatencyConfig(runtimes=("onnxruntime",)), 0)
    return Case(name, dense, train, test, timing, attack, options.recipes or source.recipes, options.ratio)


def keywords(source: Path, path: Path, bounds: tuple[float, float]) -> None:
    """MFCC patterns as floats, drawn into a training and a test part, in one file."""
    with np.load(source) as arrays:
        patterns = ((arrays["mfcc_int8"].astype(np.float32) - _ZERO) * np.float32(_MFCC)).clip(*bounds)[:, None]
        labels, order = arrays["labels"], np.random.default_rng(0).permutation(len(patterns))
    train, test = order[:_KWS_TRAIN], order[_KWS_TRAIN:]
    np.savez(
        path,
        train_images=patterns[train].astype(np.float32),
        train_labels=labels[train],
        test_images=patterns[test].astype(np.float32),
        test_labels=labels[test],
    )
