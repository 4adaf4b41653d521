"""`attestation.json`: an in-toto Statement that binds the digest of every file that ships to the gate's verdict on it.

Promise: pure; the same report gives the same statement. It is not signed here: a tool of the user's choice signs it
(docs/ci.md), and a signature is checked by that tool. The gate checks what the statement says: where one lies beside
a report, it must be about that very report and name the very file that is to ship.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune.budgets import BudgetConfig
from edgeprune.errors import UsageError
from edgeprune.files import sha256_of
from edgeprune.gate import judge
from edgeprune.records import Digest, Predicate, Report, Resource, Statement, read_record
from edgeprune.records.attestation import PREDICATE, STATEMENT
from edgeprune.reporting.numbers import short

FILE = "attestation.json"


def attest(report: Report, report_sha256: str, budget: BudgetConfig, config_sha256: str) -> Statement:
    """The statement about `report`, whose file has the digest `report_sha256`.

    `config_sha256` is the digest of the whole configuration as JSON.
    """
    shipped = [item for item in report.artifacts if item.side == "compressed"]
    others = [item for item in report.artifacts if item.side == "dense"]
    verdicts = [judge(report, budget, item.sha256) for item in shipped] if budget.rules() else []
    materials = [
        _resource(report.model.name, report.model.file_sha256),
        _resource("weights", report.model.digest),
        *(_resource(item.path, item.sha256) for item in others),
        *(_resource(f"{split.role} data {split.name}", split.digest) for split in report.data),
        _resource("configuration", config_sha256),
        *([_resource("evidence.npz", report.evidence_sha256)] if report.evidence_sha256 else []),
    ]
    return Statement(
        type=STATEMENT,
        predicate_type=PREDICATE,
        subject=tuple(
            _resource(name, sha256)
            for item in shipped
            for name, sha256 in ((item.path, item.sha256), *((name, sha256) for name, sha256, _ in item.companions))
        ),
        predicate=Predicate(
            verdicts=tuple(verdicts),
            report=Digest(sha256=report_sha256),
            materials=tuple(materials),
            environment=report.environment,
            target=report.target.name,
            command=report.command,
            created=report.created,
        ),
    )


def contradiction(report: Path, artifact: Path) -> str:
    """Why the statement beside `report` is not about it and `artifact`; empty when it is, or where there is none."""
    path = report.parent / FILE
    if not path.is_file():
        return ""
    try:
        statement = read_record(Statement, path)
        found, file = sha256_of(report), sha256_of(artifact)
    except (UsageError, OSError) as error:
        return f"{FILE} beside the report cannot be checked: {error}".splitlines()[0]
    named = statement.predicate.report.sha256
    if named != found:
        return f"{FILE} is about another report ({short(named)}) than {report.name} ({short(found)})"
    if file not in {subject.digest.sha256 for subject in statement.subject}:
        return f"{FILE} does not name this file ({short(file)})"
    return ""


def _resource(name: str, sha256: str) -> Resource:
    return Resource(name=name, digest=Digest(sha256=sha256))
