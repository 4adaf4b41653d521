"""Limits of widths: read as people write them, kept to by every goal, refused where they contradict each other."""

from __future__ import annotations

import dataclasses

import pytest
from test_allocation import _member, chain, scores_of

from edgeprune.config import PruneConfig
from edgeprune.errors import UsageError
from edgeprune.pruning.allocation import Rules, by_macs, choices_of
from edgeprune.pruning.limits import Amount, bounds_of, span
from edgeprune.pruning.plan import allocate
from edgeprune.pruning.shortfall import notes_on
from edgeprune.types import ChannelGraph, Goal, Group, Refusal


def rules_of(graph: ChannelGraph, **settings: object) -> Rules:
    return Rules(bounds=bounds_of(graph, PruneConfig.model_validate(settings).limits()))


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("16..48", Amount(16, False), Amount(48, False)),
        ("16..", Amount(16, False), None),
        ("..75%", None, Amount(0.75, True)),
        ("0.25..0.5", Amount(0.25, True), Amount(0.5, True)),
        ("32", Amount(32, False), Amount(32, False)),
        (" 25 % .. 48 ", Amount(0.25, True), Amount(48, False)),
    ],
)
def test_ranges_are_read_as_people_write_them(text: str, least: Amount | None, most: Amount | None) -> None:
    assert (span(text).least, span(text).most) == (least, most)


@pytest.mark.parametrize("text", ["", "..", "48..16", "0..8", "150%", "-4..", "1..2..3", "many", "16-48", "75%..25%"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|first"):
        span(text)


@pytest.mark.parametrize("goal", [Goal("ratio", 0.9), Goal("macs_ratio", 0.05)])
@pytest.mark.parametrize("ranking", ["local", "global", "isomorphic"])
def test_floors_and_ceilings_hold_for_every_goal(goal: Goal, ranking: str) -> None:
    graph = chain(64, 64, 64)
    rules = rules_of(graph, min_width=16, widths={"l1": "40..48"})
    rules = dataclasses.replace(rules, ranking=ranking)  # type: ignore[arg-type]
    assert allocate(graph, scores_of(graph), goal, 8, rules) == {"l0": 16, "l1": 40, "l2": 16}


def test_a_ceiling_is_kept_to_where_the_goal_asks_for_less() -> None:
    graph = chain(64, 64, 64)
    found = by_macs(graph, scores_of(graph), 0.9, 8, rules_of(graph, widths={"l1": "..32"}))
    assert found == {"l0": 64, "l1": 32, "l2": 64}


def test_shares_are_of_the_dense_width() -> None:
    graph = chain(64, 128)
    assert allocate(graph, scores_of(graph), Goal("ratio", 0.9), 8, rules_of(graph, min_width="50%")) == {
        "l0": 32,
        "l1": 64,
    }


def test_channels_of_a_grouped_layer_are_counted_not_its_units() -> None:
    graph = chain(64, units=4)
    (choices,) = choices_of(graph, 8, rules_of(graph, min_width=32))
    assert choices == (16, 14, 12, 10, 8)


def test_a_layer_below_its_floor_is_left_alone() -> None:
    graph = chain(16, 64)
    assert choices_of(graph, 8, rules_of(graph, min_width=32)) == [(16,), (64, 56, 48, 40, 32)]


def test_never_below_one_multiple() -> None:
    graph = chain(64)
    assert choices_of(graph, 8, rules_of(graph, min_width=1))[0][-1] == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": {"l0": "..4"}}, "no width of l0 is at least 1 and at most 4"),
        ({"widths": {"l0": "33..39"}}, "no width of l0 is at least 33 and at most 39"),
        ({"min_width": 48, "widths": {"l0": "..32"}}, "no width of l0 meets all limits: at least 48 and at most 32"),
        ({"widths": {"l9": "..32"}}, "l9 = ..32 cannot be kept to"),
    ],
)
def test_contradictions_are_errors_that_name_the_settings(settings: dict[str, object], message: str) -> None:
    graph = chain(64, 64)
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        choices_of(graph, 8, rules_of(graph, **settings))


def test_limits_of_coupled_layers_meet() -> None:
    members = (_member("a", "out", 64, 1), _member("b", "out", 64, 1), _member("l1", "in", 64, 1))
    graph = dataclasses.replace(chain(64), groups=(Group("a", 64, members),))
    assert bounds_of(graph, PruneConfig(widths={"a": "16..", "b": "..32"}).limits())["a"].most == 32
    with pytest.raises(UsageError, match="meets all limits") as caught:
        bounds_of(graph, PruneConfig(widths={"a": "48..", "b": "..32"}).limits())
    assert "widths: a = 48.." in str(caught.value)
    assert "widths: b = ..32" in str(caught.value)


def test_a_ceiling_on_what_cannot_be_pruned_says_why() -> None:
    graph = dataclasses.replace(chain(64), refusals=(Refusal("odd", "it is odd", ("odd",)),))
    with pytest.raises(UsageError, match="odd: it is odd"):
        bounds_of(graph, PruneConfig(widths={"odd": "..8"}).limits())
    assert bounds_of(graph, PruneConfig(widths={"odd": "8.."}).limits()) == {}


def test_a_goal_that_is_met_needs_no_words() -> None:
    graph = chain(64, 64)
    widths = by_macs(graph, scores_of(graph), 0.5, 1)
    assert notes_on(graph, widths, Goal("macs_ratio", 0.5), 1) == ()


def test_an_unreachable_goal_says_how_far_and_what_stands_in_the_way() -> None:
    graph = chain(64, 64)
    refused = dataclasses.replace(
        graph,
        groups=graph.groups[:1],
        layers=(*graph.layers, dataclasses.replace(graph.layers[0], name="odd", macs=graph.macs)),
        macs=2 * graph.macs,
        refusals=(Refusal("odd", "it is odd", ("odd",)),),
    )
    goal = Goal("macs_ratio", 0.1)
    widths = by_macs(refused, scores_of(refused), goal.value, 8)
    notes = notes_on(refused, widths, goal, 8)
    assert notes[0].startswith("the goal cannot be reached: ")
    assert "where 10% was asked" in notes[0]
    assert any("odd (50%): it is odd" in note for note in notes)


def test_a_coarse_step_is_named() -> None:
    graph = chain(16)
    goal = Goal("macs_ratio", 0.8)
    notes = notes_on(graph, by_macs(graph, scores_of(graph), 0.8, 8), goal, 8)
    said = "one step of l0 is 50% of the MACs (widths end on multiples of 8)"
    assert notes == (f"50% of the MACs are left where 80% was asked: {said}",)


def test_groups_in_which_nothing_goes_are_named_for_a_ratio() -> None:
    graph = chain(64, 8)
    goal = Goal("ratio", 0.5)
    notes = notes_on(graph, allocate(graph, scores_of(graph), goal, 8), goal, 8)
    assert "nothing goes in 1 of 2 groups: l1" in notes
    assert any("l1 cannot be cut in multiples of 8" in note for note in notes)


def test_limits_that_stand_in_the_way_are_named() -> None:
    graph = chain(64, 64)
    rules = rules_of(graph, min_width="75%")
    goal = Goal("macs_ratio", 0.2)
    notes = notes_on(graph, by_macs(graph, scores_of(graph), 0.2, 8, rules), goal, 8, rules)
    assert any("limits hold 2 of 2 groups (min_width = 75%)" in note for note in notes)
