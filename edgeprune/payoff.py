"""What removed MACs were worth in milliseconds: the realised fraction, and the layers that did not pay. Pure.

The fraction comes from measured files. What single layers take comes from the runtime's own profile of both files
(`edgeprune.layerwise`): it explains a figure, it is none.
"""

from __future__ import annotations

from edgeprune.records import LatencyComparison, LayerChange, LayerProfile, LayerTime, Report

_WORTH = 0.02  # of the network's time: what takes less is not worth a word
_CUT, _PAID = 0.1, 0.5


def realised(report: Report, item: LatencyComparison) -> float | None:
    """Latency ratio over MACs ratio: 1 when a network with half the MACs is twice as fast. None: nothing to compare."""
    if item.speedup is None or not 0 < report.plan.macs < report.plan.dense_macs:
        return None
    return item.speedup.value * report.plan.macs / report.plan.dense_macs


def unpaid(layers: tuple[LayerChange, ...], profile: LayerProfile) -> tuple[tuple[LayerChange, LayerTime], ...]:
    """Layers that lost a tenth of their MACs or more and less than half as large a share of their time, largest first.

    Layers that took less than 2 % of the dense network's time, or that the profile does not know, are left out.
    """
    known = {time.name: time for time in profile.layers if time.is_layer}
    whole = sum(time.dense_ms or 0.0 for time in profile.layers)
    found = []
    for layer in layers:
        time = known.get(layer.name)
        if time is None or not layer.dense_macs or not time.dense_ms or time.dense_ms < _WORTH * whole:
            continue
        cut, saved = 1 - layer.macs / layer.dense_macs, 1 - (time.compressed_ms or 0.0) / time.dense_ms
        if cut >= _CUT and saved < _PAID * cut:
            found.append((layer, time))
    return tuple(sorted(found, key=lambda pair: -(pair[1].compressed_ms or 0.0)))
