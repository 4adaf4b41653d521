"""Random small networks: pruned at random, the proof, the forward pass, the exported file and the bundle hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from edgeprune.export.onnx import export_onnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pruning_checks import assert_nothing_is_missing, reasons
from torch import Tensor, nn
from toy_networks import SHAPE, Head, bundle_of, conv_bn, randomized

import edgeprune
from edgeprune import protocols
from edgeprune.config import ModelConfig
from edgeprune.pruning.criteria import random as by_chance
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import allocate, apply, make_plan, removals
from edgeprune.pruning.surgery import silence
from edgeprune.pruning.units import UNREAD
from edgeprune.types import ChannelGraph, Goal, ModelBundle

UNEVEN = "its channels reach some parts of a grouped convolution or a split only"


class Stage(nn.Module):
    """One part of a network: `width` channels in, `width_after` out."""

    KINDS = (
        "residual",
        "concatenated",
        "grouped",
        "depthwise",
        "wider",
        "gated",
        "split",
        "shuffled",
        "sized",
        "scaled",
        "attention",
    )

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind, self.size, self.num_heads = kind, width // 2, 2
        parts = {
            "residual": lambda w: [conv_bn(w, w + 2), conv_bn(w + 2, w)],
            "concatenated": lambda w: [conv_bn(w, 4), conv_bn(w, 6)],
            "grouped": lambda w: [conv_bn(w, 2 * w, groups=2), conv_bn(2 * w, w, kernel=1)],
            "depthwise": lambda w: [conv_bn(w, 2 * w, kernel=1), conv_bn(2 * w, 2 * w, groups=2 * w)],
            "wider": lambda w: [conv_bn(w, w + 4)],
            "gated": lambda w: [nn.Conv2d(w, 3, 1), nn.Conv2d(3, w, 1)],
            "split": lambda w: [conv_bn(w, w), conv_bn(w // 2, w), conv_bn(w // 2, w)],
            "shuffled": lambda w: [conv_bn(w, w), conv_bn(w, w)],
            "sized": lambda w: [conv_bn(w, 2 * (w // 2)), conv_bn(w // 2, w), conv_bn(w // 2, w)],
            "scaled": lambda w: [conv_bn(w, 4 * w)],
            "attention": lambda w: [nn.LayerNorm(w), nn.Linear(w, 3 * w), nn.Linear(w, w)],
        }[kind](width)
        self.parts = nn.ModuleList(parts)
        self.width_after = {"concatenated": width + 10, "depthwise": 2 * width, "wider": width + 4}.get(kind, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts
        if self.kind == "residual":
            return torch.relu(x + parts[1](torch.relu(parts[0](x))))
        if self.kind == "concatenated":
            return torch.relu(torch.cat([x, parts[0](x), parts[1](x)], 1))
        if self.kind == "gated":
            return x * torch.sigmoid(parts[1](torch.relu(parts[0](x.mean((2, 3), keepdim=True)))))
        if self.kind == "split":
            left, right = parts[0](x).chunk(2, 1)
            return torch.relu(parts[1](left) * parts[2](right))
        if self.kind == "sized":
            left, right = torch.split(parts[0](x), self.size, 1)
            return torch.relu(parts[1](left) + parts[2](right))
        if self.kind == "shuffled":
            y = parts[0](x)
            y = y.view(y.shape[0], 2, y.shape[1] // 2, y.shape[2], y.shape[3]).transpose(1, 2).flatten(1, 2)
            return torch.relu(parts[1](y))
        if self.kind == "attention":
            tokens = parts[0](x.flatten(2).transpose(1, 2))
            heads = parts[1](tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            seen = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2])
            return x + parts[2](seen.transpose(1, 2).flatten(2)).transpose(1, 2).view(x.shape)
        if self.kind == "scaled":
            return nn.functional.max_pool2d(nn.functional.pixel_shuffle(parts[0](x), 2), 2)
        for part in parts:
            x = torch.relu(part(x))
        return x


class Stages(nn.Module):
    """A stem, parts of these kinds, and a head."""

    def __init__(self, width: int, kinds: list[str]) -> None:
        super().__init__()
        self.stem, self.stages = conv_bn(3, width), nn.Sequential()
        for kind in kinds:
            self.stages.append(Stage(kind, width))
            width = self.stages[-1].width_after
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(torch.relu(self.stem(x))))
        return logits


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Parts of random kind, width and order."""
    kinds = st.lists(st.sampled_from(Stage.KINDS), min_size=1, max_size=4)
    return Stages(draw(st.sampled_from([4, 6, 8, 12])), draw(kinds))


def pruned_by_chance(bundle: ModelBundle, ratio: float, seed: int) -> tuple[ModelBundle, ChannelGraph, nn.Module]:
    """The pruned bundle, the groups, and the dense network with what went silenced."""
    graph = trace(bundle)
    scores, goal = by_chance(bundle, graph, None, seed=seed), Goal("ratio", ratio)
    plan = make_plan(bundle, graph, scores, allocate(graph, scores, goal, 1), goal, 1, seed)
    return apply(plan, bundle, graph), graph, silence(bundle.module, graph.groups, removals(plan)).eval()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(networks(), st.floats(0.2, 0.8), st.integers(0, 100))
def test_random_networks_are_pruned_right(module: nn.Module, ratio: float, seed: int) -> None:
    bundle = bundle_of(randomized(module, seed))
    pruned, graph, silent = pruned_by_chance(bundle, ratio, seed)
    assert_nothing_is_missing(bundle, graph)
    if not any(isinstance(layer, nn.LayerNorm) for layer in module.modules()):  # behind attention more is refused
        assert set(reasons(graph).values()) <= {UNREAD, UNEVEN}
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(images), silent(images), rtol=1e-3, atol=1e-4)


# An export takes seconds: a failing network is printed as it was drawn, not shrunk.
@settings(max_examples=3, deadline=None, derandomize=True, phases=[Phase.generate])
@given(networks(), st.integers(0, 100))
def test_random_networks_are_exported_and_come_back(module: nn.Module, seed: int) -> None:
    pruned, _, _ = pruned_by_chance(bundle_of(randomized(module, seed)), 0.5, seed)
    images = np.random.default_rng(seed).random((2, *SHAPE), dtype=np.float32)
    with torch.no_grad():
        expected = pruned.network()(torch.from_numpy(images)).numpy()
    with tempfile.TemporaryDirectory() as folder:
        edgeprune.save(pruned, Path(folder) / "pruned.pt")
        again = edgeprune.load(Path(folder) / "pruned.pt", ModelConfig(trust=("test_pruning_random", "toy_networks")))
        with torch.no_grad():
            np.testing.assert_array_equal(again.network()(torch.from_numpy(images)).numpy(), expected)
        export_onnx(again, Path(folder) / "pruned.onnx")
        session = protocols.find("runtime", "onnxruntime").open(Path(folder) / "pruned.onnx", threads=1)
        for size in (1, 2):
            np.testing.assert_allclose(session.logits(images[:size]), expected[:size], rtol=1e-3, atol=1e-4)
