"""Where points are run. An engine takes tasks one by one, as it has room, and gives points as they end.

Promise: whatever the engine, a point is the same `run_point` on the same files; only the order in which points end may
differ. Tasks are pulled lazily, so a search sees every result that there is before it proposes the next point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from edgeprune.console import Console
from edgeprune.records import SweepPoint
from edgeprune.sweeping.points import Task, run_point
from edgeprune.sweeping.sharing import Shared

Engine = Callable[[Iterable[Task], Console], Iterator[SweepPoint]]


def local(tasks: Iterable[Task], console: Console) -> Iterator[SweepPoint]:
    """In this process, one after the other: nothing else of the sweep runs while a point is timed."""
    shared: Shared | None = None
    for number, task in enumerate(tasks, start=1):
        shared = shared or Shared(task.shared)
        chosen = ", ".join(f"{key} {value}" for key, value in task.settings.items())
        console.say(f"point {number}: {chosen}")
        yield run_point(task, console, shared)
