"""Reports of every kind that the tests of renderings render."""

from __future__ import annotations

from report_examples import (
    ONNX,
    example_report,
    hostile_report,
    unmeasured_report,
)

from edgeprune.config import BudgetConfig
from edgeprune.gate import judge
from edgeprune.records import Report, Unmeasured

SECTIONS = [
    *("verdict", "changes", "picture", "curve", "thin-ice", "flips", "layers", "removed", "left-alone", "attack"),
    "parity",
    *("provenance", "reproduce"),
]
BUDGET = BudgetConfig.model_validate(
    {
        "accuracy_drop": "2 pt",
        "robust_accuracy_drop": "2 pt",
        "latency_ms": "0.5 ms",
        "speedup": "1.5x",
        "size_bytes": "600 kB",
    }
)


def with_verdict(report: Report) -> Report:
    return report.model_copy(update={"verdict": judge(report, BUDGET, ONNX)})


def bare_report() -> Report:
    """Nothing was measured, nothing removed in detail, nothing judged."""
    reason = Unmeasured(unmeasured="the runtime is missing")
    return unmeasured_report(
        layers=(),
        parity=(),
        artifacts=(),
        **dict.fromkeys(("latency", "accuracy", "robustness", "thin_ice", "curve"), reason),
    )


EVERY = {
    "judged": with_verdict(example_report()),
    "not judged": example_report(),
    "unmeasured": with_verdict(unmeasured_report()),
    "hostile": with_verdict(hostile_report()),
    "bare": bare_report(),
}
