"""Report -> one HTML file that works anywhere: no script, no request, light and dark, on paper and on a phone.

Every text of the report is escaped by the template engine, and a content security policy forbids scripts and
requests besides: a name that looks like markup is shown, never run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from edgeprune.records import Artifact, Report, Unmeasured
from edgeprune.reporting import figures, numbers, view

_FORMATS: dict[str, Callable[..., str]] = {
    "ms": numbers.milliseconds,
    "times": numbers.times,
    "percent": numbers.percent,
    "points": numbers.points,
    "size": numbers.size,
    "count": numbers.count,
    "significant": numbers.significant,
    "short": numbers.short,
    "threat": view.threat,
    "place": view.place,
}


def html(report: Report) -> str:
    """The whole page."""
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            report=report,
            head=view.headline(report.verdict),
            rows=view.judged(report.verdict),
            tiles=tiles(report),
            changes=view.changes(report),
            flips=view.flips(report),
            tradeoff=figures.tradeoff(report),
            canvas=(figures.WIDTH, figures.HEIGHT),
            strips=figures.strips(report),
            layers=tuple(zip(report.layers, figures.layer_bars(report), strict=True)),
            files=tuple((artifact, _files(artifact)) for artifact in report.artifacts),
            names={artifact.sha256: artifact.path for artifact in report.artifacts},
        )
    )


def tiles(report: Report) -> tuple[tuple[str, str, str], ...]:
    """The four figures that people ask for first: (name, figure, remark)."""
    found: dict[str, tuple[str, str, str]] = {}
    names = {
        "Latency, p50": "Speed",
        "Robust accuracy": "Robust accuracy",
        "Clean accuracy": "Clean accuracy",
        "File size": "File size",
    }
    for change in view.changes(report):
        name = names.get(change.label)
        if name is None or name in found:
            continue
        if change.missing or change.change is None:
            found[name] = (name, "unmeasured", change.missing)
            continue
        before = change.dense.text if change.dense else ""
        after = change.compressed.text if change.compressed else ""
        found[name] = (name, change.change.text, f"{before} → {after}")
    return tuple(found[name] for name in names.values() if name in found)


def _files(artifact: Artifact) -> tuple[tuple[str, str, int], ...]:
    return ((artifact.path, artifact.sha256, artifact.size_bytes), *artifact.companions)


def _unmeasured(value: object) -> bool:
    return isinstance(value, Unmeasured)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(_FORMATS)
    environment.filters["span_ms"] = lambda interval: numbers.span(interval, numbers.milliseconds)
    environment.filters["span_times"] = lambda interval: numbers.span(interval, numbers.times)
    environment.filters["span_percent"] = lambda interval: numbers.span(interval, numbers.percent)
    environment.filters["macs_change"] = lambda layer: numbers.change(layer.dense_macs, layer.macs)
    environment.tests["unmeasured"] = _unmeasured
    return environment
