"""The front of a sweep and its recommendation, on points whose order is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_examples import figure, lost, point

from edgeprune.records import Figure, SweepPoint
from edgeprune.sweeping.front import COMPARED, clearly, dominates, objectives_of, placed, recommended


def standings(*points: SweepPoint) -> dict[str, str]:
    return {each.name: each.standing for each in placed(points, objectives_of(points))}


def test_a_point_that_another_beats_in_all_is_behind_it() -> None:
    found = placed([point("a", 2.0, 0.6), point("b", 1.5, 0.5), point("c", 3.0, 0.4)], COMPARED)
    assert [(each.name, each.standing, each.behind) for each in found] == [
        ("a", "front", ()),
        ("b", "behind", ("a",)),
        ("c", "front", ()),
    ]


def test_equal_points_stand_at_the_front_together() -> None:
    assert standings(point("a"), point("b")) == {"a": "front", "b": "front"}


def test_a_point_beaten_within_the_intervals_alone_is_near_the_front() -> None:
    assert standings(point("a", 2.0, 0.60, spread=0.2), point("b", 1.9, 0.55, spread=0.2))["b"] == "near"
    assert standings(point("a", 2.0, 0.60, spread=0.01), point("b", 1.9, 0.55, spread=0.01))["b"] == "behind"


def test_a_smaller_file_is_better() -> None:
    assert standings(point("a", size=900), point("b", size=1000)) == {"a": "front", "b": "behind"}


def test_an_objective_that_nobody_measured_is_not_compared() -> None:
    points = [point("a", 2.0, None), point("b", 1.5, None)]
    assert objectives_of(points) == ("speedup", "accuracy", "size_bytes")
    assert standings(*points) == {"a": "front", "b": "behind"}


def test_a_point_without_a_figure_that_others_have_is_not_compared() -> None:
    found = placed([point("a", 1.1, 0.2), point("b", 9.0, None)], COMPARED)
    assert [each.standing for each in found] == ["front", "not compared"]
    assert "no test data" in found[1].reason


def test_a_point_timed_on_another_processor_is_not_compared() -> None:
    other = point("c", 9.0, 0.9).model_copy(update={"machine": "another"})
    found = placed([point("a", 2.0, 0.6), point("b", 1.5, 0.5), other], COMPARED)
    assert [each.standing for each in found] == ["front", "behind", "not compared"]
    assert "another processor" in found[2].reason


def test_a_failed_point_keeps_its_reason() -> None:
    found = placed([point("a"), lost("b", "nothing could be removed")], COMPARED)
    assert (found[1].standing, found[1].reason) == ("failed", "nothing could be removed")


def test_of_points_that_are_as_fast_as_can_be_told_the_most_robust_is_recommended() -> None:
    """Speeds 2.00 and 1.99, each give or take 0.02: the hundredth decides nothing, the robust accuracy does."""
    fast, firm = point("fast", 2.0, 0.50, verdict="passed"), point("firm", 1.99, 0.60, verdict="passed")
    about = {each.name: figure(each.speedup.value, 0.02) for each in (fast, firm) if isinstance(each.speedup, Figure)}
    points = [each.model_copy(update={"speedup": about[each.name]}) for each in (fast, firm)]
    name, why = recommended(points, budgets=True)
    assert name == "firm"
    assert "2 of them are as fast as can be told" in why
    assert recommended([fast, firm], budgets=True)[0] == "fast"  # no doubt about either speed


def test_a_point_that_doubts_itself_puts_no_other_behind() -> None:
    """Its speed was inconclusive: it may well be no better."""
    fast, slow = point("fast", 3.0, doubts=("latency is inconclusive",)), point("slow", 2.0)
    assert standings(fast, slow) == {"fast": "front", "slow": "near"}
    assert standings(point("fast", 3.0), slow) == {"fast": "front", "slow": "behind"}


figures = st.lists(
    st.tuples(st.sampled_from([1.0, 1.5, 2.0]), st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([0.0, 0.3])),
    min_size=1,
    max_size=8,
)


@given(figures)
def test_the_front_is_what_nothing_dominates_and_all_else_is_dominated_by_it(values: list[tuple[float, ...]]) -> None:
    points = [point(str(n), speed, robust, spread=spread) for n, (speed, robust, spread) in enumerate(values)]
    where = {each.name: each for each in placed(points, COMPARED)}
    front = [each for each in points if where[each.name].standing == "front"]
    assert front
    for each in points:
        by = [other for other in points if dominates(other, each, COMPARED)]
        assert (where[each.name].standing == "front") == (not by)
        if by:
            assert any(dominates(best, each, COMPARED) for best in front)
            assert (where[each.name].standing == "behind") == any(clearly(other, each, COMPARED) for other in by)


def test_the_fastest_point_that_holds_the_budgets_is_recommended_by_its_lower_end() -> None:
    points = [
        point("wide", 2.2, verdict="passed", spread=0.6),
        point("sure", 2.0, verdict="passed", spread=0.1),
        point("fast", 4.0, verdict="failed"),
    ]
    name, why = recommended(points, budgets=True)
    assert name == "sure"
    assert "2 of 3 points hold all budgets" in why


def test_a_point_that_doubts_its_speed_is_not_the_fastest() -> None:
    points = [point("slow", 1.2, verdict="passed"), point("odd", 3.0, verdict="passed", doubts=("too noisy",))]
    assert recommended(points, budgets=True)[0] == "slow"


@pytest.mark.parametrize(
    ("points", "budgets", "word"),
    [
        ([lost("a", "no")], True, "no point came to an end"),
        ([point("a")], False, "no budgets are set"),
        ([point("a", verdict="failed")], True, "no point holds all budgets"),
        ([point("a", verdict="failed"), point("b", verdict="inconclusive")], True, "inconclusive: b"),
    ],
)
def test_where_nothing_can_be_recommended_the_advice_says_why(
    points: list[SweepPoint], budgets: bool, word: str
) -> None:
    name, why = recommended(points, budgets=budgets)
    assert name is None
    assert word in why
