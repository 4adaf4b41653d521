"""A sweep as one HTML page, as the report's: no script, no request, every text escaped by the template engine.

What a person wants to do with many points needs none: radio buttons choose the axes, check boxes the settings that are
shown, a mark under the pointer or the focus says what it is and lights its line in the table; CSS does all of it.
Without support for `:has()` the page shows the first picture and every point.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records import Sweep, Unmeasured
from edgeprune.reporting.html import templates
from edgeprune.reporting.sweep import COLUMNS, Cell, Line, advice, cell, compared_by, headline, lines
from edgeprune.reporting.sweep_pictures import ACROSS, HEIGHT, UP, WIDTH, Picture, Quantity, hidden_by, pictures

_TITLES = {
    "speedup": "Speed-up",
    "latency_ms": "Latency",
    "accuracy": "Accuracy",
    "robust_accuracy": "Robust",
    "size_bytes": "Size",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A line of the table and the classes by which it is filtered."""

    line: Line
    classes: str

    @property
    def cells(self) -> tuple[tuple[str, Cell], ...]:
        """The figures with their columns' titles."""
        return tuple(zip((_TITLES[name] for name in COLUMNS), self.line.cells, strict=True))


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting's value that can be left out of the page."""

    id: str
    text: str


def sweep_html(found: Sweep) -> str:
    """The whole page."""
    shown = tuple(Shown(line, hidden_by(line.point, found)) for line in lines(found))
    drawn = pictures(found)
    return (
        templates()
        .get_template("sweep.html.j2")
        .render(
            sweep=found,
            headline=headline(found),
            compared=compared_by(found),
            advice=advice(found),
            shown=shown,
            chosen=next((item.line for item in shown if item.line.recommended), None),
            dense=tuple((_TITLES[name], _dense(found, name)) for name in COLUMNS),
            pictures=drawn,
            said=said,
            by_number={item.line.number: item for item in shown},
            across=_offered(drawn, ACROSS),
            up=_offered(drawn, UP),
            filters=_filters(found),
            canvas=(WIDTH, HEIGHT),
        )
    )


def said(line: Line) -> str:
    """A point in a phrase, for whoever cannot see where its mark stands."""
    figures = ", ".join(f"{_TITLES[name].lower()} {each.text}" for name, each in zip(COLUMNS, line.cells, strict=True))
    return (
        f"Point {line.number}: {line.chosen}. {figures}. {line.standing}{', recommended' if line.recommended else ''}."
    )


def _dense(found: Sweep, name: str) -> Cell | None:
    if name == "speedup":
        return Cell("1×")
    return cell(name, getattr(found.dense, name)) if found.dense else None


def _offered(drawn: tuple[Picture, ...] | Unmeasured, quantities: tuple[Quantity, ...]) -> tuple[Quantity, ...]:
    """The quantities that a picture shows."""
    if isinstance(drawn, Unmeasured):
        return ()
    return tuple(each for each in quantities if any(each in (picture.across, picture.up) for picture in drawn))


def _filters(found: Sweep) -> tuple[tuple[str, tuple[Choice, ...]], ...]:
    """The settings that points differ in, with the values that at least one point has."""
    made = []
    for place, axis in enumerate(found.axes):
        used = {point.settings.get(axis.setting) for point in found.points}
        choices = tuple(Choice(f"a{place}v{number}", text) for number, text in enumerate(axis.values) if text in used)
        if len(choices) > 1:
            made.append((axis.setting.partition(".")[2] or axis.setting, choices))
    return tuple(made)
