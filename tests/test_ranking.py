"""Who competes with whom: known orders of cuts, structures that are told apart, goals met within one step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_allocation import chain, scores_of

from edgeprune.pruning.allocation import Rules, by_macs, by_share, macs_of, steps_of
from edgeprune.pruning.plan import allocate
from edgeprune.pruning.ranking import Ranking, rivals, structure
from edgeprune.types import ChannelGraph, Goal, Member, Scores

RANKINGS: tuple[Ranking, ...] = ("local", "global", "isomorphic")


def two_structures() -> ChannelGraph:
    """A chain of four groups of 16, the last two of which pass a batch norm."""
    graph = chain(16, 16, 16, 16)
    normed = tuple(
        dataclasses.replace(g, members=(*g.members, Member(f"bn{i}", "BN", "out", g.members[0].channels)))
        for i, g in enumerate(graph.groups[2:])
    )
    return dataclasses.replace(graph, groups=(*graph.groups[:2], *normed))


def rising(graph: ChannelGraph, *levels: float) -> Scores:
    """Scores level + 0.01 i in each group."""
    return scores_of(
        graph,
        **{g.name: list(level + 0.01 * np.arange(g.width)) for g, level in zip(graph.groups, levels, strict=True)},
    )


def test_structure_minds_kinds_and_roles_but_not_widths() -> None:
    narrow, wide = chain(8, 8).groups[0], chain(64, 8).groups[0]
    assert structure(narrow) == structure(wide)
    assert len({structure(group) for group in two_structures().groups}) == 2
    tied = chain(16, units=2).groups[0]
    assert structure(tied) != structure(chain(16).groups[0])


@pytest.mark.parametrize(
    ("ranking", "expected"),
    [
        ("local", [["l0"], ["l1"], ["l2"], ["l3"]]),
        ("global", [["l0", "l1", "l2", "l3"]]),
        ("isomorphic", [["l0", "l1"], ["l2", "l3"]]),
    ],
)
def test_rivals(ranking: Ranking, expected: list[list[str]]) -> None:
    assert [[group.name for group in groups] for groups in rivals(two_structures(), ranking)] == expected


def test_local_takes_the_same_share_whatever_the_scores() -> None:
    graph = two_structures()
    assert set(by_share(graph, rising(graph, 0, 1, 2, 3), 0.5, "local", 1).values()) == {8}


def test_global_takes_the_least_important_channels_of_the_network() -> None:
    graph = two_structures()
    found = by_share(graph, rising(graph, 0, 1, 2, 3), 0.25, "global", 1)
    assert found == {"l0": 1, "l1": 15, "l2": 16, "l3": 16}  # 16 of 64 go; the last of a group stays, so the next goes


def test_isomorphic_takes_the_same_share_of_each_structure() -> None:
    graph = two_structures()
    found = by_share(graph, rising(graph, 0, 1, 3, 2), 0.25, "isomorphic", 1)
    assert found == {"l0": 8, "l1": 16, "l2": 16, "l3": 8}


def test_equal_scores_go_in_equal_shares() -> None:
    graph = chain(16, 32)
    assert by_share(graph, scores_of(graph), 0.5, "global", 1) == {"l0": 8, "l1": 16}


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("ratio", [0.97, 0.9, 0.7, 0.5, 0.3, 0.21])
def test_macs_end_within_one_step_of_the_goal(ranking: Ranking, ratio: float) -> None:
    graph = two_structures()
    generator = np.random.default_rng(0)
    scores = Scores("made up", {g.name: generator.random(g.width) for g in graph.groups}, "none")
    found = by_macs(graph, scores, ratio, 2, Rules(ranking))
    now, steps = macs_of(graph, found), []
    for group in graph.groups:
        widths = steps_of(group, 2)
        for other in (
            widths[max(widths.index(found[group.name]) - 1, 0)],
            widths[min(widths.index(found[group.name]) + 1, 7)],
        ):
            steps.append(abs(macs_of(graph, {**found, group.name: other}) - now))
    assert abs(now - ratio * graph.macs) <= max(steps)


def test_local_under_a_budget_stays_even() -> None:
    graph = two_structures()
    found = by_macs(graph, rising(graph, 0, 1, 2, 3), 0.5, 1, Rules("local"))
    assert max(found.values()) - min(found.values()) <= 1


@pytest.mark.parametrize("ranking", RANKINGS)
def test_every_ranking_serves_both_goals(ranking: Ranking) -> None:
    graph = two_structures()
    for goal in (Goal("ratio", 0.5), Goal("macs_ratio", 0.4)):
        found = allocate(graph, rising(graph, 0, 1, 2, 3), goal, 4, Rules(ranking))
        assert all(width % 4 == 0 for width in found.values())
        assert macs_of(graph, found) < graph.macs


def test_shares_of_a_network_that_was_pruned_before_count_from_the_dense_one() -> None:
    graph = chain(12, 24)  # of 16 and 32: a quarter is gone
    rules = Rules("local", dense={"l0": 16, "l1": 32})
    assert by_share(graph, scores_of(graph), 0.5, "local", 1, rules) == {"l0": 8, "l1": 16}
    pooled = by_share(graph, scores_of(graph), 0.5, "global", 1, rules)
    assert sum(pooled.values()) == pytest.approx(24, abs=1)
