"""sweep.html in a real browser, on a desk and on a phone: whole, quiet, asking nobody, whatever a name looks like."""

from __future__ import annotations

from pathlib import Path

import chromium
import pytest
from sweep_examples import lost, point
from test_browser import ASK, DESK, PHONE
from test_reporting_sweep import EXAMPLE, HOSTILE, sweep_of

from edgeprune.records import Sweep
from edgeprune.reporting.sweep_page import sweep_html

SWEEPS = {"plain": EXAMPLE, "hostile": sweep_of(point(HOSTILE), lost("x", HOSTILE * 9), model=HOSTILE)}


@pytest.mark.parametrize("found", SWEEPS.values(), ids=SWEEPS)
@pytest.mark.parametrize(("width", "dark"), [(DESK, True), (PHONE, False)])
def test_the_page_is_whole_quiet_and_asks_nobody(
    found: Sweep, width: int, dark: bool, tmp_path: Path, opened: chromium.Browser
) -> None:
    path = tmp_path / "sweep.html"
    path.write_text(sweep_html(found), encoding="utf-8")
    page = opened.show(path, width, dark=dark, ask=ASK)
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.resolve().as_uri()]
    values = page.values
    assert values["sections"] == ["recommended", "picture", "points", "reproduce"]
    assert values["overflow"] <= 0, "the page can be scrolled sideways"
    assert (values["scripts"], values["ran"], values["nameless"], values["links"]) == (0, "undefined", 0, 0)
    assert values["plots"] == 1


SEEN = "[...document.querySelectorAll('{}')].filter(e => e.getClientRects().length).length"
HANDS = {
    "pictures": "document.querySelectorAll('svg.plot').length",
    "first": SEEN.format(".show-speedup-robust_accuracy"),
    "marks": SEEN.format("a.mark"),
    "links": "[...document.querySelectorAll(`a.mark`)]"
    ".filter(a => !a.ariaLabel || !a.href.baseVal.endsWith(`/report.html`)).length",
    "switch": "document.getElementById('x-size_bytes').click(), document.getElementById('y-accuracy').click()",
    "switched": SEEN.format(".show-size_bytes-accuracy"),
    "left": SEEN.format(".show-speedup-robust_accuracy"),
    "leave out": "document.getElementById('a0v2').click()",
    "marks left": SEEN.format("a.mark"),
    "rows left": SEEN.format("tr[id]"),
    "all again": "document.querySelector('.filters button').click()",
    "rows again": SEEN.format("tr[id]"),
    "focus": "document.querySelector('.show-size_bytes-accuracy .m3').focus({focusVisible: true})",
    "readout": "[...document.querySelectorAll(`.readouts p`)].filter(e => e.getClientRects().length)"
    ".map(e => e.innerText)",
    "lit": "getComputedStyle(document.getElementById('p3')).backgroundColor != "
    "getComputedStyle(document.getElementById('p1')).backgroundColor",
}


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_axes_are_chosen_points_left_out_and_marks_explained_without_a_script(
    width: int, tmp_path: Path, opened: chromium.Browser
) -> None:
    path = tmp_path / "sweep.html"
    path.write_text(sweep_html(EXAMPLE), encoding="utf-8")
    page = opened.show(path, width, dark=False, ask=HANDS)
    found = page.values
    assert page.complaints == []
    assert (found["pictures"], found["first"], found["marks"], found["links"]) == (6, 1, 2, 0)
    assert (found["switched"], found["left"]) == (1, 0)
    assert (found["marks left"], found["rows left"], found["rows again"]) == (1, 2, 3)
    assert len(found["readout"]) == 1
    assert found["readout"][0].startswith("3 criterion fast")
    assert found["lit"]
