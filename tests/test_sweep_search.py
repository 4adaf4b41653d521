"""A guided search proposes points of the grid, learns, and ends when it must; no network is run here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from sweep_examples import lost, point

from edgeprune.console import Console
from edgeprune.errors import RuntimeMissingError
from edgeprune.records import SweepPoint
from edgeprune.sweeping import search as module
from edgeprune.sweeping.points import Task
from edgeprune.sweeping.search import search
from edgeprune.sweeping.space import Space, read_space

SPEEDS = ",".join(str(1 + step / 10) for step in range(1, 11))


def space_of(tmp_path: Path, **sweep: object) -> Space:
    (tmp_path / "empty.toml").write_text("", encoding="utf-8")
    return read_space(
        tmp_path / "empty.toml",
        {"prune": {"speedup": SPEEDS, "criterion": "l1,l2,lamp,fpgm"}, "sweep": dict(sweep)},
    )


def tasks_of(space: Space, root: Path) -> dict[str, Task]:
    found = {}
    for each in space.points:
        assert each.config is not None
        run = each.config.run.model_copy(update={"out": root / each.name})
        config = each.config.model_copy(update={"run": run})
        found[each.name] = Task(each.name, dict(each.choices), Path("model.pt"), config, root, "0" * 64, "")
    return found


def told(task: Task) -> SweepPoint:
    """lamp is fast for nothing; every other criterion is as good as its speed."""
    speed = float(task.settings["prune.speedup"])
    made = point(task.name, speed, 0.9 if task.settings["prune.criterion"] == "lamp" else 0.9 - speed / 4)
    return made.model_copy(update={"settings": task.settings})


class Fake:
    """An engine that says at once what `tell` says, and remembers what it was asked."""

    def __init__(self, tell: Callable[[Task], SweepPoint] = told) -> None:
        self.asked: list[Task] = []
        self._tell = tell

    def __call__(self, tasks: Iterable[Task], console: Console) -> Iterator[SweepPoint]:
        for task in tasks:
            self.asked.append(task)
            yield self._tell(task)


def test_without_optuna_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    space = space_of(tmp_path, points="3")
    with pytest.raises(RuntimeMissingError, match=r"edgeprune\[sweep\]"):
        search(space, tasks_of(space, tmp_path), Fake(), Console())


def test_no_point_is_tried_twice_and_the_number_is_kept_to(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space, engine = space_of(tmp_path, points="12"), Fake()
    found = search(space, tasks_of(space, tmp_path), engine, Console())
    assert len(found) == len({each.name for each in engine.asked}) == 12


def test_a_search_with_time_for_all_tries_the_whole_grid(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space, engine = space_of(tmp_path, budget="10h"), Fake()
    search(space, tasks_of(space, tmp_path), engine, Console())
    assert {task.name for task in engine.asked} == {each.name for each in space.points}


def test_the_search_goes_where_points_are_good(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space, engine = space_of(tmp_path, points="20"), Fake()
    search(space, tasks_of(space, tmp_path), engine, Console())
    criteria = [task.settings["prune.criterion"] for task in engine.asked]
    assert criteria.count("lamp") >= 7  # of the ten that the grid has; a blind search would find five


def test_the_same_seed_asks_the_same(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space, engines = space_of(tmp_path, points="10"), (Fake(), Fake())
    for engine in engines:
        search(space, tasks_of(space, tmp_path), engine, Console())
    assert [task.name for task in engines[0].asked] == [task.name for task in engines[1].asked]


def test_points_that_fail_are_counted_and_not_asked_again(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space, engine = space_of(tmp_path, points="5"), Fake(lambda task: lost(task.name, "no"))
    assert [each.status for each in search(space, tasks_of(space, tmp_path), engine, Console())] == ["failed"] * 5


def test_the_budget_counts_what_kept_points_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    space = space_of(tmp_path, budget="10m")
    tasks = tasks_of(space, tmp_path)
    first = next(iter(tasks.values()))
    kept = told(first).model_copy(update={"seconds": 400.0})
    monkeypatch.setattr(module, "finished", lambda task: kept if task is first else None)
    engine = Fake()
    found = search(space, tasks, engine, Console())
    assert (found, engine.asked) == ((kept,), [])  # 200 s are left, a point takes 400
