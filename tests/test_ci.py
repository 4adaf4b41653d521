"""What CI runs: the action's own steps in bash, the GitLab script, the comment against a server on loopback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree as ET

import pytest
from report_examples import HOSTILE, ONNX, example_report, hostile_report

from edgeprune.budgets import BudgetConfig
from edgeprune.gate import judge
from edgeprune.reporting.annotations import workflow_commands
from edgeprune.reporting.junit import verdict_junit
from edgeprune.reporting.markdown import verdict_markdown

ROOT = Path(__file__).parents[1]
ACTION = (ROOT / "action.yml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Step:
    """One step of the action: its name, what its `env` takes from where, and its script."""

    name: str
    env: dict[str, str]
    run: str


def steps() -> dict[str, Step]:
    """The action's steps by name. Only as much YAML as action.yml is written in."""
    found = {}
    for block in re.split(r"(?m)^    - name: ", ACTION)[1:]:
        name, rest = block.split("\n", 1)
        head, script = rest.split("      run: |\n", 1)
        environment = dict(re.findall(r"(?m)^        ([A-Z_]+): (.*)$", head))
        found[name] = Step(name, environment, "\n".join(line[8:] for line in script.splitlines()))
    return found


@dataclass
class Workflow:
    """The documented environment of a step, and what it wrote."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, name: str, **inputs: str) -> subprocess.CompletedProcess[str]:
        step = steps()[name]
        assert inputs.keys() == step.env.keys(), "the step's environment is not what the test gives"
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            "GITHUB_OUTPUT": str(self.folder / "output"),
            "RUNNER_TEMP": str(self.folder),
            **self.environment,
            **inputs,
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step.run]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in (self.folder / "output").read_text().splitlines())

    def judge(self, arguments: str = "", artifact: str = "run/model.onnx") -> subprocess.CompletedProcess[str]:
        return self.run("Judge", REPORT="run", ARTIFACT=artifact, CONFIG="edgeprune.toml", ARGUMENTS=arguments)


@pytest.fixture
def workflow(project: Path) -> Workflow:
    return Workflow(project)


# --------------------------------------------------------------------------------------------------- the action


def test_the_steps_are_found_and_take_no_input_but_by_their_environment() -> None:
    assert list(steps()) == ["Install", "Judge", "Comment", "Verdict"]
    for step in steps().values():
        assert "${{" not in step.run, "an expression inside a script is how inputs become code"
        assert all(value.startswith("${{ ") for value in step.env.values())


def test_the_action_uses_no_other_action() -> None:
    assert not re.search(r"(?m)^\s*-?\s*uses:", ACTION)


def test_a_file_that_may_ship_passes(workflow: Workflow) -> None:
    done = workflow.judge()
    assert done.returncode == 0, done.stderr
    out = workflow.outputs()
    assert out["exit-code"] == "0"
    assert json.loads(Path(out["verdict"]).read_text())["status"] == "passed"
    assert ET.parse(out["junit"]).getroot().get("failures") == "0"
    assert "May ship" in (workflow.folder / "summary.md").read_text()
    assert "::notice file=run/model.onnx" in done.stderr
    assert workflow.run("Verdict", CODE=out["exit-code"]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "artifact", "code", "word"),
    [
        ("--max-size 1kB", "run/model.onnx", "1", "FAIL"),
        ("--max-accuracy-drop 0.1pt", "run/model.onnx", "4", "UNCLEAR"),
        ("", "run/dense/model.onnx", "1", "STALE"),
        ("--min-speedup 1000x --warn speedup", "run/model.onnx", "0", "WARN"),
    ],
)
def test_the_verdict_is_the_jobs(arguments: str, artifact: str, code: str, word: str, workflow: Workflow) -> None:
    done = workflow.judge(arguments, artifact)
    assert done.returncode == 0, "the comment must still be written"
    assert workflow.outputs()["exit-code"] == code
    assert f"**{word}**" in (workflow.folder / "summary.md").read_text()
    assert f"::{'warning' if code == '0' else 'error'} file={artifact},title=edgeprune%3A" in done.stderr
    assert workflow.run("Verdict", CODE=code).returncode == int(code)


def test_a_gate_that_could_not_judge_says_so_and_fails(workflow: Workflow) -> None:
    workflow.judge("--no-such-flag")
    assert workflow.outputs()["exit-code"] == "2"
    assert "Not judged" in (workflow.folder / "summary.md").read_text()
    assert workflow.run("Verdict", CODE="").returncode == 3


def test_arguments_are_words_and_never_code(workflow: Workflow) -> None:
    workflow.judge("--max-size $(touch${IFS}owned) ; touch owned")
    assert not (workflow.folder / "owned").exists()


# -------------------------------------------------------------------------------------------------- the comment


class Comments(BaseHTTPRequestHandler):
    """As much of GitHub's comments as is needed. `stored` is what the pull request has."""

    stored: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[str]] = []
    refuse: ClassVar[bool] = False

    def do_GET(self) -> None:
        page = int(re.search(r"[?&]page=(\d+)", self.path)[1])  # type: ignore[index]
        self._answer(self.stored[100 * (page - 1) : 100 * page])

    def do_POST(self) -> None:
        self.stored.append({"id": len(self.stored) + 1, "body": self._body()})
        self._answer(self.stored[-1])

    def do_PATCH(self) -> None:
        number = int(self.path.rsplit("/", 1)[1])
        self.stored[number - 1]["body"] = self._body()
        self._answer(self.stored[number - 1])

    def _body(self) -> str:
        return str(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"])

    def _answer(self, data: object) -> None:
        self.asked.append(f"{self.command} {self.path} {self.headers['Authorization']}")
        text = json.dumps(data).encode()
        self.send_response(403 if self.refuse else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pull_request(workflow: Workflow) -> Iterator[Workflow]:
    """A workflow whose GitHub is a server on loopback."""
    Comments.stored, Comments.asked, Comments.refuse = [], [], False
    with ThreadingHTTPServer(("127.0.0.1", 0), Comments) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        workflow.environment = {
            "GITHUB_API_URL": f"http://127.0.0.1:{server.server_port}",
            "GITHUB_REPOSITORY": "someone/something",
            "no_proxy": "*",
        }
        yield workflow
        server.shutdown()


def comment(workflow: Workflow, body: str = "one", name: str = "model.onnx") -> subprocess.CompletedProcess[str]:
    (workflow.folder / "verdict.md").write_text(body)
    return workflow.run("Comment", GITHUB_TOKEN="secret", PULL_REQUEST="7", MARKDOWN="verdict.md", ARTIFACT=name)


def test_one_comment_is_written_and_then_updated(pull_request: Workflow) -> None:
    assert comment(pull_request, "one").stdout.startswith("commented")
    assert comment(pull_request, "two").stdout.startswith("updated")
    assert [item["body"].split("\n", 1)[1] for item in Comments.stored] == ["two"]
    assert all(line.endswith("Bearer secret") for line in Comments.asked)
    assert Comments.asked[1].startswith("POST /repos/someone/something/issues/7/comments ")


def test_each_file_has_a_comment_of_its_own_among_many(pull_request: Workflow) -> None:
    Comments.stored.extend({"id": number + 1, "body": "hello"} for number in range(130))
    comment(pull_request, "one")
    comment(pull_request, "other", "model.xml")
    comment(pull_request, "two")
    assert [item["body"].split("\n", 1)[1] for item in Comments.stored[130:]] == ["two", "other"]


def test_a_quoted_marker_is_not_ours(pull_request: Workflow) -> None:
    comment(pull_request, "one")
    Comments.stored[0]["body"] = "> " + Comments.stored[0]["body"]
    comment(pull_request, "two")
    assert len(Comments.stored) == 2


def test_a_token_that_may_not_write_is_a_warning(pull_request: Workflow) -> None:
    Comments.refuse = True
    done = comment(pull_request)
    assert done.returncode == 0
    assert "::warning title=edgeprune::the comment was not written" in done.stdout
    assert "secret" not in done.stdout + done.stderr


def test_a_long_comment_is_cut(pull_request: Workflow) -> None:
    comment(pull_request, "x" * 70_000)
    assert len(Comments.stored[0]["body"]) < 65_536
    assert "cut:" in Comments.stored[0]["body"]


# --------------------------------------------------------------------------------- GitLab, pre-commit, the page


def test_the_gitlab_script_judges(project: Path) -> None:
    text = (ROOT / "ci" / "gitlab.yml").read_text(encoding="utf-8")
    (script,) = re.findall(r"(?m)^  script:\n    - (.*)$", text)
    variables = dict(re.findall(r'(?m)^    (EDGEPRUNE_[A-Z]+): "?(.*?)"?$', text))
    assert variables.keys() == set(re.findall(r"EDGEPRUNE_[A-Z]+", text))
    for arguments, code in (("", 0), ("--max-size 1kB", 1)):
        given = {"EDGEPRUNE_REPORT": "run", "EDGEPRUNE_ARTIFACT": "run/model.onnx", "EDGEPRUNE_ARGUMENTS": arguments}
        environment = {**os.environ, **variables, **given}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = subprocess.run(["sh", "-c", script], cwd=project, env=environment, capture_output=True, check=False)
        assert done.returncode == code
        assert ET.parse(project / "edgeprune-junit.xml").getroot().get("failures") == str(code)
    assert "edgeprune-junit.xml" in re.search(r"reports:\n\s+junit: (\S+)", text)[1]  # type: ignore[index]


def test_the_page_names_real_inputs_and_variables() -> None:
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    known = set(re.findall(r"(?m)^  ([a-z-]+):$", ACTION.partition("outputs:")[0]))
    block = re.search(r"- uses: OWNER/edgeprune@REVISION\n\s+with:\n((?:          .*\n)+)", page)
    assert block is not None
    given = set(re.findall(r"(?m)^          ([a-z]+):", block[1]))
    assert given
    assert given <= known
    template = (ROOT / "ci" / "gitlab.yml").read_text(encoding="utf-8")
    assert all(name in template for name in re.findall(r"EDGEPRUNE_[A-Z]+", page))
    hook = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
    assert "- id: edgeprune-gate" in hook
    assert "- id: edgeprune-gate" in page


def test_judging_needs_only_what_the_action_installs(finished: Path) -> None:
    """pydantic, typer and rich with what they need: neither numpy nor jinja2."""
    script = (
        "import sys\nfor name in ('numpy', 'scipy', 'jinja2', 'markupsafe', 'torch', 'onnx', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "from edgeprune.cli import _guarded\n"
        "gate = ['gate', 'run', '--artifact', 'run/model.onnx', '--annotations', '--json']\n"
        "gate += ['--junit', sys.argv[1] + '/j.xml', '--markdown', sys.argv[1] + '/v.md']\n"
        "print(_guarded(gate, False))"
    )
    folder = finished.parent / f"{finished.name}-junit"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "0", done.stderr


# --------------------------------------------------------------------------------------------------- renderings


def test_names_cannot_leave_an_annotation() -> None:
    report = hostile_report()
    verdict = judge(report, BudgetConfig.model_validate({"robust_accuracy_drop": "1 pt", "size_bytes": "1 kB"}), ONNX)
    lines = workflow_commands(verdict, "a,title=x::%\n::error::y")
    assert len(lines) == 2
    for line in lines:
        assert re.match(r"::error file=a%2Ctitle=x%3A%3A%25%0A%3A%3Aerror%3A%3Ay,title=edgeprune%3A[^:]*::", line)
        assert "\n" not in line


def test_the_renderings_of_a_verdict_are_the_same_every_time_and_harmless() -> None:
    verdict = judge(hostile_report(), BudgetConfig.model_validate({"size_bytes": "1 kB"}), ONNX)
    assert verdict_junit(verdict) == verdict_junit(verdict)
    case = ET.fromstring(verdict_junit(verdict)).find(".//testcase")
    assert case is not None
    assert HOSTILE in str(case.get("name"))
    outside = re.sub(r"(`+) ?.*?\1", "", verdict_markdown(verdict))  # the run's command stands in a code span
    assert "<script>" not in outside


def test_a_verdict_without_rows_has_a_rendering() -> None:
    verdict = judge(example_report(), BudgetConfig(), ONNX)
    assert 'skipped="1"' in verdict_junit(verdict)
    assert "Not judged" in verdict_markdown(verdict)
