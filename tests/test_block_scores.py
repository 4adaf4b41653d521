"""Scores of blocks with known answers, and what allocation makes of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_pruning_blocks import Basic, Net, bundled, conv, graph_of, resnet
from torch import Tensor, nn
from toy_networks import split_of, stripes

from edgeprune import protocols
from edgeprune.config import PruneConfig
from edgeprune.errors import PruningError, UsageError
from edgeprune.pruning import block_scores
from edgeprune.pruning.aim import Proposals, Timing, aim_among
from edgeprune.pruning.allocation import by_macs
from edgeprune.pruning.block_allocation import (
    BLOCK_PRICE,
    Choice,
    Importance,
    _cost,
    by_budget,
    macs_after,
    without,
)
from edgeprune.pruning.importance import importance_of
from edgeprune.pruning.plan import choose
from edgeprune.types import BlockScores, ChannelGraph, Goal, ModelBundle, Scores, Split

WITH_DATA = ["taylor", "cka", "loss"]
TRAIN = split_of(*stripes(64))


def with_an_idle_block() -> ModelBundle:
    """Three blocks; the second one's branch is zero, so that it is the identity."""
    bundle = bundled(Net(Basic(16, 16), Basic(16, 16), Basic(16, 16)))
    norm = bundle.module.get_submodule("blocks.1.two.1")
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.zero_()
    return bundle


def trained(module: nn.Module) -> None:
    """All but the idle block learn the training images, so that the network is worse without them. In place."""
    images, labels = torch.from_numpy(TRAIN.source.read(TRAIN.ids)), torch.from_numpy(TRAIN.labels())
    learning = [p for name, p in module.named_parameters() if not name.startswith("blocks.1")]
    optimizer = torch.optim.Adam(learning, 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    module.zero_grad()


def scores(name: str, bundle: ModelBundle, graph: ChannelGraph, train: Split | None = TRAIN) -> BlockScores:
    criterion: protocols.BlockCriterion = protocols.find("block criterion", name)
    return criterion(bundle, graph, train, seed=0)


@pytest.mark.parametrize("name", [*WITH_DATA, "magnitude"])
def test_block_that_is_the_identity_is_the_least_important(name: str) -> None:
    bundle = with_an_idle_block()
    trained(bundle.module)
    found = scores(name, bundle, graph_of(bundle))
    assert min(found.values, key=found.values.__getitem__) == "blocks.1"
    assert found.values["blocks.1"] == pytest.approx(0, abs=1e-9)
    assert sum(found.values.values()) / 3 == pytest.approx(1)
    assert "mean of the blocks = 1" in found.normalisation


def test_every_criterion_is_a_plugin_and_leaves_the_network_alone() -> None:
    assert protocols.names("block criterion") == ("cka", "loss", "magnitude", "random", "taylor")
    bundle = bundled(resnet())
    graph, before = graph_of(bundle), {k: v.clone() for k, v in bundle.module.state_dict().items()}
    for name in protocols.names("block criterion"):
        found = scores(name, bundle, graph)
        assert found.criterion == name
        assert found.values == scores(name, bundle, graph).values
        block_scores.check_block_scores(graph, found)
    assert all(torch.equal(value, before[key]) for key, value in bundle.module.state_dict().items())
    assert all(parameter.grad is None for parameter in bundle.module.parameters())


@pytest.mark.parametrize("name", WITH_DATA)
def test_criteria_that_look_at_images_need_them(name: str) -> None:
    bundle = bundled(resnet())
    with pytest.raises(UsageError, match="needs training data"):
        scores(name, bundle, graph_of(bundle), None)


def test_loss_is_the_rise_of_the_cross_entropy_without_the_block() -> None:
    bundle = bundled(Net(Basic(16, 16), Basic(16, 16)))
    images, labels = torch.from_numpy(TRAIN.source.read(TRAIN.ids)), torch.from_numpy(TRAIN.labels())

    def loss(blocks: nn.Module) -> float:
        module = bundle.module
        with torch.no_grad():
            logits = module.head(blocks(module.stem(images)).mean((2, 3)))
        return float(nn.functional.cross_entropy(logits, labels))

    one, two = bundle.module.blocks
    rises = [loss(rest) - loss(nn.Sequential(one, two)) for rest in (two, one)]
    rises = [rise - min(0.0, *rises) for rise in rises]
    mean = sum(rises) / 2
    found = scores("loss", bundle, graph_of(bundle))
    assert mean > 0
    assert list(found.values.values()) == pytest.approx([rise / mean for rise in rises], rel=1e-3, abs=1e-6)


def test_cka_is_one_for_a_turn_and_nothing_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 6, generator=generator)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    noise = torch.randn(200, 6, generator=generator)

    def alike(one: Tensor, other: Tensor) -> float:
        a, b = block_scores._similarities(one), block_scores._similarities(other)
        return block_scores._hsic(a, b) / math.sqrt(block_scores._hsic(a, a) * block_scores._hsic(b, b))

    assert alike(points, 3 * points @ turn) == pytest.approx(1, abs=1e-6)
    assert alike(points, noise) == pytest.approx(0, abs=0.02)


