"""What a row that does not pass tells people to do: true of this report, and a command that can be pasted."""

from __future__ import annotations

import re
import shlex

import pytest
from conftest import Command
from report_examples import ONNX, XML, digest, example_accuracy, example_report, example_robustness

from edgeprune.budgets import BudgetConfig
from edgeprune.gate import judge
from edgeprune.records import GateRow, Interval, Report, Unmeasured

NOT_HERE = Unmeasured(unmeasured="raspberry-pi-5 is not this machine, and no device is attached")


def row_of(report: Report, sha256: str = ONNX, **limits: object) -> GateRow:
    rows = judge(report, BudgetConfig.model_validate(limits), sha256).rows
    assert len(rows) == 1
    assert rows[0].status != "pass"
    return rows[0]


def test_a_goal_for_another_runtime_than_the_first_puts_that_one_first() -> None:
    """Goals in time are the first runtime's: a faster file for OpenVINO is aimed at with OpenVINO at the head."""
    assert "--runtimes openvino,onnxruntime --speedup 5.15" in row_of(example_report(), XML, speedup="5x").remedy
    assert "--runtimes" not in row_of(example_report(), ONNX, speedup="5x").remedy


def test_another_goal_says_which_flag_of_the_command_it_replaces() -> None:
    report = example_report(command="edgeprune compress model.pt --speedup=1.9")
    assert row_of(report, latency_ms="0.1 ms").remedy.endswith("--latency-ms 0.097 in place of --speedup")
    assert "in place" not in row_of(report, speedup="5x").remedy


def test_a_floor_above_the_dense_file_asks_for_no_recovery() -> None:
    dense = example_accuracy().dense.value
    row = row_of(example_report(), accuracy=dense + 0.01)
    assert f"the dense file itself has {100 * dense:.2f} %" in row.remedy
    assert "--recover" not in row.remedy


def test_a_quantile_in_the_tail_gets_a_goal_with_a_value() -> None:
    report = example_report()
    assert not isinstance(report.latency, Unmeasured)
    first, *others = report.latency
    assert first.compressed is not None
    tail = {"p90_ms": 0.6, "p90_interval": Interval(low=0.59, high=0.61)}
    timed = first.model_copy(update={"compressed": first.compressed.model_copy(update=tail)})
    row = row_of(report.model_copy(update={"latency": (timed, *others)}), latency_p90_ms="0.305 ms")
    assert f"--latency-ms {first.compressed.p50_ms * 0.5 * 0.97:.3g}" in row.remedy


def test_a_size_asks_for_as_much_as_its_distance() -> None:
    """531 kB of a dense file's megabyte or more: half of that takes far more than a quarter more pruning."""
    near, far = (row_of(example_report(), size_bytes=limit).remedy for limit in ("520 kB", "200 kB"))
    goals = [float(re.findall(r"--speedup ([0-9.]+)", text)[0]) for text in (near, far)]
    assert 1.9 <= goals[0] < goals[1]


def test_memory_of_the_runtime_is_not_asked_of_the_file() -> None:
    assert "no pruning saves it" in row_of(example_report(), memory_bytes="1 KB").remedy


def test_a_target_without_its_device_asks_for_the_device() -> None:
    row = row_of(example_report(latency=NOT_HERE), speedup="1.5x")
    assert row.remedy.endswith("--host USER@DEVICE`")


@pytest.mark.parametrize(
    ("attack", "words"),
    [("pgd", "--attack-steps 100, --attack-restarts 5"), ("quick", "--attack standard"), ("standard", "its health")],
)
def test_a_failed_attack_gets_a_remedy_that_its_settings_allow(attack: str, words: str) -> None:
    """A suite has its own steps: `--attack-steps` beside it would be refused."""
    rob = example_robustness()
    rob = rob.model_copy(update={"conclusive": False, "threat": rob.threat.model_copy(update={"attack": attack})})
    remedy = row_of(example_report(robustness=rob), robust_accuracy_drop="4 pt").remedy
    assert words in remedy
    assert ("--attack-steps" in remedy) == (attack == "pgd")


def test_an_attack_whose_time_was_up_gets_more_time() -> None:
    rob = example_robustness()
    late = rob.compressed.model_copy(update={"unfinished": ("square",)})
    rob = rob.model_copy(update={"conclusive": False, "compressed": late})
    assert "--attack-for 60m" in row_of(example_report(robustness=rob), robust_accuracy_drop="4 pt").remedy


def test_every_whole_command_is_one_that_edgeprune_takes(edgeprune: Command) -> None:
    report = example_report(latency=NOT_HERE)
    bare = report.model_copy(update={"accuracy": NOT_HERE})
    remedies = [
        row_of(report, speedup="1.5x").remedy,
        row_of(bare, accuracy_drop="1 pt").remedy,
        row_of(example_report(), XML, robust_accuracy_drop="4 pt").remedy,
        row_of(example_report(), digest("0"), speedup="1.5x").remedy,
    ]
    for remedy in remedies:
        (pasted,) = re.findall(r"`([^`]+)`", remedy)
        program, *arguments = shlex.split(pasted)
        assert program == "edgeprune"
        assert edgeprune(*arguments, "--help").code == 0
    assert edgeprune("compress", "--no-such-flag", "--help").code == 2
