"""Verdict -> JUnit XML: one testcase a gate row, so that any CI shows which budget failed and what to do.

fail, stale and missing are failures, inconclusive is an error (it could not be decided); both stop a pipeline.
A budget that only warns is a passed testcase whose output says so.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from edgeprune.records import Report, Verdict
from edgeprune.reporting.view import NOT_JUDGED, Judged, judged

_NOT_XML = re.compile(r"[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def junit(report: Report) -> str:
    """The report's verdict as JUnit XML; a report without rows is one skipped testcase."""
    return _suite(judged(report.verdict), report.created)


def verdict_junit(verdict: Verdict) -> str:
    """A verdict alone, as the gate writes it: without a time, so that the same verdict gives the same file."""
    return _suite(judged(verdict), "")


def _suite(rows: tuple[Judged, ...], created: str) -> str:
    failures = sum(row.status in ("fail", "stale", "missing") and not row.only_warns for row in rows)
    errors = sum(row.status == "inconclusive" and not row.only_warns for row in rows)
    counts = {
        "tests": str(len(rows) or 1),
        "failures": str(failures),
        "errors": str(errors),
        "skipped": str(int(not rows)),
    }
    when = {"timestamp": _text(created)} if created else {}
    root = ET.Element("testsuites", {"name": "edgeprune", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": "edgeprune gate", **counts, **when})
    for row in rows:
        _case(suite, row)
    if not rows:
        case = ET.SubElement(suite, "testcase", {"classname": "edgeprune.gate", "name": "budgets", "time": "0"})
        ET.SubElement(case, "skipped", {"message": NOT_JUDGED})
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, row: Judged) -> None:
    name = _text(f"{row.metric} {row.limit} ({row.subject})")
    case = ET.SubElement(suite, "testcase", {"classname": "edgeprune.gate", "name": name, "time": "0"})
    facts = " · ".join(part for part in (row.actual, row.bound, row.distance, row.reason) if part)
    if row.status == "pass" or row.only_warns:
        warning = f"warning: {facts}\n{row.remedy}" if row.only_warns else facts
        ET.SubElement(case, "system-out").text = _text(warning)
        return
    kind = "error" if row.status == "inconclusive" else "failure"
    message = " · ".join(part for part in (row.bound or row.reason, row.distance) if part)
    problem = ET.SubElement(case, kind, {"type": row.status, "message": _text(message)})
    problem.text = _text(f"{facts}\n{row.remedy}")


def _text(text: str) -> str:
    """Without the control characters that no XML 1.0 file may hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
