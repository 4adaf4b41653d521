"""Points on the nodes of a Ray cluster: the same `run_point` on the same files, as many at once as there are cores.

Promise: nothing is lost with a node. Its points are run again on another one, from their last finished stage. The
sweep's folder, the model and the data must be at the same paths on every node (a shared file system); a node where they
are not says so. Timing takes the machine's lock (`edgeprune.latency.alone`), so no two points of one machine are ever
timed at once. Refused: a device over ssh, which several nodes would time on at once.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import DeviceError, RuntimeMissingError, UsageError
from edgeprune.files import write_text
from edgeprune.records import SweepPoint
from edgeprune.runfolder import STAGES
from edgeprune.sweeping.engines import Engine
from edgeprune.sweeping.points import Task, failed, run_point
from edgeprune.sweeping.sharing import Shared

if TYPE_CHECKING:
    from edgeprune.robustness.shards import Engine as ShardEngine
    from edgeprune.robustness.shards import Shard

RETRIES = 5  # of a point whose node or process was lost
PATIENCE = 60.0  # seconds that a lost node's processes may take to end
_REACH_S = 5.0
TOKEN = "token"


@dataclass(frozen=True, slots=True)
class Place:
    """What a process on a node needs to be where the sweep was started."""

    folder: str
    imports: tuple[str, ...]
    torch_threads: int
    token: str


def ray_engine(config: Config, root: Path) -> Engine:
    """The engine on the cluster at `sweep.address` (none: one on this machine, for this sweep alone).

    Errors: UsageError, RuntimeMissingError without Ray, DeviceError when the cluster cannot be reached.
    """
    if config.remote.host is not None:
        raise UsageError("several nodes would time on one device at once", hint="leave out --host, or --engine ray")
    ray, address = _ray(), config.sweep.address

    def run(tasks: Iterable[Task], console: Console) -> Iterator[SweepPoint]:
        import torch

        token = uuid.uuid4().hex
        write_text(root / "shared" / TOKEN, token)
        threads = config.run.torch_threads or torch.get_num_threads()
        place = Place(str(Path.cwd()), tuple(sys.path), threads, token)
        with _connected(ray, address):
            yield from _spread(ray, tasks, place, console)

    return run


def _spread(ray: Any, tasks: Iterable[Task], place: Place, console: Console) -> Iterator[SweepPoint]:
    """As many points at once as the cluster has room for; each as it ends."""
    there = ray.remote(num_cpus=1, max_retries=RETRIES)(at_node)
    waiting, pending = iter(tasks), dict[Any, Task]()
    while True:
        room = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        while len(pending) < room and (task := next(waiting, None)) is not None:
            console.say(f"{task.name}: handed to the cluster")
            pending[there.remote(task, place)] = task
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


def at_node(task: Task, place: Place) -> SweepPoint:
    """What a process on a node does: the point, where and as the sweep's own process would do it."""
    folder = task.shared / TOKEN
    try:
        here = folder.read_text(encoding="utf-8") == place.token
        os.chdir(place.folder)
    except OSError:
        here = False
    if not here:
        where = os.uname().nodename
        return failed(task, f"{task.root} is not the sweep's folder on {where}: share it between the nodes", 0.0)
    sys.path += [entry for entry in place.imports if entry not in sys.path]
    import torch

    torch.set_num_threads(place.torch_threads)
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


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    quiet = {"log_to_driver": False, "ignore_reinit_error": False}
    try:
        _reach(address)
        if address is None:
            ray.init(include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise DeviceError(
            f"cannot use the Ray cluster at {address or 'this machine'}",
            where=str(error).splitlines()[0],
            hint="start one (`ray start --head`) or name it with --address",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """OSError unless somebody listens at HOST:PORT: Ray itself asks for ten minutes before it gives up."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RuntimeMissingError(
            "--engine ray needs Ray", hint="pip install 'edgeprune[ray]', or leave out --engine: points run here"
        ) from error
    return ray


def ray_shards(address: str | None) -> tuple[ShardEngine, int]:
    """The engine for the shards of an attack on the cluster at `address` (none: one on this machine), and its room.

    The file must be at the same path on every node, as must the folder of the shards. Errors: as for `ray_engine`.
    """
    import torch

    from edgeprune.robustness.shards import work

    ray, place = _ray(), Place(str(Path.cwd()), tuple(sys.path), torch.get_num_threads(), "")
    with _connected(ray, address):
        room = max(int(ray.cluster_resources().get("CPU", 1)), 1)

    def run(shards: Sequence[Shard]) -> Iterator[int]:
        with _connected(ray, address):
            there = ray.remote(num_cpus=1, max_retries=RETRIES)(_work_at_node)
            pending = [there.remote(work, shard, place) for shard in shards]
            while pending:
                done, pending = ray.wait(pending, num_returns=1)
                try:
                    yield int(ray.get(done[0]))
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    lost = f"a shard of the attack was lost {RETRIES + 1} times on the cluster"
                    raise DeviceError(lost, where=str(error).splitlines()[0], hint="run again") from error

    return run, room


def _work_at_node(work: Callable[[Shard], int], shard: Shard, place: Place) -> int:
    sys.path += [entry for entry in place.imports if entry not in sys.path]
    return work(shard)
