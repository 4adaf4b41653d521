"""What every test of pruning checks: nothing is missing, and what was cut computes what was silenced."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from toy_networks import Lambda, bundle_of, randomized

from edgeprune.pruning.criteria import l2
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import allocate, apply, make_plan
from edgeprune.pruning.surgery import silence
from edgeprune.types import ChannelGraph, Goal, ModelBundle

Forward = Callable[[Lambda, Tensor], Tensor]
LAST = "no layer takes its channels in: they are the network's output"


def toy(function: Forward, **layers: nn.Module | nn.Parameter) -> ModelBundle:
    return bundle_of(randomized(Lambda(function, **layers)))


def widths(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.width for group in graph.groups}


def reasons(graph: ChannelGraph) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in graph.refusals}


def assert_nothing_is_missing(bundle: ModelBundle, graph: ChannelGraph) -> None:
    """Every layer's outputs are in a group or a refusal."""
    named = {member.name for group in graph.groups for member in group.members if member.role == "out"}
    named.update(name for refusal in graph.refusals for name in (refusal.name, *refusal.layers))
    for name, layer in bundle.module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d) and not name.startswith("attend."):
            assert name in named


def assert_pruned_right(bundle: ModelBundle, ratio: float = 0.5) -> ModelBundle:
    """Prune a bundle and compare, on its own weights, with the dense network whose channels are silenced."""
    graph = trace(bundle)
    assert_nothing_is_missing(bundle, graph)
    scores = l2(bundle, graph, None, seed=0)
    goal = Goal("ratio", ratio)
    plan = make_plan(bundle, graph, scores, allocate(graph, scores, goal, 1), goal, 1, 0)
    pruned = apply(plan, bundle, graph)
    gone = {group.name: [u for u in range(group.width) if u not in group.kept] for group in plan.groups}
    images = torch.rand(3, *bundle.input_shape)
    with torch.no_grad():
        expected = silence(bundle.module, graph.groups, gone)(images)
        torch.testing.assert_close(pruned.module(images), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected, bundle.module(images), rtol=1e-3)
    assert sum(p.numel() for p in pruned.module.parameters()) == plan.parameters < plan.dense_parameters
    return pruned
