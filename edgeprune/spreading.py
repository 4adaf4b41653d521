"""Where the shards of an attack run: in this process, in several on this machine, or on the nodes of a Ray cluster.

Promise: the engine changes nothing but the time. A node or a process that is lost loses no shard: Ray runs it again,
and a run that is started again goes on from the journals.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.cluster import RETRIES, Origin, connected, installed_ray, room
from edgeprune.config import AttackConfig
from edgeprune.console import Console
from edgeprune.errors import DeviceError, MeasurementError
from edgeprune.robustness.evaluate import attack_file
from edgeprune.robustness.shards import Engine, Shard, Spread, attack_spread, work

if TYPE_CHECKING:
    from edgeprune.records import ThreatModel
    from edgeprune.robustness.outcome import FileOutcome
    from edgeprune.robustness.twin import Gradients
    from edgeprune.types import Progress, Split


def attack(
    source: Gradients,
    split: Split,
    threat: ThreatModel,
    config: AttackConfig,
    *,
    sha256: str,
    device: str = "cpu",
    journal: Path | None = None,
    progress: Progress,
) -> FileOutcome:
    """The attack where the settings want it; in this process, whole, where they want nothing or cannot have it.

    `journal`: as for `attack_file`; the shards of an attack that is spread keep theirs in a folder beside it.
    """
    spread = spread_of(config, journal)
    if spread is None or source.origin is None:
        return attack_file(source, split, threat, sha256=sha256, device=device, journal=journal, progress=progress)
    return attack_spread(source, split, threat, spread, sha256=sha256, device=device, progress=progress)


def warn_if_alone(source: Gradients, config: AttackConfig, console: Console) -> None:
    """Say so where more than this process was asked for and `source` cannot be sent."""
    if source.origin is None and (config.engine != "local" or config.processes > 1):
        console.warn(f"gradients come from {source.said}, which is not sent to other processes: this one attacks alone")


def spread_of(config: AttackConfig, journal: Path | None) -> Spread | None:
    """Engine, number of workers and folder; None where one process here attacks everything."""
    import tempfile

    if config.engine == "local" and config.processes == 1:
        return None
    folder = journal.with_name(f"{journal.name}.shards") if journal else Path(tempfile.mkdtemp(prefix="edgeprune-"))
    folder = folder.resolve()
    if config.engine == "ray":
        engine, workers = ray_shards(config.address)
        return Spread(engine, workers, folder)
    return Spread(processes(config.processes), config.processes, folder)


def processes(count: int) -> Engine:
    """`count` processes of this machine at once, started anew: nothing of this one is copied into them."""

    def run(shards: Sequence[Shard]) -> Iterator[int]:
        if not shards:
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(count, len(shards)), mp_context=context) as pool:
            pending = [pool.submit(work, shard) for shard in shards]
            try:
                for done in as_completed(pending):
                    yield done.result()
            except BrokenProcessPool as error:
                raise MeasurementError(
                    "a process of the attack ended before its work was done", hint="run again: it goes on from there"
                ) from error
            finally:
                for left in pending:
                    left.cancel()

    return run


def ray_shards(address: str | None) -> tuple[Engine, int]:
    """The engine for the shards of an attack on the cluster at `address` (none: one on this machine), and its room.

    The file must be at the same path on every node, as must the folder of the shards. Errors: those of `connected`.
    """
    import torch

    ray, origin = installed_ray(), Origin.here(torch.get_num_threads())
    with connected(ray, address):
        workers = room(ray)

    def run(shards: Sequence[Shard]) -> Iterator[int]:
        with connected(ray, address):
            there = ray.remote(num_cpus=1, max_retries=RETRIES)(_at_node)
            pending = [there.remote(shard, origin) for shard in shards]
            while pending:
                done, pending = ray.wait(pending, num_returns=1)
                try:
                    yield int(ray.get(done[0]))
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    lost = f"a shard of the attack was lost {RETRIES + 1} times on the cluster"
                    raise DeviceError(lost, where=str(error).splitlines()[0], hint="run again") from error

    return run, workers


def _at_node(shard: Shard, origin: Origin) -> int:
    try:
        origin.enter()
    except OSError as error:
        raise DeviceError(
            f"{origin.folder} is not on {os.uname().nodename}", hint="share the folder between the nodes"
        ) from error
    return work(shard)
