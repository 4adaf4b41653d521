"""Two runs side by side: paired on the same images, unpaired where not, times never said to be interleaved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from report_examples import (
    HOSTILE,
    ONNX,
    digest,
    example_latency,
    example_model,
    example_report,
    example_robustness,
    example_times,
    unmeasured_report,
)
from rich.console import Console

from edgeprune.comparison import OneRun, compare_runs, exit_code, newcombe
from edgeprune.errors import ExitCode, UsageError
from edgeprune.files import sha256_of
from edgeprune.records import (
    Interval,
    LatencyComparison,
    Paired,
    Proportion,
    RunComparison,
    Unmeasured,
    Unpaired,
)
from edgeprune.reporting.comparison import comparison_markdown, conclusion, lines, print_comparison
from edgeprune.robustness.statistics import paired_drop


def write_run(
    folder: Path, right: list[bool], stood: list[bool], ids: list[int] | None = None, **changes: Any
) -> OneRun:
    """A run whose compressed file was right on these images and stood on those."""
    folder.mkdir()
    labels = np.zeros(len(right), np.int64)
    np.savez(
        folder / "evidence.npz",
        ids=np.array(ids or range(len(right)), np.int64),
        labels=labels,
        compressed_clean=np.where(right, 0, 1),
        compressed_fell=np.array(right) & ~np.array(stood),
    )
    report = example_report(evidence_sha256=sha256_of(folder / "evidence.npz"), **changes)
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    return OneRun.read(folder)


def pair(tmp_path: Path, *, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> RunComparison:
    """Before: 40 of 50 right. After: the same but for 12 that are lost and 2 that are won."""
    before = np.arange(50) < 40
    after = before.copy()
    after[:12], after[40:42] = False, True
    runs = (
        write_run(tmp_path / "a", before.tolist(), before.tolist(), **(first or {})),
        write_run(tmp_path / "b", after.tolist(), after.tolist(), **(second or {})),
    )
    return compare_runs(*runs)


def faster(factor: float, **changes: Any) -> tuple[LatencyComparison, ...]:
    return (example_latency(compressed=example_times(ONNX, 0.412 / factor), **changes),)


def test_the_same_images_are_paired(tmp_path: Path) -> None:
    found = pair(tmp_path)
    assert isinstance(found.accuracy, Paired)
    assert (found.accuracy.drop.dense_only, found.accuracy.drop.compressed_only) == (12, 2)
    assert (found.accuracy.before.count, found.accuracy.after.count) == (40, 30)
    flags = np.arange(14) < 12
    assert found.accuracy.drop.p_value == pytest.approx(paired_drop(flags, ~flags).p_value)
    assert found.worse == ("clean accuracy", "robust accuracy")
    assert exit_code(found) == ExitCode.GATE_FAILED


def test_the_same_run_is_neither_better_nor_worse(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [True] * 30, [True] * 20 + [False] * 10)
    found = compare_runs(run, run)
    assert (found.better, found.worse, found.undecided, found.layers) == ((), (), (), ())
    assert exit_code(found) == ExitCode.DONE
    assert conclusion(found) == "no significant difference"


def test_images_are_matched_by_their_ids(tmp_path: Path) -> None:
    """Only 1, 2 and 3 are in both: right there in the first run, wrong on 2 in the second."""
    first = write_run(tmp_path / "a", [False, True, True, True], [True] * 4, ids=[0, 1, 2, 3])
    second = write_run(tmp_path / "b", [True, False, True, False], [True] * 4, ids=[1, 2, 3, 9])
    accuracy = compare_runs(first, second).accuracy
    assert isinstance(accuracy, Paired)
    assert (accuracy.drop.total, accuracy.drop.dense_only, accuracy.drop.compressed_only) == (3, 1, 0)


def test_other_data_is_compared_unpaired_and_says_so(tmp_path: Path) -> None:
    other = tuple(item.model_copy(update={"digest": digest("0")}) for item in example_report().data)
    found = pair(tmp_path, second={"data": other})
    for item in (found.accuracy, found.robustness):
        assert isinstance(item, Unpaired)
        assert "different test data" in item.why
        assert item.difference.low < 0 < item.difference.high


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"input_shape": (1, 8, 8)}, "take 3 × 32 × 32 and 1 × 8 × 8"), ({"classes": ("a", "b")}, "and 2 classes apart")],
)
def test_networks_of_two_tasks_are_not_asked_the_same(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    found = pair(tmp_path, second={"model": example_model(**changes)})
    for item in (found.accuracy, found.robustness):
        assert isinstance(item, Unmeasured)
        assert words in item.unmeasured
    assert not isinstance(found.latency, Unmeasured)


def test_a_bound_beyond_zero_is_told_as_a_gain(tmp_path: Path) -> None:
    before, after = [True] * 20 + [False] * 40, [True] * 60
    found = compare_runs(write_run(tmp_path / "a", before, before), write_run(tmp_path / "b", after, after))
    assert "pt won (95 %)" in lines(found)[0].remark
    assert "−" not in lines(found)[0].remark


def test_newcombes_interval_is_the_published_one() -> None:
    """Newcombe 1998, method 10: 56/70 against 48/80."""
    blank = Interval(low=0, high=1)
    found = newcombe(Proportion(count=56, total=70, interval=blank), Proportion(count=48, total=80, interval=blank))
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_evidence_that_was_changed_is_not_used(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [True] * 30, [True] * 30)
    (tmp_path / "a" / "evidence.npz").write_bytes(b"other")
    accuracy = compare_runs(run, run).accuracy
    assert isinstance(accuracy, Unpaired)
    assert "not the evidence" in accuracy.why


def test_another_attack_is_not_compared(tmp_path: Path) -> None:
    stronger = example_robustness()
    stronger = stronger.model_copy(update={"threat": stronger.threat.model_copy(update={"epsilon": "8/255"})})
    found = pair(tmp_path, second={"robustness": stronger})
    assert isinstance(found.robustness, Unmeasured)
    assert "another epsilon" in found.robustness.unmeasured
    assert "robust accuracy" in found.undecided


def test_an_inconclusive_attack_is_not_compared(tmp_path: Path) -> None:
    found = pair(tmp_path, first={"robustness": example_robustness(conclusive=False, warnings=("blind",))})
    assert isinstance(found.robustness, Unmeasured)
    assert "blind" in found.robustness.unmeasured


def test_what_was_not_measured_is_unmeasured_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.json").write_text(unmeasured_report().to_json())
    run = OneRun.read(tmp_path / "a" / "report.json")
    found = compare_runs(run, run)
    assert isinstance(found.accuracy, Unmeasured)
    assert found.robustness == Unmeasured(unmeasured="no test data was given")
    assert exit_code(found) == ExitCode.INCONCLUSIVE


# ------------------------------------------------------------------------------------------------------ latency


def test_times_of_two_runs_are_a_ratio_that_is_not_interleaved(tmp_path: Path) -> None:
    found = pair(tmp_path, first={"latency": faster(1)}, second={"latency": faster(2)})
    assert not isinstance(found.latency, Unmeasured)
    (times,) = found.latency
    assert times.ratio.value == pytest.approx(2)
    assert not times.interleaved
    assert "not interleaved" in times.notes[0]
    assert times.ratio.interval.low < 2 < times.ratio.interval.high
    assert "latency in onnxruntime" in found.better


@pytest.mark.parametrize(
    "changes",
    [{"target": "other"}, {"batch_size": 8}, {"runtime": example_latency().runtime.model_copy(update={"threads": 2})}],
)
def test_times_elsewhere_are_not_compared(changes: dict[str, Any], tmp_path: Path) -> None:
    found = pair(tmp_path, first={"latency": faster(1)}, second={"latency": faster(2, **changes)})
    assert isinstance(found.latency, Unmeasured)
    assert "--measure" in found.latency.unmeasured


def test_times_of_another_machine_are_not_compared(tmp_path: Path) -> None:
    machine = example_report().environment.model_copy(update={"cpu": "another"})
    found = pair(tmp_path, second={"environment": machine})
    assert isinstance(found.latency, Unmeasured)
    assert "different machines" in found.latency.unmeasured


def test_a_noisy_timing_decides_nothing(tmp_path: Path) -> None:
    found = pair(tmp_path, first={"latency": faster(1)}, second={"latency": faster(2, verdict="inconclusive")})
    assert "latency in onnxruntime" in found.undecided


def test_sizes_macs_and_layers_are_counted(tmp_path: Path) -> None:
    layers = tuple(
        item.model_copy(update={"channels": 8}) if item.name == "stem" else item
        for item in example_report().layers[:-1]
    )
    found = pair(tmp_path, second={"layers": layers})
    assert {item.what for item in found.weights} >= {"MACs", "parameters", "file size, model.onnx"}
    assert [(item.name, item.before, item.after) for item in found.layers] == [("stem", 16, 8), ("head", 43, None)]


# ------------------------------------------------------------------------------------------------------ renderings


def test_every_line_is_in_the_markdown_and_on_the_terminal(tmp_path: Path) -> None:
    found = pair(tmp_path)
    console = Console(record=True, width=100, no_color=True)
    print_comparison(found, console)
    shown, page = " ".join(console.export_text().split()), comparison_markdown(found)
    for line in lines(found):
        assert line.change in page
        assert line.change in shown
    assert "worse: clean accuracy" in page
    assert RunComparison.model_validate_json(found.to_json()) == found


def test_names_in_a_comparison_are_harmless(tmp_path: Path) -> None:
    layers = tuple(item.model_copy(update={"name": HOSTILE}) for item in example_report().layers[:1])
    found = pair(tmp_path, second={"layers": layers, "model": example_model(name=HOSTILE)})
    assert "<script>" not in comparison_markdown(found).replace(f"`{HOSTILE}`", "")


def test_the_command_compares_a_run_with_itself(project: Path, edgeprune: Command) -> None:
    said = edgeprune("compare", "run", "run/report.json", "--json", "--markdown", "out.md")
    assert said.code == 0, said.err
    data = json.loads(said.out)
    assert data["accuracy"]["drop"]["dense_only"] == data["robustness"]["drop"]["dense_only"] == 0
    assert Path("out.md").read_text().startswith("## ")
    assert "before" in edgeprune("compare", "run", "run").out


def test_the_command_times_both_files_together(project: Path, edgeprune: Command) -> None:
    said = edgeprune("compare", "run", "run", "--measure", "--json", "--timing-processes", "2")
    assert said.code == 0, said.err
    (times,) = json.loads(said.out)["latency"]
    assert times["interleaved"] is True


def test_a_file_that_is_not_the_measured_one_is_not_timed(project: Path, edgeprune: Command) -> None:
    Path("run/model.onnx").write_bytes(b"other")
    said = edgeprune("compare", "run", "run", "--measure")
    assert said.code == 2
    assert "not the file" in said.err


def test_there_must_be_a_run(project: Path, edgeprune: Command) -> None:
    assert edgeprune("compare", "run", "nowhere").code == 2


def test_a_run_that_exported_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(example_report(artifacts=()).to_json())
    with pytest.raises(UsageError, match="exported no file"):
        OneRun.read(tmp_path)
