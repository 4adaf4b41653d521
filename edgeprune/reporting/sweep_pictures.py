"""The geometry of a sweep's pictures, in plain numbers: every measured pair of a cost and an accuracy. The templates
draw them, and CSS shows one at a time.

Axes end where the points do and need not begin at zero; both ends of every interval are inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edgeprune.records import Figure, Objective, Placed, Sweep, SweepPoint, Unmeasured
from edgeprune.reporting import numbers as n
from edgeprune.reporting.figures import Axis, window
from edgeprune.reporting.sweep import lines

WIDTH, HEIGHT = 640, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 28, 34, 52
_MARK, _LETTER, _LINE = 8.0, 8.5, 16.0  # pixels: a mark with its rim, a letter of a label, its height
_ROOM = 0.06  # of the axis, beyond the outermost point

Anchor = Literal["start", "end"]
_PLACES: tuple[tuple[Anchor, float], ...] = (("start", -8.0), ("end", -8.0), ("start", 18.0), ("end", 18.0))
Kind = Literal["dense", "recommended", "front", "near", "behind"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """What an axis can show: its words, how a tick is written, and whether more is better."""

    name: Objective
    short: str
    words: str
    more_is_better: bool
    tick: Callable[[float], str]


ACROSS = (
    Quantity("speedup", "Speed-up", "speed-up", True, lambda value: f"{value:g}×"),
    Quantity("latency_ms", "Latency", "latency p50, ms", False, lambda value: f"{value:g}"),
    Quantity("size_bytes", "File size", "file size", False, lambda value: n.size(value).replace(".00", "")),
)
UP = (
    Quantity("robust_accuracy", "Robust accuracy", "robust accuracy", True, lambda value: f"{100 * value:g} %"),
    Quantity("accuracy", "Clean accuracy", "clean accuracy", True, lambda value: f"{100 * value:g} %"),
)


@dataclass(frozen=True, slots=True)
class Label:
    """Where a mark's number stands."""

    x: float
    y: float
    anchor: Anchor


@dataclass(frozen=True, slots=True)
class Mark:
    """A point in a picture: pixels of the mark and of the ends of its intervals; `number` 0 is the dense network."""

    number: int
    kind: Kind
    x: float
    y: float
    across: tuple[float, float]
    along: tuple[float, float]
    label: Label = Label(0.0, 0.0, "start")


@dataclass(frozen=True, slots=True)
class Picture:
    """One pair of axes with every point that has both figures.

    `stairs` is the path along what no other point of this picture beats in both; `x_limit` and `y_limit` are the
    pixels of the budgets, where there are any.
    """

    across: Quantity
    up: Quantity
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    stairs: str
    x_limit: float | None
    y_limit: float | None


