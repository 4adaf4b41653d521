"""attestation.json: an in-toto Statement about the shipped files; the gate holds a report to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Command
from report_examples import BIN, DENSE_ONNX, ONNX, XML, digest, example_report, unmeasured_report

from edgeprune.attestation import attest, contradiction
from edgeprune.budgets import BudgetConfig
from edgeprune.files import sha256_of
from edgeprune.records import Report, Statement, read_record

BUDGET = BudgetConfig.model_validate({"speedup": "1.5x", "robust_accuracy_drop": "4 pt"})


def example() -> Statement:
    return attest(example_report(), digest("6"), BUDGET, digest("8"))


def test_it_is_an_in_toto_statement() -> None:
    data = json.loads(example().to_json())
    assert data["_type"] == "https://in-toto.io/Statement/v1"
    assert data["predicateType"] == "urn:edgeprune:verdict:v1"
    assert data["subject"][0] == {"name": "model.onnx", "digest": {"sha256": ONNX}}
    assert Statement.model_validate_json(example().to_json()) == example()


def test_subjects_are_what_ships_and_materials_what_went_in() -> None:
    statement = example()
    assert {subject.digest.sha256 for subject in statement.subject} == {ONNX, XML, BIN}
    went_in = {item.name: item.digest.sha256 for item in statement.predicate.materials}
    assert went_in["dense.onnx"] == DENSE_ONNX
    assert went_in["test data gtsrb_test.npz"] == digest("e")
    assert went_in["configuration"] == digest("8")
    assert statement.predicate.report.sha256 == digest("6")


def test_each_file_has_the_verdict_on_itself() -> None:
    """model.xml was not attacked: what passed for model.onnx says nothing of it."""
    verdicts = {item.artifact_sha256: item.status for item in example().predicate.verdicts}
    assert verdicts == {ONNX: "passed", XML: "failed"}


def test_without_budgets_nothing_is_claimed() -> None:
    assert attest(unmeasured_report(), digest("6"), BudgetConfig(), digest("8")).predicate.verdicts == ()


def test_a_run_writes_it_beside_its_report(finished: Path) -> None:
    run = finished / "run"
    statement = read_record(Statement, run / "attestation.json")
    assert statement.predicate.report.sha256 == sha256_of(run / "report.json")
    shipped = {subject.name: subject.digest.sha256 for subject in statement.subject}
    assert shipped == {name: sha256_of(run / name) for name in ("model.onnx", "model.xml", "model.bin")}
    assert contradiction(run / "report.json", run / "model.xml") == ""


def test_a_report_that_was_edited_is_contradicted(project: Path, edgeprune: Command) -> None:
    path = project / "run" / "report.json"
    path.write_text(path.read_text().replace('"dense_only": ', '"dense_only":  '))
    said = edgeprune("gate", "run", "--artifact", "run/model.onnx", "--json")
    verdict = json.loads(said.out)
    assert (said.code, {row["status"] for row in verdict["rows"]}) == (1, {"stale"})
    assert "about another report" in verdict["reason"]


def test_a_statement_about_other_files_is_a_contradiction(project: Path) -> None:
    run = project / "run"
    assert "does not name this file" in contradiction(run / "report.json", run / "dense" / "model.onnx")


@pytest.mark.parametrize("text", ["", "{}", "null"])
def test_a_statement_that_cannot_be_read_never_passes(text: str, project: Path, edgeprune: Command) -> None:
    (project / "run" / "attestation.json").write_text(text)
    said = edgeprune("gate", "run", "--artifact", "run/model.onnx")
    assert said.code == 1
    assert "cannot be checked" in " ".join(said.out.split())


def test_no_statement_is_no_fault(project: Path, edgeprune: Command) -> None:
    (project / "run" / "attestation.json").unlink()
    assert edgeprune("gate", "run", "--artifact", "run/model.onnx").code == 0


def test_the_onnx_file_names_its_plan(finished: Path) -> None:
    def named(path: Path) -> dict[str, str]:
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}

    run = finished / "run"
    assert named(run / "model.onnx")["edgeprune.plan_digest"] == sha256_of(run / "plan.json")
    assert "edgeprune.plan_digest" not in named(run / "dense" / "model.onnx")
    assert named(run / "model.onnx").keys() >= {"edgeprune.parent_digest", "edgeprune.version"}


def test_the_gate_recognises_the_test_data(project: Path, edgeprune: Command) -> None:
    gate = ("gate", "run", "--artifact", "run/model.onnx", "--max-accuracy-drop", "50 pt", "--json")
    assert edgeprune(*gate, "--test", "test.npz").code == 0
    with np.load("test.npz") as arrays:
        images, labels = arrays["images"].copy(), arrays["labels"]
    images[0, 0, 0, 0] += 0.01
    np.savez("other.npz", images=images, labels=labels)
    said = edgeprune(*gate, "--test", "other.npz")
    stale = [row["metric"] for row in json.loads(said.out)["rows"] if row["status"] == "stale"]
    assert (said.code, stale) == (1, ["accuracy_drop"])
    report = read_record(Report, Path("run/report.json"))
    test = next(split for split in report.data if split.role == "test")
    assert edgeprune(*gate, "--test-digest", test.digest[:16]).code == 0
