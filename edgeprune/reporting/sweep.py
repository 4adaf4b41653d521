"""A sweep for a terminal, as Markdown and as one HTML page: the same lines, the same order, the same rounding.

The front comes first. Nothing stands here that is not in sweep.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeprune.errors import UsageError
from edgeprune.files import write_text
from edgeprune.records import Figure, Placed, Standing, Sweep, SweepPoint, Unmeasured, read_record
from edgeprune.reporting import numbers as n
from edgeprune.reporting.markdown import text
from edgeprune.reporting.terminal import plain

FILES = ("sweep.html", "sweep.md", "sweep.json")
RENDERINGS = {"html": "sweep.html", "md": "sweep.md"}
_ORDER: tuple[Standing, ...] = ("front", "near", "behind", "not compared", "failed")
_WORDS = {
    "speedup": "speed-up",
    "latency_ms": "latency",
    "accuracy": "accuracy",
    "robust_accuracy": "robust accuracy",
    "size_bytes": "size",
}
_SHOW: dict[str, Callable[[float], str]] = {
    "speedup": n.times,
    "latency_ms": n.milliseconds,
    "accuracy": n.percent,
    "robust_accuracy": n.percent,
    "size_bytes": n.size,
}
_MOST, _LONGEST = 40, 140  # rows, and characters of a remark, that fit a comment of 65,536 whatever they say
COLUMNS = ("speedup", "latency_ms", "accuracy", "robust_accuracy", "size_bytes")


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure in words: the value and its spread; `missing` where it was not measured."""

    text: str
    spread: str = ""
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A point: its number in the sweep's order, what was chosen, its figures in the order of COLUMNS, its standing."""

    number: int
    point: SweepPoint
    chosen: str
    cells: tuple[Cell, ...]
    gate: str
    placed: Placed
    standing: str
    recommended: bool


def lines(found: Sweep) -> tuple[Line, ...]:
    """All points, the front first, in each standing in the sweep's order."""
    numbers = {point.name: number for number, point in enumerate(found.points, start=1)}
    made = [
        Line(
            number=numbers[point.name],
            point=point,
            chosen=", ".join(f"{key.partition('.')[2]} {value}" for key, value in point.settings.items()),
            cells=tuple(cell(name, getattr(point, name)) for name in COLUMNS),
            gate=point.verdict or "",
            placed=place,
            standing=_standing(place, numbers),
            recommended=point.name == found.recommended,
        )
        for point, place in zip(found.points, found.placed, strict=True)
    ]
    return tuple(sorted(made, key=lambda line: (_ORDER.index(line.placed.standing), line.number)))


def cell(name: str, figure: Figure | Unmeasured) -> Cell:
    """A figure of the column `name`."""
    if isinstance(figure, Unmeasured):
        return Cell("unmeasured", missing=figure.unmeasured)
    show = _SHOW[name]
    return Cell(show(figure.value), n.span(figure.interval, show, unit=False) if figure.interval else "")


def headline(found: Sweep) -> str:
    """In a sentence: how many points ran, and how many stand at the front."""
    done = [point for point in found.points if point.status == "done"]
    front = sum(place.standing == "front" for place in found.placed)
    lost = len(found.points) - len(done)
    said = f"{len(done)} of {found.combinations} points came to an end, {front} at the front"
    return f"{said}; {lost} failed" if lost else said


def compared_by(found: Sweep) -> str:
    """What points were compared by, in words."""
    return ", ".join(_WORDS[name] for name in found.objectives) or "nothing: no objective was measured"


def advice(found: Sweep) -> str:
    """The recommendation in a sentence."""
    if found.recommended is None:
        return f"No recommendation: {found.advice}"
    number = 1 + [point.name for point in found.points].index(found.recommended)
    return f"Recommended: point {number} ({found.advice})"


