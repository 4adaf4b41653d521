"""Renderings of a report: the numbers are right, names are harmless, nothing is fetched, nothing is left blank."""

from __future__ import annotations

import html as stdlib_html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_every import EVERY, SECTIONS, bare_report
from report_examples import (
    DENSE_ONNX,
    HOSTILE,
    ONNX,
    digest,
    example_accuracy,
    example_drop,
    example_fate,
    example_latency,
    example_report,
    example_robustness,
    example_times,
    unmeasured_report,
)

from edgeprune.config import BudgetConfig
from edgeprune.errors import UsageError
from edgeprune.gate import judge
from edgeprune.records import Interval, LatencyStats, Report, Unmeasured
from edgeprune.reporting import numbers as n
from edgeprune.reporting import render
from edgeprune.reporting.figures import Tradeoff, axis, layer_bars, strips, tradeoff
from edgeprune.reporting.html import commands, html, moment, sentence, tight
from edgeprune.reporting.junit import junit
from edgeprune.reporting.markdown import markdown
from edgeprune.reporting.view import changes, drop, flips, headline

GOLDEN = Path(__file__).parent / "golden"


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; complains of tags that are not closed in order."""

    VOID = frozenset({"img", "meta", "link", "input", "br", "rect", "line", "circle"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


# ------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0661, "0.0661"),
        (1.234, "1.23"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (1234.4, "1,234"),
        (0, "0"),
        (-1.5, "−1.50"),
    ],
)
def test_three_significant_digits(value: float, shown: str) -> None:
    assert n.significant(value) == shown


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (n.milliseconds(0.4123), "0.412 ms"),
        (n.times(1.8999), "1.90×"),
        (n.percent(0.9134), "91.3 %"),
        (n.percent(-0.0001), "0.0 %"),
        (n.points(0.02), "2.0 pt"),
        (n.points(0.0004), "0.04 pt"),
        (n.points(-0.008), "−0.8 pt"),
        (n.size(512), "512 B"),
        (n.size(531_000), "531 kB"),
        (n.size(1_152_000), "1.15 MB"),
        (n.count(9_876), "9,876"),
        (n.count(40_800_000), "40.8 M"),
        (n.change(100, 38), "−62.0 %"),
        (n.change(100, 100), "0.0 %"),
        (n.change(0, 5), "–"),
        (n.signed(n.points(0.01)), "+1.0 pt"),
        (n.significant(float("nan")), "not a number"),
    ],
)
def test_numbers_carry_their_unit(shown: str, expected: str) -> None:
    assert shown == expected


def test_intervals_say_their_unit_once() -> None:
    assert n.span(Interval(low=1.2, high=1.26), n.milliseconds) == "1.20–1.26 ms"
    assert n.span(Interval(low=1.2, high=1.26), n.times, unit=False) == "1.20–1.26"
    assert n.span(Interval(low=-0.01, high=0.02), n.points) == "−1.0 to 2.0 pt"


# ---------------------------------------------------------------------------------------------- what is said


def test_a_report_survives_json() -> None:
    for report in EVERY.values():
        assert Report.model_validate_json(report.to_json()) == report


def test_renderings_come_from_the_json_alone() -> None:
    report = EVERY["judged"]
    again = Report.model_validate_json(report.to_json())
    assert (html(again), markdown(again), junit(again)) == (html(report), markdown(report), junit(report))


def test_what_changed_is_computed_from_the_counts() -> None:
    rows = {(row.label, row.detail): row for row in changes(example_report())}
    speed = rows["Latency, p50", "onnxruntime, 1 thread"].change
    accuracy = rows["Clean accuracy", "onnxruntime, n = 3,000"].change
    size = rows["File size", "model.xml + model.bin"].change
    assert speed is not None
    assert accuracy is not None
    assert size is not None
    assert (speed.text, speed.spread) == ("1.90× as fast", "1.84–1.96")
    assert (accuracy.text, accuracy.spread) == ("−0.8 pt", "≤ 1.4 pt lost (95 %)")
    assert size.text == "−52.4 %"


@pytest.mark.parametrize(
    ("upper", "said"), [(0.014, "≤ 1.4 pt lost (95 %)"), (0.0, "≤ 0.0 pt lost (95 %)"), (-0.004, "≥ 0.4 pt won (95 %)")]
)
def test_a_bound_below_zero_is_a_gain(upper: float, said: str) -> None:
    assert drop(example_drop(upper=upper)).spread == said


@pytest.mark.parametrize("verdict", ["no significant difference", "inconclusive"])
def test_no_speed_up_is_claimed_against_the_verdict(verdict: str) -> None:
    report = example_report(latency=(example_latency(verdict=verdict),))
    change = changes(report)[0].change
    assert change is not None
    assert change.text == verdict


def test_flips_add_up_to_all_images() -> None:
    for row in flips(example_report()):
        assert row.both_right + row.lost + row.won + row.both_wrong == row.total
    clean, _, attacked = flips(example_report())
    assert (clean.both_right, clean.both_wrong) == (2730, 174)
    assert (attacked.both_right, attacked.lost, attacked.won, attacked.both_wrong) == (528, 49, 32, 391)
    assert "no significant difference" in attacked.test


def test_no_budgets_are_called_not_judged() -> None:
    assert headline(None).title == "Not judged"
    assert headline(judge(example_report(), BudgetConfig(), ONNX)).title == "Not judged"
    assert "Not judged" in html(example_report())
    assert "Not judged" in markdown(example_report())


# ------------------------------------------------------------------------------------------------ pictures


def test_axes_hold_their_values_and_have_round_ticks() -> None:
    for longest in (0.003, 0.783, 1.0, 7.3, 99.0, 1234.0):
        scale = axis(longest, 0, 100)
        assert scale.high >= longest
        assert 4 <= len(scale.ticks) <= 7
        assert scale.at(scale.high) == 100
    assert axis(1.0, 0, 100).ticks == pytest.approx((0, 0.2, 0.4, 0.6, 0.8, 1.0))


def test_the_picture_places_both_files_and_the_limits() -> None:
    picture = tradeoff(EVERY["judged"])
    assert isinstance(picture, Tradeoff)
    dense, compressed = picture.points
    assert (dense.robust, compressed.robust) == (0.577, 0.56)
    assert compressed.latency_ms == pytest.approx(0.412)
    assert picture.latency_limit == 0.5
    assert picture.robust_limit == pytest.approx(0.557)
    assert picture.x.at(0) == picture.x.start
    assert picture.y.at(0) > picture.y.at(1), "up is more"
    assert (dense.label_right, compressed.label_right) == (True, False)


def test_the_picture_needs_both_measurements_of_the_same_file() -> None:
    other = example_latency(compressed=example_times(digest("0"), 0.4))
    for report in (unmeasured_report(), bare_report(), example_report(latency=(other,))):
        assert isinstance(tradeoff(report), Unmeasured)


def test_strips_and_bars_stay_on_their_canvas() -> None:
    for strip in strips(example_report()):
        assert 0 < strip.low <= strip.inner_low <= strip.middle <= strip.inner_high <= strip.high <= 100
    for bar in layer_bars(example_report()):
        assert 0 <= bar.kept <= bar.dense <= 100
    assert max(bar.dense for bar in layer_bars(example_report())) == 100


@pytest.mark.parametrize("robust", [0, 560, 1000])
def test_marks_at_the_edges_are_drawn_inside(robust: int) -> None:
    """No robustness, and perfect robustness, are still a page whose numbers are on the canvas."""
    fate = example_fate(ONNX, 894, 560)
    share = fate.robust.model_copy(update={"count": robust})
    report = example_report(robustness=example_robustness(compressed=fate.model_copy(update={"robust": share})))
    canvas = re.search(r'<svg class="plot".*?</svg>', html(report), re.DOTALL)
    assert canvas
    heights = [float(y) for y in re.findall(r' (?:y|cy|y1|y2)="(-?[\d.]+)"', canvas[0])]
    assert 0 <= min(heights) <= max(heights) <= 380


# ---------------------------------------------------------------------------------------------------- HTML


@pytest.mark.parametrize("name", EVERY)
def test_html_has_every_section_in_order_and_closes_its_tags(name: str) -> None:
    page = Page(html(EVERY[name]))
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == SECTIONS
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{section}" for section in SECTIONS]


@pytest.mark.parametrize("name", EVERY)
def test_html_fetches_nothing_and_runs_nothing(name: str) -> None:
    source = html(EVERY[name])
    page = Page(source)
    assert not [tag for tag, _ in page.tags if tag in {"script", "iframe", "object", "embed", "form", "base"}]
    for tag, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")], tag
        for key in ("src", "href", "xlink:href", "action", "data"):
            target = attributes.get(key)
            assert target is None or target.startswith(("#", "data:image/png;base64,")) or target == "data:,"
    assert "url(" not in source
    assert "@import" not in source
    assert "default-src 'none'" in source


def test_hostile_names_are_shown_and_never_run() -> None:
    source = html(EVERY["hostile"])
    page = Page(source)
    assert "<script" not in source
    assert "<img src=x" not in source
    assert stdlib_html.escape(HOSTILE, quote=False).replace(">", "&gt;")[1:20] in source
    assert page.text.count("<script>alert(1)</script>") > 10


def test_html_names_every_picture_and_every_radio_button() -> None:
    page = Page(html(EVERY["judged"]))
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") or attributes.get("aria-label") or attributes.get("aria-labelledby")
    assert ("html", {"lang": "en"}) in page.tags
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)


def test_html_gives_every_digest_in_full() -> None:
    source = html(EVERY["judged"])
    for artifact in EVERY["judged"].artifacts:
        assert f"<code>{artifact.sha256}</code>" in source
        for _, companion, _ in artifact.companions:
            assert f"<code>{companion}</code>" in source


@pytest.mark.parametrize("name", ["unmeasured", "bare"])
def test_what_was_not_measured_says_why(name: str) -> None:
    page = Page(html(EVERY[name]))
    reason = "no test data was given" if name == "unmeasured" else "the runtime is missing"
    assert f"Unmeasured: {reason}" in page.text
    assert f"unmeasured: {reason}" in page.text
    assert "None" not in page.text.replace("None: no training data", "")
    assert "nan" not in page.text.split()


def test_quantiles_without_enough_samples_are_too_few_not_blank() -> None:
    times = example_times(ONNX, 0.4).model_copy(update={"p99_ms": None})
    page = Page(html(example_report(latency=(example_latency(compressed=times),))))
    assert page.text.count("too few") == 1


def test_runtimes_own_part_of_a_p50_stands_beside_what_a_caller_waits_for_where_it_is_told() -> None:
    def told(sha256: str, p50: float) -> LatencyStats:
        return example_times(sha256, p50).model_copy(update={"runtime_p50_ms": p50 - 0.03})

    times = {"dense": told(DENSE_ONNX, 0.8), "compressed": told(ONNX, 0.4)}
    page = Page(html(example_report(latency=(example_latency(**times),))))
    assert "Of its p50, what a caller waits for, the runtime itself counts 0.770 ms and 0.370 ms." in page.text
    assert "the runtime itself counts" not in Page(html(example_report())).text


def test_an_inconclusive_attack_is_said_where_its_numbers_stand() -> None:
    report = example_report(robustness=example_robustness(conclusive=False, warnings=("dense: blind",)))
    page = Page(html(report))
    assert "do not rely on the robust accuracy" in page.text
    assert "do not rely on the heights" in page.text
    assert "Dense: blind." in page.text


def test_commands_in_remedies_are_set_as_code_and_escaped() -> None:
    shown = commands("aim at --speedup 1.7, run `edgeprune attack <b> --eps 1`")
    flag = '<code class="flag">--speedup 1.7</code>'
    assert shown == f"aim at {flag}, run <code>edgeprune attack &lt;b&gt; --eps 1</code>"
    assert commands("--runtimes a1,b2 first") == '<code class="flag">--runtimes a1,b2</code> first'
    assert commands("a ` b") == "a ` b"


def test_small_text_filters() -> None:
    assert moment("2026-11-20T12:00:00+00:00") == "20 November 2026, 12:00 UTC"
    assert moment("some day") == "some day"
    assert sentence("no data") == "No data."
    assert tight("0.5 ms (95 %)") == "0.5\u00a0ms (95\u00a0%)"


# --------------------------------------------------------------------------------------------------- files


def test_render_writes_what_was_asked_for(tmp_path: Path) -> None:
    paths = render(EVERY["judged"], tmp_path, ("html", "md", "junit"))
    assert [path.name for path in paths] == ["report.html", "report.md", "junit.xml"]
    assert paths[1].read_text(encoding="utf-8") == markdown(EVERY["judged"])
    assert [path.name for path in render(EVERY["judged"], tmp_path / "new")] == ["report.html", "report.md"]


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pdf"):
        render(EVERY["judged"], tmp_path, ("html", "pdf"))
    assert not list(tmp_path.iterdir())


def test_a_gain_of_accuracy_has_a_plus_sign() -> None:
    gain = example_accuracy(drop=example_drop(36, 60, upper=0.001))
    change = changes(example_report(accuracy=(gain,), latency=Unmeasured(unmeasured="-")))[1].change
    assert change is not None
    assert change.text == "+0.8 pt"


def test_the_dense_file_is_named_by_its_own_digest() -> None:
    assert f"<code>{DENSE_ONNX}</code>" in html(example_report())
