"""Latency estimates: exact on what is exactly linear, honest about their error, refused where nothing was fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeprune.errors import ModelError, UsageError
from edgeprune.latency import anchors
from edgeprune.latency.estimate import CLASSES, Anchor, Work, calibrate, choose_anchors, errors, fit, predict
from edgeprune.latency.operators import work_of

TRUE = {"pointwise": 2e-8, "depthwise": 2e-7, "convolution": 4e-8, "linear": 5e-8, "bytes": 1e-7, "operators": 0.01}


def network(width: float, resolution: int, noise: float = 0.0) -> Anchor:
    """A MobileNet-like network on a machine whose times are exactly linear."""
    area = resolution**2
    work = Work(
        pointwise=200 * area * width**2,
        depthwise=20 * area * width,
        convolution=30 * area * width,
        linear=1e6 * width,
        bytes=100 * area * width,
        operators=30,
    )
    return Anchor(name=f"{width} {resolution}", work=work, p50_ms=predict(TRUE, work) * (1 + noise))


SEEN = [network(width, resolution) for width in (0.25, 1.0) for resolution in (128, 160, 224)]
UNSEEN = [network(width, resolution) for width in (0.5, 0.75) for resolution in (128, 192)]


def test_linear_machine_is_predicted_at_widths_that_were_not_fitted() -> None:
    assert max(errors(fit(SEEN), UNSEEN)) < 0.05


def test_coefficients_are_never_negative_however_odd_the_times() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        odd = [anchor.model_copy(update={"p50_ms": float(draw.uniform(0.1, 10))}) for anchor in SEEN]
        assert min(fit(odd).values()) >= 0


def test_small_networks_count_as_much_as_large_ones() -> None:
    """One small network takes twice as long: a fit of absolute errors would not see it."""
    odd = [SEEN[0].model_copy(update={"p50_ms": 2 * SEEN[0].p50_ms}), *SEEN[1:]]
    assert errors(fit(odd), [odd[0]])[0] < errors(fit(SEEN), [odd[0]])[0]


def test_error_is_that_of_networks_left_out() -> None:
    off = [network(0.5, 128, noise=0.25), network(0.5, 160), network(0.75, 192)]
    found = calibrate(SEEN, off, "onnxruntime", 1, "a test")
    assert found.tested == 3
    assert found.within_10 == pytest.approx(2 / 3)
    assert found.error < 0.05
    assert found.anchors == tuple(anchor.name for anchor in SEEN)


def test_validating_on_what_was_fitted_is_refused() -> None:
    with pytest.raises(UsageError, match="not fitted"):
        calibrate(SEEN, SEEN[:1], "onnxruntime", 1, "a test")


def test_too_few_anchors_are_refused() -> None:
    with pytest.raises(UsageError, match="3 anchors are too few"):
        fit(SEEN[:3])


def test_work_that_no_anchor_does_is_not_estimated() -> None:
    plain = [anchor.model_copy(update={"work": anchor.work.model_copy(update={"depthwise": 0.0})}) for anchor in SEEN]
    with pytest.raises(UsageError, match="knows nothing of depthwise"):
        predict(fit(plain), SEEN[0].work)


def test_anchors_are_the_ends_at_three_resolutions_and_the_rule_sees_no_time() -> None:
    networks = [(width, resolution) for width in (0.5, 0.25, 1.0, 0.75) for resolution in (128, 160, 192, 224)]
    expected = ((0.25, 128), (0.25, 192), (0.25, 224), (1.0, 128), (1.0, 192), (1.0, 224))
    assert choose_anchors([*networks, (1.4, 224)]) == expected
    assert choose_anchors([(1.0, 224)]) == ()
    assert not {width for width, _ in anchors.FITTED} & {width for width, _ in anchors.TESTED}


def test_work_of_a_file_is_counted_by_hand(tmp_path: Path) -> None:
    found = work_of(anchors.write_anchor(tmp_path, 0.25, 64), (3, 64, 64))
    stem = 32 * 32 * 8 * 9 * (3 + 8)  # two 3x3 convolutions at 32x32: 3 to 8 and 8 to 8 channels
    assert found.convolution == stem
    assert found.linear == 64 * anchors.CLASSES
    assert found.operators == 2 + 2 * len(anchors.BLOCKS) + 2  # convolutions, pooling, linear: ReLUs are fused
    sides = (32, 16, 16, 8, 8, 4, 4)
    channels = (8, 16, 16, 32, 32, 64, 64)
    before = (8, *channels[:-1])
    assert found.depthwise == sum(9 * side**2 * width for side, width in zip(sides, before, strict=True))
    assert found.pointwise == sum(s**2 * a * b for s, a, b in zip(sides, before, channels, strict=True))
    assert found.macs == sum(getattr(found, name) for name in CLASSES[:4])


def test_file_that_is_no_network_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ModelError, match="cannot read the operators"):
        work_of(tmp_path / "text.onnx", (3, 8, 8))


def test_same_anchor_has_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first = anchors.write_anchor(tmp_path, 0.25, 64).read_bytes()
    assert anchors.write_anchor(tmp_path / "again", 0.25, 64).read_bytes() == first
