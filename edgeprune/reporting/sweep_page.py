"""A sweep as one HTML page, as the report's: no script, no request, every text escaped by the template engine."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records import Figure, Placed, Sweep, Unmeasured
from edgeprune.reporting import numbers
from edgeprune.reporting.figures import Axis, axis
from edgeprune.reporting.html import templates
from edgeprune.reporting.sweep import COLUMNS, advice, cell, compared_by, headline, lines

WIDTH, HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 30, 52


@dataclass(frozen=True, slots=True)
class Mark:
    """A point in the picture: pixels of the mark and of the ends of its intervals; `number` 0 is the dense network."""

    number: int
    words: str
    kind: str
    x: float
    y: float
    across: tuple[float, float]
    along: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Picture:
    """Speed-up against robust accuracy (clean, where no attack ran), every point that has both."""

    x: Axis
    y: Axis
    y_words: str
    marks: tuple[Mark, ...]


def sweep_html(found: Sweep) -> str:
    """The whole page."""
    return (
        templates()
        .get_template("sweep.html.j2")
        .render(
            sweep=found,
            headline=headline(found),
            compared=compared_by(found),
            advice=advice(found),
            lines=lines(found),
            dense=tuple(cell(name, getattr(found.dense, name)) if found.dense else None for name in COLUMNS[1:]),
            picture=picture(found),
            canvas=(WIDTH, HEIGHT),
            command=found.point(found.recommended).command if found.recommended else "",
        )
    )


def picture(found: Sweep) -> Picture | Unmeasured:
    """The picture, or why there is none: it needs speed and an accuracy of the same points."""
    height = next((name for name in ("robust_accuracy", "accuracy") if name in found.objectives), None)
    if "speedup" not in found.objectives or height is None:
        return Unmeasured(unmeasured="speed-up and accuracy were not measured together")
    measured = []
    for line in lines(found):
        across, along = line.point.speedup, getattr(line.point, height)
        if isinstance(across, Figure) and isinstance(along, Figure):
            kind = "recommended" if line.recommended else _kind(line.placed)
            measured.append((line.number, line.chosen, kind, across, along))
    if found.dense and isinstance(reference := getattr(found.dense, height), Figure):
        measured.append((0, "the dense network", "dense", Figure(value=1.0, interval=None), reference))
    fastest = max(_ends(item[3])[1] for item in measured)
    x = axis(fastest * 1.05, _LEFT, WIDTH - _RIGHT)
    y = Axis(1.0, HEIGHT - _BOTTOM, _TOP, (0, 0.25, 0.5, 0.75, 1))
    marks = tuple(
        Mark(
            number=number,
            words=f"{chosen}: {numbers.times(across.value)}, {numbers.percent(along.value)}",
            kind=kind,
            x=x.at(across.value),
            y=y.at(along.value),
            across=(x.at(_ends(across)[0]), x.at(_ends(across)[1])),
            along=(y.at(_ends(along)[0]), y.at(_ends(along)[1])),
        )
        for number, chosen, kind, across, along in measured
    )
    return Picture(x, y, "robust accuracy" if height == "robust_accuracy" else "clean accuracy", marks)


def _kind(place: Placed) -> str:
    return place.standing if place.standing in ("front", "near") else "behind"


def _ends(figure: Figure) -> tuple[float, float]:
    return (figure.interval.low, figure.interval.high) if figure.interval else (figure.value, figure.value)
