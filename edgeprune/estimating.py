"""Candidates for a goal in time on a target that is not here: told apart by its calibration, nothing runs.

Promise: a plan that was aimed so says so, with the method and the error that was found on networks that the fit had not
seen. Which calibration that is, `edgeprune.estimated.calibration_for` says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.gauging import Settled, Timer, at_once
from edgeprune.latency.estimate import Calibration, predict
from edgeprune.latency.operators import work_of, work_of_layer
from edgeprune.latency.settings import LatencyConfig
from edgeprune.types import ModelBundle, Progress

if TYPE_CHECKING:
    from edgeprune.latency.costs import Table, Wanted
    from edgeprune.pruning.aim import Timing

_LEAST_MS = 1e-6
"""A layer that a fit finds to be free still costs something: prices are positive."""


@dataclass(frozen=True, slots=True)
class Estimating:
    """A gauge (`edgeprune.gauging.Gauge`) that asks a calibration of the first runtime."""

    dense: ModelBundle
    calibration: Calibration
    settings: LatencyConfig

    @property
    def how(self) -> str:
        """How candidates are told apart, for the plan's notes."""
        found = self.calibration
        off = f"off by {found.error:.1%} (median), {found.largest:.1%} (largest) on {found.tested} networks not fitted"
        return f"aimed by an estimate ({found.method}; {off}), not measured"

    @contextmanager
    def opened(self) -> Iterator[Timer]:
        """Estimates networks. Errors: UsageError when it does what no anchor of the fit did."""
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
            dense = self.ms(self.dense, Path(name))

            yield _Estimates(self, Path(name), dense)

    def dense_ms(self) -> float:
        """The estimate of the dense network."""
        with self.opened() as estimate:
            return estimate(self.dense).latency_ms

    def costs(self, wanted: Sequence[Wanted], progress: Progress) -> tuple[Table, ...]:
        """Milliseconds of layers, float64 (len(outputs), len(inputs)) each. Errors: as for `opened`."""
        return tuple(self._table(layer) for layer in wanted)

    def _table(self, layer: Wanted) -> Table:
        paired = layer.operator.kind == "depthwise"
        return np.array([[self._layer_ms(layer, o, o if paired else i) for i in layer.inputs] for o in layer.outputs])

    def _layer_ms(self, layer: Wanted, outputs: int, inputs: int) -> float:
        return max(predict(self.calibration.coefficients, work_of_layer(layer.operator, outputs, inputs)), _LEAST_MS)

    def ms(self, bundle: ModelBundle, folder: Path) -> float:
        """The estimate of a network, whose file is written into the folder."""
        from edgeprune.export.onnx import export_onnx

        path = folder / "candidate.onnx"
        export_onnx(bundle, path)
        return predict(self.calibration.coefficients, work_of(path, bundle.input_shape))


@dataclass(frozen=True, slots=True)
class _Estimates:
    """A timer (`edgeprune.gauging.Timer`): nothing runs."""

    by: Estimating
    folder: Path
    dense_ms: float

    def __call__(self, bundle: ModelBundle, settled: Settled = at_once) -> Timing:
        from edgeprune.pruning.aim import Timing

        own = self.dense_ms if bundle is self.by.dense else self.by.ms(bundle, self.folder)
        return Timing(self.dense_ms / own, own)

    def together(
        self, networks: Mapping[str, Callable[[], ModelBundle]], seconds: float, progress: Progress
    ) -> Mapping[str, float]:
        """None: an estimate knows no more of a network than of its layers."""
        return {}
