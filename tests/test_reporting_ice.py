"""Thin ice and the security curve as they are told and drawn."""

from __future__ import annotations

import re

import pytest
from ice_examples import PICTURE, example_check, example_curve, example_ice
from report_examples import (
    DENSE_ONNX,
    HOSTILE,
    ONNX,
    ORT,
    example_model,
    example_report,
    example_robustness,
    hostile_report,
    unmeasured_report,
)

from edgeprune.records import CurveSide, Report, Unmeasured
from edgeprune.reporting import ice
from edgeprune.reporting.curve import curve_plot, decile_plot, steps
from edgeprune.reporting.figures import Axis
from edgeprune.reporting.html import html
from edgeprune.reporting.markdown import markdown

ICE, CURVE = example_ice(ORT, DENSE_ONNX, ONNX), example_curve(ORT, DENSE_ONNX, ONNX)


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found is not None
    return found.group()


def test_the_curve_steps_down_at_every_distance_and_ends_with_the_axis() -> None:
    x, y = Axis(1.0, 0, 100, (0, 1)), Axis(1.0, 100, 0, (0, 1))
    side = CurveSide(sha256="1" * 64, right=8, distances=(0.25, 0.5, 7.0))
    assert steps(side, 10, x, y) == "M0.0 20.0H25.0V30.0H50.0V40.0H100"


def test_the_curve_marks_its_checks_and_the_runs_own_epsilon() -> None:
    plot = curve_plot(example_report())
    assert not isinstance(plot, Unmeasured)
    assert plot.unit == 255
    assert (plot.label, plot.epsilon) == ("4/255", pytest.approx(4 / 255))
    first, last = plot.marks[0], plot.marks[2]
    assert (first.side, first.value, first.alone) == ("dense", 0.7, 0.7)
    assert (last.value, last.alone) == (0.5, 0.53)
    assert 4 / 255 < plot.x.high <= 12.5 / 255


def test_rates_by_decile_are_bars_with_intervals_and_no_bar_where_nothing_stood() -> None:
    plot = decile_plot(example_report())
    assert plot is not None
    assert len([bar for bar in plot.bars if bar.kind == "lost"]) == 10
    assert len([bar for bar in plot.bars if bar.kind == "at-epsilon"]) == 7
    first = plot.bars[0]
    assert (first.count, first.total) == (5, 9)
    assert first.high < first.top < first.low  # pixels grow downwards
    assert decile_plot(example_report(thin_ice=example_ice(ORT, DENSE_ONNX, ONNX, deciles=()))) is None


def test_the_lead_says_what_is_significant_and_what_is_not() -> None:
    lead = ice.lead(ICE)
    assert "An image lost lies nearer to the boundary than one that held in 91.0 % of pairs" in lead
    assert "interval 74.0–97.0 %, p < 0.0001" in lead
    assert "does not significantly tell which images are lost under attack" in lead


def test_no_flip_leaves_nothing_to_rank() -> None:
    ranks = tuple(
        one.model_copy(update={"auroc": None, "unmeasured": "no image flipped this way"}) for one in ICE.ranks
    )
    still = ICE.model_copy(update={"ranks": ranks})
    assert "nothing to rank" in ice.lead(still)
    assert {row.auroc.text for row in ice.ranks(still)} == {"unmeasured"}


def test_losses_and_gains_stand_apart_from_the_net_change() -> None:
    assert ice.net(ICE) == "Clean: 6 lost, 0 won, net −6. At 4/255: 8 lost, 2 won, net −6."


def test_distances_are_in_the_unit_of_epsilon() -> None:
    assert ice.distance(1.3 / 255, "4/255") == "1.3/255"
    assert ice.distance(0.0123, "0.5") == "0.0123"
    assert ice.distance(None, "4/255") == "none found"


def test_a_check_that_found_more_says_so_and_an_adjusted_p_says_how() -> None:
    first, second = ice.checked(CURVE)
    assert first.test == "differ, p = 0.01 (Holm)"
    assert second.remark == "pgd found more than the distances (3 dense): the lower value stands"
    (alone,) = ice.checked(CURVE.model_copy(update={"checks": (example_check("4/255", 50, 44, 0.2),)}))
    assert alone.test == "no significant difference, p = 0.2"


def test_what_the_search_found_beyond_the_attack_lowers_the_robust_accuracy_in_words() -> None:
    curve = CURVE.model_copy(update={"search": CURVE.search.model_copy(update={"samples": 1000})})
    report = example_report(curve=curve)
    assert not isinstance(report.robustness, Unmeasured)
    more = report.robustness.dense.robust.count - 50
    assert f"{more:,} dense" in ice.beyond(report)
    assert ice.beyond(example_report()) == ""  # other images than the attack's


def test_thumbnails_are_embedded_and_allowed_by_the_policy() -> None:
    page = html(example_report())
    assert page.count(f'src="data:image/png;base64,{PICTURE}"') == 4
    assert "img-src data:" in page
    assert "now sign 2" in section(page, "thin-ice")


def test_class_names_beside_thumbnails_are_harmless() -> None:
    page = section(html(hostile_report()), "thin-ice")
    assert "<script" not in page
    assert "onerror=" not in re.sub(r"&[^;]+;|alt=\"[^\"]*\"", "", page) or "<img src=x" not in page
    assert "&lt;script&gt;" in page
    assert HOSTILE not in page


def test_a_thumbnail_cannot_be_anything_but_base64() -> None:
    text = example_report().to_json().replace(PICTURE, 'x\\" onerror=\\"alert(1)', 1)
    with pytest.raises(ValueError, match="thumbnail"):
        Report.model_validate_json(text)


def test_an_inconclusive_attack_is_said_beside_the_thin_ice() -> None:
    report = example_report(
        thin_ice=ICE.model_copy(update={"conclusive": False}), robustness=example_robustness(conclusive=False)
    )
    assert "attack at 4/255 is inconclusive" in section(html(report), "thin-ice")
    assert "attack at 4/255 is inconclusive" in markdown(report)


def test_what_was_not_measured_says_so_in_both_sections() -> None:
    page = html(unmeasured_report())
    for name in ("curve", "thin-ice"):
        assert "Unmeasured: no test data was given" in section(page, name)


def test_reports_from_before_thin_ice_still_load() -> None:
    old = example_report().model_dump(mode="json")
    del old["thin_ice"], old["curve"]
    report = Report.model_validate(old)
    assert isinstance(report.thin_ice, Unmeasured)
    assert "the version that wrote this report did not measure it" in html(report)


def test_numbered_classes_are_called_classes() -> None:
    report = example_report(model=example_model(classes=tuple(map(str, range(43)))))
    assert '<span class="name">class 0</span>' in section(html(report), "thin-ice")


def test_every_mark_and_every_bar_says_what_it_is_under_the_pointer() -> None:
    """Without a script: a title, and a text that CSS shows on hover or a tap."""
    page, plot, tenths = html(example_report()), curve_plot(example_report()), decile_plot(example_report())
    assert not isinstance(plot, Unmeasured)
    assert tenths is not None
    curve, bars = section(page, "curve"), section(page, "thin-ice")
    assert curve.count('class="tip"') == len(plot.marks)
    assert bars.count('class="tip"') == len(tenths.bars)
    assert re.search(r"<title>dense at 4/255: 50\.0 % \(.+\)</title>", curve)
    assert "<title>5 of 9 lost</title>" in bars
    assert len(re.findall(r"<title>(dense|compressed): p50 ", section(page, "picture"))) == 2
