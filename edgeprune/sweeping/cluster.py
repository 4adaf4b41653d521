"""Points on the nodes of a Ray cluster: the same `run_point` on the same files, as many at once as there are cores.

Promise: nothing is lost with a node. Its points are run again on another one, from their last finished stage. The
sweep's folder, the model and the data must be at the same paths on every node (a shared file system); a node where they
are not says so. Timing takes the machine's lock (`edgeprune.latency.alone`), so no two points of one machine are ever
timed at once. Refused: a device over ssh, which several nodes would time on at once.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.cluster import RETRIES, Origin, connected, installed_ray, room
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import UsageError
from edgeprune.files import write_text
from edgeprune.records import SweepPoint
from edgeprune.runfolder import STAGES
from edgeprune.sweeping.engines import Engine
from edgeprune.sweeping.points import Task, failed, run_point
from edgeprune.sweeping.sharing import Shared

if TYPE_CHECKING:
    pass

PATIENCE = 60.0  # seconds that a lost node's processes may take to end
TOKEN = "token"


def ray_engine(config: Config, root: Path) -> Engine:
    """The engine on the cluster at `sweep.address` (none: one on this machine, for this sweep alone).

    Errors: UsageError, RuntimeMissingError without Ray, DeviceError when the cluster cannot be reached.
    """
    if config.remote.host is not None:
        raise UsageError("several nodes would time on one device at once", hint="leave out --host, or --engine ray")
    ray, address = installed_ray(), config.sweep.address

    def run(tasks: Iterable[Task], console: Console) -> Iterator[SweepPoint]:
        import torch

        token = uuid.uuid4().hex
        write_text(root / "shared" / TOKEN, token)
        threads = config.run.torch_threads or torch.get_num_threads()
        with connected(ray, address):
            yield from _spread(ray, tasks, (Origin.here(threads), token), console)

    return run


def _spread(ray: Any, tasks: Iterable[Task], start: tuple[Origin, str], console: Console) -> Iterator[SweepPoint]:
    """As many points at once as the cluster has room for; each as it ends."""
    there = ray.remote(num_cpus=1, max_retries=RETRIES)(at_node)
    waiting, pending = iter(tasks), dict[Any, Task]()
    while True:
        most = room(ray)
        while len(pending) < most and (task := next(waiting, None)) is not None:
            console.say(f"{task.name}: handed to the cluster")
            pending[there.remote(task, *start)] = task
        if not pending:
            return
        done, _ = ray.wait(list(pending), num_returns=1)
        task = pending.pop(done[0])
        try:
            point: SweepPoint = ray.get(done[0])
        except ray.exceptions.RayError as error:
            point = failed(task, f"lost {RETRIES + 1} times on the cluster: {str(error).splitlines()[0]}", 0.0)
        console.say(f"{task.name}: {point.status} after {point.seconds:.0f} s")
        yield point


def at_node(task: Task, origin: Origin, token: str) -> SweepPoint:
    """What a process on a node does: the point, where and as the sweep's own process would do it."""
    try:
        here = (task.shared / TOKEN).read_text(encoding="utf-8") == token
        origin.enter()
    except OSError:
        here = False
    if not here:
        where = os.uname().nodename
        return failed(task, f"{task.root} is not the sweep's folder on {where}: share it between the nodes", 0.0)
    _wait_until_free(task.folder / STAGES / ".lock")
    return run_point(task, Console(), Shared(task.shared))


def _wait_until_free(lock: Path) -> None:
    """A point of a lost node may still be held by a process that has not noticed yet."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        try:
            with lock.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        except FileNotFoundError:
            return
        except BlockingIOError:
            time.sleep(0.5)
