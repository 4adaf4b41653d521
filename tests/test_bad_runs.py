"""What goes wrong while a run is on its way: a full disk, a folder in use, an interruption; what was done is kept."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from clear_errors import COMPRESS, NO_RESULT, USAGE, assert_clear, changed, contents
from conftest import Command, Said

from edgeprune.runfolder import RunFolder

# ------------------------------------------------------------------------------------- errors of a run in progress


LATE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a network that returns NaN": (("--arch", "tiny:NanNet"), ("no group of channels can be pruned", "not finite")),
    "everything left alone": (("--ignore", "conv1,conv2"), ("no group of channels can be pruned", "--ignore conv1")),
    "widths too coarse": (("--channel-multiple", "64"), ("removes nothing", "--channel-multiple")),
}


@pytest.mark.parametrize("case", LATE)
def test_a_run_that_fails_takes_the_report_of_the_run_before_with_it(
    case: str, project: Path, edgeprune: Command
) -> None:
    flags, words = LATE[case]
    assert_clear(edgeprune("compress", "model.pt", *flags), NO_RESULT, *words)
    assert not [path for path in project.rglob("report.*") if path.is_file()]
    assert not list(project.rglob("*.partial*"))
    assert_clear(edgeprune("gate", "run", "--artifact", "run/model.onnx"), USAGE, "no such report")


def test_a_folder_in_use_is_left_alone(project: Path, edgeprune: Command) -> None:
    with (project / "run" / "stages" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = contents(project)
        said = edgeprune("compress", "model.pt")
        assert_clear(said, NO_RESULT, "another edgeprune run is writing to run", "--out")
        assert changed(project, before) == []


def test_a_folder_without_permission_is_named(
    project: Path, edgeprune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path.mkdir

    def forbidden(self: Path, *arguments: Any, **options: Any) -> None:
        if "forbidden" in self.parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        made(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", forbidden)
    said = edgeprune("compress", "model.pt", "--out", "forbidden")
    assert_clear(said, NO_RESULT, "cannot write forbidden: Permission denied", "may write to", "--out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(project: Path, edgeprune: Command) -> None:
    (project / "locked").mkdir(mode=0o500)
    assert_clear(edgeprune("compress", "model.pt", "--out", "locked/x"), NO_RESULT, "cannot write locked/x")


# --------------------------------------------------------------------------------------------------- a full disk

STAGES = (
    *("plan", "recover", "export", "accuracy", "latency-onnxruntime", "layers"),
    *("attack-dense", "attack-compressed", "report"),
)


def test_a_disk_that_is_full_in_any_stage_keeps_the_stages_before_it(
    project: Path, edgeprune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full once in every stage; in the end the folder is what an undisturbed run leaves."""
    at_work = "report"  # what is written outside of every stage
    stage = RunFolder.stage

    def noted(self: RunFolder, name: str, *rest: Any) -> Any:
        nonlocal at_work
        at_work = name
        try:
            return stage(self, name, *rest)
        finally:
            at_work = "report"

    (project / "edgeprune.toml").write_text(
        tiny.settings(latency__runtimes='["onnxruntime"]', recover__recipe='"none"')
    )
    monkeypatch.setattr(RunFolder, "stage", noted)
    for position, full in enumerate(STAGES):
        with pytest.MonkeyPatch.context() as patch:
            sync = os.fsync

            def no_space(descriptor: int, full: str = full, sync: Any = sync) -> None:
                if at_work == full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                sync(descriptor)

            patch.setattr(os, "fsync", no_space)
            said = edgeprune(*COMPRESS)
        assert_clear(said, NO_RESULT, "No space left on device", "free some space", "finished stages are kept")
        assert not list(project.rglob("*.partial*"))
        assert not (project / "new" / "report.json").exists()
        kept = [line.split(":")[0] for line in said.err.splitlines() if line.endswith(": kept from the run before")]
        assert kept == list(STAGES[: max(0, position - 1)])  # the forerunner died in the next one
    assert edgeprune(*COMPRESS).code == 0
    assert edgeprune("compress", "model.pt", "--out", "whole").code == 0
    for name in ("model.onnx", "pruned.pt", "plan.json", "evidence.npz"):
        assert (project / "new" / name).read_bytes() == (project / "whole" / name).read_bytes()


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from edgeprune.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("limit", "recipe", "made"),
    [
        (9_000, "finetune", ["plan.json"]),  # the checkpoint is too large
        (15_500, "none", ["plan.json", "pruned.pt"]),  # the ONNX file is too large
    ],
)
def test_a_real_limit_on_file_sizes_is_a_clear_error(limit: int, recipe: str, made: list[str], project: Path) -> None:
    """The system refuses to write, whichever library does the writing."""
    command = [sys.executable, "-c", LIMITED, str(limit), *COMPRESS, "--recover", recipe]
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny.__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert_clear(Said(done.returncode, done.stdout, done.stderr), NO_RESULT, "File too large", "free some space")
    assert not list(project.rglob("*.partial*"))
    assert not (project / "new" / "report.json").exists()
    assert sorted(path.name for path in (project / "new").glob("*") if path.is_file()) == made


# ------------------------------------------------------------------------------------------------- --debug, bugs


def test_debug_shows_the_traceback_and_the_same_error(project: Path, edgeprune: Command) -> None:
    plain, debugged = edgeprune("compress", "gone.pt"), edgeprune("compress", "gone.pt", "--debug")
    assert debugged.code == plain.code
    assert "Traceback (most recent call last)" in debugged.err
    assert debugged.err.endswith(plain.err)
    assert "Traceback" not in plain.err


def test_a_bug_of_ours_is_said_as_one(project: Path, edgeprune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("edgeprune.inspection.inspect", broken)
    said = edgeprune("inspect", "model.pt")
    assert (said.code, said.out) == (NO_RESULT, "")
    assert said.err == "error: ZeroDivisionError: division by zero\n  this is a bug of edgeprune: --debug shows where\n"


def test_an_interrupted_run_says_that_it_can_go_on(
    project: Path, edgeprune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeprune.inspection.inspect", interrupted)
    assert_clear(edgeprune("inspect", "model.pt"), 130, "interrupted", "goes on")


def test_damage_in_the_run_folder_is_made_good(project: Path, edgeprune: Command) -> None:
    """Neither a changed artifact nor a cut record is believed."""
    (project / "run" / "model.onnx").write_bytes(b"another file")
    assert edgeprune("gate", "run", "--artifact", "run/model.onnx").code == 1
    record = project / "run" / "stages" / "recover.json"
    record.write_text(record.read_text()[:100])
    said = edgeprune("compress", "model.pt")
    assert said.code == 0
    kept = [line.split(":")[0] for line in said.err.splitlines() if "kept from" in line]
    assert kept == ["plan"]
    assert edgeprune("gate", "run", "--artifact", "run/model.onnx").code == 0
