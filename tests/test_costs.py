"""Costs of layers: what is timed, what is read off it, and a cache that is whole, shared and never stale."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from toy_networks import Chain, Lambda, bundle_of, randomized

from edgeprune.errors import MeasurementError
from edgeprune.latency import costs, kernels
from edgeprune.latency.copies import Operator, operators_of, write_copies
from edgeprune.latency.costs import Bench, Wanted, along, measured, sampled, spread, table
from edgeprune.latency.kernels import KernelJob, Point, cost_ms, time_points

CONV = Operator(kind="conv", size=(16, 16), kernel=(3, 3), pads=(1, 1, 1, 1))
WIDTHS = tuple(range(8, 129, 8))
BENCH = Bench("onnxruntime", 1, 1)


def law(outputs: int, inputs: int) -> float:
    """A kernel in blocks of 16 outputs, with a start that nothing saves."""
    return 0.002 + 1e-5 * (-(-outputs // 16) * 16) * inputs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """`time_points` by the law, in a cache of its own; the keys that were asked for."""
    asked: list[str] = []

    def fake(
        runtime: str, threads: int, batch: int, points: Sequence[Point], found: Callable[[Point, float], None]
    ) -> None:
        for point in points:
            asked.append(point.key())
            found(point, law(point.outputs, point.inputs))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "time_points", fake)
    return asked


def silent(text: str, share: float) -> None:
    assert 0 <= share <= 1


def test_every_class_of_alignment_is_sampled_at_its_ends() -> None:
    chosen = spread(WIDTHS)
    assert {8, 16, 120, 128} <= set(chosen)
    assert len(chosen) <= 9


def test_few_pairs_are_all_timed_and_many_are_not() -> None:
    assert len(sampled(Wanted(CONV, (8, 16), (8, 16, 24)))) == 6
    assert len(sampled(Wanted(CONV, WIDTHS, WIDTHS))) < 25


def test_a_staircase_is_read_off_its_own_class() -> None:
    known = {width: law(width, 64) for width in spread(WIDTHS)}
    np.testing.assert_allclose(along(WIDTHS, known), [law(width, 64) for width in WIDTHS], rtol=1e-9)


def test_table_of_a_known_law_is_exact() -> None:
    layer = Wanted(CONV, WIDTHS, WIDTHS)
    found = table(layer, {point.key(): law(point.outputs, point.inputs) for point in sampled(layer)})
    expected = np.array([[law(o, i) for i in WIDTHS] for o in WIDTHS])
    assert np.median(np.abs(found / expected - 1)) < 0.02
    assert np.max(np.abs(found / expected - 1)) < 0.1


def test_depthwise_costs_follow_one_width() -> None:
    layer = Wanted(CONV.model_copy(update={"kind": "depthwise"}), (8, 16, 32), (8, 16, 32))
    points = sampled(layer)
    assert all(point.outputs == point.inputs for point in points)
    found = table(layer, {point.key(): float(point.outputs) for point in points})
    np.testing.assert_array_equal(found, [[8] * 3, [16] * 3, [32] * 3])


def test_only_widths_that_fit_the_groups_are_timed() -> None:
    layer = Wanted(CONV.model_copy(update={"groups": 3}), (12, 16, 24), (12, 24))
    assert {point.outputs for point in sampled(layer)} == {12, 24}


def test_what_was_timed_is_not_timed_again(clock: list[str]) -> None:
    layers = [Wanted(CONV, (8, 16, 24), (3,))]
    first = measured(BENCH, layers, silent)
    assert len(clock) == 3
    again = measured(BENCH, [Wanted(CONV, (8, 16, 24, 32), (3,))], silent)
    assert len(clock) == 4
    np.testing.assert_array_equal(first[0], again[0][:3])
    assert not list(BENCH.path().parent.glob(".*partial*"))


def test_layers_of_one_kind_are_timed_once(clock: list[str]) -> None:
    measured(BENCH, [Wanted(CONV, (8, 16), (8,)), Wanted(CONV, (8, 16), (8,))], silent)
    assert len(clock) == 2


def test_two_runs_that_write_lose_nothing(clock: list[str]) -> None:
    measured(BENCH, [Wanted(CONV, (8,), (3,))], silent)
    measured(BENCH, [Wanted(CONV, (16,), (3,))], silent)
    assert len(json.loads(BENCH.path().read_text())["points"]) == 2


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": "0"}', "[]"])
def test_a_damaged_cache_is_measured_anew(clock: list[str], text: str) -> None:
    BENCH.path().parent.mkdir(parents=True)
    BENCH.path().write_text(text)
    measured(BENCH, [Wanted(CONV, (8,), (3,))], silent)
    assert len(clock) == 1


def test_another_machine_or_setting_has_a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {
        BENCH.path(),
        Bench("openvino", 1, 1).path(),
        Bench("onnxruntime", 2, 1).path(),
        Bench("onnxruntime", 1, 8).path(),
    }
    monkeypatch.setattr(costs, "machine", lambda: "other")
    assert len({*paths, BENCH.path()}) == 5


def test_what_was_found_before_a_failure_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def dying(
        runtime: str, threads: int, batch: int, points: Sequence[Point], found: Callable[[Point, float], None]
    ) -> None:
        found(points[0], 1.0)
        raise MeasurementError("it ended early")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "time_points", dying)
    with pytest.raises(MeasurementError):
        measured(BENCH, [Wanted(CONV, (8, 16), (3,))], silent)
    assert list(json.loads(BENCH.path().read_text())["points"].values()) == [1.0]


def test_operators_are_those_of_the_forward_pass() -> None:
    layers = {"conv": nn.Conv2d(3, 8, 3, 2, 1), "wise": nn.Conv2d(8, 8, 3, 1, 1, groups=8), "fc": nn.Linear(8, 4)}
    bundle = bundle_of(randomized(Lambda(lambda m, x: m.fc(m.wise(m.conv(x)).mean((2, 3))), **layers)))
    found = operators_of(bundle)
    assert found["conv"] == Operator(kind="conv", size=(8, 8), kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1))
    assert found["wise"].kind == "depthwise"
    assert found["fc"] == Operator(kind="linear", size=(1, 1))


def test_a_layer_that_runs_twice_is_left_out() -> None:
    bundle = bundle_of(
        randomized(
            Lambda(lambda m, x: m.fc(m.conv(m.conv(x)).mean((2, 3))), conv=nn.Conv2d(3, 3, 1), fc=nn.Linear(3, 4))
        )
    )
    assert set(operators_of(bundle)) == {"fc"}


@pytest.mark.parametrize(
    "operator",
    [
        CONV,
        CONV.model_copy(update={"kind": "depthwise"}),
        Operator(kind="linear", size=(1, 1)),
        Operator(kind="linear", size=(7, 1)),
    ],
)
def test_copies_are_a_valid_network_that_the_runtime_serves(operator: Operator, tmp_path: Path) -> None:
    import onnx
    from edgeprune.export.onnx import RUNTIME

    write_copies(operator, 8, 8, 3, tmp_path / "copies.onnx")
    onnx.checker.check_model(str(tmp_path / "copies.onnx"), full_check=True)
    output = RUNTIME.open(tmp_path / "copies.onnx", threads=1).logits(operator.image(2, 8))
    assert output.shape == (2, 8)


def test_a_wider_layer_takes_longer_in_the_runtime(tmp_path: Path) -> None:
    from edgeprune.export.onnx import RUNTIME

    points = [Point(operator=CONV, outputs=width, inputs=64) for width in (8, 256)]
    job = KernelJob(runtime="onnxruntime", threads=1, batch_size=1, cores=(), points=tuple(points))
    narrow, wide = (cost_ms(RUNTIME, point, job, tmp_path) for point in points)
    assert wide > 3 * narrow > 0


def test_the_timing_process_says_what_is_wrong() -> None:
    with pytest.raises(MeasurementError):
        time_points("no such runtime", 1, 1, [Point(operator=CONV, outputs=8, inputs=8)], lambda point, ms: None)


def test_figures_come_in_the_order_of_the_points() -> None:
    points = [Point(operator=Operator(kind="linear", size=(1, 1)), outputs=width, inputs=8) for width in (8, 16)]
    found: list[tuple[Point, float]] = []
    time_points("onnxruntime", 1, 1, points, lambda point, ms: found.append((point, ms)))
    assert [point for point, _ in found] == points
    assert all(ms > 0 for _, ms in found)


def test_chain_has_an_operator_for_every_layer() -> None:
    bundle = bundle_of(randomized(Chain()))
    assert len(operators_of(bundle)) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in bundle.module.modules())
