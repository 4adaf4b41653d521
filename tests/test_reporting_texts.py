"""Renderings of a report as text: Markdown, JUnit and the terminal say what the HTML says, and names stay names."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from report_every import BUDGET, EVERY, with_verdict
from report_examples import (
    ONNX,
    digest,
    example_model,
    example_report,
    example_robustness,
)
from rich.console import Console

from edgeprune.config import BudgetConfig
from edgeprune.gate import judge
from edgeprune.reporting import summary
from edgeprune.reporting.html import html
from edgeprune.reporting.junit import junit
from edgeprune.reporting.markdown import code, markdown, text
from edgeprune.reporting.terminal import plain, print_summary, print_verdict
from edgeprune.reporting.view import fitting

GOLDEN = Path(__file__).parent / "golden"


# ------------------------------------------------------------------------------------------------ Markdown


@pytest.mark.parametrize(("golden", "name"), [("report.md", "judged"), ("report_unmeasured.md", "unmeasured")])
def test_markdown_is_as_it_was(golden: str, name: str) -> None:
    """To accept a change: write the rendering over the golden file and read the difference."""
    assert markdown(EVERY[name]) == (GOLDEN / golden).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({}, ""),
        ({"fit": "squash", "interpolation": "bicubic"}, "image files squashed (bicubic)"),
        ({"fit": "crop"}, "image files cropped at the centre"),
        (
            {"fit": "crop", "resize": 36, "held": ("mask", "angle")},
            "image files resized to 36 (bilinear), cropped at the centre; held at one value: mask, angle",
        ),
    ],
)
def test_the_way_of_image_files_to_the_input_is_told(model: dict[str, object], words: str) -> None:
    report = example_report(model=example_model(**model))
    assert fitting(report.model) == words
    for rendering in (html(report), markdown(report)):
        assert (words in rendering) if words else ("image files" not in rendering and "held at" not in rendering)


def test_markdown_fits_a_comment_however_much_was_left_alone() -> None:
    plan = example_report().plan
    many = plan.model_copy(update={"refusals": plan.refusals * 500})
    warnings = tuple(f"warning {index}" for index in range(5000))
    body = markdown(with_verdict(example_report(plan=many, warnings=warnings)))
    assert len(body) < 65_536
    assert "and 988 more, in report.html" in body


def test_hostile_names_stay_text_in_markdown() -> None:
    body = markdown(EVERY["hostile"])
    outside = re.sub(r"(`+) ?.*?\1", "", body)
    assert "<script" not in outside
    assert "<img" not in outside
    for line in body.splitlines():
        if line.startswith("| <") or line.startswith("| **"):
            assert line.count("|") - line.count("\\|") in (5, 7), line


def test_code_spans_cannot_be_left() -> None:
    assert code("a`b") == "``a`b``"
    assert code("`") == "`` ` ``"
    assert code("a|b\nc") == "`a\\|b c`"
    assert code("") == "` `"


def test_plain_text_mentions_nobody() -> None:
    assert text("@everyone <b> a|b *c*") == "@\u200beveryone &lt;b&gt; a\\|b \\*c\\*"


# --------------------------------------------------------------------------------------------------- JUnit


def test_junit_has_a_testcase_for_every_row() -> None:
    report = EVERY["unmeasured"]
    assert report.verdict
    root = ET.fromstring(junit(report))
    suite = root.find("testsuite")
    assert suite is not None
    assert len(suite.findall("testcase")) == len(report.verdict.rows) == 5
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "2", "0")
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("type") == "missing"
    assert "--test" in (failure.text or "")


def test_junit_calls_an_undecided_row_an_error() -> None:
    suite = ET.fromstring(junit(EVERY["hostile"])).find("testsuite")
    assert suite is not None
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")


def test_junit_without_rows_is_skipped() -> None:
    root = ET.fromstring(junit(example_report()))
    assert root.find("testsuite/testcase/skipped") is not None
    assert (root.get("tests"), root.get("skipped")) == ("1", "1")


def test_junit_survives_control_characters() -> None:
    report = example_report(robustness=example_robustness(conclusive=False, warnings=("\x00\x1b[31m\ufffe",)))
    assert ET.fromstring(junit(with_verdict(report))).find("testsuite/testcase/error") is not None


# ------------------------------------------------------------------------------------------------ terminal


@pytest.mark.parametrize("name", EVERY)
def test_the_terminal_summary_is_80_columns_without_colour(name: str) -> None:
    page = summary(EVERY[name])
    prose = [line for line in page.splitlines() if not line.strip().startswith("edgeprune ")]
    assert max(len(line) for line in prose) <= 80  # a command is never broken
    assert "\x1b" not in page
    assert "…" not in page


def test_the_terminal_summary_is_as_it_was() -> None:
    assert summary(EVERY["judged"]) == (GOLDEN / "summary.txt").read_text(encoding="utf-8")


def test_the_terminal_verdict_needs_no_colour_to_be_understood() -> None:
    page = summary(EVERY["judged"])
    assert "Must not ship" in page
    assert page.index("FAIL") < page.index("PASS")
    assert "1.2 pt beyond the limit" in page
    assert "--recover-epochs 12" in page


def test_a_remedy_that_several_rows_share_is_given_once() -> None:
    report = example_report()
    stale = summary(report.model_copy(update={"verdict": judge(report, BUDGET, digest("0"))}))
    assert stale.count("→") == 1
    assert "→ All: run\n    edgeprune compress gtsrb_net_adv.pt --target cpu --speedup 1.9 --seed 7\n" in stale
    assert "→ Accuracy drop, Robust accuracy drop: give labelled" in summary(EVERY["unmeasured"])


def test_flags_are_told_which_command_they_go_behind() -> None:
    command = "edgeprune compress gtsrb_net_adv.pt --target cpu --speedup 1.9 --seed 7"
    assert f"Flags go behind the command of the run:\n  {command}\n" in summary(EVERY["judged"])
    assert f"Flags go behind the command of the run: `{command}`" in markdown(EVERY["judged"])
    assert "Flags go behind" in html(EVERY["judged"])
    assert "Flags go behind" not in summary(EVERY["unmeasured"])


def test_a_command_is_never_broken_over_lines() -> None:
    long = f"edgeprune compress model.pt --out {'deep/' * 40}run"
    report = example_report(command=long)
    stale = report.model_copy(update={"verdict": judge(report, BUDGET, digest("0"))})
    assert f"\n    {long}\n" in summary(stale)
    assert f"`{long}`" in markdown(stale)


def test_a_share_is_missed_by_points_not_by_per_cent() -> None:
    verdict = judge(example_report(), BudgetConfig.model_validate({"accuracy": "95 %"}), ONNX)
    assert "pt beyond the limit" in summary(example_report(verdict=verdict))


def test_a_row_about_other_data_says_so_and_not_that_the_file_is_another() -> None:
    verdict = judge(
        example_report(), BudgetConfig.model_validate({"accuracy_drop": "4 pt", "test_digest": "0" * 12}), ONNX
    )
    page = " ".join(summary(example_report(verdict=verdict)).split())
    assert page.count("measured on other test data") == 2


def test_no_budgets_show_what_to_write() -> None:
    out = io.StringIO()
    print_verdict(judge(example_report(), BudgetConfig(), ONNX), Console(file=out, width=80))
    assert '[budget]\naccuracy_drop = "2 pt"' in out.getvalue()


def test_names_cannot_command_the_terminal() -> None:
    assert plain("a\x1b[2Jb\u202e") == "a\ufffd[2Jb\ufffd"
    out = io.StringIO()
    report = example_report(model=example_model(name="\x1b[2Jgone"), warnings=("[red]not markup[/red]\x07",))
    print_summary(report, Console(file=out, width=80))
    assert "\x1b[2J" not in out.getvalue()
    assert "[red]not markup[/red]" in out.getvalue()
