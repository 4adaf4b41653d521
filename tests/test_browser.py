"""report.html in a real browser, on a desk and on a phone, light and dark: whole, quiet, and asking nobody."""

from __future__ import annotations

from pathlib import Path

import chromium
import pytest
from report_every import BUDGET, SECTIONS
from report_examples import ONNX, example_report, hostile_report, unmeasured_report

from edgeprune.gate import judge
from edgeprune.records import Report
from edgeprune.reporting.html import html

DESK, PHONE = 1280, 390
ASK = {
    "sections": "[...document.querySelectorAll('main section')].map(s => s.id)",
    "overflow": "document.documentElement.scrollWidth - document.documentElement.clientWidth",
    "background": "getComputedStyle(document.body).backgroundColor",
    "heights": "[...document.querySelectorAll('main section')].map(s => s.getBoundingClientRect().height)",
    "scripts": "document.scripts.length + document.querySelectorAll(`[onerror],iframe,img:not([src^='data:'])`).length",
    "plots": "[...document.querySelectorAll('svg.plot')].filter(s => s.getBoundingClientRect().width > 200).length",
    "nameless": "[...document.querySelectorAll('svg[role=img]')].filter(s => !s.querySelector('title')).length",
    "links": "[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash)).length",
    "ran": "typeof window.owned",
}
REPORTS = {"whole": example_report(), "unmeasured": unmeasured_report(), "hostile": hostile_report()}


def page_of(report: Report, folder: Path) -> Path:
    path = folder / "report.html"
    path.write_text(html(report.model_copy(update={"verdict": judge(report, BUDGET, ONNX)})), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_whole_quiet_and_asks_nobody(
    name: str, width: int, dark: bool, tmp_path: Path, opened: chromium.Browser
) -> None:
    path = page_of(REPORTS[name], tmp_path)
    page = opened.show(path, width, dark=dark, ask=ASK)
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.resolve().as_uri()]
    found = page.values
    assert set(SECTIONS) <= set(found["sections"])
    assert min(found["heights"]) > 30
    assert found["overflow"] <= 0, "the page can be scrolled sideways"
    assert (found["scripts"], found["ran"], found["nameless"], found["links"]) == (0, "undefined", 0, 0)
    assert found["plots"] >= (0 if name == "unmeasured" else 1)
    red = int(found["background"].split("(")[1].split(",")[0])
    assert red < 60 if dark else red > 200


def test_a_real_report_is_as_quiet(finished: Path, opened: chromium.Browser) -> None:
    page = opened.show(finished / "run" / "report.html", PHONE, dark=False, ask=ASK)
    assert page.complaints == []
    assert page.values["overflow"] <= 0
    assert set(SECTIONS) <= set(page.values["sections"])


def test_the_test_would_see_a_script_and_a_request(tmp_path: Path, opened: chromium.Browser) -> None:
    """The policy of the page refuses both, and the browser says so."""
    path = page_of(REPORTS["whole"], tmp_path)
    text = path.read_text(encoding="utf-8")
    more = '<script>window.owned = 1</script><img src="http://127.0.0.1:9/x.png"><div style="width: 3000px">wide</div>'
    path.write_text(text.replace("</main>", f"{more}</main>"), encoding="utf-8")
    page = opened.show(path, DESK, dark=False, ask=ASK)
    assert page.complaints
    assert page.values["scripts"] == 2
    assert page.values["ran"] == "undefined"
    assert page.values["overflow"] > 0
