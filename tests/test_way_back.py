"""The way back of a network, written as a graph: the same scores and gradients as torch's, or none at all."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack_examples import budget_of, grid_images, labels_of, silent, victim_of
from onnx import ModelProto, NodeProto
from twin_examples import floats, graph_of, node, save

from edgeprune import protocols
from edgeprune.models.preprocessing import with_preprocessing
from edgeprune.robustness.twin.building import Twin, build
from edgeprune.robustness.twin.pulling import Pull, pull_of
from edgeprune.types import Preprocessing

SHAPE = (6, 9, 8)


def classifier(*nodes: NodeProto, last: str, channels: int = 6, opset: int = 17, **constants: np.ndarray) -> ModelProto:
    """`nodes` from `x` to `last`, whose channels are then averaged and weighed."""
    head = floats(channels, 5)
    tail = [node("GlobalAveragePool", last, "mean"), node("Flatten", "mean", "flat"), node("MatMul", "flat head", "y")]
    return graph_of([*nodes, *tail], opset, ("n", *SHAPE), {**constants, "head": head})


def both(model: ModelProto, folder: Path, preprocessing: Preprocessing | None = None) -> tuple[Twin, Pull | None]:
    twin = build(save(model, folder))
    assert twin.scores is not None
    images = torch.rand(5, *twin.layout.shape, generator=torch.Generator().manual_seed(1))
    return twin, pull_of(twin, preprocessing or Preprocessing(), twin.scores, images, 1)


def conv(kernel: int = 3, **attributes: Any) -> list[NodeProto]:
    return [node("Conv", "x w", "c", kernel_shape=[kernel, kernel], **attributes)]


def weight(out: int = 6, channels: int = 6, kernel: int = 3) -> np.ndarray:
    return floats(out, channels, kernel, kernel)


WITH_RULES = {
    "conv": classifier(*conv(pads=[1, 1, 1, 1]), last="c", w=weight()),
    "conv, strided": classifier(*conv(pads=[1, 1, 1, 1], strides=[2, 2]), last="c", w=weight()),
    "conv, strided, without padding": classifier(*conv(strides=[2, 2]), last="c", w=weight()),
    "conv, in groups": classifier(*conv(pads=[1, 1, 1, 1], group=3), last="c", w=weight(channels=2)),
    "conv, of single channels": classifier(*conv(pads=[1, 1, 1, 1], group=6, strides=[2, 1]), last="c", w=weight(6, 1)),
    "conv, uneven padding": classifier(*conv(pads=[0, 1, 2, 1]), last="c", w=weight()),
    "conv, more padding than kernel": classifier(*conv(kernel=1, pads=[1, 1, 1, 1]), last="c", w=weight(kernel=1)),
    "conv, dilated": classifier(*conv(pads=[2, 2, 2, 2], dilations=[2, 2]), last="c", w=weight()),
    "conv, padded by name": classifier(*conv(auto_pad="SAME_UPPER", strides=[2, 2]), last="c", w=weight()),
    "relu": classifier(node("Relu", "x", "a"), last="a"),
    "leaky": classifier(node("LeakyRelu", "x", "a", alpha=0.2), last="a"),
    "clip": classifier(node("Clip", "x l h", "a"), last="a", l=np.float32(0.3), h=np.float32(0.6)),
    "clip, old": classifier(node("Clip", "x", "a", min=0.3, max=0.6), last="a", opset=9),
    "sigmoid": classifier(node("Sigmoid", "x", "a"), last="a"),
    "tanh": classifier(node("Tanh", "x", "a"), last="a"),
    "swish": classifier(node("Sigmoid", "x", "s"), node("Mul", "x s", "a"), last="a"),
    "scaled": classifier(
        node("Sub", "x m", "s"), node("Div", "s d", "a"), last="a", m=floats(1, 6, 1, 1), d=floats(6, 1, 1)
    ),
    "twice": classifier(node("Relu", "x", "r"), node("Add", "x r", "s"), node("Sub", "s x", "d"), last="d"),
    "average": classifier(node("AveragePool", "x", "a", kernel_shape=[3, 2], strides=[3, 2]), last="a"),
    "maximum": classifier(node("MaxPool", "x", "a", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), last="a"),
    "maximum, tiled": classifier(node("MaxPool", "x", "a", kernel_shape=[2, 2], strides=[2, 2]), last="a"),
    "joined": classifier(node("Relu", "x", "r"), node("Concat", "x r", "a", axis=1), last="a", channels=12),
    "mean": classifier(node("ReduceMean", "x", "a", axes=[2, 3], keepdims=1), last="a"),
    "norm": classifier(
        node("Relu", "x", "r"),
        node("BatchNormalization", "r s b m v", "a"),
        last="a",
        s=floats(6),
        b=floats(6),
        m=floats(6),
        v=np.abs(floats(6)) + 0.5,
    ),
    "turned": classifier(node("Transpose", "x", "t", perm=[0, 1, 3, 2]), node("Relu", "t", "a"), last="a"),
}


@pytest.mark.parametrize("name", WITH_RULES)
def test_scores_and_gradients_are_those_of_torch(name: str, tmp_path: Path) -> None:
    twin, pull = both(WITH_RULES[name], tmp_path)
    assert pull is not None
    points = torch.rand(7, *SHAPE, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    assert twin.scores is not None
    scores = twin.scores(points)
    seeds = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3))
    (wanted,) = torch.autograd.grad((scores * seeds).sum(), points)
    found, gradients = pull(points.detach(), seeds)
    assert torch.allclose(found, scores, rtol=1e-4, atol=1e-5)
    assert torch.allclose(gradients, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    assert float(wanted.abs().max()) > 0


WITHOUT = {
    "no rule": classifier(node("Erf", "x", "a"), last="a"),
    "spread out": classifier(node("GlobalAveragePool", "x", "p"), node("Mul", "x p", "a"), last="a"),
    "widened by zeros": classifier(
        node("GlobalAveragePool", "x", "p"), node("Sub", "p z", "a"), last="a", z=np.zeros((1, *SHAPE), np.float32)
    ),
    "overlapping means": classifier(node("AveragePool", "x", "a", kernel_shape=[3, 3]), last="a"),
    "ends in a softmax": graph_of(
        [node("Flatten", "x", "f"), node("MatMul", "f w", "z"), node("Softmax", "z", "y", axis=1)],
        17,
        ("n", *SHAPE),
        {"w": floats(math.prod(SHAPE), 5)},
    ),
    "quantised": classifier(
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "a"),
        last="a",
        s=np.float32(0.01),
        z=np.uint8(0),
    ),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_has_no_rule_is_left_to_torch(name: str, tmp_path: Path) -> None:
    assert both(WITHOUT[name], tmp_path)[1] is None


def test_mean_and_std_go_before_a_foreign_file(tmp_path: Path) -> None:
    twin = build(save(WITH_RULES["relu"], tmp_path))
    assert twin.scores is not None
    before = Preprocessing(mean=(0.4,) * 6, std=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    module, points = with_preprocessing(twin.scores, before), torch.rand(3, *SHAPE)
    pull = pull_of(twin, before, module, points, 1)
    assert pull is not None  # it is held against the module behind the same
    assert torch.allclose(pull(points, torch.ones(3, 5))[0], module(points), atol=1e-4)


def test_way_back_that_is_not_torchs_is_not_used(tmp_path: Path) -> None:
    twin = build(save(WITH_RULES["relu"], tmp_path))
    other = build(save(WITH_RULES["tanh"], tmp_path))
    assert other.scores is not None
    assert pull_of(twin, Preprocessing(), other.scores, torch.rand(4, *SHAPE), 1) is None


@pytest.mark.parametrize("attack", ["pgd", "apgd_t", "fab_t", "fmn"])
def test_attacks_find_the_same_with_and_without_torch(attack: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0).standard_normal
    weights = {"w": draw((6, 6, 3, 3)).astype(np.float32), "head": draw((120, 5)).astype(np.float32)}
    layers = [*conv(pads=[1, 1, 1, 1], strides=[2, 2]), node("Relu", "c", "r"), node("Flatten", "r", "f")]
    last = node("MatMul", "f head", "y")
    model = graph_of([*layers, last], 17, ("n", *SHAPE), weights)
    twin, pull = both(model, tmp_path)
    assert twin.scores is not None
    module, images = twin.scores, grid_images(24, shape=SHAPE)
    assert pull is not None
    asked: list[int] = []

    def counted(points: torch.Tensor, seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(points))
        found: tuple[torch.Tensor, torch.Tensor] = pull(points, seeds)
        return found

    run = protocols.find("attack", attack.replace("_", "-"))
    victim, labels = victim_of(module), torch.from_numpy(labels_of(module, images))
    found = [
        run(each, torch.from_numpy(images), labels, budget_of(0.02), progress=silent).fell
        for each in (victim, replace(victim, pull=counted))
    ]
    assert 0 < int(found[0].sum()) < 24
    assert asked
    assert torch.equal(*found)
