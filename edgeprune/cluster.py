"""A Ray cluster: connecting to one, and what a process on a node needs to be where the command was given.

Promise: a cluster that is not there is an error at once. Ray is imported where it is used, and nowhere else.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import DeviceError, RuntimeMissingError

RETRIES = 5  # of work whose node or process was lost
_REACH_S = 5.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a command was given: its folder, its import path, and the threads that torch may use."""

    folder: str
    imports: tuple[str, ...]
    torch_threads: int

    @classmethod
    def here(cls, torch_threads: int) -> Origin:
        """This process's."""
        return cls(str(Path.cwd()), tuple(sys.path), torch_threads)

    def enter(self) -> None:
        """Make this process like the origin. Errors: OSError where the folder is not there."""
        os.chdir(self.folder)
        sys.path += [entry for entry in self.imports if entry not in sys.path]
        import torch

        torch.set_num_threads(self.torch_threads)


@contextmanager
def connected(ray: Any, address: str | None) -> Iterator[None]:
    """The cluster at `address` while the block runs (None: one on this machine, for the block alone).

    Errors: DeviceError when it cannot be reached.
    """
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


def installed_ray() -> Any:
    """The package. RuntimeMissingError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise RuntimeMissingError(
            "--engine ray needs Ray", hint="pip install 'edgeprune[ray]', or leave out --engine"
        ) from error
    return ray


def room(ray: Any) -> int:
    """Processes that the cluster has a core for, at least one. To be asked while connected."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)
