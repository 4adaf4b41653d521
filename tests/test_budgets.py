"""Budgets in edgeprune.toml and what the gate makes of each: floors, ratios, scopes, levels, data, estimates."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_examples import (
    BIN,
    ONNX,
    OPENVINO,
    ORT,
    XML,
    digest,
    example_accuracy,
    example_artifacts,
    example_latency,
    example_report,
    example_robustness,
    example_times,
)

from edgeprune.budgets import METRICS, BudgetConfig, Rule
from edgeprune.config import Config, load_config
from edgeprune.errors import ExitCode, UsageError
from edgeprune.findings import ON_DATA
from edgeprune.gate import exit_code, judge
from edgeprune.records import Interval, Proportion, Ratio, Report, Unmeasured, Verdict
from edgeprune.reporting.junit import junit

EVERY: dict[str, tuple[object, object]] = {
    # budget: (a limit that the example holds, one that its bound breaks)
    "accuracy": ("90 %", "92 %"),
    "robust_accuracy": ("50 %", "55 %"),
    "accuracy_drop": ("2 pt", "1 pt"),
    "robust_accuracy_drop": ("4 pt", "2 pt"),
    "latency_ms": ("0.5 ms", "0.415 ms"),
    "latency_p90_ms": ("500 us", "0.45 ms"),
    "speedup": ("1.5x", "1.88x"),
    "size_bytes": ("600 KB", "500 KiB"),
    "size_ratio": (0.5, "40 %"),
    "macs_ratio": (0.5, "0.3x"),
    "memory_bytes": ("0.1 GB", "90 MB"),
}


def measured(**changes: object) -> Report:
    """The example with a p90 that has an interval."""
    times = example_times(ONNX, 0.412).model_copy(update={"p90_interval": Interval(low=0.44, high=0.46)})
    return example_report(**{"latency": (example_latency(compressed=times), example_latency(OPENVINO)), **changes})


def budget(**limits: object) -> BudgetConfig:
    return BudgetConfig.model_validate(limits)


def verdict(report: Report, sha256: str = ONNX, **limits: object) -> Verdict:
    return judge(report, budget(**limits), sha256)


def from_toml(folder: Path, text: str) -> BudgetConfig:
    (folder / "edgeprune.toml").write_text(text, encoding="utf-8")
    return load_config(folder / "edgeprune.toml", {}).budget


# --------------------------------------------------------------------------------------------- every budget


def test_the_matrix_has_every_budget() -> None:
    assert tuple(EVERY) == METRICS


def test_every_budget_holds() -> None:
    found = verdict(measured(), **{name: good for name, (good, _) in EVERY.items()})
    assert found.status == "passed"
    assert {row.metric for row in found.rows} == set(METRICS)
    assert exit_code(found) == ExitCode.DONE


@pytest.mark.parametrize("metric", METRICS)
def test_each_budget_fails_alone(metric: str) -> None:
    limits = {name: good for name, (good, _) in EVERY.items()}
    found = verdict(measured(), **{**limits, metric: EVERY[metric][1]})
    assert [row.metric for row in found.rows if row.status != "pass"] == [metric]
    assert (found.rows[0].status, found.status, exit_code(found)) == ("fail", "failed", ExitCode.GATE_FAILED)
    assert found.rows[0].remedy
    assert found.rows[0].distance is not None
    assert found.rows[0].distance < 0


@pytest.mark.parametrize("metric", METRICS)
def test_each_budget_only_warns_when_it_says_so(metric: str) -> None:
    found = verdict(measured(), **{metric: EVERY[metric][1]}, warn=[metric])
    assert (found.status, exit_code(found)) == ("passed", ExitCode.DONE)
    assert [(row.level, row.status) for row in found.rows] == [("warn", "fail")]
    assert "only warns" in found.reason


@pytest.mark.parametrize("metric", METRICS)
def test_another_file_fails_each_budget_even_one_that_only_warns(metric: str) -> None:
    found = verdict(measured(), digest("0"), **{metric: EVERY[metric][0]}, warn=[metric])
    assert (found.status, found.rows[0].status, found.rows[0].level) == ("failed", "stale", "error")
    assert "edgeprune compress" in found.rows[0].remedy


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"size_bytes", "size_ratio", "macs_ratio"}))
def test_each_budget_that_was_not_measured_is_missing(metric: str) -> None:
    reason = Unmeasured(unmeasured="nobody looked")
    found = verdict(example_report(accuracy=reason, latency=reason, robustness=reason), **{metric: EVERY[metric][0]})
    assert (found.rows[0].status, found.rows[0].reason, found.status) == ("missing", "nobody looked", "failed")
    assert found.rows[0].remedy


@pytest.mark.parametrize("metric", ["latency_ms", "latency_p90_ms", "speedup"])
def test_a_noisy_machine_is_inconclusive_and_never_passes(metric: str) -> None:
    times = example_times(ONNX, 0.412).model_copy(update={"p90_interval": Interval(low=0.44, high=0.46)})
    control = Ratio(value=1.1, interval=Interval(low=1.02, high=1.2))
    noisy = example_latency(compressed=times, control=control, verdict="inconclusive")
    found = verdict(example_report(latency=(noisy,)), **{metric: EVERY[metric][0]})
    assert (found.rows[0].status, exit_code(found)) == ("inconclusive", ExitCode.INCONCLUSIVE)


@pytest.mark.parametrize("metric", ["robust_accuracy", "robust_accuracy_drop"])
def test_an_attack_that_doubts_itself_is_inconclusive(metric: str) -> None:
    report = example_report(robustness=example_robustness(conclusive=False, warnings=("blind",)))
    found = verdict(report, **{metric: EVERY[metric][0]})
    assert (found.rows[0].status, exit_code(found)) == ("inconclusive", ExitCode.INCONCLUSIVE)
    assert "--attack-steps" in found.rows[0].remedy


def test_too_few_images_for_a_floor_are_inconclusive() -> None:
    """Ten of ten right: at 95 % no more than 74 % is shown, so 90 % cannot be."""
    share = Proportion(count=10, total=10, interval=Interval(low=0.6915, high=1.0))
    found = verdict(example_report(accuracy=(example_accuracy(compressed=share),)), accuracy="90 %")
    assert (found.rows[0].status, exit_code(found)) == ("inconclusive", ExitCode.INCONCLUSIVE)
    assert "10 images are too few" in found.rows[0].reason
    assert "test images" in found.rows[0].remedy


def test_a_stricter_confidence_recomputes_a_floor() -> None:
    usual, strict = (verdict(measured(), accuracy="90 %", confidence=c).rows[0] for c in (0.95, 0.999))
    assert usual.bound == pytest.approx(0.911825)
    assert usual.confidence == pytest.approx(0.975)
    assert (strict.bound or 0) < (usual.bound or 0)


def test_a_p90_without_samples_or_interval_is_missing() -> None:
    found = verdict(example_report(), latency_p90_ms="1 ms")
    assert found.rows[0].status == "missing"
    assert "--timing-processes" in found.rows[0].remedy


def test_the_size_ratio_needs_the_dense_file() -> None:
    alone = tuple(item for item in example_artifacts() if item.side == "compressed")
    assert verdict(example_report(artifacts=alone), size_ratio=0.5).rows[0].status == "missing"


def test_nothing_warns_when_everything_holds_and_the_same_input_gives_the_same_verdict() -> None:
    limits = {name: good for name, (good, _) in EVERY.items()}
    first, second = (verdict(measured(), **limits, warn=list(METRICS)) for _ in range(2))
    assert first == second
    assert first.reason == "all 11 budgets hold"


# ------------------------------------------------------------------------------------------------- levels


def test_a_table_gives_a_limit_and_a_level(tmp_path: Path) -> None:
    found = from_toml(tmp_path, '[budget]\nspeedup = { min = "1.5x", level = "warn" }\nsize_bytes = { max = 1000 }\n')
    assert found.rules() == (Rule("speedup", 1.5, "warn"), Rule("size_bytes", 1000.0))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('speedup = { max = "1.5x" }', "min = ..."),
        ('size_bytes = { max = "1 kB", level = "maybe" }', "level"),
        ('size_bytes = { level = "warn" }', "max = ..."),
        ('accuracy = "101 %"', "90 %"),
        ('warn = ["speed"]', "no budget"),
    ],
)
def test_a_budget_that_makes_no_sense_says_how_to_write_it(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="budget") as caught:
        from_toml(tmp_path, f"[budget]\n{line}\n")
    assert said in str(caught.value)


def test_errors_come_before_warnings_and_warnings_before_passes() -> None:
    found = verdict(measured(), size_bytes="500 kB", speedup="1.88x", latency_ms="1 ms", warn=["size_bytes"])
    assert [(row.metric, row.level) for row in found.rows] == [
        ("speedup", "error"),
        ("size_bytes", "warn"),
        ("latency_ms", "error"),
    ]
    assert found.status == "failed"


def test_a_warning_is_no_failure_in_junit() -> None:
    report = measured()
    report = report.model_copy(update={"verdict": verdict(report, size_bytes="500 kB", warn=["size_bytes"])})
    page = junit(report)
    assert 'failures="0"' in page
    assert "warning: 531 kB" in page


# ------------------------------------------------------------------------------------------------- scopes


def test_a_scope_takes_the_place_of_the_general_budget(tmp_path: Path) -> None:
    found = from_toml(tmp_path, '[budget]\nlatency_ms = "0.3 ms"\n[budget.openvino]\nlatency_ms = "0.5 ms"\n')
    (row,) = judge(measured(), found, XML).rows
    assert (row.scope, row.status, row.limit) == ("openvino", "pass", 0.5)
    (row,) = judge(measured(), found, ONNX).rows
    assert (row.scope, row.status, row.limit) == ("", "fail", 0.3)


@pytest.mark.parametrize("scope", ["onnxruntime", "float32", "cpu", "onnx"])
def test_scopes_are_runtimes_precisions_targets_and_formats(scope: str) -> None:
    (row,) = verdict(measured(), **{scope: {"size_bytes": "1 kB"}}).rows
    assert (row.scope, row.status) == (scope, "fail")


def test_a_scope_that_nothing_has_is_missing_and_never_silent() -> None:
    (row,) = verdict(measured(), openvnio={"latency_ms": "1 ms"}).rows
    assert row.status == "missing"
    assert "openvino?" in row.reason


def test_a_budget_for_another_target_says_nothing_of_this_one() -> None:
    (row,) = verdict(measured(), speedup="1.5x", **{"raspberry-pi-5": {"latency_ms": "1 ms"}}).rows
    assert row.metric == "speedup"


def test_budgets_for_others_alone_are_no_pass() -> None:
    found = verdict(measured(), **{"raspberry-pi-5": {"latency_ms": "1 ms"}})
    assert (found.status, exit_code(found)) == ("no budgets", ExitCode.USAGE)
    assert "another runtime" in found.reason


def test_a_scope_that_was_not_measured_on_this_file_is_missing() -> None:
    report = measured(latency=(example_latency(OPENVINO),))
    (row,) = verdict(report, onnxruntime={"latency_ms": "1 ms"}).rows
    assert row.status == "missing"


def test_a_key_that_is_no_budget_is_refused_in_a_scope(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"budget\.openvino\.latency") as caught:
        from_toml(tmp_path, '[budget.openvino]\nlatency = "2 ms"\n')
    assert "latency_ms" in str(caught.value)
    with pytest.raises(UsageError, match=r"it belongs into \[budget\]"):
        from_toml(tmp_path, "[budget.openvino]\nconfidence = 0.9\n")
    with pytest.raises(UsageError, match=r"budget\.openvino\.latency_ms"):
        from_toml(tmp_path, '[budget.openvino]\nlatency_ms = "fast"\n')


def test_what_was_set_is_stated_flat_in_a_report() -> None:
    stated = budget(speedup="2x", warn=["speedup"], int8={"size_bytes": "1 kB"}).stated()
    assert stated["speedup"] == 2.0
    assert stated["int8.size_bytes"] == 1000.0
    assert stated["warn"] == "speedup"
    assert example_report(budgets=stated).budgets == stated


def test_tables_have_no_flag() -> None:
    assert "scopes" not in Config().budget.stated()
    assert load_config(None, {"budget": {"allow_estimates": "true"}}).budget.allow_estimates


# -------------------------------------------------------------------------------------- data and estimates


@pytest.mark.parametrize("metric", sorted(ON_DATA))
def test_other_test_data_is_stale(metric: str) -> None:
    good = verdict(measured(), **{metric: EVERY[metric][0]}, test_digest=digest("e")[:12])
    assert good.status == "passed"
    found = verdict(measured(), **{metric: EVERY[metric][0]}, test_digest=digest("7"))
    assert (found.rows[0].status, exit_code(found)) == ("stale", ExitCode.GATE_FAILED)
    assert "gtsrb_test.npz has the digest eeeeeeeeeeee" in found.rows[0].reason
    assert "--test" in found.rows[0].remedy


def test_latency_does_not_depend_on_the_test_data() -> None:
    assert verdict(measured(), latency_ms="1 ms", test_digest=digest("7")).status == "passed"


@pytest.mark.parametrize("metric", ["latency_ms", "speedup", "memory_bytes"])
def test_an_estimate_counts_only_when_it_may(metric: str) -> None:
    guess = example_latency(ORT).model_copy(update={"kind": "estimated"})
    report = example_report().model_copy(update={"latency": (guess,)})
    refused = verdict(report, **{metric: EVERY[metric][0]}).rows[0]
    assert (refused.status, refused.actual) == ("missing", None)
    assert "allow_estimates" in refused.remedy
    assert verdict(report, **{metric: EVERY[metric][0]}, allow_estimates=True).status == "passed"


def test_weights_without_their_graph_are_no_file_of_the_report() -> None:
    assert verdict(measured(), BIN, accuracy="90 %").rows[0].status == "stale"
