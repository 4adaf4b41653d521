"""The problem against all of its solutions on small networks; prices against hand counts; blocks as variables."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from test_allocation import chain, scores_of

from edgeprune.config import PruneConfig
from edgeprune.errors import PruningError
from edgeprune.pruning.allocation import FREE, NothingLeftError, Rules, choices_of, macs_of
from edgeprune.pruning.block_allocation import Importance
from edgeprune.pruning.knapsack import Problem, axes, solve
from edgeprune.pruning.limits import bounds_of
from edgeprune.pruning.prices import Table, by_macs, by_time
from edgeprune.pruning.timed import TimedChoices, check_tables
from edgeprune.types import Block, BlockScores, ChannelGraph, Scores


def scored(graph: ChannelGraph, seed: int = 0) -> Scores:
    generator = np.random.default_rng(seed)
    return Scores("made up", {g.name: generator.random(g.width) + 0.05 for g in graph.groups}, "none")


def staircase(
    graph: ChannelGraph, multiple: int, block: int = 16
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], Table]]:
    """Tables of kernels that work on blocks of channels: outputs are rounded up, inputs are not."""
    tables = {}
    for name, (outputs, inputs) in axes(graph, choices_of(graph, multiple)).items():
        rounded = np.ceil(np.array(outputs) / block) * block
        tables[name] = (outputs, inputs, np.outer(rounded, inputs) * 1e-4 + 1e-3)
    return tables


def best_of_all(problem: Problem, budget: float) -> float:
    """The least loss inside the budget, by looking at every solution."""
    every = itertools.product(*(range(len(choices)) for choices in problem.choices))
    return min(
        (problem.loss(list(levels)) for levels in every if problem.price(list(levels)) <= budget), default=math.inf
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_solution_is_within_a_hair_of_the_best_of_all(seed: int, share: float) -> None:
    graph = chain(48, 64, 48)
    prices = by_time(graph, staircase(graph, 8))
    problem = Problem.of(graph, scored(graph, seed), prices, 8, FREE)
    budget = share * prices.total(np.zeros(3))
    levels = solve(problem, budget)
    assert problem.price(levels) <= budget
    assert problem.loss(levels) <= best_of_all(problem, budget) * 1.03 + 1e-9


def test_half_empty_kernel_blocks_are_never_bought() -> None:
    """24 channels cost what 32 cost: a width off the block is worse for the same price."""
    graph = chain(64, 64, 64)
    prices = by_time(graph, staircase(graph, 8))
    problem = Problem.of(graph, scores_of(graph), prices, 8, FREE)
    found = problem.widths(solve(problem, 0.45 * prices.total(np.zeros(3))))
    assert all(width % 16 == 0 for name, width in found.items() if name != "l2")


def test_a_budget_for_everything_removes_nothing_and_one_for_nothing_ends_at_the_narrowest() -> None:
    graph = chain(32, 32)
    prices = by_macs(graph)
    problem = Problem.of(graph, scores_of(graph), prices, 8, FREE)
    assert solve(problem, graph.macs) == [0, 0]
    with pytest.raises(NothingLeftError):
        problem.widths([0, 0])
    assert problem.widths(solve(problem, 1.0)) == {"l0": 8, "l1": 8}


def test_limits_hold() -> None:
    graph = chain(64, 64)
    rules = Rules(bounds=bounds_of(graph, PruneConfig(min_width=32).limits()))
    problem = Problem.of(graph, scores_of(graph), by_macs(graph), 8, rules)
    assert problem.widths(solve(problem, 1.0)) == {"l0": 32, "l1": 32}


def test_macs_as_a_price_are_the_macs() -> None:
    graph = chain(16, 32)
    prices = by_macs(graph)
    gone = np.array([5.0, 12.0])
    assert prices.total(gone) == pytest.approx(macs_of(graph, {"l0": 11, "l1": 20}))
    others = prices.alternatives(gone, 0, np.array([0.0, 5.0]))
    step = macs_of(graph, {"l0": 16, "l1": 20}) - macs_of(graph, {"l0": 11, "l1": 20})
    assert others[0] - others[1] == pytest.approx(step)


def test_a_layer_that_was_not_timed_costs_its_macs_at_the_rate_of_the_others() -> None:
    graph = chain(16, 16)
    tables = {"l1": ((16,), (16,), np.array([[2.0]]))}
    prices = by_time(graph, tables)
    rate = 2.0 / graph.layers[1].macs
    assert prices.of_layers(np.zeros(2)) == pytest.approx(
        [rate * graph.layers[0].macs, 2.0, rate * graph.layers[2].macs]
    )


def test_axes_are_the_widths_that_both_sides_may_have() -> None:
    graph = chain(32, 16)
    assert axes(graph, choices_of(graph, 8)) == {
        "l0": ((8, 16, 24, 32), (3,)),
        "l1": ((8, 16), (8, 16, 24, 32)),
        "l2": ((10,), (8, 16)),
    }


def timed(graph: ChannelGraph, importance: Importance, rules: Rules = FREE) -> TimedChoices:
    return TimedChoices(graph, importance, 8, rules, staircase(graph, 8))


@pytest.mark.parametrize("ranking", [None, "local", "global", "isomorphic"])
def test_proposals_keep_to_their_share_of_the_time(ranking: str | None) -> None:
    graph = chain(64, 96, 64)
    choices = timed(graph, Importance("channels", scored(graph)), Rules(ranking))  # type: ignore[arg-type]
    for share in (0.7, 0.4):
        found = choices.propose(share)
        assert 0.6 * share <= choices.share(found) <= share
        assert not found.removed


def with_block() -> ChannelGraph:
    """A chain in which the layer l1 is a block that can go."""
    import dataclasses

    graph = chain(32, 32, 32)
    return dataclasses.replace(graph, blocks=(Block("l1", "chain", ("l1",), graph.layers[1].macs, 0),))


@pytest.mark.parametrize(("value", "expected"), [(0.01, ("l1",)), (50.0, ())])
def test_a_block_goes_when_it_is_the_cheaper_way(value: float, expected: tuple[str, ...]) -> None:
    graph = with_block()
    blocks = BlockScores("made up", {"l1": value}, "none")
    choices = timed(graph, Importance("both", scores_of(graph), blocks))
    found = choices.propose(0.6)
    assert found.removed == expected
    assert choices.share(found) <= 0.6


def test_blocks_alone_go_until_the_budget_is_met() -> None:
    graph = with_block()
    importance = Importance.of_blocks(graph, BlockScores("made up", {"l1": 1.0}, "none"))
    found = timed(graph, importance).propose(0.6)
    assert found.removed == ("l1",)
    assert set(found.widths.values()) == {32}


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_costs_that_make_no_sense_are_an_error(value: float) -> None:
    with pytest.raises(PruningError, match="no finite cost of l0"):
        check_tables({"l0": ((8,), (8,), np.array([[value]]))})
