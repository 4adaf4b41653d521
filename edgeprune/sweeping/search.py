"""A guided search of a space too large to try whole: Optuna's multi-objective tree-structured Parzen estimator.

(Bergstra et al. 2011; Ozaki et al. 2022 for several objectives.) The space is the grid's, the objectives the front's:
speed-up, accuracy, robust accuracy, size, those that can be measured. Promise: no point is run twice; points that
came to an end before count as known, so a killed search goes on, and the time that they took is part of the budget. A
point is not started when the budget has less time left than points took so far in the middle; one that was started is
finished. It ends when the budget is spent, when `points` have been tried, or when there is nothing left to try.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeprune.console import Console
from edgeprune.errors import RuntimeMissingError
from edgeprune.records import Figure, SweepPoint
from edgeprune.sweeping.front import COMPARED
from edgeprune.sweeping.points import Task, finished
from edgeprune.sweeping.space import Space

if TYPE_CHECKING:
    from edgeprune.sweeping.engines import Engine

_FIRST = 4  # points that are drawn at random before the search has something to go by


def search(space: Space, tasks: Mapping[str, Task], engine: Engine, console: Console) -> tuple[SweepPoint, ...]:
    """The points that were tried, now or before. RuntimeMissingError without Optuna."""
    settings = space.base.sweep
    known = [point for task in tasks.values() if (point := finished(task)) is not None]
    minutes = settings.budget
    study = Study(space, tasks, seed=space.base.run.seed)
    for point in known:
        study.learn(point)
    limits = _Limits(minutes * 60 if minutes is not None else None, settings.points, [p.seconds for p in known])
    if known:
        console.say(f"{len(known)} points kept from the sweep before")
    found = list(known)
    for point in engine(_proposals(study, limits), console):
        study.learn(point)
        limits.took.append(point.seconds)
        found.append(point)
    if study.untried:
        console.say(f"{len(study.untried)} of {len(tasks)} points were not tried: {limits.why()}")
    return tuple(found)


@dataclass
class _Limits:
    """What ends the search: seconds in all (None: no limit), points in all (None), and what points took so far."""

    seconds: float | None
    points: int | None
    took: list[float]
    started: float = field(default_factory=time.perf_counter)
    before: float = 0.0
    asked: int = 0

    def __post_init__(self) -> None:
        self.before, self.asked = sum(self.took), len(self.took)

    def left(self) -> bool:
        """Whether another point may be started."""
        if self.points is not None and self.asked >= self.points:
            return False
        if self.seconds is None:
            return True
        spent = self.before + time.perf_counter() - self.started
        return spent + (statistics.median(self.took) if self.took else 0.0) < self.seconds

    def why(self) -> str:
        """Why the search ended."""
        if self.points is not None and self.asked >= self.points:
            return f"{self.points} were asked for"
        return "the next one would not have ended within the budget"


def _proposals(study: Study, limits: _Limits) -> Iterator[Task]:
    while study.untried and limits.left():
        limits.asked += 1
        yield study.propose()


class Study:
    """Optuna's study of a space: proposes points that were not tried, and learns from those that were."""

    def __init__(self, space: Space, tasks: Mapping[str, Task], *, seed: int) -> None:
        optuna = _optuna()
        self._space, self._tasks = space, tasks
        self.untried = dict.fromkeys(tasks)
        self._kinds = {axis.key: optuna.distributions.CategoricalDistribution(axis.texts) for axis in space.axes}
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_FIRST)
        self._study = optuna.create_study(directions=["maximize"] * len(COMPARED), sampler=sampler)
        self._running: dict[str, Any] = {}
        self._optuna = optuna

    def propose(self) -> Task:
        """The next point to try: the search's proposal, or the nearest one that was not tried yet."""
        trial = self._study.ask(self._kinds)
        name = min(self.untried, key=lambda other: self._distance(self._tasks[other].settings, trial.params))
        settings = self._tasks[name].settings
        if settings != trial.params:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)  # known, or impossible
            self._study.enqueue_trial(settings)
            trial = self._study.ask(self._kinds)
        del self.untried[name]
        self._running[name] = trial
        return self._tasks[name]

    def _distance(self, one: Mapping[str, str], other: Mapping[str, str]) -> float:
        """How far two points are apart: by their place in a list of numbers, by 1 where words differ."""
        total = 0.0
        for axis in self._space.axes:
            places = axis.texts.index(one[axis.key]), axis.texts.index(other[axis.key])
            total += abs(places[0] - places[1]) / len(axis.texts) if axis.ordered else places[0] != places[1]
        return total

    def learn(self, point: SweepPoint) -> None:
        """Tell the study what became of a point; one that failed says nothing."""
        self.untried.pop(point.name, None)
        trial = self._running.pop(point.name, None)
        state = self._optuna.trial.TrialState
        if point.status == "failed":
            if trial is not None:
                self._study.tell(trial, state=state.FAIL)
            return
        values = _values(point)
        if trial is not None:
            self._study.tell(trial, values)
            return
        params, create = dict(point.settings), self._optuna.trial.create_trial
        self._study.add_trial(create(params=params, distributions=self._kinds, values=values))


def _values(point: SweepPoint) -> Sequence[float]:
    """The objectives, all turned so that more is better; one that was not measured is the same for all."""
    figures = {name: getattr(point, name) for name in COMPARED}
    return [
        (-each.value if name == "size_bytes" else each.value) if isinstance(each, Figure) else 0.0
        for name, each in figures.items()
    ]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RuntimeMissingError(
            "a search within a budget needs optuna",
            hint="pip install 'edgeprune[sweep]', or leave out --budget and --points: the whole grid is tried",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
