"""Widths: on the multiple, within one step of the goal, and the least important channels first."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import PruningError
from edgeprune.pruning.allocation import by_macs, by_share, check_scores, kept_units, macs_of, steps_of
from edgeprune.pruning.plan import allocate
from edgeprune.types import ChannelGraph, Goal, Group, Layer, Member, Scores


def chain(*widths: int, classes: int = 10, units: int = 1) -> ChannelGraph:
    """A chain of layers of the given widths on 3 inputs and 100 positions; `units` channels go together."""
    sizes = (3, *widths, classes)
    layers = tuple(
        Layer(f"l{i}", "Conv2d", out, into, 100 * into * out, into * out)
        for i, (into, out) in enumerate(itertools.pairwise(sizes))
    )
    groups = tuple(
        Group(
            f"l{i}",
            width // units,
            (_member(f"l{i}", "out", width, units), _member(f"l{i + 1}", "in", width, units)),
        )
        for i, width in enumerate(widths)
    )
    return ChannelGraph(groups, (), layers, sum(layer.macs for layer in layers), 1)


def _member(name: str, role: str, width: int, units: int) -> Member:
    count = width // units
    channels = tuple(tuple(unit + count * part for part in range(units)) for unit in range(count))
    return Member(name, "CONV", "out" if role == "out" else "in", channels)


def scores_of(graph: ChannelGraph, **values: list[float]) -> Scores:
    given = {group.name: np.array(values.get(group.name, [1.0] * group.width)) for group in graph.groups}
    return Scores("made up", given, "none")


def uniform(graph: ChannelGraph, ratio: float, multiple: int) -> dict[str, int]:
    return by_share(graph, scores_of(graph), ratio, "local", multiple)


def test_macs_of_a_chain_are_the_products_of_its_widths() -> None:
    graph = chain(16, 32)
    assert macs_of(graph, {}) == 100 * (3 * 16 + 16 * 32 + 32 * 10) == graph.macs
    assert macs_of(graph, {"l0": 5, "l1": 7}) == 100 * (3 * 5 + 5 * 7 + 7 * 10)


@pytest.mark.parametrize(
    ("width", "units", "multiple", "expected"),
    [
        (16, 1, 8, (16, 8)),
        (16, 1, 4, (16, 12, 8, 4)),
        (10, 1, 8, (10, 8)),
        (8, 1, 8, (8,)),
        (5, 1, 8, (5,)),
        (4, 1, 1, (4, 3, 2, 1)),
        (32, 4, 8, (8, 6, 4, 2)),  # units of four channels: every second width is a multiple of 8
        (24, 3, 8, (8,)),  # units of three: only 8 of them are a multiple of 8
        (64, 32, 8, (2, 1)),
    ],
)
def test_widths_end_on_the_multiple(width: int, units: int, multiple: int, expected: tuple[int, ...]) -> None:
    assert steps_of(chain(width, units=units).groups[0], multiple) == expected


def test_multiple_holds_for_every_layer_of_a_group() -> None:
    members = (_member("a", "out", 16, 2), _member("b", "out", 8, 1), _member("c", "in", 16, 2))
    assert steps_of(Group("a", 8, members), 4) == (8, 4)


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 16), (0.3, 24), (0.1, 32), (0.99, 8), (0.625, 16)])
def test_uniform_takes_the_nearest_width(ratio: float, expected: int) -> None:
    assert uniform(chain(32, 64), ratio, 8)["l0"] == expected


def test_uniform_ends_within_one_step_of_every_group() -> None:
    graph = chain(13, 32, 100, 7)
    for ratio, multiple in itertools.product((0.2, 0.5, 0.8), (1, 4, 8)):
        for group in graph.groups:
            width = uniform(graph, ratio, multiple)[group.name]
            assert width in steps_of(group, multiple)
            if group.width > multiple:
                assert abs(width - group.width * (1 - ratio)) <= multiple


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=5),
    st.floats(0.05, 0.95),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 9),
)
def test_by_macs_ends_within_one_step_of_the_goal(widths: list[int], ratio: float, multiple: int, seed: int) -> None:
    graph = chain(*widths)
    generator = np.random.default_rng(seed)
    scores = Scores("made up", {g.name: generator.random(g.width) for g in graph.groups}, "none")
    try:
        found = by_macs(graph, scores, ratio, multiple)
    except PruningError:
        assert all(len(steps_of(group, multiple)) == 1 for group in graph.groups)
        return
    goal, now = graph.macs * ratio, macs_of(graph, found)
    assert all(found[group.name] in steps_of(group, multiple) for group in graph.groups)
    one_step = max(
        macs_of(graph, found | {group.name: wider}) - now
        for group in graph.groups
        if (wider := _back(group, found, multiple))
    )
    narrower = [width for group in graph.groups for width in steps_of(group, multiple) if width < found[group.name]]
    assert goal - one_step < now
    assert now <= goal or not narrower or now - goal <= one_step


def _back(group: Group, widths: Mapping[str, int], multiple: int) -> int | None:
    return next((width for width in reversed(steps_of(group, multiple)) if width > widths[group.name]), None)


def test_by_macs_cuts_where_importance_is_cheapest() -> None:
    graph = chain(16, 16)
    found = by_macs(graph, scores_of(graph, l0=[10.0] * 16, l1=[0.1] * 16), 0.6, 1)
    assert found["l0"] == 16
    assert found["l1"] < 10


def test_unimportant_half_of_a_group_goes_first() -> None:
    graph = chain(16, 16)
    found = by_macs(graph, scores_of(graph, l0=[0.0] * 8 + [1.0] * 8, l1=[1.0] * 16), 0.68, 1)
    assert found == {"l0": 8, "l1": 16}


def test_small_goal_is_not_overshot() -> None:
    graph = chain(64, 64, 64)
    found = by_macs(graph, scores_of(graph), 0.97, 8)
    assert macs_of(graph, found) / graph.macs > 0.9


def test_goal_out_of_reach_gives_the_narrowest_network() -> None:
    graph = chain(32, 64)
    assert by_macs(graph, scores_of(graph), 0.001, 8) == {"l0": 8, "l1": 8}


@pytest.mark.parametrize("goal", [Goal("ratio", 0.1), Goal("macs_ratio", 0.9)])
def test_plan_that_removes_nothing_is_an_error_with_a_remedy(goal: Goal) -> None:
    graph = chain(8, 8)
    with pytest.raises(PruningError, match="removes nothing") as caught:
        allocate(graph, scores_of(graph), goal, 8)
    assert "--channel-multiple" in caught.value.hint
    assert "8 channels" in caught.value.where


def test_goal_in_time_cannot_be_met_without_measuring() -> None:
    with pytest.raises(PruningError, match="needs measurements"):
        allocate(chain(16), scores_of(chain(16)), Goal("speedup", 2), 1)


def test_most_important_units_stay_and_the_earlier_wins_a_tie() -> None:
    graph = chain(6)
    scores = scores_of(graph, l0=[1.0, 3.0, 2.0, 2.0, 0.0, 2.0])
    assert kept_units(scores, {"l0": 3}) == {"l0": (1, 2, 3)}


@pytest.mark.parametrize("values", [[1.0, float("nan")], [1.0, float("inf")], [1.0], [[1.0], [2.0]]])
def test_odd_scores_of_a_plugin_are_an_error(values: list[float]) -> None:
    graph = chain(2)
    with pytest.raises(PruningError, match="does not score l0"):
        check_scores(graph, Scores("plugin", {"l0": np.array(values)}, "none"))
    with pytest.raises(PruningError, match="does not score l0"):
        allocate(graph, Scores("plugin", {}, "none"), Goal("ratio", 0.5), 1)


def test_a_narrow_layer_is_not_cut_to_the_floor_to_spare_a_wide_one() -> None:
    """Each channel of the narrow layer has most MACs, so that plain sums of importance would take all but one."""
    graph = chain(8, 64)
    widths = by_macs(graph, scores_of(graph), 0.5, 1)
    assert widths["l0"] >= 4
    assert widths["l1"] < 64
