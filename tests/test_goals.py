"""What came of a goal in time: shares by hand, the words for each case, and a machine that is in another state."""

from __future__ import annotations

import re
from typing import Any

import pytest
from report_examples import OPENVINO, example_latency, example_plan, example_report
from rich.console import Console

from edgeprune.payoff import outcome
from edgeprune.records import Interval, PlanTiming, Ratio, Report, Unmeasured
from edgeprune.reporting.goals import goal_remark
from edgeprune.reporting.html import html
from edgeprune.reporting.markdown import markdown
from edgeprune.reporting.terminal import print_summary

DENSE_MS, COMPRESSED_MS = 0.783, 0.412
"""Of the example, in ONNX Runtime."""


def planned_at(dense_ms: float = DENSE_MS, compressed_ms: float = 0.408, runtime: str = "onnxruntime") -> PlanTiming:
    return PlanTiming(
        runtime=runtime,
        speedup=1.92,
        interval=Interval(low=1.9, high=1.94),
        dense_p50_ms=dense_ms,
        compressed_p50_ms=compressed_ms,
    )


def report_of(speedup: float = 1.9, *, timing: PlanTiming | None = None, spread: float = 0.01, **plan: Any) -> Report:
    """The example with a measured speed-up, for a plan that aimed at 1.9."""
    ratio = Ratio(value=speedup, interval=Interval(low=speedup * (1 - spread), high=speedup * (1 + spread)))
    item = example_latency(speedup=ratio)
    changed = example_plan().model_copy(update={"timing": timing, **plan})
    return example_report(plan=changed, latency=(item, example_latency(OPENVINO)))


def terminal(report: Report) -> str:
    console = Console(width=300, record=True)
    with console.capture() as captured:
        print_summary(report, console)
    return captured.get()


def test_share_of_a_speed_up_is_measured_over_asked() -> None:
    found = outcome(report_of(1.976))
    assert found
    assert found.share == pytest.approx(1.04)
    assert (found.interval.low, found.interval.high) == pytest.approx((1.04 * 0.99, 1.04 * 1.01))
    assert found.changes is None


def test_share_of_a_latency_is_asked_over_measured() -> None:
    found = outcome(report_of(goal="latency_ms", goal_value=0.4))
    assert found
    assert found.share == pytest.approx(0.4 / COMPRESSED_MS)
    assert found.interval.low == pytest.approx(0.4 / (COMPRESSED_MS * 1.015))
    assert found.interval.high == pytest.approx(0.4 / (COMPRESSED_MS * 0.985))


@pytest.mark.parametrize(
    ("limit_ms", "said"),
    [
        (0.412, "met: "),
        (0.42, "met: "),
        (0.41, "missed by 0.5 %, which the interval does not exclude: "),
        (0.4, "missed by 2.9 %: "),
    ],
)
def test_latency_is_a_limit_that_nothing_may_exceed(limit_ms: float, said: str) -> None:
    remark = goal_remark(report_of(goal="latency_ms", goal_value=limit_ms))
    assert remark
    assert f"asked for a p50 of {limit_ms:g} ms, {said}" in remark.text
    assert remark.warns is not said.startswith("met")


def test_runtime_that_was_aimed_at_decides() -> None:
    found = outcome(report_of(timing=planned_at(0.808, 0.35, "openvino")))
    assert found
    assert found.item.runtime.name == "openvino"
    assert found.changes == pytest.approx((0.0, 0.3))
    assert outcome(report_of(timing=planned_at(runtime="elsewhere"))) is None


@pytest.mark.parametrize(("goal", "value"), [("ratio", 0.5), ("macs_ratio", 0.5)])
def test_goal_that_is_not_in_time_has_no_outcome(goal: str, value: float) -> None:
    report = report_of(goal=goal, goal_value=value)
    assert outcome(report) is None
    assert goal_remark(report) is None
    assert "asked for" not in html(report)
    assert "Goal: " not in terminal(report)


def test_unmeasured_goal_is_not_called_met() -> None:
    nothing = Unmeasured(unmeasured="no device")
    assert goal_remark(report_of().model_copy(update={"latency": nothing})) is None
    alone = example_latency(compressed=None, speedup=None, verdict="alone")
    assert goal_remark(report_of().model_copy(update={"latency": (alone,)})) is None


@pytest.mark.parametrize("dense_ms", [0.0, -1.0])
def test_times_that_cannot_be_have_no_outcome(dense_ms: float) -> None:
    report = report_of(timing=planned_at(dense_ms))
    assert outcome(report) is None
    assert "asked for" not in markdown(report)


@pytest.mark.parametrize(
    ("speedup", "spread", "said", "warns"),
    [
        (1.91, 0.01, "asked for 1.9 times as fast, met: 1.91× (1.89–1.93)", False),
        (1.957, 0.01, "met: 1.96×", False),
        (1.862, 0.01, "met, 2.0 % short, within the 3.0 % that it is met by: 1.86×", False),
        (1.976, 0.01, "exceeded by 4.0 %: 1.98×", True),
        (1.805, 0.01, "missed by 5.0 %: 1.80×", True),
        (1.805, 0.06, "missed by 5.0 %, which the interval does not exclude: 1.80×", True),
    ],
)
def test_words_for_a_speed_up(speedup: float, spread: float, said: str, warns: bool) -> None:
    remark = goal_remark(report_of(speedup, spread=spread))
    assert remark
    assert said in remark.text
    assert remark.warns is warns


def test_inconclusive_measurement_decides_nothing() -> None:
    report = report_of(1.9)
    assert not isinstance(report.latency, Unmeasured)
    unclear = report.latency[0].model_copy(update={"verdict": "inconclusive"})
    remark = goal_remark(report.model_copy(update={"latency": (unclear,)}))
    assert remark
    assert "not decided, since the measurement is inconclusive" in remark.text
    assert remark.warns


@pytest.mark.parametrize(
    ("dense", "compressed", "moved"),
    [(1.049, 1.049, False), (0.951, 0.951, False), (1.051, 1.0, True), (1.0, 1.051, True), (0.949, 1.0, True)],
)
def test_machine_in_another_state_is_told_from_the_same(dense: float, compressed: float, moved: bool) -> None:
    remark = goal_remark(report_of(timing=planned_at(DENSE_MS / dense, COMPRESSED_MS / compressed)))
    assert remark
    assert "planned at 1.92× (0." in remark.text
    assert ("the machine is in another state" in remark.text) is moved
    assert remark.warns is moved


def test_another_state_is_told_with_times_and_changes() -> None:
    remark = goal_remark(report_of(timing=planned_at(DENSE_MS / 1.25, COMPRESSED_MS / 0.8)))
    assert remark
    assert "(0.626 ms to 0.515 ms), and since then the dense file's time has changed by +25.0 %" in remark.text
    assert "the compressed one's by −20.0 %: the machine is in another state" in remark.text


@pytest.mark.parametrize("speedup", [1.9, 1.7])
def test_every_rendering_says_what_came_of_the_goal(speedup: float) -> None:
    report = report_of(speedup, timing=planned_at())
    remark = goal_remark(report)
    assert remark
    page, comment = html(report), markdown(report)
    sentence = remark.text[:1].upper() + remark.text[1:]
    assert re.search(rf"<p{' class=.warning.' if remark.warns else ''}>{re.escape(sentence)}", page)
    assert (f"> {remark.text}" in comment) is remark.warns
    assert (f"- {remark.text}" in comment) is not remark.warns
    assert f"Goal: {remark.text}" in " ".join(terminal(report).split())
