"""Aiming at a time: a fake clock with a known law, a noisy one, a cliff, goals out of reach."""

from __future__ import annotations

import numpy as np
import pytest
from test_allocation import chain, scores_of

from edgeprune.errors import PruningError
from edgeprune.pruning.aim import TOLERANCE, Timing, aim, reached
from edgeprune.pruning.allocation import macs_of
from edgeprune.types import ChannelGraph, Goal, Scores

DENSE_MS = 8.0


class Clock:
    """Times a network by a law of its share of MACs, and counts how often it was asked."""

    def __init__(self, graph: ChannelGraph, power: float = 1.0, noise: float = 0.0, cliff: float = 0.0) -> None:
        self.graph, self.power, self.noise, self.cliff = graph, power, noise, cliff
        self.generator, self.seen = np.random.default_rng(0), list[dict[str, int]]()

    def __call__(self, widths: dict[str, int]) -> Timing:
        self.seen.append(widths)
        share = macs_of(self.graph, widths) / self.graph.macs
        if self.cliff:
            share = 0.9 if share > self.cliff else 0.3
        ms = DENSE_MS * share**self.power * (1 + self.noise * self.generator.standard_normal())
        return Timing(DENSE_MS / ms, ms)


@pytest.fixture
def graph() -> ChannelGraph:
    return chain(64, 128, 128, 256)


@pytest.fixture
def scores(graph: ChannelGraph) -> Scores:
    return scores_of(graph)


@pytest.mark.parametrize("power", [0.4, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("speedup", [1.3, 2.0, 3.0])
def test_power_law_is_met_within_the_tolerance(
    graph: ChannelGraph, scores: Scores, power: float, speedup: float
) -> None:
    clock = Clock(graph, power)
    aimed = aim(graph, scores, Goal("speedup", speedup), 1, clock)
    assert 1 <= aimed.timing.speedup / speedup <= 1 + TOLERANCE
    assert aimed.timing == Clock(graph, power)(aimed.widths)
    assert len(clock.seen) <= 7
    assert aimed.notes == (
        f"aimed on candidates before recovery: {aimed.timing.speedup:.2f}x, p50 {aimed.timing.latency_ms:.3g} ms",
    )


def test_latency_goal_is_met_from_below(graph: ChannelGraph, scores: Scores) -> None:
    aimed = aim(graph, scores, Goal("latency_ms", 3.0), 1, Clock(graph, 0.8))
    assert 3.0 / (1 + TOLERANCE) <= aimed.timing.latency_ms <= 3.0


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_noisy_clock_gives_a_plan_that_was_seen_to_meet_the_goal(
    graph: ChannelGraph, scores: Scores, noise: float
) -> None:
    aimed = aim(graph, scores, Goal("speedup", 2.0), 8, Clock(graph, noise=noise))
    assert aimed.timing.speedup >= 2.0
    assert 0.3 < macs_of(graph, aimed.widths) / graph.macs < 0.6


def test_cliff_ends_on_its_wide_side_and_says_that_the_goal_is_exceeded(graph: ChannelGraph, scores: Scores) -> None:
    aimed = aim(graph, scores, Goal("speedup", 2.0), 1, Clock(graph, cliff=0.6))
    assert aimed.timing.speedup == pytest.approx(1 / 0.3)
    assert macs_of(graph, aimed.widths) / graph.macs == pytest.approx(0.6, abs=0.1)
    assert aimed.notes[0] == "the speed-up goal is exceeded (167% of it): the wider plans that were measured miss it"


def test_goal_out_of_reach_gives_the_fastest_plan_and_a_note(graph: ChannelGraph, scores: Scores) -> None:
    clock = Clock(graph, 0.1)
    aimed = aim(graph, scores, Goal("speedup", 5.0), 8, clock)
    assert aimed.timing.speedup == max(Clock(graph, 0.1)(widths).speedup for widths in clock.seen)
    assert macs_of(graph, aimed.widths) / graph.macs < 0.015
    assert aimed.notes[0].startswith("the speed-up goal was not reached")


def test_nothing_is_measured_twice(graph: ChannelGraph, scores: Scores) -> None:
    clock = Clock(graph, 0.5, cliff=0.5)
    aim(graph, scores, Goal("latency_ms", 4.0), 32, clock)
    assert all(widths not in clock.seen[:i] for i, widths in enumerate(clock.seen))


def test_goal_that_is_met_by_any_cut_takes_the_smallest_one(graph: ChannelGraph, scores: Scores) -> None:
    aimed = aim(graph, scores, Goal("latency_ms", 100.0), 8, Clock(graph))
    assert macs_of(graph, aimed.widths) / graph.macs > 0.9
    assert "exceeded" in aimed.notes[0]


def test_goal_next_to_the_dense_network_still_removes_something() -> None:
    graph = chain(16, 16)
    aimed = aim(graph, scores_of(graph), Goal("speedup", 1.01), 8, Clock(graph))
    assert macs_of(graph, aimed.widths) < graph.macs


def test_nothing_to_remove_is_an_error() -> None:
    graph = chain(8, 8)
    clock = Clock(graph)
    with pytest.raises(PruningError, match="removes nothing"):
        aim(graph, scores_of(graph), Goal("speedup", 2.0), 8, clock)
    assert not clock.seen


def test_progress_names_the_share_of_macs(graph: ChannelGraph, scores: Scores) -> None:
    said: list[tuple[str, float]] = []
    clock = Clock(graph)
    aim(graph, scores, Goal("speedup", 2.0), 1, clock, progress=lambda text, share: said.append((text, share)))
    assert said[0] == ("measuring candidate 1: 49% of the MACs", 0.0)
    assert all(0 <= share < 1 for _, share in said)


@pytest.mark.parametrize(
    ("goal", "expected"), [(Goal("speedup", 2.0), 1.5), (Goal("latency_ms", 4.0), 2.0), (Goal("latency_ms", 1.0), 0.5)]
)
def test_share_of_the_goal(goal: Goal, expected: float) -> None:
    assert reached(goal, Timing(3.0, 2.0)) == expected
