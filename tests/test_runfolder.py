"""The run folder: what is finished is kept, what is stale goes, and nothing of a broken stage stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgeprune.errors import OutputError
from edgeprune.records import Record
from edgeprune.runfolder import STAGES, RunFolder


class Result(Record):
    value: int


class Run:
    """Opens a folder again and again, as the same command would, and counts which stages really work."""

    def __init__(self, path: Path) -> None:
        self.path, self.worked, self.said = path, list[str](), list[str]()

    def __call__(self, *stages: tuple[str, object], fail: str = "") -> list[int]:
        self.worked, self.said = [], []
        with RunFolder.opened(self.path, self.said.append) as folder:
            return [
                folder.stage(name, Result, {"in": given}, self._work(name, given, fail)).value for name, given in stages
            ]

    def _work(self, name: str, given: object, fail: str) -> Callable[[], tuple[Result, Sequence[Path]]]:
        def work() -> tuple[Result, Sequence[Path]]:
            self.worked.append(name)
            path = self.path / f"{name}.out"
            path.write_text(f"{name} of {given}")
            if name == fail:
                raise RuntimeError(name)
            return Result(value=len(str(given))), [path]

        return work

    def files(self) -> list[str]:
        return sorted(str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file() and p.name != ".lock")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


FIRST = (("plan", "a"), ("recover", "bb"), ("export", "ccc"))


def test_finished_stages_are_kept_with_their_results(run: Run) -> None:
    assert run(*FIRST) == [1, 2, 3]
    assert run.worked == ["plan", "recover", "export"]
    assert run(*FIRST) == [1, 2, 3]
    assert run.worked == []
    assert run.said == [f"{name}: kept from the run before" for name, _ in FIRST]


def test_changed_inputs_remake_the_stage_and_remove_what_followed(run: Run) -> None:
    run(*FIRST)
    with pytest.raises(RuntimeError):
        run(FIRST[0], ("recover", "other"), fail="recover")
    assert run.files() == ["plan.out", "stages/plan.json"]
    run(FIRST[0], ("recover", "other"), FIRST[2])
    assert run.worked == ["recover", "export"]
    assert (run.path / "recover.out").read_text() == "recover of other"


@pytest.mark.parametrize("damage", [lambda path: path.write_text("tampered"), lambda path: path.unlink()])
def test_changed_file_remakes_its_stage(run: Run, damage: Callable[[Path], None]) -> None:
    run(*FIRST)
    damage(run.path / "recover.out")
    run(*FIRST)
    assert run.worked == ["recover", "export"]


@pytest.mark.parametrize(
    "record", ["", "{", "[]", '{"key": 1}', '{"key": "x", "order": 1, "files": {"/etc/passwd": "0"}, "result": {}}']
)
def test_broken_record_is_remade(run: Run, record: str) -> None:
    run(*FIRST)
    (run.path / STAGES / "plan.json").write_text(record)
    assert run(*FIRST) == [1, 2, 3]
    assert run.worked == ["plan", "recover", "export"]


def test_record_of_another_kind_of_result_is_remade(run: Run) -> None:
    run(*FIRST)
    path = run.path / STAGES / "plan.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"result": {"value": "many"}}))
    run(*FIRST)
    assert run.worked[0] == "plan"


def test_record_cannot_make_a_run_remove_files_elsewhere(run: Run, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    run(*FIRST)
    path = run.path / STAGES / "export.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"files": {"../precious": "0" * 64, str(precious): "0" * 64}}))
    run(("plan", "new"), *FIRST[1:])
    assert precious.read_text() == "mine"


def test_stage_that_raises_leaves_nothing(run: Run) -> None:
    with pytest.raises(RuntimeError):
        run(*FIRST, fail="recover")
    assert run.files() == ["plan.out", "stages/plan.json"]
    assert run(*FIRST) == [1, 2, 3]
    assert run.worked == ["recover", "export"]


def test_files_of_the_user_in_the_folder_are_left_alone(run: Run) -> None:
    run.path.mkdir()
    (run.path / "notes.txt").write_text("mine")
    with pytest.raises(RuntimeError):
        run(*FIRST, fail="plan")
    run(*FIRST)
    run(("plan", "new"))
    assert (run.path / "notes.txt").read_text() == "mine"


def test_report_of_an_earlier_run_goes_with_the_stages_that_it_was_made_from(run: Run) -> None:
    run(*FIRST)
    for name in ("report.json", "report.md", "report.html", "evidence.npz"):
        (run.path / name).write_text("old")
    run(*FIRST)
    assert (run.path / "report.json").exists()
    run(*FIRST[:2], ("export", "new"))
    assert not {"report.json", "report.md", "report.html", "evidence.npz"} & set(run.files())


def test_stage_that_was_kept_survives_when_its_place_in_the_run_has_changed(run: Run) -> None:
    run(("plan", "a"), ("latency-one", "b"), ("latency-two", "c"), ("attack", "d"), ("last", "e"))
    run(("plan", "a"), ("latency-one", "b"), ("attack", "d"), ("last", "new"))
    assert run.worked == ["last"]
    assert "attack.out" in run.files()
    run(("plan", "a"), ("latency-one", "b"), ("attack", "d"), ("last", "new"))
    assert run.worked == []


def test_scratch_survives_a_failure_and_goes_when_the_stage_is_finished(run: Run) -> None:
    def stage(folder: RunFolder, *, fail: bool) -> Result:
        def work() -> tuple[Result, Sequence[Path]]:
            scratch = folder.scratch("recover-abc")
            seen = len(list(scratch.iterdir()))
            (scratch / "checkpoint").write_text("epoch 1")
            if fail:
                raise RuntimeError
            return Result(value=seen), []

        return folder.stage("recover", Result, {}, work)

    with pytest.raises(RuntimeError), RunFolder.opened(run.path, run.said.append) as folder:
        stage(folder, fail=True)
    assert run.files() == ["stages/recover-abc/checkpoint"]
    with RunFolder.opened(run.path, run.said.append) as folder:
        assert stage(folder, fail=False).value == 1
    assert run.files() == ["stages/recover.json"]


def test_half_files_of_a_killed_run_go(run: Run) -> None:
    run(*FIRST)
    (run.path / "dense").mkdir()
    for name in (".model.123.partial.onnx", "dense/.model.123.partial.bin", "stages/.plan.1.partial.json"):
        (run.path / name).write_text("half")
    run(*FIRST)
    assert run.worked == []
    assert not [name for name in run.files() if "partial" in name]


def test_second_process_gets_a_clear_error(run: Run) -> None:
    code = (
        "import sys; from pathlib import Path; from edgeprune.runfolder import RunFolder\n"
        "from edgeprune.errors import OutputError\n"
        "try:\n    with RunFolder.opened(Path(sys.argv[1]), print): print('opened')\n"
        "except OutputError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with RunFolder.opened(run.path, run.said.append):
        refused = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "another edgeprune run is writing to" in refused
    assert "--out" in refused
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "opened\n"


def test_folder_that_cannot_be_made_is_an_error_about_the_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--out"), RunFolder.opened(tmp_path / "file" / "run", print):
        pass


def test_inputs_are_told_apart_by_their_content(run: Run) -> None:
    run(("plan", {"a": 1, "b": [1, 2]}))
    run(("plan", {"b": [1, 2], "a": 1}))
    assert run.worked == []
    run(("plan", {"a": 1, "b": [2, 1]}))
    assert run.worked == ["plan"]