class Scaled(nn.Module):
    """Adds a scaled input: what it adds, and so the loss's slope at its gates, is known."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x)


def test_taylor_is_the_slope_of_the_loss_at_the_gates() -> None:
    bundle = bundled(Net(Scaled(), Scaled()))
    module, graph = bundle.module, graph_of(bundle)
    images, labels = torch.from_numpy(TRAIN.source.read(TRAIN.ids)), torch.from_numpy(TRAIN.labels())
    gates = [torch.ones(1, 16, 1, 1, requires_grad=True) for _ in range(2)]
    x = module.stem(images)
    for gate, block in zip(gates, module.blocks, strict=True):
        x = x + gate * block.mix(x)
    nn.functional.cross_entropy(module.head(x.mean((2, 3))), labels).backward()
    raw = [float(gate.grad.square().sum()) for gate in gates]
    found = list(scores("taylor", bundle, graph).values.values())
    assert found == pytest.approx([2 * value / sum(raw) for value in raw], rel=1e-4)


def equal(graph: ChannelGraph) -> Scores:
    return Scores("equal", {group.name: np.ones(group.width) for group in graph.groups}, "none")


def ranked(graph: ChannelGraph, **values: float) -> BlockScores:
    return BlockScores("ranked", {b.name: values.get(b.name.replace(".", "_"), 1.0) for b in graph.blocks}, "none")


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return graph_of(bundled(Net(*(Basic(16, 16) for _ in range(4)))))


def test_blocks_go_in_the_order_of_importance_for_their_macs(graph: ChannelGraph) -> None:
    importance = Importance.of_blocks(graph, ranked(graph, blocks_2=0.1, blocks_0=0.5))
    assert choose(graph, importance, Goal("ratio", 0.5), 1).removed == ("blocks.2", "blocks.0")
    assert choose(graph, importance, Goal("ratio", 0.25), 1).removed == ("blocks.2",)
    found = choose(graph, importance, Goal("macs_ratio", 0.53), 1)
    assert found.removed == ("blocks.2", "blocks.0")
    assert set(found.widths.values()) == {16}
    assert macs_after(graph, found) == graph.macs - 2 * graph.blocks[0].macs


def test_goal_that_blocks_cannot_meet_closely_is_said(graph: ChannelGraph) -> None:
    importance = Importance.of_blocks(graph, ranked(graph))
    assert "blocks go as a whole" in choose(graph, importance, Goal("macs_ratio", 0.85), 1).notes[0]
    few = dataclasses.replace(graph, blocks=graph.blocks[:1])
    assert "all removable blocks are gone" in choose(few, importance, Goal("macs_ratio", 0.3), 1).notes[0]


def test_aiming_does_not_measure_the_same_blocks_twice(graph: ChannelGraph) -> None:
    importance = Importance.of_blocks(graph, ranked(graph))
    seen: list[tuple[str, ...]] = []

    def clock(choice: Choice) -> Timing:
        seen.append(choice.removed)
        share = macs_after(graph, choice) / graph.macs
        return Timing(1 / share, share)

    goal = Goal("speedup", 1.6)
    aimed = aim_among(
        goal,
        Proposals(
            lambda ratio: by_budget(graph, importance, ratio, 1), lambda choice: macs_after(graph, choice) / graph.macs
        ),
        clock,
    )
    assert len(set(seen)) == len(seen) <= len(graph.blocks)
    assert len(aimed.widths.removed) == 2  # one block is too slow, two are faster than asked for
    assert "the speed-up goal is exceeded" in aimed.notes[0]


def test_cheap_blocks_win_against_channels_and_dear_ones_lose(graph: ChannelGraph) -> None:
    cheap = Importance("both", equal(graph), ranked(graph, **{f"blocks_{i}": 0.01 for i in range(4)}))
    dear = Importance("both", equal(graph), ranked(graph, **{f"blocks_{i}": 100.0 for i in range(4)}))
    assert len(by_budget(graph, cheap, 0.5, 1).removed) >= 2
    lost = by_budget(graph, dear, 0.5, 1)
    assert lost.removed == ()
    for importance in (cheap, dear):
        assert macs_after(graph, by_budget(graph, importance, 0.5, 1)) / graph.macs == pytest.approx(0.5, abs=0.06)


def test_both_loses_least_of_all_numbers_of_blocks(graph: ChannelGraph) -> None:
    importance = Importance("both", equal(graph), ranked(graph, blocks_1=0.05, blocks_3=0.1))
    best = by_budget(graph, importance, 0.5, 1)
    order = ("blocks.1", "blocks.3", "blocks.0", "blocks.2")
    for count in range(3):
        shorter = without(graph, order[:count])
        widths = by_macs(shorter, importance.channels, graph.macs * 0.5 / shorter.macs, 1)
        assert _cost(graph, importance, best) <= _cost(graph, importance, Choice(widths, order[:count])) + 1e-9
    assert best.removed == ("blocks.1", "blocks.3")


def test_a_block_costs_what_two_halvings_of_a_group_cost(graph: ChannelGraph) -> None:
    importance = Importance("both", equal(graph), ranked(graph))
    full = {group.name: group.width for group in graph.groups}
    quarter = full | {"blocks.0.one.0": 4}
    shorter = {group.name: group.width for group in without(graph, ["blocks.0"]).groups}
    assert _cost(graph, importance, Choice(quarter)) == pytest.approx(BLOCK_PRICE)
    assert _cost(graph, importance, Choice(shorter, ("blocks.0",))) == pytest.approx(BLOCK_PRICE)


def test_ratio_of_both_takes_the_share_of_blocks_and_of_what_is_left(graph: ChannelGraph) -> None:
    found = choose(graph, Importance("both", equal(graph), ranked(graph, blocks_3=0.1)), Goal("ratio", 0.25), 4)
    assert found.removed == ("blocks.3",)
    assert set(found.widths.values()) == {12}


def broken(value: float) -> Callable[[ChannelGraph], BlockScores]:
    return lambda graph: BlockScores("plugin", {block.name: value for block in graph.blocks}, "none")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_scores_that_make_no_sense_are_refused(graph: ChannelGraph, value: float) -> None:
    importance = Importance.of_blocks(graph, broken(value)(graph))
    with pytest.raises(PruningError, match="the block criterion plugin does not score"):
        choose(graph, importance, Goal("macs_ratio", 0.5), 1)


def test_network_without_blocks_is_an_error_that_says_why() -> None:
    bundle = bundled(Net(conv(16, 24), width=24))
    graph = graph_of(bundle)
    importance = importance_of(bundle, graph, None, PruneConfig(scope="blocks"), 0)
    with pytest.raises(PruningError, match="no block that can be removed") as caught:
        choose(graph, importance, Goal("ratio", 0.5), 1)
    assert "turns 16x8x8 into 24x8x8" in str(caught.value)


def test_default_criterion_looks_at_training_data_where_there_is_some() -> None:
    bundle = bundled(resnet())
    graph = graph_of(bundle)
    for train, expected in ((None, "magnitude"), (TRAIN, "loss")):
        found = importance_of(bundle, graph, train, PruneConfig(scope="both"), 0)
        assert found.blocks is not None
        assert found.blocks.criterion == expected
        assert found.channels.criterion == "l2"
    assert importance_of(bundle, graph, None, PruneConfig(), 0).blocks is None
