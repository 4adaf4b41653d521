"""Summary and verdict for a terminal: readable at 80 columns, and without colour."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeprune.records import Report, Verdict
from edgeprune.reporting import ice
from edgeprune.reporting import numbers as n
from edgeprune.reporting.attacked import attack_lines
from edgeprune.reporting.goals import goal_remark
from edgeprune.reporting.view import Change, Figure, changes, headline, judged, loose_flags, pieces, remedies

_STYLES = {"pass": "green", "fail": "bold red", "stale": "bold red", "missing": "bold red", "inconclusive": "yellow"}
_TITLE_STYLES = {"passed": "bold green", "failed": "bold red", "inconclusive": "bold yellow", "no budgets": "bold"}


def print_summary(report: Report, console: Console) -> None:
    """Dense against compressed, a line a number; then the warnings. The verdict is `print_verdict`'s."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", overflow="fold")
    for side in ("dense", "compressed", "change"):
        table.add_column(side, justify="right", overflow="fold")
    for row in changes(report):
        _add(table, row)
    console.print(Text.assemble((plain(report.model.name), "bold"), f" for {plain(report.target.name)}"))
    console.print(table)
    if remark := goal_remark(report):
        _print_hanging("Goal: ", remark.text, console)
    for name, line in ice.summary(report):
        _print_hanging(f"{name}: ", line, console)
    for name, line in attack_lines(report.robustness):
        _print_hanging(f"{name}: ", line, console)
    for line in report.warnings:
        _print_hanging("note: ", line, console)


def print_verdict(verdict: Verdict, console: Console) -> None:
    """A line a gate row, failures first: status, budget, limit, what was judged, the distance, the remedy."""
    head = headline(verdict)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name in ("status", "budget", "limit", "judged"):
        table.add_column(name, no_wrap=name in ("status", "limit"), overflow="fold")
    rows = judged(verdict)
    for row in rows:
        reason = "see above" if row.reason == verdict.reason else row.reason
        found = (row.bound, row.distance) if row.bound else (reason,)
        why = row.reason if row.bound and row.status == "inconclusive" else ""
        budget = Text.assemble(row.metric, (f"\n{plain(row.subject)}", "dim"))
        judgement = Text.assemble(
            "\n".join(plain(part) for part in found if part), (f"\n{plain(why)}" if why else "", "dim")
        )
        table.add_row(Text(row.word, "yellow" if row.only_warns else _STYLES[row.status]), budget, row.limit, judgement)
    console.print(Text.assemble((head.title, _TITLE_STYLES[head.status]), f": {plain(verdict.reason)}"))
    if rows:
        console.print(f"sha256 {n.short(verdict.artifact_sha256)}", style="dim", highlight=False)
        console.print(table)
    for names, remedy in remedies(rows):
        _print_remedy(f"{names}: {remedy}", console)
    if verdict.command and loose_flags(rows):
        console.print("Flags go behind the command of the run:")
        console.print(Text(f"  {plain(verdict.command)}"), soft_wrap=True)


def _print_remedy(remedy: str, console: Console) -> None:
    """A remedy; a command stands in a line of its own, whole, so that it can be pasted."""
    mark = "→ "
    for part, command in pieces(remedy):
        if command:
            console.print(Text(f"    {plain(part)}"), soft_wrap=True)
        else:
            _print_hanging(mark, part.strip(), console)
            mark = "  "


def plain(text: str) -> str:
    """Without characters that command a terminal: a name from a file cannot move the cursor or change a colour."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _print_hanging(mark: str, line: str, console: Console) -> None:
    """A line whose continuation stands under its own beginning."""
    grid = Table.grid()
    grid.add_row(Text(mark, "bold"), Text(plain(line)))
    console.print(grid)


def _add(table: Table, row: Change) -> None:
    label = Text.assemble(row.label, ("\n" + plain(row.detail) if row.detail else "", "dim"))
    if row.missing:
        table.add_row(label, "unmeasured", "unmeasured", Text(plain(row.missing), "dim"))
        return
    table.add_row(label, *(_figure(figure) for figure in (row.dense, row.compressed, row.change)))


def _figure(figure: Figure | None) -> Text:
    if figure is None:
        return Text("unmeasured")
    return Text.assemble(figure.text, ("\n" + figure.spread if figure.spread else "", "dim"))
