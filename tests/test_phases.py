"""Strided convolutions go back as plain ones: the same gradient as torch's, without a transposed convolution."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from test_way_back import SHAPE
from twin_examples import floats, graph_of, node, save

from edgeprune.robustness.twin.building import Twin, build
from edgeprune.robustness.twin.drafting import drafted
from edgeprune.robustness.twin.phases import FEWEST, phases_of
from edgeprune.robustness.twin.pulling import pull_of
from edgeprune.robustness.twin.way_back import RULES
from edgeprune.types import Preprocessing

SIZES = (12, 8)


def twin_of_conv(folder: Path, channels: int = FEWEST, sizes: tuple[int, int] = SIZES, **said: Any) -> Twin:
    """`channels` maps of `sizes`, made by a plain convolution, and 8 more by the convolution that is meant."""
    group = said.get("group", 1)
    weights = {"w": floats(channels, 2, 3, 3), "v": floats(8, channels // group, *said["kernel_shape"])}
    layers = [
        node("Conv", "x w", "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        node("Conv", "r v", "d", **said),
        node("GlobalAveragePool", "d", "mean"),
        node("Flatten", "mean", "flat"),
        node("MatMul", "flat head", "y"),
    ]
    return build(save(graph_of(layers, 17, ("n", 2, *sizes), {**weights, "head": floats(8, 5)}), folder))


def operators(twin: Twin) -> list[str]:
    assert twin.wiring is not None
    return [
        each.op_type for each in onnx.load_from_string(drafted(twin.wiring, twin.layout.inner, RULES).back).graph.node
    ]


PHASED = {
    "3x3": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "4x4": {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "5x5": {"kernel_shape": [5, 5], "strides": [2, 2], "pads": [2, 2, 2, 2]},
    "tiles": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "rows and columns differ": {"kernel_shape": [6, 3], "strides": [3, 2], "pads": [2, 1, 1, 0]},
    "padded by name": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
}


@pytest.mark.parametrize("name", PHASED)
def test_gradients_are_those_of_torch(name: str, tmp_path: Path) -> None:
    twin = twin_of_conv(tmp_path, **PHASED[name])
    assert twin.scores is not None
    assert operators(twin).count("ConvTranspose") == 1  # of the first convolution, which has few channels
    points = torch.rand(5, 2, *SIZES, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    pull = pull_of(twin, Preprocessing(), twin.scores, points.detach(), 1)
    assert pull is not None
    scores = twin.scores(points)
    seeds = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3))
    (wanted,) = torch.autograd.grad((scores * seeds).sum(), points)
    assert float(wanted.abs().max()) > 0
    assert torch.allclose(pull(points.detach(), seeds)[1], wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


OTHERWISE: dict[str, dict[str, Any]] = {
    "few channels": {"channels": FEWEST - 1, **PHASED["3x3"]},
    "pixels that no tap reaches": {"kernel_shape": [1, 1], "strides": [2, 2]},
    "one axis only": {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]},
    "groups": {"group": 2, **PHASED["3x3"]},
    "phases of two sizes": {"sizes": (11, 8), **PHASED["3x3"]},
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_others_stay_transposed_convolutions(name: str, tmp_path: Path) -> None:
    assert operators(twin_of_conv(tmp_path, **OTHERWISE[name])).count("ConvTranspose") == 2


# (kernel, stride, padding before) that leave a phase without taps, or would have to be cropped.
REFUSED = {(2, 2, 1), (2, 2, 2), (2, 3, 0), (2, 3, 1), (2, 3, 2), (3, 2, 2), (3, 3, 1), (3, 3, 2), (4, 3, 2)}


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_every_tap_is_in_one_phase(kernel: int, stride: int, before: int) -> None:
    size = 12
    results = (size + 2 * before - kernel) // stride + 1
    phases = phases_of(size, results, kernel, stride, before)
    assert (phases is None) == ((kernel, stride, before) in REFUSED)
    if phases is None:
        return
    assert sorted(tap for phase in phases for tap in phase.taps) == list(range(kernel))
    assert all(results + each.before + each.after - len(each.taps) + 1 == size // stride for each in phases)


def test_a_mean_of_zero_and_a_scale_of_one_cost_nothing(tmp_path: Path) -> None:
    weights = {"w": floats(math.prod(SHAPE), 5), "zero": np.zeros((1, 6, 1, 1), np.float32)}
    layers = [
        node("Sub", "x zero", "s"),
        node("Div", "s one", "d"),
        node("Flatten", "d", "f"),
        node("MatMul", "f w", "y"),
    ]
    model = graph_of(layers, 17, ("n", *SHAPE), {**weights, "one": np.ones((6, 1, 1), np.float32)})
    twin = build(save(model, tmp_path))
    assert twin.wiring is not None
    both = drafted(twin.wiring, twin.layout.inner, RULES)
    found = {each.op_type for model in (both.there, both.back) for each in onnx.load_from_string(model).graph.node}
    assert not found & {"Sub", "Div"}
