"""The gate at a file: reads the report, checks what lies beside it and the data, and judges.

Promise: a report of another schema, one that its attestation contradicts, and one about other test data never pass;
each says what to run. The judging itself is `edgeprune.gate`'s and does no I/O.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune.budgets import BudgetConfig
from edgeprune.config import Config
from edgeprune.errors import SchemaError
from edgeprune.gate import judge_file, refuse
from edgeprune.records import Report, Verdict, read_record
from edgeprune.remedies import again


def judge_report(path: Path, artifact: Path, config: Config, *, test: str | None = None) -> Verdict:
    """The verdict on `artifact` by the report at `path`; `test` names the data that it must have been made on.

    Errors: UsageError (no such file, no report), DataError (`test` cannot be opened).
    """
    from edgeprune.attestation import contradiction

    budget = config.budget
    try:
        report = read_record(Report, path)
    except SchemaError as error:
        return refuse(budget, artifact, error.what, error.hint)
    if test is not None:
        budget = _on(report, budget, test, config)
    verdict = judge_file(report, budget, artifact)
    if all(row.status == "stale" for row in verdict.rows):  # another file: that says more than a contradiction
        return verdict
    reason = contradiction(path, artifact)
    return refuse(budget, artifact, reason, f"{again(report)} writes both anew, together") if reason else verdict


def _on(report: Report, budget: BudgetConfig, test: str, config: Config) -> BudgetConfig:
    """The budget with the digest of the test data at `test`, read as the run read it."""
    from edgeprune.data import open_split
    from edgeprune.types import InputForm, Preprocessing

    said = report.model
    pixels = Preprocessing(said.mean, said.std, said.bounds, said.fit, said.resize, said.interpolation)
    form = InputForm(said.input_shape, pixels, said.classes)
    ran = next((split for split in report.data if split.role == "test"), None)
    split = open_split(test, "test", form, seed=report.seed, trust=config.model.trust)
    if ran is not None and ran.samples < len(split):
        split = open_split(test, "test", form, samples=ran.samples, seed=report.seed, trust=config.model.trust)
    return budget.model_copy(update={"test_digest": split.digest})
