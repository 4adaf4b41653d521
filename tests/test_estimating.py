"""Aiming by an estimate: known answers, a plan that says so, and no goal in time without a calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from edgeprune.export.onnx import export_onnx
from test_estimated import COEFFICIENTS
from test_planning import planned
from test_targets import CALIBRATION
from torch import nn
from toy_networks import Chain, bundle_of, randomized

from edgeprune.config import LatencyConfig
from edgeprune.errors import UsageError
from edgeprune.estimated import calibration_for
from edgeprune.estimating import Estimating
from edgeprune.latency.copies import Operator, operators_of
from edgeprune.latency.costs import Wanted
from edgeprune.latency.estimate import Work, predict
from edgeprune.latency.operators import work_of, work_of_layer
from edgeprune.latency.profiles import load_profile
from edgeprune.latency.writing import write_profile
from edgeprune.records import Report, Unmeasured, read_record
from edgeprune.types import GOAL_TOLERANCE, Goal, ModelBundle

FOUND = CALIBRATION.model_copy(update={"coefficients": COEFFICIENTS})
SETTINGS = LatencyConfig(runtimes=("onnxruntime",))


@pytest.fixture
def dense() -> ModelBundle:
    return bundle_of(randomized(Chain()))


@pytest.fixture
def gauge(dense: ModelBundle) -> Estimating:
    return Estimating(dense, FOUND, SETTINGS)


@pytest.mark.parametrize(
    ("operator", "widths", "expected"),
    [
        (
            Operator(kind="conv", size=(8, 8), kernel=(3, 3), pads=(1, 1, 1, 1)),
            (16, 4),
            {"convolution": 16 * 4 * 9 * 64, "bytes": 4 * (16 + 4) * 64},
        ),
        (
            Operator(kind="conv", size=(9, 8), kernel=(3, 3), stride=(2, 2), dilation=(2, 1)),
            (2, 3),
            {"convolution": 2 * 3 * 9 * (3 * 3), "bytes": 4 * (2 * 9 + 3 * 72)},
        ),
        (Operator(kind="conv", size=(4, 4)), (8, 2), {"pointwise": 8 * 2 * 16, "bytes": 4 * 10 * 16}),
        (
            Operator(kind="depthwise", size=(4, 4), kernel=(3, 3), pads=(1, 1, 1, 1)),
            (8, 8),
            {"depthwise": 8 * 9 * 16, "bytes": 4 * 16 * 16},
        ),
        (Operator(kind="conv", size=(4, 4), groups=2), (4, 6), {"pointwise": 4 * 3 * 16, "bytes": 4 * 10 * 16}),
        (Operator(kind="linear", size=(7, 1)), (5, 3), {"linear": 7 * 15, "bytes": 4 * 7 * 8}),
    ],
)
def test_work_of_a_layer_is_counted_by_hand(
    operator: Operator, widths: tuple[int, int], expected: dict[str, float]
) -> None:
    assert work_of_layer(operator, *widths) == Work(**expected, operators=1)


def test_layers_do_the_work_that_the_file_says(dense: ModelBundle, tmp_path: Path) -> None:
    export_onnx(dense, tmp_path / "model.onnx")
    whole = work_of(tmp_path / "model.onnx", dense.input_shape)
    layers = {n: m for n, m in dense.module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    each = [work_of_layer(op, *layers[name].weight.shape[:2]) for name, op in operators_of(dense).items()]
    assert sum(one.convolution for one in each) == whole.convolution > 0
    assert sum(one.linear for one in each) == whole.linear > 0


def test_layers_are_priced_by_the_coefficients(gauge: Estimating) -> None:
    operator = Operator(kind="conv", size=(8, 8), kernel=(3, 3), pads=(1, 1, 1, 1))
    (table,) = gauge.costs([Wanted(operator, (4, 8), (3, 6, 9))], lambda *_: None)
    expected = [[1e-5 * o * i * 9 * 64 + 0.1 for i in (3, 6, 9)] for o in (4, 8)]
    np.testing.assert_allclose(table, expected)


def test_depthwise_layers_are_priced_by_one_width(gauge: Estimating) -> None:
    operator = Operator(kind="depthwise", size=(4, 4), kernel=(3, 3), pads=(1, 1, 1, 1))
    (table,) = gauge.costs([Wanted(operator, (4, 8), (4, 8))], lambda *_: None)
    np.testing.assert_allclose(table, [[1e-5 * o * 9 * 16 + 0.1] * 2 for o in (4, 8)])


def test_layers_that_a_fit_finds_free_have_a_price(dense: ModelBundle) -> None:
    free = FOUND.model_copy(update={"coefficients": dict.fromkeys(COEFFICIENTS, 0.0)})
    (table,) = Estimating(dense, free, SETTINGS).costs(
        [Wanted(Operator(kind="linear", size=(1, 1)), (4,), (3,))], lambda *_: None
    )
    assert (table > 0).all()


@pytest.mark.parametrize("kind", ["speedup", "latency_ms"])
def test_goal_is_met_as_the_calibration_predicts_it(dense: ModelBundle, gauge: Estimating, kind: str) -> None:
    value = 1.5 if kind == "speedup" else gauge.dense_ms() / 1.5
    plan = planned(dense, Goal(kind, value), gauge)  # type: ignore[arg-type]
    note = next(note for note in plan.notes if note.startswith("aimed by an estimate"))
    assert note.startswith(
        "aimed by an estimate (a fit; off by 5.0% (median), 20.0% (largest) on 6 networks not fitted), not measured: "
    )
    assert 1.5 <= float(note.split(": ")[1].split("x")[0]) + 0.005 <= 1.5 * (1 + GOAL_TOLERANCE) + 0.01
    assert not any("candidates before recovery" in each for each in plan.notes)


def test_network_that_does_what_no_anchor_did_is_not_aimed_at(dense: ModelBundle) -> None:
    partly = FOUND.model_copy(update={"coefficients": {"convolution": 1e-5, "bytes": 0.0, "operators": 0.1}})
    with pytest.raises(UsageError, match="knows nothing of linear"):
        Estimating(dense, partly, SETTINGS).dense_ms()


# ------------------------------------------------------------------------------------------ which calibration


def test_goal_in_time_without_device_and_calibration_names_the_ways() -> None:
    with pytest.raises(UsageError, match="needs a device to measure on, and raspberry-pi-5 is not") as error:
        calibration_for(load_profile("raspberry-pi-5"), SETTINGS)
    for way in ("--host", "edgeprune targets calibrate raspberry-pi-5", "--macs-ratio", "--ratio", "--target cpu"):
        assert way in error.value.hint
    assert "no calibration of onnxruntime" in error.value.where


def test_target_of_figures_only_is_not_offered_a_host() -> None:
    with pytest.raises(UsageError) as error:
        calibration_for(load_profile("stm32h7"), SETTINGS)
    assert "--host" not in error.value.hint


@pytest.mark.parametrize("change", [{"threads": 2}, {"batch_size": 4}, {"runtimes": ("openvino",)}])
def test_calibration_of_another_setting_is_not_used(change: dict[str, object]) -> None:
    profile = load_profile("raspberry-pi-5").model_copy(update={"estimates": {"onnxruntime": FOUND}})
    assert calibration_for(profile, SETTINGS) == FOUND
    with pytest.raises(UsageError, match="a goal in time"):
        calibration_for(profile, SETTINGS.model_copy(update=change))


# ---------------------------------------------------------------------------------------------- a whole run


def test_run_for_a_target_that_is_not_here_says_that_it_was_aimed_by_an_estimate(
    project: Path, edgeprune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprune.latency import measure

    monkeypatch.setattr(measure, "quick_ratio", lambda *_: pytest.fail("something was timed here"))
    profile = load_profile("raspberry-pi-5").model_copy(update={"estimates": {"onnxruntime": FOUND}})
    write_profile(profile, project / "board.toml")
    goal = ("--runtimes", "onnxruntime", "--speedup", "1.3")
    said = edgeprune("compress", "model.pt", "--target", "board.toml", *goal)
    assert said.code == 0, said.err
    report = read_record(Report, project / "run" / "report.json")
    assert isinstance(report.latency, Unmeasured)
    (estimate,) = report.estimates
    assert estimate.dense_ms / estimate.compressed_ms >= 1.3
    assert predict(COEFFICIENTS, work_of(project / "run" / "model.onnx", (3, 8, 8))) == estimate.compressed_ms
    for name in ("report.md", "report.html"):
        text = (project / "run" / name).read_text()
        assert "imed by an estimate (a fit; off by 5.0% (median)" in text
        assert "not measured" in text


def test_run_for_a_target_without_calibration_ends_before_anything_is_done(project: Path, edgeprune: Command) -> None:
    said = edgeprune("compress", "model.pt", "--target", "raspberry-pi-5", "--speedup", "2")
    assert said.code == 2
    assert "targets calibrate" in said.err.replace("\n", " ")