@dataclass
class _Taken:
    """The places that marks and labels have taken, as boxes."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)

    def overlap(self, box: tuple[float, float, float, float]) -> int:
        return sum(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in self.boxes)


def pictures(found: Sweep) -> tuple[Picture, ...] | Unmeasured:
    """Every pair of axes that a point has figures for, the one to show first at the head; or why there is none."""
    made = [_picture(found, across, up) for up in UP for across in ACROSS]
    whole = tuple(item for item in made if item is not None)
    return whole or Unmeasured(unmeasured="no point has both a cost and an accuracy that were measured")


def _picture(found: Sweep, across: Quantity, up: Quantity) -> Picture | None:
    pairs: list[tuple[int, Kind, Figure, Figure]] = []
    for line in lines(found):
        one, other = getattr(line.point, across.name), getattr(line.point, up.name)
        if isinstance(one, Figure) and isinstance(other, Figure):
            pairs.append((line.number, "recommended" if line.recommended else _kind(line.placed), one, other))
    if not pairs:
        return None
    measured = list(pairs)
    one, other = _dense(found, across), _dense(found, up)
    if one is not None and other is not None:
        pairs.append((0, "dense", one, other))
    limits = _limit(found, across), _limit(found, up)
    x = _axis([pair[2] for pair in pairs], limits[0], _LEFT, WIDTH - _RIGHT)
    y = _axis([pair[3] for pair in pairs], limits[1], HEIGHT - _BOTTOM, _TOP)
    if up.name in ("accuracy", "robust_accuracy") and y.high > 1:
        y = replace(y, high=1.0, ticks=tuple(tick for tick in y.ticks if tick <= 1))
    marks = [
        Mark(number, kind, x.at(a.value), y.at(b.value), _pixels(a, x), _pixels(b, y)) for number, kind, a, b in pairs
    ]
    best = _unbeaten([(a.value if across.more_is_better else -a.value, b.value) for _, _, a, b in measured])
    steps = sorted((marks[index].x, marks[index].y) for index in best)
    return Picture(
        across=across,
        up=up,
        x=x,
        y=y,
        marks=_labelled(marks),
        stairs=_stairs(steps, falls=across.more_is_better),
        x_limit=None if limits[0] is None else x.at(limits[0]),
        y_limit=None if limits[1] is None else y.at(limits[1]),
    )


def _kind(place: Placed) -> Kind:
    return place.standing if place.standing in ("front", "near") else "behind"


def _dense(found: Sweep, quantity: Quantity) -> Figure | None:
    if found.dense is None:
        return None
    if quantity.name == "speedup":
        return Figure(value=1.0, interval=None)
    figure = getattr(found.dense, quantity.name)
    return figure if isinstance(figure, Figure) else None


def _limit(found: Sweep, quantity: Quantity) -> float | None:
    """The budget on an axis, that of the runtime before the general one; a largest drop is counted from the dense."""

    def stated(name: str) -> float | None:
        value = found.budgets.get(f"{found.runtime}.{name}", found.budgets.get(name))
        return float(value) if isinstance(value, int | float) else None

    limits = [stated(quantity.name)]
    dense, drop = _dense(found, quantity), stated(f"{quantity.name}_drop")
    if dense is not None and drop is not None:
        limits.append(max(dense.value - drop, 0.0))
    given = [limit for limit in limits if limit is not None]
    return max(given) if given else None


def _axis(figures: Sequence[Figure], limit: float | None, start: float, end: float) -> Axis:
    ends = [end_ for figure in figures for end_ in _ends(figure)]
    low, high = min(ends), max(ends)
    room = _ROOM * (high - low) or 0.1 * abs(high) or 0.1
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    return window(max(low - room, 0.0), high + room, start, end)


def _pixels(figure: Figure, axis: Axis) -> tuple[float, float]:
    low, high = _ends(figure)
    return axis.at(low), axis.at(high)


def _ends(figure: Figure) -> tuple[float, float]:
    return (figure.interval.low, figure.interval.high) if figure.interval else (figure.value, figure.value)


def _unbeaten(pairs: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the pairs that no other is at least as good as in both and better in one."""
    return [
        index
        for index, (a, b) in enumerate(pairs)
        if not any(one >= a and other >= b and (one, other) != (a, b) for one, other in pairs)
    ]


def _stairs(steps: Sequence[tuple[float, float]], *, falls: bool) -> str:
    """The border of what the points reach, from left to right: down, then across (`falls`), or across, then up."""
    if len(steps) < 2:
        return ""
    path = [f"M{steps[0][0]} {steps[0][1]}"]
    path += [f"V{y}H{x}" if falls else f"H{x}V{y}" for x, y in steps[1:]]
    return "".join(path)


def _labelled(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """The marks with their numbers where they hide the least, the best points first to choose."""
    taken = _Taken([(m.x - _MARK, m.y - _MARK, m.x + _MARK, m.y + _MARK) for m in marks])
    made = []
    for mark in marks:
        wide = _LETTER * len(str(mark.number) if mark.number else "dense")
        choices: list[tuple[int, int, Label, tuple[float, float, float, float]]] = []
        for anchor, down in _PLACES:
            x, y = mark.x + (9 if anchor == "start" else -9), mark.y + down
            left = x if anchor == "start" else x - wide
            box = (left, y - _LINE + 4, left + wide, y + 3)
            outside = box[0] < _LEFT or box[2] > WIDTH or box[1] < 0 or box[3] > HEIGHT - _BOTTOM
            choices.append((taken.overlap(box) + 3 * outside, len(choices), Label(x, y, anchor), box))
        *_, label, box = min(choices, key=lambda choice: choice[:2])
        taken.boxes.append(box)
        made.append(replace(mark, label=label))
    return tuple(made)


def hidden_by(point: SweepPoint, found: Sweep) -> str:
    """The classes by which a page can filter the point: one for each setting's value, by their places."""
    return " ".join(
        f"a{place}v{axis.values.index(point.settings[axis.setting])}"
        for place, axis in enumerate(found.axes)
        if point.settings.get(axis.setting) in axis.values
    )
