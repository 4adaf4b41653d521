"""A sweep on paper: the front first, every reason said, no name that runs."""

from __future__ import annotations

import io

from report_examples import example_report
from rich.console import Console
from sweep_examples import figure, lost, point

from edgeprune.records import Sweep, SweepAxis, SweepDense, SweepPoint
from edgeprune.reporting.sweep import print_sweep, sweep_markdown
from edgeprune.reporting.sweep_page import Picture, picture, sweep_html
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


def test_markdown_has_a_row_a_point_of_as_many_cells_as_the_head() -> None:
    rows = [line for line in sweep_markdown(EXAMPLE).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert len({row.count("|") for row in rows}) == 1


def test_marks_stand_where_their_figures_are() -> None:
    found = picture(EXAMPLE)
    assert isinstance(found, Picture)
    marks = {mark.number: mark for mark in found.marks}
    assert set(marks) == {0, 1, 3}  # the dense network, and both points that came to an end
    assert marks[3].x > marks[1].x > marks[0].x
    assert marks[3].y < marks[1].y  # up is better
    assert (marks[3].kind, marks[1].kind, marks[0].kind) == ("recommended", "behind", "dense")


def test_names_that_look_like_markup_are_shown_and_never_run() -> None:
    found = sweep_of(point(HOSTILE, doubts=(HOSTILE,)), lost("x", HOSTILE), model=HOSTILE)
    page = sweep_html(found)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in printed(found)
    assert "<script" not in sweep_markdown(found)


def test_without_an_accuracy_there_is_no_picture_and_the_page_says_so() -> None:
    found = EXAMPLE.model_copy(update={"objectives": ("speedup", "size_bytes")})
    assert "No picture: speed-up and accuracy were not measured together" in sweep_html(found)


def test_exit_codes() -> None:
    failing, unclear = sweep_of(point("a", verdict="failed")), sweep_of(point("a", verdict="inconclusive"))
    assert exit_code(EXAMPLE, gate=True) == 0
    assert (exit_code(failing, gate=False), exit_code(failing, gate=True)) == (0, 1)
    assert exit_code(unclear, gate=True) == 4
    assert exit_code(sweep_of(lost("a", "no")), gate=False) == 3
