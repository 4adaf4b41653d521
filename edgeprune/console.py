"""What a run says while it works: messages and progress, on stderr. Silent by default."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console as Terminal

    from edgeprune.types import Progress


class Console:
    """Says nothing: what a library call uses."""

    def say(self, message: str) -> None:
        """One line that stays."""

    def warn(self, message: str) -> None:
        """A line that stays and must not be missed."""

    @contextmanager
    def task(self, title: str) -> Iterator[Progress]:
        """A piece of work whose progress (a text, a share in [0, 1]) is shown while the block runs."""
        yield lambda text, share: None


class TerminalConsole(Console):
    """A bar on a terminal; elsewhere a line a task and, in long ones, one every ten seconds."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def say(self, message: str) -> None:
        self._terminal.print(message, style="dim", markup=False, highlight=False)

    def warn(self, message: str) -> None:
        self._terminal.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, title: str) -> Iterator[Progress]:
        started = time.perf_counter()
        with self._bar(title) if self._terminal.is_terminal else self._lines(title) as progress:
            yield progress
        self.say(f"{title}: done in {time.perf_counter() - started:.1f} s")

    @contextmanager
    def _bar(self, title: str) -> Iterator[Progress]:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._terminal, transient=True) as bars:
            bar = bars.add_task(title, total=1.0)
            yield lambda text, share: bars.update(bar, completed=share, description=f"{title}: {text}")

    @contextmanager
    def _lines(self, title: str) -> Iterator[Progress]:
        self.say(f"{title} ...")
        last = time.perf_counter()

        def show(text: str, share: float) -> None:
            nonlocal last
            if time.perf_counter() - last >= 10:
                last = time.perf_counter()
                self.say(f"{title}: {share:.0%}, {text}")

        yield show
