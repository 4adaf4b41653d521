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
