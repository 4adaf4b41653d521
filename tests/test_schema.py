"""The published JSON Schemas: current, valid, and true of what edgeprune writes; other schema versions are refused."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from conftest import Command
from report_examples import ONNX, example_plan, example_report, hostile_report, unmeasured_report

from edgeprune.budgets import BudgetConfig
from edgeprune.errors import SchemaError, UsageError
from edgeprune.gate import judge
from edgeprune.records import PrunePlan, Record, Report, read_record
from edgeprune.schema import KINDS, schema_of, schema_text

FOLDER = Path(__file__).parents[1] / "edgeprune" / "schemas"


def check(kind: str, data: object) -> None:
    jsonschema.Draft202012Validator(schema_of(kind)).validate(data)


@pytest.mark.parametrize("kind", KINDS)
def test_the_committed_schema_is_current(kind: str) -> None:
    """When this fails: `python docs/generate_schemas.py`."""
    assert (FOLDER / f"{kind}.schema.json").read_text(encoding="utf-8") == schema_text(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_schema_is_a_schema(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema_of(kind))


def test_no_schema_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{kind}.schema.json" for kind in KINDS}


@pytest.mark.parametrize("report", [example_report(), unmeasured_report(), hostile_report()])
def test_reports_are_of_their_schema(report: Report) -> None:
    verdict = judge(report, BudgetConfig.model_validate({"speedup": "1.5x", "int8": {"accuracy": 0.9}}), ONNX)
    check("report", json.loads(report.model_copy(update={"verdict": verdict}).to_json()))
    check("verdict", json.loads(verdict.to_json()))
    check("plan", json.loads(report.plan.to_json()))


def test_a_finished_run_is_of_its_schemas(finished: Path) -> None:
    for kind, name in {"report": "report", "plan": "plan", "statement": "attestation"}.items():
        check(kind, json.loads((finished / "run" / f"{name}.json").read_text(encoding="utf-8")))


def test_an_unknown_key_is_not_of_the_schema() -> None:
    with pytest.raises(jsonschema.ValidationError):
        check("plan", {**json.loads(example_plan().to_json()), "more": 1})


def test_settings_as_people_write_them_are_of_the_schema() -> None:
    check("config", {"prune": {"speedup": "2x"}, "attack": {"eps": "8/255"}, "budget": {"size_bytes": "200 KB"}})
    with pytest.raises(jsonschema.ValidationError):
        check("config", {"prune": {"spedup": "2x"}})


def test_the_command_prints_the_schema(edgeprune: Command) -> None:
    said = edgeprune("schema", "report")
    assert (said.code, said.out) == (0, schema_text("report"))
    wrong = edgeprune("schema", "reports")
    assert wrong.code == 2
    assert "known: report, plan" in wrong.err


# ------------------------------------------------------------------------------------------- other versions


@pytest.mark.parametrize(
    ("version", "word", "remedy"),
    [
        ("0", "older", "edgeprune compress"),
        ("2", "newer", "use edgeprune 9.9"),
        (7, "newer", "9.9"),
        (None, "older", ""),
    ],
)
def test_another_schema_is_named_as_older_or_newer(version: object, word: str, remedy: str, tmp_path: Path) -> None:
    data = json.loads(example_report().to_json())
    data["schema_version"], data["environment"]["edgeprune"] = version, "9.9"
    (tmp_path / "report.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(SchemaError, match=word) as caught:
        read_record(Report, tmp_path / "report.json")
    assert remedy in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("kind", "text"), [(Report, "[]"), (PrunePlan, "{"), (Report, "{}"), (Report, "[" * 9999)])
def test_what_names_no_schema_is_refused_all_the_same(kind: type[Record], text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="not a"):
        read_record(kind, tmp_path / "x.json")


@pytest.mark.parametrize("command", [("report", "run"), ("compare", "run", "run")])
def test_commands_refuse_another_schema(command: tuple[str, ...], project: Path, edgeprune: Command) -> None:
    path = project / "run" / "report.json"
    path.write_text(path.read_text().replace('"schema_version": "1"', '"schema_version": "0"', 1))
    said = edgeprune(*command)
    assert said.code == 2
    assert "older schema '0'" in said.err


def test_the_gate_takes_another_schema_for_stale(project: Path, edgeprune: Command) -> None:
    path = project / "run" / "report.json"
    path.write_text(path.read_text().replace('"schema_version": "1"', '"schema_version": "2"', 1))
    said = edgeprune("gate", "run", "--artifact", "run/model.onnx", "--json")
    verdict = json.loads(said.out)
    assert (said.code, {row["status"] for row in verdict["rows"]}) == (1, {"stale"})
    assert "newer schema '2'" in verdict["reason"]
    assert "which wrote it" in verdict["rows"][0]["remedy"]
