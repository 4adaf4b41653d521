"""A sweep on paper: the front first, every reason said, no name that runs."""

from __future__ import annotations

import io
from pathlib import Path

from conftest import Command
from report_examples import example_report
from rich.console import Console
from sweep_examples import NOTHING, figure, lost, point

from edgeprune.records import Sweep, SweepAxis, SweepDense, SweepPoint
from edgeprune.reporting.sweep import print_sweep, sweep_markdown
from edgeprune.reporting.sweep_page import sweep_html
from edgeprune.reporting.sweep_pictures import Picture, pictures
from edgeprune.sweeping.front import objectives_of, placed, recommended
from edgeprune.sweeping.sweep import exit_code

HOSTILE = "<script>window.owned=1</script>|\x1b[31m"


def sweep_of(*points: SweepPoint, model: str = "model.pt") -> Sweep:
    objectives = objectives_of(points)
    name, advice = recommended(points, budgets=True)
    size = point("x").size_bytes
    dense = SweepDense(latency_ms=figure(1.0), accuracy=figure(0.95), robust_accuracy=figure(0.6), size_bytes=size)
    return Sweep(
        created="2026-11-20T12:00:00+00:00",
        command="edgeprune sweep model.pt",
        model=model,
        model_sha256="0" * 64,
        target="cpu",
        runtime="onnxruntime",
        seed=0,
        environment=example_report().environment,
        search="grid",
        combinations=len(points),
        axes=(SweepAxis(setting="prune.criterion", values=tuple(each.name for each in points)),),
        objectives=objectives,
        budgets={},
        dense=dense,
        points=points,
        placed=placed(points, objectives),
        recommended=name,
        advice=advice,
    )


EXAMPLE = sweep_of(point("slow", 1.2, 0.3), lost("gone", "nothing left"), point("fast", 3.0, 0.5, verdict="passed"))


def printed(found: Sweep) -> str:
    page = io.StringIO()
    print_sweep(found, Console(file=page, width=80, no_color=True))
    return page.getvalue()


def test_the_terminal_has_the_front_first_and_the_reasons() -> None:
    text = printed(EXAMPLE)
    assert text.index("criterion fast") < text.index("criterion slow")
    assert "behind 3" in text
    assert "gone: failed: nothing left" in text
    assert "2 of 3 points came to an end, 1 at the front; 1 failed" in text
    assert "edgeprune compress model.pt --criterion fast" in text


def test_markdown_of_hundreds_of_points_fits_a_comment() -> None:
    """The front first; the longest remarks cut; what is left out is counted."""
    many = [point(f"{number}{'|' * 300}", 1 + number / 500, doubts=("*" * 900,)) for number in range(300)]
    page = sweep_markdown(sweep_of(*many))
    assert len(page) < 65_536
    assert "| 300 |" in page  # the front
    assert "260 more points stand in sweep.html and sweep.json" in page


def test_a_point_that_fails_its_budgets_says_which() -> None:
    reason = "0 of 2 budgets hold; speedup may be as low as 1.1×, the limit is 1.4×"
    found = sweep_of(point("slow", verdict="failed").model_copy(update={"verdict_reason": reason}))
    assert "the limit is 1.4×" in " ".join(printed(found).split())
    assert f"point 1: failed: {reason}" in sweep_markdown(found)
    assert reason in sweep_html(found).replace("\N{NO-BREAK SPACE}", " ")