def print_sweep(found: Sweep, console: Console) -> None:
    """A line a point, then what failed and why, and the recommendation with its command."""
    console.print(Text.assemble((plain(found.model), "bold"), f" for {plain(found.target)}: {headline(found)}"))
    console.print(Text(f"compared by {compared_by(found)} in {plain(found.runtime)}", "dim"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "settings", "speed-up", "accuracy", "robust", "size"):
        table.add_column(name, justify="left" if name in ("", "settings") else "right", overflow="fold")
    everyone = lines(found)
    for line in everyone:
        if line.placed.standing != "failed":
            _add(table, line)
    console.print(table)
    for line in everyone:
        if line.placed.standing in ("failed", "not compared"):
            console.print(
                Text(f"{line.number}  {plain(line.chosen)}: {line.placed.standing}: {plain(line.placed.reason)}")
            )
        for doubt in line.point.doubts:
            console.print(Text(f"note: point {line.number}: {plain(doubt)}", "yellow"))
    console.print(Text(plain(advice(found)), "bold"))
    if found.recommended is not None:
        console.print(Text(plain(found.point(found.recommended).command)), soft_wrap=True)


def sweep_markdown(found: Sweep) -> str:
    """The same as Markdown, short enough for a comment or a job summary: what is far behind is left out."""
    everyone = lines(found)
    shown = everyone[:_MOST]
    head = f"## {text(found.model)} for {text(found.target)}: {headline(found)}"
    rows = [
        f"| {line.number} | {text(_cut(line.chosen))} | {' | '.join(_markdown(each) for each in line.cells)} "
        f"| {line.gate} | {text(_cut(line.standing))} |"
        for line in shown
    ]
    titles = ["#", "settings", *(_WORDS[name] for name in COLUMNS), "gate", "stands"]
    table = [f"| {' | '.join(titles)} |", f"|{' ---: |' * 1} --- |{' ---: |' * len(COLUMNS)} --- | --- |", *rows]
    notes = [
        f"- point {line.number}: {text(_cut(note))}"
        for line in shown
        for note in (line.placed.reason, _fault(line), *line.point.doubts)
        if note
    ]
    if more := len(everyone) - len(shown):
        notes.append(f"- {more:,} more points stand in {FILES[0]} and {FILES[-1]}")
    last = ["", f"**{text(advice(found))}**"]
    if found.recommended is not None:
        last += ["", "```sh", found.point(found.recommended).command, "```"]
    by = f"Compared by {compared_by(found)} in {text(found.runtime)}."
    return "\n".join([head, "", by, "", *table, *(["", *notes] if notes else []), *last]) + "\n"


def _cut(words: str) -> str:
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"


def write_sweep(found: Sweep, folder: Path) -> None:
    """Write sweep.html and sweep.md beside sweep.json."""
    for name in RENDERINGS:
        write_text(folder / RENDERINGS[name], _rendered(found, name))


def sweep_of(path: Path) -> Path | None:
    """The sweep.json that `path` is, or is the folder of; None where there is none."""
    file = path / FILES[-1] if path.is_dir() else path
    return file if file.name == FILES[-1] and file.is_file() else None


def render_sweep(file: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """Write the renderings of the sweep.json at `file` beside it; the paths. UsageError for another format."""
    unknown = [name for name in formats if name not in RENDERINGS]
    if unknown:
        raise UsageError(f"a sweep is not rendered as {unknown[0]}", hint="known: " + ", ".join(RENDERINGS))
    found = read_record(Sweep, file)
    for name in formats:
        write_text(file.parent / RENDERINGS[name], _rendered(found, name))
    return tuple(file.parent / RENDERINGS[name] for name in formats)


def _rendered(found: Sweep, name: str) -> str:
    if name == "md":
        return sweep_markdown(found)
    from edgeprune.reporting.sweep_page import sweep_html

    return sweep_html(found)


def _standing(place: Placed, numbers: dict[str, int]) -> str:
    others = ", ".join(str(numbers[name]) for name in place.behind)
    if place.standing == "near":
        return f"near the front: {others} better, but not for certain"
    return f"behind {others}" if place.standing == "behind" else place.standing


def _fault(line: Line) -> str:
    """Which budget keeps the point from passing; empty where none does."""
    return f"{line.gate}: {line.point.verdict_reason}" if line.gate in ("failed", "inconclusive") else ""


def _add(table: Table, line: Line) -> None:
    speed, latency, accuracy, robust, size = line.cells
    style = "bold" if line.recommended else ""
    gate = {"passed": "holds all budgets", "failed": "fails a budget"}.get(line.gate, line.gate)
    fault = f" ({line.point.verdict_reason})" if _fault(line) else ""
    below = line.standing + (f"; {gate}{fault}" if gate and gate != "no budgets" else "")
    settings = Text.assemble((plain(line.chosen), style), (f"\n{plain(below)}", "dim"))
    figures = (Cell(speed.text, latency.text, speed.missing), accuracy, robust, size)
    table.add_row(str(line.number), settings, *(Text.assemble(f.text, (f"\n{f.spread}", "dim")) for f in figures))


def _markdown(each: Cell) -> str:
    return f"{each.text}<br><sub>{text(each.spread)}</sub>" if each.spread else each.text
