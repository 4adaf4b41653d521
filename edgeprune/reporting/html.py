"""Report -> one HTML file that works anywhere: no script, no request, light and dark, on paper and on a phone.

Every text of the report is escaped by the template engine, and a content security policy forbids scripts and
requests besides: a name that looks like markup is shown, never run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from edgeprune.records import Artifact, LayerTime, Report, Unmeasured
from edgeprune.reporting import curve, figures, goals, ice, numbers, view
from edgeprune.reporting.attacked import attack_lines
from edgeprune.reporting.recovered import recovery_lines
from edgeprune.robustness.suites import effort


def html(report: Report) -> str:
    """The whole page."""
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            report=report,
            head=view.headline(report.verdict),
            rows=view.judged(report.verdict),
            loose_flags=view.loose_flags(view.judged(report.verdict)),
            tiles=tiles(report),
            fitting=view.fitting(report.model),
            changes=view.changes(report),
            flips=view.flips(report),
            tradeoff=figures.tradeoff(report),
            canvas=(figures.WIDTH, figures.HEIGHT),
            strips=figures.strips(report),
            wide_canvas=(curve.WIDTH, curve.HEIGHT),
            curve_plot=curve.curve_plot(report),
            decile_plot=curve.decile_plot(report),
            **_boundary(report),
            goal_remark=goals.goal_remark(report),
            payoff=goals.payoff(report),
            layers=tuple(zip(report.layers, figures.layer_bars(report), strict=True)),
            timed_layers=_timed_layers(report),
            gate_command=_gate_command(report),
            files=tuple((artifact, _files(artifact)) for artifact in report.artifacts),
            beside=attack_lines(report.robustness),
            names={artifact.sha256: artifact.path for artifact in report.artifacts},
        )
    )


def _boundary(report: Report) -> dict[str, object]:
    """The words of the security curve and of thin ice, where they were measured."""
    found: dict[str, object] = {}
    if not isinstance(report.curve, Unmeasured):
        found["checked"], found["beyond"] = ice.checked(report.curve), ice.beyond(report)
    if not isinstance(report.thin_ice, Unmeasured):
        thin = report.thin_ice
        found["ice_lead"], found["ice_net"], found["ice_how"] = ice.lead(thin), ice.net(thin), ice.how(thin)
        found["ice_ranks"], found["tenths"] = ice.ranks(thin), ice.tenths(thin)
        found["galleries"] = ice.galleries(thin, report.model.classes)
    return found


def tiles(report: Report) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """The four figures that people ask for first: (name, figure, remarks)."""
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
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
            found[name] = (name, "unmeasured", (change.missing,))
            continue
        before = change.dense.text if change.dense else ""
        after = change.compressed.text if change.compressed else ""
        remarks = (f"{before} → {after}", change.change.spread)
        found[name] = (name, change.change.text, tuple(line for line in remarks if line))
    return tuple(found[name] for name in names.values() if name in found)


def _timed_layers(report: Report) -> tuple[tuple[LayerTime, figures.LayerBar], ...]:
    if isinstance(report.layer_times, Unmeasured):
        return ()
    return tuple(zip(report.layer_times.layers, figures.time_bars(report), strict=True))


def _gate_command(report: Report) -> str:
    shipped = next((item.path for item in report.artifacts if item.side == "compressed"), "model.onnx")
    return f"edgeprune gate report.json --artifact {shlex.quote(shipped)}"


def _files(artifact: Artifact) -> tuple[tuple[str, str, int], ...]:
    return ((artifact.path, artifact.sha256, artifact.size_bytes), *artifact.companions)


def moment(iso: str) -> str:
    """An ISO time as people read it, "20 November 2026, 12:00 UTC"; as it is when it is none."""
    try:
        time = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname() or ''}".rstrip()


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def tight(text: str) -> str:
    """With unbreakable spaces between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|pt|ms|[kMG]?B\b|[kMG]\b)", "\N{NO-BREAK SPACE}", text)


def commands(text: str) -> Markup:
    """Escaped text in which `commands` and --flags 1 are set as code, a flag in one line with its value."""
    *parts, last = str(escape(text)).split("`")
    if len(parts) % 2:  # a backquote without its fellow is only a character
        last = f"{parts.pop()}`{last}"
    made = [f"<code>{part}</code>" if place % 2 else _flagged(part) for place, part in enumerate((*parts, last))]
    return Markup("".join(made))


def _flagged(text: str) -> str:
    return re.sub(
        r"(?<![\w-])(--[a-z][a-z-]*(?: (?:[0-9.]*[0-9]m?|[a-z0-9]+(?:,[a-z0-9]+)+)\b)?)",
        r'<code class="flag">\1</code>',
        text,
    )


def _unmeasured(value: object) -> bool:
    return isinstance(value, Unmeasured)


_FORMATS: dict[str, Callable[..., object]] = {
    "ms": numbers.milliseconds,
    "times": numbers.times,
    "percent": numbers.percent,
    "points": numbers.points,
    "size": numbers.size,
    "count": numbers.count,
    "significant": numbers.significant,
    "short": numbers.short,
    "moment": moment,
    "sentence": sentence,
    "commands": commands,
    "tight": tight,
    "goal": goals.goal,
    "step_recovery": view.step_recovery,
    "recovery_lines": recovery_lines,
    "threat": view.threat,
    "effort": effort,
    "place": view.place,
}


@cache
def templates() -> Environment:
    """The template engine of every page: it escapes whatever it is given."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(_FORMATS)
    environment.filters["span_bare_ms"] = lambda interval: numbers.span(interval, numbers.milliseconds, unit=False)
    environment.filters["span_times"] = lambda interval: numbers.span(interval, numbers.times)
    environment.filters["macs_change"] = lambda layer: numbers.change(layer.dense_macs, layer.macs)
    environment.tests["unmeasured"] = _unmeasured
    return environment