def test_markdown_has_a_row_a_point_of_as_many_cells_as_the_head() -> None:
    rows = [line for line in sweep_markdown(EXAMPLE).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert len({row.count("|") for row in rows}) == 1


def drawn(found: Sweep) -> dict[tuple[str, str], Picture]:
    made = pictures(found)
    assert isinstance(made, tuple)
    return {(each.across.name, each.up.name): each for each in made}


def test_marks_stand_where_their_figures_are() -> None:
    shown = drawn(EXAMPLE)
    assert next(iter(shown)) == ("speedup", "robust_accuracy")
    marks = {mark.number: mark for mark in shown["speedup", "robust_accuracy"].marks}
    assert set(marks) == {0, 1, 3}  # the dense network, and both points that came to an end
    assert marks[3].x > marks[1].x > marks[0].x
    assert marks[3].y < marks[1].y  # up is better
    assert (marks[3].kind, marks[1].kind, marks[0].kind) == ("recommended", "behind", "dense")
    marks = {mark.number: mark for mark in shown["latency_ms", "robust_accuracy"].marks}
    assert marks[3].x < marks[1].x < marks[0].x  # left is faster


def test_every_end_of_an_interval_lies_inside_the_axes() -> None:
    wide = sweep_of(point("a", 1.5, 0.5, spread=0.4), point("b", 3.0, 0.2, spread=0.1))
    for shown in drawn(wide).values():
        for mark in shown.marks:
            assert shown.x.start < mark.across[0] <= mark.x <= mark.across[1] < shown.x.end
            assert shown.y.start >= mark.along[0] >= mark.y >= mark.along[1] >= shown.y.end


def test_the_stairs_join_what_nothing_beats_in_both_axes() -> None:
    found = sweep_of(
        point("slow", 1.0, 0.9), point("middle", 2.0, 0.5), point("fast", 3.0, 0.4), point("bad", 1.5, 0.3)
    )
    shown = drawn(found)
    for name, turns in (("speedup", "VHVH"), ("latency_ms", "HVHV")):
        picture = shown[name, "robust_accuracy"]
        at = {mark.number: mark for mark in picture.marks}
        assert "".join(letter for letter in picture.stairs if letter.isalpha()) == "M" + turns
        assert all(str(at[number].y) in picture.stairs for number in (1, 2, 3))
        assert f"{at[4].x} " not in picture.stairs


def test_budgets_are_lines_the_drop_counted_from_the_dense_network() -> None:
    found = EXAMPLE.model_copy(update={"budgets": {"speedup": 1.5, "robust_accuracy_drop": 0.2, "confidence": 0.95}})
    shown = drawn(found)["speedup", "robust_accuracy"]
    assert (shown.x_limit, shown.y_limit) == (shown.x.at(1.5), shown.y.at(0.6 - 0.2))
    assert drawn(EXAMPLE)["speedup", "robust_accuracy"].x_limit is None


def test_labels_of_crowded_points_stand_apart() -> None:
    found = sweep_of(*(point(str(number), 2 + number / 300, 0.5) for number in range(4)))
    labels = {mark.label for mark in drawn(found)["speedup", "robust_accuracy"].marks}
    assert len({(label.anchor, label.y) for label in labels}) >= 3


def test_only_settings_that_differ_can_be_filtered() -> None:
    page = sweep_html(EXAMPLE)
    assert page.count('type="checkbox"') == 3
    assert ":root:has(#a0v2:not(:checked))" in page
    assert 'type="checkbox"' not in sweep_html(sweep_of(point("alone")))


def test_names_that_look_like_markup_are_shown_and_never_run() -> None:
    found = sweep_of(point(HOSTILE, doubts=(HOSTILE,)), lost("x", HOSTILE), model=HOSTILE)
    page = sweep_html(found)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in printed(found)
    assert "<script" not in sweep_markdown(found)


def test_without_an_accuracy_there_is_no_picture_and_the_page_says_so() -> None:
    bare = point("bare", robust=None).model_copy(update={"accuracy": NOTHING})
    found = sweep_of(bare)
    assert "No picture: no point has both a cost and an accuracy that were measured" in sweep_html(found)


def test_exit_codes() -> None:
    failing, unclear = sweep_of(point("a", verdict="failed")), sweep_of(point("a", verdict="inconclusive"))
    assert exit_code(EXAMPLE, gate=True) == 0
    assert (exit_code(failing, gate=False), exit_code(failing, gate=True)) == (0, 1)
    assert exit_code(unclear, gate=True) == 4
    assert exit_code(sweep_of(lost("a", "no")), gate=False) == 3


def test_a_sweep_is_rendered_again_from_its_record_alone(tmp_path: Path, edgeprune: Command) -> None:
    (tmp_path / "sweep.json").write_text(EXAMPLE.to_json(), encoding="utf-8")
    said = edgeprune("report", tmp_path)
    assert (said.code, said.out.split()) == (0, [str(tmp_path / "sweep.html"), str(tmp_path / "sweep.md")])
    assert (tmp_path / "sweep.html").read_text(encoding="utf-8") == sweep_html(EXAMPLE)
    assert edgeprune("report", tmp_path / "sweep.json", "--format", "md").out.split() == [str(tmp_path / "sweep.md")]
    wrong = edgeprune("report", tmp_path, "--format", "junit")
    assert wrong.code == 2
    assert "a sweep is not rendered as junit" in wrong.err
