"""What a run says: nothing by default, lines where nobody watches, and text from files as it is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as Terminal

from edgeprune import console
from edgeprune.console import Console, TerminalConsole


def terminal(page: io.StringIO, *, bars: bool = False) -> Terminal:
    return Terminal(file=page, width=80, force_terminal=bars, no_color=True, legacy_windows=False)


def test_library_calls_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Console()
    silent.say("a")
    silent.warn("b")
    with silent.task("c") as progress:
        progress("d", 0.5)
    assert capsys.readouterr() == ("", "")


def test_markup_in_a_message_is_text() -> None:
    page = io.StringIO()
    TerminalConsole(terminal(page)).say("[red]layer[0][/red]")
    TerminalConsole(terminal(page)).warn("[bold]x")
    assert page.getvalue() == "[red]layer[0][/red]\nwarning: [bold]x\n"


def test_long_tasks_say_where_they_are_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "perf_counter", lambda: now)
    page = io.StringIO()
    with TerminalConsole(terminal(page)).task("tracing") as progress:
        for now in (1.0, 9.0, 10.5, 11.0, 21.0):  # the clock of the lambda above
            progress("conv1", now / 40)
    lines = page.getvalue().splitlines()
    assert lines == ["tracing ...", "tracing: 26%, conv1", "tracing: 52%, conv1", "tracing: done in 21.0 s"]


def test_bar_takes_text_with_brackets() -> None:
    page = io.StringIO()
    with TerminalConsole(terminal(page, bars=True)).task("tracing") as progress:
        progress("[/]", 0.5)
    assert "tracing: done in" in page.getvalue()


def test_failed_task_is_not_called_done() -> None:
    page = io.StringIO()
    with pytest.raises(KeyError), TerminalConsole(terminal(page)).task("tracing"):
        raise KeyError
    assert "done" not in page.getvalue()
