"""Budgets, judged."""

from __future__ import annotations

from typing import Literal

from edgeprune.records.base import Record, Sha256


class GateRow(Record):
    """One budget, judged.

    `actual` is the point and `bound` the value that was judged against `limit`, all in `unit`: drops are
    fractions (0.02 reads "2 pt"), and so are shares (0.9 reads "90 %"). `confidence` is one-sided, None for an exact
    value. `distance` is what is left until the limit, negative beyond it. `reason` says what was judged, or why
    nothing could be; `remedy` which command or setting would help. stale: the report measured another file or other
    data, or is of another schema.
    A row of the level `warn` is shown and never stops a file. `scope` names the runtime, precision or target whose
    budget it is ("": every file's).
    """

    metric: str
    subject: str
    operator: Literal["<=", ">="]
    limit: float
    unit: Literal["fraction", "share", "ms", "x", "bytes"]
    actual: float | None
    bound: float | None
    confidence: float | None
    status: Literal["pass", "fail", "stale", "missing", "inconclusive"]
    distance: float | None
    reason: str
    remedy: str
    level: Literal["error", "warn"] = "error"
    scope: str = ""


class Verdict(Record):
    """All rows, failures first, about the file `artifact_sha256`.

    Rows of the level `warn` do not count. passed: every row passes. inconclusive: nothing fails, is stale or is
    missing, but something is unclear.
    `reason` sums it up in a line, and says what to write where there are no budgets. `command` made the report: flags
    of a remedy go behind it.
    """

    status: Literal["passed", "failed", "inconclusive", "no budgets"]
    artifact_sha256: Sha256
    rows: tuple[GateRow, ...]
    reason: str
    command: str = ""
