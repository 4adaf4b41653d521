"""Neighbours of the best plan: as cheap, different, and each with its reason."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_allocation import chain
from test_knapsack import scored, timed, with_block

from edgeprune.pruning.allocation import Rules
from edgeprune.pruning.block_allocation import Importance
from edgeprune.pruning.variants import variants
from edgeprune.types import BlockScores

SHARE = 0.5


def test_the_first_is_the_given_one_and_the_others_are_as_cheap_and_lose_more() -> None:
    graph = chain(64, 96, 64, 96)
    proposer = timed(graph, Importance("channels", scored(graph)))
    best = proposer.propose(SHARE)
    found = variants(proposer, best, SHARE, 5)
    assert found[0].choice is best
    assert found[0].lost == proposer.loss(best)
    assert 2 <= len(found) <= 5
    assert len({tuple(each.choice.widths.items()) for each in found}) == len(found)
    lost = [each.lost for each in found[1:]]
    assert lost == sorted(lost)
    assert lost[0] >= found[0].lost * 0.97  # the best is within a hair of the best of all
    for each in found:
        assert 0.9 * SHARE <= proposer.share(each.choice) <= SHARE
        assert each.lost == pytest.approx(proposer.loss(each.choice))


def test_a_group_that_weighs_more_keeps_more_and_one_that_weighs_less_keeps_less() -> None:
    graph = chain(64, 96, 64)
    proposer = timed(graph, Importance("channels", scored(graph)))
    best = proposer.propose(SHARE)
    for each in variants(proposer, best, SHARE, 20)[1:]:
        ((name, factor),) = each.proposer.emphasis.items()
        kept, before = each.choice.widths[name], best.widths[name]
        assert kept >= before if factor > 1 else kept <= before


@pytest.mark.parametrize("ranking", ["local", "isomorphic"])
def test_an_order_of_moves_has_no_variants(ranking: str) -> None:
    graph = chain(64, 96, 64)
    proposer = timed(graph, Importance("channels", scored(graph)), Rules(ranking))  # type: ignore[arg-type]
    assert len(variants(proposer, proposer.propose(SHARE), SHARE, 6)) == 1


def test_a_block_may_stay_or_go_as_well() -> None:
    graph = with_block()
    scores = BlockScores("made up", {"l1": 0.2}, "none")
    proposer = timed(graph, Importance("both", scored(graph), scores))
    found = variants(proposer, proposer.propose(SHARE), SHARE, 20)
    assert {each.choice.removed for each in found} == {(), ("l1",)}


def test_many_groups_are_sampled() -> None:
    graph = chain(*[16] * 24)
    proposer = timed(graph, Importance("channels", scored(graph)))
    found = variants(proposer, proposer.propose(SHARE), SHARE, 64)
    weighed = {name for each in found for name in each.proposer.emphasis}
    assert len(weighed) <= 8
    assert np.isfinite([each.lost for each in found]).all()


def test_what_is_known_to_be_fast_enough_is_among_them_as_it_is() -> None:
    graph = chain(64, 96, 64)
    proposer = timed(graph, Importance("channels", scored(graph)))
    best = proposer.propose(SHARE)
    fast, slow = proposer.propose(0.8 * SHARE), proposer.propose(1.5 * SHARE)
    knowing = dataclasses.replace(proposer, known=(fast, slow, best))
    found = variants(knowing, best, SHARE, 20)
    assert [each.choice for each in found].count(best) == 1
    assert slow not in [each.choice for each in found]
    (own,) = (each for each in found if each.choice == fast)
    assert own.lost == pytest.approx(proposer.loss(fast))
    assert own.proposer.propose(0.1) == own.proposer.propose(0.9) == fast
