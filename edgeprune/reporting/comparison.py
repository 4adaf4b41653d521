"""A comparison of two runs for a terminal and as Markdown: the same lines, the same rounding."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeprune.records import Paired, Proportion, RunComparison, TimesCompared, Unmeasured, Unpaired, Weighed
from edgeprune.reporting import numbers as n
from edgeprune.reporting.markdown import code, text
from edgeprune.reporting.terminal import plain


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was compared: before, after, the change, and what makes it sure or not."""

    what: str
    before: str
    after: str
    change: str
    remark: str


def lines(found: RunComparison) -> tuple[Line, ...]:
    """Every comparison in words."""
    times = (
        [_missing("latency, p50", found.latency)]
        if isinstance(found.latency, Unmeasured)
        else [_times(item) for item in found.latency]
    )
    accuracy, robustness = _share("clean accuracy", found.accuracy), _share("robust accuracy", found.robustness)
    return (accuracy, robustness, *times, *(_weighed(item) for item in found.weights))


def conclusion(found: RunComparison) -> str:
    """In a sentence: what is better, what is worse, what nobody can say."""
    parts = [
        f"{word}: {', '.join(names)}"
        for word, names in (("worse", found.worse), ("better", found.better), ("undecided", found.undecided))
        if names
    ]
    return "; ".join(parts) or "no significant difference"


def print_comparison(found: RunComparison, console: Console) -> None:
    """A line each, then the layers that differ and the conclusion."""
    for word, run in (("before", found.before), ("after ", found.after)):
        console.print(
            Text.assemble((word, "dim"), f" {plain(run.folder)}  sha256 {n.short(run.sha256)}  {plain(run.created)}")
        )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for line in lines(found):
        what = Text.assemble(plain(line.what), (f"\n{plain(line.remark)}" if line.remark else "", "dim"))
        table.add_row(what, line.before, line.after, line.change)
    console.print(table)
    if found.layers:
        widths = (f"{plain(item.name)} {_width(item.before)} → {_width(item.after)}" for item in found.layers)
        console.print(Text("layers: " + ", ".join(widths)))
    console.print(Text(conclusion(found), "bold red" if found.worse else "bold"))


def comparison_markdown(found: RunComparison) -> str:
    """The same as Markdown, for a comment or a job summary."""
    rows = [
        f"| {text(line.what)}{f'<br><sub>{text(line.remark)}</sub>' if line.remark else ''} "
        f"| {line.before} | {line.after} | {line.change} |"
        for line in lines(found)
    ]
    layers = [f"- {code(item.name)}: {_width(item.before)} → {_width(item.after)}" for item in found.layers]
    folded = ["", "<details><summary>Layers that differ</summary>", "", *layers, "", "</details>"] if layers else []
    head = f"## {text(conclusion(found))}"
    runs = (
        f"before {code(found.before.folder)} `{n.short(found.before.sha256)}`, "
        f"after {code(found.after.folder)} `{n.short(found.after.sha256)}`"
    )
    return (
        "\n".join([head, "", runs, "", "| | before | after | change |", "| --- | ---: | ---: | ---: |", *rows, *folded])
        + "\n"
    )


def _share(name: str, item: Paired | Unpaired | Unmeasured) -> Line:
    if isinstance(item, Unmeasured):
        return _missing(name, item)
    if isinstance(item, Paired):
        drop = item.drop
        bound = f"at most {n.points(drop.upper)} lost" if drop.upper >= 0 else f"at least {n.points(-drop.upper)} won"
        test = f"paired on {drop.total:,} images, {n.p_value(drop.p_value)}, {bound} ({100 * drop.confidence:g} %)"
        return Line(item.what, _of(item.before), _of(item.after), n.signed(n.points(-drop.value)), test)
    low, high = n.points(-item.difference.high), n.points(-item.difference.low)
    change = n.signed(n.points(item.after.value - item.before.value))
    return Line(item.what, _of(item.before), _of(item.after), change, f"not paired: {item.why}; {low} to {high}")


def _of(share: Proportion) -> str:
    return n.percent(share.value)


def _times(item: TimesCompared) -> Line:
    interval = n.span(item.ratio.interval, n.times)
    change = f"{n.times(item.ratio.value)} as fast" if item.conclusive else "inconclusive"
    what = f"latency, p50 ({item.runtime} on {item.target})"
    remark = "; ".join((interval, *(() if item.interleaved else item.notes)))
    return Line(what, n.milliseconds(item.before_ms), n.milliseconds(item.after_ms), change, remark)


def _weighed(item: Weighed) -> Line:
    show = n.size if item.unit == "bytes" else n.count
    return Line(item.what, show(item.before), show(item.after), n.change(item.before, item.after), "")


def _missing(what: str, item: Unmeasured) -> Line:
    return Line(what, "unmeasured", "unmeasured", "", item.unmeasured)


def _width(channels: int | None) -> str:
    return "absent" if channels is None else str(channels)
