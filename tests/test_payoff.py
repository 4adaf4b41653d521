"""What MACs were worth: the realised fraction by hand, and layers that kept their time."""

from __future__ import annotations

import pytest
from report_examples import example_report

from edgeprune.payoff import realised, unpaid
from edgeprune.records import LayerChange, LayerProfile, LayerTime, Unmeasured
from edgeprune.reporting.goals import payoff
from edgeprune.reporting.html import html
from edgeprune.reporting.markdown import markdown


def change(name: str, dense_macs: int, macs: int) -> LayerChange:
    return LayerChange(name=name, kind="Conv2d", dense_channels=32, channels=24, dense_macs=dense_macs, macs=macs)


def costs(**ms: tuple[float, float]) -> LayerProfile:
    each = tuple(
        LayerTime(name=name, is_layer=True, dense_ms=before, compressed_ms=after)
        for name, (before, after) in ms.items()
    )
    return LayerProfile(
        runtime="onnxruntime",
        threads=1,
        dense_sha256="a" * 64,
        compressed_sha256="b" * 64,
        inferences=(10, 10),
        layers=each,
    )


LAYERS = (change("paid", 100, 50), change("lazy", 100, 50), change("tiny", 100, 50), change("whole", 100, 95))
COSTS = costs(paid=(1.0, 0.6), lazy=(1.0, 0.9), tiny=(0.001, 0.001), whole=(1.0, 1.0))


def test_realised_is_the_latency_ratio_over_the_macs_ratio() -> None:
    report = example_report()
    assert not isinstance(report.latency, Unmeasured)
    item = report.latency[0]
    assert item.speedup
    expected = item.speedup.value / (report.plan.dense_macs / report.plan.macs)
    assert realised(report, item) == pytest.approx(expected)


def test_nothing_removed_has_no_realised_fraction() -> None:
    report = example_report()
    same = report.model_copy(update={"plan": report.plan.model_copy(update={"macs": report.plan.dense_macs})})
    assert not isinstance(report.latency, Unmeasured)
    assert realised(same, report.latency[0]) is None


def test_layers_that_did_not_pay_are_those_that_kept_their_time() -> None:
    assert [layer.name for layer, _ in unpaid(LAYERS, COSTS)] == ["lazy"]


def test_a_layer_that_grew_slower_did_not_pay() -> None:
    assert [layer.name for layer, _ in unpaid(LAYERS[:1], costs(paid=(1.0, 1.4)))] == ["paid"]


def test_every_rendering_names_them_and_says_how_it_knows() -> None:
    report = example_report(layers=LAYERS, layer_times=COSTS)
    lines = payoff(report)
    assert "did not pay: lazy (−50.0 % MACs, −10.0 % time)" in lines[-1]
    for page in (html(report), markdown(report)):
        assert "profile of onnxruntime" in page
        assert "fewer MACs" in page


def test_pruned_but_slower_cannot_be_overlooked() -> None:
    report = example_report()
    assert not isinstance(report.latency, Unmeasured)
    slower = report.latency[0].model_copy(update={"verdict": "slower"})
    lines = payoff(report.model_copy(update={"latency": (slower,)}))
    assert lines[0].startswith("pruned, but slower: ")
    assert 'class="warning">Pruned, but slower' in html(report.model_copy(update={"latency": (slower,)}))


def test_without_latency_nothing_is_said() -> None:
    assert payoff(example_report(latency=Unmeasured(unmeasured="no device"))) == ()
