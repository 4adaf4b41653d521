"""A verdict as GitHub's workflow commands: one annotation for each row that does not pass.

Names come from files: percent signs, line breaks, and in properties colons and commas too, are escaped as GitHub asks,
so that no name can start a command of its own.
"""

from __future__ import annotations

from edgeprune.records import Verdict
from edgeprune.reporting.view import judged


def workflow_commands(verdict: Verdict, file: str) -> tuple[str, ...]:
    """`::error file=...` a row, `::warning` for one that only warns; a notice where everything holds."""
    lines = []
    for row in judged(verdict):
        if row.status == "pass":
            continue
        kind = "warning" if row.only_warns else "error"
        title = f"edgeprune: {row.metric} {row.limit} {row.word}"
        facts = " · ".join(part for part in (row.bound or row.reason, row.distance, row.remedy) if part)
        lines.append(f"::{kind} file={_property(file)},title={_property(title)}::{_data(f'{row.subject}: {facts}')}")
    if not lines:
        lines.append(f"::notice file={_property(file)},title=edgeprune::{_data(verdict.reason)}")
    return tuple(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
