"""The command line: every command on a small project, results on stdout, messages on stderr, documented exit codes."""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from conftest import Command
from typer.main import get_command

import edgeprune as package
from edgeprune.cli import app
from edgeprune.config import load_config
from edgeprune.keys import code_of
from edgeprune.pipeline import run_folder
from edgeprune.records import PrunePlan, Report, Unmeasured, read_record

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "scipy", "sklearn", "jinja2", "torch_pruning", "torchattacks")
OUTPUTS = ("model.onnx", "model.xml", "model.bin", "plan.json", "pruned.pt", "evidence.npz")
PARTS = (
    *("report.html", "report.md", "report.json", "model.onnx", "model.xml", "model.bin"),
    *("pruned.pt", "plan.json", "evidence.npz", "attestation.json"),
)


def process(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`edgeprune` in a process of its own, as a user runs it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny.__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edgeprune.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


# ------------------------------------------------------------------------------------------------ a light start


def processor_seconds(command: list[str], folder: Path) -> float:
    """Of a whole process that must end well, so that a busy machine does not matter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, capture_output=True, timeout=200, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def beside_moments(command: list[str], folder: Path) -> tuple[float, float]:
    """Processor seconds of a process, and of one that only imports the libraries which every command needs: a slow
    machine's measure. The best of five each, in turn, for a shared core is slower at some moments than at others."""
    libraries = [sys.executable, "-c", "import pydantic, typer"]
    rounds = [[processor_seconds(each, folder) for each in (command, libraries)] for _ in range(5)]
    taken, moments = (min(times) for times in zip(*rounds, strict=True))
    return taken, moments


def test_help_starts_in_a_moment(tmp_path: Path) -> None:
    taken, moments = beside_moments([sys.executable, "-m", "edgeprune.cli", "--help"], tmp_path)
    assert taken < max(0.4, 5 * moments)


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["--version"], ["targets"], ["compress"]])
def test_what_needs_no_network_imports_no_torch(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\nfrom edgeprune.cli import _guarded\n"
        f"_guarded({arguments!r}, False)\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_gate_imports_no_torch(finished: Path) -> None:
    script = (
        "import sys\nfrom edgeprune.cli import _guarded\n"
        "code = _guarded(['gate', 'run', '--artifact', 'run/model.onnx'], False)\n"
        "print(code, sorted({'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=finished, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_gate_judges_in_a_moment(finished: Path) -> None:
    command = [sys.executable, "-m", "edgeprune.cli", "gate", "run", "--artifact", "run/model.onnx"]
    taken, moments = beside_moments(command, finished)
    assert taken < max(0.5, 6.5 * moments)


def test_version(edgeprune: Command) -> None:
    said = edgeprune("--version")
    assert (said.code, said.out, said.err) == (0, f"edgeprune {package.__version__}\n", "")


def test_no_command_prints_the_help(edgeprune: Command) -> None:
    said = edgeprune()
    assert "Usage: edgeprune" in said.out + said.err
    assert "Exit codes" in said.out + said.err


def test_no_help_has_words_in_brackets_that_a_terminal_takes_for_markup(edgeprune: Command) -> None:
    """[prune] in a help text would not be shown."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    texts = [text for each in commands.values() for text in (each.help, *(item.help for item in each.params))]
    assert len(texts) > 300
    assert [text for text in texts if re.search(r"\[[a-z#/@]", text or "")] == []
    assert "commas part values of pruning and recovery" in " ".join(edgeprune("sweep", "--help").out.split())


# ---------------------------------------------------------------------------------------------------- compress


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A second project like `finished`, run in a process of its own."""
    folder = tiny.write_project(tmp_path_factory.mktemp("fresh"))
    return folder, process("compress", "model.pt", folder=folder)


def test_a_run_says_nothing_but_its_own_messages(fresh: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """No warning of torch, onnx or a runtime reaches the user."""
    _, done = fresh
    assert done.returncode == 0, done.stderr
    strange = [line for line in done.stderr.splitlines() if not re.search(r" \.\.\.$|: done in [\d.]+ s$", line)]
    assert strange == []


def test_the_summary_and_the_files_are_the_result(fresh: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = fresh
    assert "Robust accuracy" in done.stdout
    assert "May ship: the one budget holds" in done.stdout
    assert done.stdout.splitlines()[-len(PARTS) :] == [f"run/{name}" for name in PARTS]
    assert all((folder / "run" / name).is_file() for name in PARTS)


def test_the_same_seed_gives_the_same_bytes(
    finished: Path, fresh: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    """In another folder and another process."""
    for name in OUTPUTS:
        assert (fresh[0] / "run" / name).read_bytes() == (finished / "run" / name).read_bytes(), name


def test_the_report_names_the_command_the_files_and_the_data(finished: Path) -> None:
    report = read_record(Report, finished / "run" / "report.json")
    assert report.command == "edgeprune compress model.pt"
    assert [split.samples for split in report.data] == [128, 96]
    assert {(one.side, one.format) for one in report.artifacts} == {
        (side, kind) for side in ("dense", "compressed") for kind in ("onnx", "openvino")
    }
    assert report.verdict is not None
    assert report.verdict.status == "passed"


def test_json_alone_on_stdout_and_stages_are_kept(project: Path, edgeprune: Command) -> None:
    said = edgeprune("compress", "model.pt", "--json")
    assert said.code == 0
    assert json.loads(said.out)["schema_version"] == "1"
    assert said.out == (project / "run" / "report.json").read_text()
    assert said.err.count("kept from the run before") == 12


def test_another_setting_redoes_what_depends_on_it(project: Path, edgeprune: Command) -> None:
    said = edgeprune("compress", "model.pt", "--attack-steps", "2")
    kept = [line.split(":")[0] for line in said.err.splitlines() if "kept" in line]
    assert kept == ["plan", "recover", "export", "accuracy", "latency-onnxruntime", "latency-openvino", "layers"]
    report = read_record(Report, project / "run" / "report.json")
    assert not isinstance(report.robustness, Unmeasured)
    assert report.robustness.threat.steps == 2


def test_the_attacked_runtime_is_the_first_one(project: Path, edgeprune: Command) -> None:
    """What was found in one runtime is not kept for another."""
    said = edgeprune("compress", "model.pt", "--runtimes", "openvino,onnxruntime", "--json")
    assert json.loads(said.out)["robustness"]["runtime"]["name"] == "openvino"
    assert "attack-dense: kept" not in said.err


def test_an_edited_network_is_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal weights behind other code: a stage's inputs tell them apart."""
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for activation in ("relu", "sigmoid"):
        source = f"from torch import nn\nclass Net(nn.{'ReLU' if activation == 'relu' else 'Sigmoid'}): pass\n"
        (tmp_path / "edited.py").write_text(source)
        sys.modules.pop("edited", None)
        importlib.invalidate_caches()
        keys.append(code_of(importlib.import_module("edited").Net()))
    monkeypatch.delitem(sys.modules, "edited")
    assert keys[0].keys() == keys[1].keys() == {"edited.Net"}
    assert keys[0] != keys[1]


def test_without_data_nothing_is_claimed_of_accuracy(project: Path, edgeprune: Command) -> None:
    """Pruned, exported and timed all the same; a gate on what was not measured fails."""
    (project / "edgeprune.toml").write_text(
        tiny.settings(data__train="", data__test="", latency__runtimes='["onnxruntime"]')
    )
    flags = ("--max-accuracy-drop", "2 pt", "--max-robust-accuracy-drop", "2 pt", "--gate")
    said = edgeprune("compress", "model.pt", "--out", "new", *flags)
    assert said.code == 1, said.err
    report = read_record(Report, project / "new" / "report.json")
    assert report.data == ()
    for missing in (report.accuracy, report.robustness, report.recovery):
        assert "data was given" in missing.unmeasured  # type: ignore[union-attr]
    assert report.evidence_sha256 is None
    assert not (project / "new" / "evidence.npz").exists()
    assert {parity.inputs for parity in report.parity} == {"random"}
    assert not isinstance(report.latency, Unmeasured)
    assert report.latency[0].kind == "measured-local"
    assert report.verdict is not None
    assert {row.metric: row.status for row in report.verdict.rows} == {
        "accuracy_drop": "missing",
        "robust_accuracy_drop": "missing",
        "size_bytes": "pass",
    }
    assert "no test data was given" in " ".join(said.out.split())
    gated = edgeprune("gate", "new", "--artifact", "new/model.onnx", "--max-accuracy-drop", "2 pt")
    assert gated.code == 1


def test_another_device_gets_no_latency(project: Path, edgeprune: Command) -> None:
    said = edgeprune("compress", "model.pt", "--target", "raspberry-pi-5", "--min-speedup", "1.1", "--gate")
    assert said.code == 1, said.err
    report = read_record(Report, project / "run" / "report.json")
    assert "raspberry-pi-5 is not this machine" in report.latency.unmeasured  # type: ignore[union-attr]
    assert report.target.name == "raspberry-pi-5"
    assert report.verdict is not None
    assert [row.status for row in report.verdict.rows if row.metric == "speedup"] == ["missing"]


def test_the_goal_on_the_command_line_takes_the_place_of_the_files(project: Path, edgeprune: Command) -> None:
    said = edgeprune("compress", "model.pt", "--out", "new", "--macs-ratio", "0.6", "--runtimes", "onnxruntime")
    assert said.code == 0, said.err
    plan = read_record(PrunePlan, project / "new" / "plan.json")
    assert (plan.goal, plan.goal_value) == ("macs_ratio", 0.6)
    assert abs(plan.macs / plan.dense_macs - 0.6) < 0.1  # widths go in steps of a quarter


def test_the_default_folder_names_model_and_target(project: Path) -> None:
    (project / "edgeprune.toml").write_text(tiny.settings(run__out=""))
    config = load_config(None, {"run": {"target": "boards/mine.toml"}})
    assert run_folder(Path("nets/small.pt"), config) == Path("runs/small-mine")


def test_data_that_overlaps_is_pointed_out(project: Path, edgeprune: Command) -> None:
    said = edgeprune("compress", "model.pt", "--train", "test.npz", "--target", "rk3588", "--runtimes", "onnxruntime")
    assert said.code == 0, said.err
    assert "warning: 96 of the 96 test images are training images, too" in said.err
    report = read_record(Report, project / "run" / "report.json")
    assert any("are training images" in warning for warning in report.warnings)


# ------------------------------------------------------------------------------------------- the other commands


def test_the_gate_passes_and_fails_by_its_exit_code(project: Path, edgeprune: Command) -> None:
    gate = ("gate", "run/report.json", "--artifact", "run/model.onnx")
    passed = edgeprune(*gate)
    assert (passed.code, passed.err) == (0, "")
    assert "PASS" in passed.out
    failed = edgeprune(*gate, "--max-size", "1 kB")
    assert failed.code == 1
    assert "FAIL" in failed.out
    other = edgeprune("gate", "run", "--artifact", "run/dense/model.onnx")
    assert other.code == 1
    assert "dense file" in other.out


def test_a_gate_on_too_few_images_is_inconclusive(project: Path, edgeprune: Command) -> None:
    said = edgeprune("gate", "run", "--artifact", "run/model.onnx", "--max-accuracy-drop", "0.1 pt", "--json")
    verdict = json.loads(said.out)
    assert (said.code, verdict["status"]) == (4, "inconclusive")


def test_the_gate_of_an_ir_hashes_its_weights_too(project: Path, edgeprune: Command) -> None:
    gate = ("gate", "run", "--artifact", "run/model.xml", "--json")
    assert json.loads(edgeprune(*gate).out)["status"] == "passed"
    (project / "run" / "model.bin").write_bytes(b"other weights")
    said = edgeprune(*gate)
    assert said.code == 1
    assert {row["status"] for row in json.loads(said.out)["rows"]} == {"stale"}


def test_inspect_shows_what_would_go(project: Path, edgeprune: Command) -> None:
    said = edgeprune("inspect", "model.pt", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert {group["name"]: (group["width"], group["kept"]) for group in found["groups"]} == {
        "conv1": (16, 8),
        "conv2": (16, 8),
    }
    assert found["input_shape"] == [3, 8, 8]
    assert found["accuracy"]["total"] == 96
    assert found["kept_macs"] < found["macs"]
    table = edgeprune("inspect", "model.pt", "--ignore", "conv1")
    assert table.code == 0
    assert "not pruned, because" in table.out
    assert "--ignore conv1" in table.out


def test_inspect_needs_nothing_but_the_network(project: Path, edgeprune: Command) -> None:
    flags = ("--arch", "tiny:TinyNet", "--input-shape", "3,8,8", "-c", "/dev/null", "--json")
    found = json.loads(edgeprune("inspect", "model.pt", *flags).out)
    assert "no test data" in found["accuracy"]["unmeasured"]


def test_measure_times_one_file_or_two(project: Path, edgeprune: Command) -> None:
    alone = json.loads(edgeprune("measure", "run/model.xml", "--json").out)
    assert alone["latency"]["runtime"]["name"] == "openvino"
    assert alone["latency"]["compressed"] is None
    both = edgeprune("measure", "run/model.onnx", "--against", "run/dense/model.onnx", "--accuracy", "--json")
    found = json.loads(both.out)
    assert found["latency"]["speedup"]["value"] > 0
    assert found["accuracy"]["total"] == 96
    assert found["inputs"] == "real"


def test_measure_needs_nothing_but_the_file(project: Path, edgeprune: Command) -> None:
    (project / "edgeprune.toml").unlink()
    fast = ("--timing-processes", "1", "--timing-blocks", "2", "--timing-block-ms", "2")
    said = edgeprune("measure", "run/model.onnx", *fast)
    assert said.code == 0, said.err
    assert "random images" in " ".join(said.out.split())


def test_attack_finds_what_the_run_found(project: Path, edgeprune: Command) -> None:
    said = edgeprune("attack", "run/model.onnx", "--evidence", "found.npz", "--json")
    assert said.code == 0, said.err
    found, report = json.loads(said.out), json.loads((project / "run" / "report.json").read_text())
    for share in ("clean", "robust"):
        assert found["result"][share] == report["robustness"]["compressed"][share]
    assert (project / "found.npz").is_file()
    dense = edgeprune("attack", "run/dense/model.onnx", "--json")
    assert json.loads(dense.out)["result"]["robust"] == report["robustness"]["dense"]["robust"]


def test_report_renders_again(project: Path, edgeprune: Command) -> None:
    page = (project / "run" / "report.html").read_text()
    (project / "run" / "report.html").unlink()
    said = edgeprune("report", "run", "--format", "html,junit")
    assert (said.code, said.out.split()) == (0, ["run/report.html", "run/junit.xml"])
    assert (project / "run" / "report.html").read_text() == page


def test_targets_lists_profiles_and_shows_one(edgeprune: Command) -> None:
    names = {profile["name"] for profile in json.loads(edgeprune("targets", "--json").out)}
    assert {"cpu", "raspberry-pi-5"} <= names
    assert json.loads(edgeprune("targets", "raspberry-pi-5", "--json").out)["name"] == "raspberry-pi-5"
    assert "raspberry-pi-5" in edgeprune("targets").out


def test_doctor_says_what_each_runtime_computes_in(edgeprune: Command) -> None:
    said = edgeprune("doctor", "--json")
    assert said.code == 0, said.err
    assert {runtime["ours"] for runtime in json.loads(said.out)["runtimes"]} == {"float32"}


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """As in `edgeprune targets | head -1`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "edgeprune.cli", "targets"]
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_result_that_cannot_be_printed_is_an_error(finished: Path) -> None:
    """A gate whose verdict nobody could read has not passed."""
    command = [sys.executable, "-m", "edgeprune.cli", "gate", "run", "--artifact", "run/model.onnx"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=finished, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: No space left on device")
