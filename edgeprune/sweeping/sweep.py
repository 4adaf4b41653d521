"""The story of a sweep: a space of settings in, a whole run for each point, the front and a recommendation out.

Promise: a killed sweep goes on with the same command; a point that fails is reported and stops no other; sweep.json is
written when every point has ended, from what is in the points' folders.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeprune import preflight, protocols
from edgeprune.assembly import REPORT, open_data
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import EdgepruneError, ExitCode, UsageError
from edgeprune.files import sha256_of, write_text
from edgeprune.keys import model_key
from edgeprune.latency.profiles import load_profile
from edgeprune.records import Report, Sweep, SweepAxis, SweepDense, SweepPoint, read_record
from edgeprune.runfolder import RunFolder
from edgeprune.sweeping.engines import Engine, local
from edgeprune.sweeping.front import objectives_of, placed, recommended
from edgeprune.sweeping.mlflow_log import log_sweep, require_mlflow
from edgeprune.sweeping.points import Task, dense_of, failed
from edgeprune.sweeping.sharing import digest_of
from edgeprune.sweeping.space import Point, Space, require_every_value

SWEEP = "sweep.json"


@dataclass(frozen=True, slots=True)
class Scene:
    """A sweep's space after a look at the model and the data, and the tasks of its valid points, by name."""

    model: Path
    space: Space
    root: Path
    tasks: dict[str, Task]
    impossible: tuple[SweepPoint, ...]


def sweep(model: Path, space: Space, *, command: str = "", console: Console | None = None) -> Sweep:
    """Run the points of `space` (all of them, or those that the search proposes) and write the sweep's folder.

    Errors: those that concern all points (the model, the data, the settings, the folder); those of a point are in the
    result.
    """
    console = console or Console()
    if space.base.sweep.log == "mlflow":
        require_mlflow()
    root = sweep_folder(model, space.base)
    scene = _prepare(model, space, root, console)
    with RunFolder.opened(root / "shared", console.say):
        points = _run(scene, console)
        found = _gather(scene, points, command)
        write_text(root / SWEEP, found.to_json())
        from edgeprune.reporting.sweep import write_sweep

        write_sweep(found, root)
    if space.base.sweep.log == "mlflow":
        log_sweep(found, root, console)
    return found


def sweep_folder(model: Path, base: Config) -> Path:
    """Where a sweep goes: the configured folder, else ``runs/MODEL-TARGET-sweep``."""
    return base.run.out or Path("runs") / f"{model.stem}-{Path(base.run.target).stem}-sweep"


def exit_code(found: Sweep, *, gate: bool) -> ExitCode:
    """3 when no point came to an end. With `gate`: 0 when a point holds all budgets, 4 when one may, else 1."""
    done = [point for point in found.points if point.status == "done"]
    if not done:
        return ExitCode.NO_RESULT
    verdicts = {point.verdict for point in done}
    if not gate or "passed" in verdicts:
        return ExitCode.DONE
    return ExitCode.INCONCLUSIVE if "inconclusive" in verdicts else ExitCode.GATE_FAILED


def _prepare(model: Path, space: Space, root: Path, console: Console) -> Scene:
    """Look at the model, the data and every point's settings before anything runs."""
    from edgeprune.models import load

    base = space.base
    profile = load_profile(base.run.target)
    bundle = load(model, base.model)
    train, test = open_data(bundle, base)
    checked = []
    for point in space.points:
        try:
            if point.config is not None:
                preflight.check_settings(point.config, profile)
                preflight.check_model(bundle, point.config)
        except EdgepruneError as error:
            point = replace(point, config=None, reason=str(error))
        checked.append(point)
    require_every_value(space.axes, checked)
    depends = {
        "model": [sha256_of(model), model_key(bundle)],
        "data": [split.digest if split else None for split in (train, test)],
        "runtimes": {name: protocols.find("runtime", name).version() for name in base.latency.runtimes},
    }
    tasks = {point.name: _task(point, space, model, root, depends) for point in checked}
    impossible = tuple(failed(tasks[point.name], point.reason, 0.0) for point in checked if point.config is None)
    console.say(
        f"{len(checked)} points, {len(impossible)} of them impossible" if impossible else f"{len(checked)} points"
    )
    possible = {point.name: tasks[point.name] for point in checked if point.config is not None}
    return Scene(model, space, root, possible, impossible)


def _task(point: Point, space: Space, model: Path, root: Path, depends: dict[str, Any]) -> Task:
    config, folder = point.config or space.base, root / "points" / point.name
    config = config.model_copy(update={"run": config.run.model_copy(update={"out": folder})})
    key = digest_of([depends, config.model_dump(mode="json", exclude={"sweep": True, "run": {"out"}})])
    command = shlex.join(["edgeprune", "compress", str(model), *point.arguments, "--out", str(folder)])
    return Task(point.name, dict(point.choices), model, config, root, key, command)


def _run(scene: Scene, console: Console) -> tuple[SweepPoint, ...]:
    """The points that came to an end, well or not, in the order of the space."""
    settings = scene.space.base.sweep
    engine = _engine(scene)
    if settings.guided:
        from edgeprune.sweeping.search import search

        made = search(scene.space, scene.tasks, engine, console)
    else:
        made = tuple(engine(scene.tasks.values(), console))
    by_name = {point.name: point for point in (*made, *scene.impossible)}
    return tuple(by_name[point.name] for point in scene.space.points if point.name in by_name)


def _engine(scene: Scene) -> Engine:
    base = scene.space.base
    if base.sweep.engine == "local":
        if base.sweep.address is not None:
            raise UsageError("--address is a Ray cluster's", hint="add --engine ray, or leave it out")
        return local
    from edgeprune.sweeping.cluster import ray_engine

    return ray_engine(base, scene.root)


def _gather(scene: Scene, points: Sequence[SweepPoint], command: str) -> Sweep:
    from edgeprune.environment import environment

    space, base = scene.space, scene.space.base
    objectives = objectives_of(points)
    name, advice = recommended(points, budgets=bool(base.budget.rules()))
    return Sweep(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        model=scene.model.name,
        model_sha256=sha256_of(scene.model),
        target=base.run.target,
        runtime=base.latency.runtimes[0],
        seed=base.run.seed,
        environment=environment(),
        search="guided" if base.sweep.guided else "grid",
        combinations=len(space.points),
        axes=tuple(SweepAxis(setting=axis.key, values=axis.texts) for axis in space.axes),
        objectives=objectives,
        budgets=base.budget.stated(),
        dense=_dense(points, scene.root, base.latency.runtimes[0]),
        points=tuple(points),
        placed=placed(points, objectives),
        recommended=name,
        advice=advice,
    )


def _dense(points: Iterable[SweepPoint], root: Path, runtime: str) -> SweepDense | None:
    """The dense network's figures, from the first point that came to an end; its speed was measured with each."""
    for point in points:
        if point.status == "done":
            return dense_of(read_record(Report, root / point.folder / REPORT), runtime)
    return None
