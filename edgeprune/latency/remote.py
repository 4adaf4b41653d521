"""A device over ssh: its files are copied and hashed, its times taken there by the protocol of this machine.

Promise: nothing is installed there; numpy and the runtime are all it needs. What was measured before a connection broke
is kept here for a day, and the same command goes on from there. What was sent is removed at the end.
"""

from __future__ import annotations

import base64
import binascii
import json
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import ValidationError

import edgeprune
from edgeprune.errors import DeviceError, MeasurementError, UsageError
from edgeprune.files import sha256_of
from edgeprune.latency import remote_layers
from edgeprune.latency.kept import Kept
from edgeprune.latency.parcel import Sent, sent_alone, sent_files, write_runner
from edgeprune.latency.settings import RemoteConfig
from edgeprune.latency.ssh import Connection, LostError, cannot_write
from edgeprune.records import BlockSamples, Environment, LatencyFile, LatencyRequest, RuntimeInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeprune.latency.kernels import Found, Point
    from edgeprune.types import Floats, Progress

LEAST_PYTHON = (3, 8)
WAITS_S = (1.0, 3.0, 9.0)
"""Between attempts to reach a device that was lost, or that still runs the job of the lost connection."""
ROOM_BYTES = 16 * 2**20
_RETRIED = ("busy", "lost")
_NO_FOLDER, _NO_PYTHON = 71, 72


@dataclass(slots=True)
class Attached:
    """A device that answers. `sent` is what lies there now and goes at the end, as does what it `made` itself."""

    connection: Connection
    settings: RemoteConfig
    folder: Path
    machine: Environment
    architecture: str
    free_bytes: int
    runner: Sent
    sent: dict[str, Sent] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    kind: Literal["measured-remote"] = "measured-remote"

    @property
    def name(self) -> str:
        return self.connection.host

    @contextmanager
    def attach(self, settings: RemoteConfig) -> Iterator[Attached]:
        """Attached already."""
        yield self

    def measure(self, request: LatencyRequest, *, progress: Progress) -> tuple[BlockSamples, ...]:
        """All blocks of all processes, those first that an earlier try left.

        Errors: DeviceError (lost and not found again, no runtime, no room), MeasurementError (a runtime refused a file
        or died), UsageError (more threads than cores).
        """
        files = {"dense": request.dense}
        if request.control:
            files["control"] = request.dense
        if request.compressed is not None:
            files["compressed"] = request.compressed
        images = sent_alone(Path(request.images), sha256_of(Path(request.images)), self.settings.folder)
        progress(f"copying to {self.name}", 0.0)
        self._send([images, *(sent for file in files.values() for sent in self._files(file))])
        job = {
            "do": "measure",
            "folder": self.settings.folder,
            "runtime": request.runtime,
            "files": {label: self._named(file) for label, file in files.items()},
            "images": images.there,
            **request.model_dump(include={"batch_size", "threads", "block_ms", "seed", "iterations"}),
            "rounds": request.blocks,
        }
        kept = Kept.of(self.name, self.machine.to_json(), self.runner.sha256, job)
        self.kept.append(kept)
        blocks: list[BlockSamples] = []
        last = request.first + request.processes
        for process in range(request.first, last):
            progress(f"timing {request.runtime} on {self.name}: process {process + 1} of {last}", process / last)
            found = kept.read(process)
            if found is None:
                found = self._process({**job, "process": process})
                kept.write(process, found)
            blocks += _blocks(found, process)
        return tuple(blocks)

    def logits(self, file: LatencyFile, runtime: str, images: Floats, *, threads: int) -> tuple[RuntimeInfo, Floats]:
        """What the file gives there for the images. Errors: as for `measure`."""
        path = self.folder / "check.npy"
        np.save(path, np.ascontiguousarray(images, dtype=np.float32), allow_pickle=False)
        pixels = sent_alone(path, sha256_of(path), self.settings.folder)
        self._send([pixels, *self._files(file)])
        found = self._do(
            {
                "do": "logits",
                "runtime": runtime,
                "file": self._named(file),
                "images": pixels.there,
                "threads": threads,
                "batch_size": 8,
            }
        )
        try:
            values = np.frombuffer(base64.b64decode(found["float32"]), dtype=np.float32).reshape(found["shape"])
            return RuntimeInfo(**found["runtime"]), values
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise MeasurementError(f"{self.name} gave an answer that is none: {error}") from error

    def time_layers(self, runtime: str, threads: int, batch_size: int, points: Sequence[Point], found: Found) -> None:
        """Every point, a chunk a process. Errors: as for `measure`; what `found` was told before one is true."""
        self.made.update(remote_layers.places(self.settings.folder))
        for chunk in remote_layers.chunks(runtime, threads, batch_size, points):
            needed = chunk.job["weights_bytes"]
            if needed + ROOM_BYTES > self.free_bytes:
                raise cannot_write(
                    self.name, f"no space left: {needed:,} bytes for weights, {self.free_bytes:,} are free"
                )
            answer = self._process({**chunk.job, "folder": self.settings.folder})
            for point, ms in zip(chunk.points, remote_layers.figures(answer, chunk, self.name), strict=True):
                found(point, ms)

    def probe(self) -> dict[str, Any]:
        """What the machine says of itself, and what was measured on one core. Errors: those of the device."""
        found: dict[str, Any] = self._do({"do": "probe", "folder": self.settings.folder})
        return found

    def close(self, *, finished: bool) -> None:
        """Remove what was sent, and, when all is done, what was kept here. A device that is gone stays as it is."""
        places = [*(sent.there for sent in self.sent.values()), *sorted(self.made)]
        folders = sorted({place.rpartition("/")[0] for place in places}, key=len, reverse=True)
        lock = f"{self.settings.folder}/timing.lock"
        with suppress(DeviceError, MeasurementError):
            self._ask({"do": "forget", "files": [*places, lock], "folders": folders})
        for kept in self.kept if finished else ():
            kept.remove()

    # ------------------------------------------------------------------------------------------- the ways there

    def _process(self, job: dict[str, Any]) -> dict[str, Any]:
        """One timing process, begun again when the connection is lost; DeviceError when it stays lost."""
        for wait in (*WAITS_S, None):
            try:
                answer: dict[str, Any] = self._do(job)
                return answer
            except LostError as error:
                if wait is None:
                    raise DeviceError(
                        error.what,
                        where=error.where,
                        hint="what was measured is kept for a day: the same command goes on from there",
                    ) from error
                time.sleep(wait)
        raise AssertionError("the last try raises")

    def _do(self, job: dict[str, Any]) -> Any:
        timeout_s = self.settings.timeout / 1000
        return self._ask(job, timeout_s=timeout_s)

    def _ask(self, job: dict[str, Any], timeout_s: float = 60.0) -> Any:
        """The runner's result for a job; its failure as the error that it is."""
        count = int(job.get("threads", 1))
        threads = f"OMP_NUM_THREADS={count} OPENBLAS_NUM_THREADS={count}"
        script = f"{threads} exec {shlex.quote(self.settings.python)} {shlex.quote(self.runner.there)}"
        answer = self.connection.run(script, data=json.dumps(job).encode(), timeout_s=timeout_s)
        if answer.code != 0:
            raise MeasurementError(
                f"the runner on {self.name} ended with exit code {answer.code}"
                + (" (out of memory?)" if answer.code == 137 else ""),
                where="\n  ".join(answer.err.splitlines()[-6:]),
                hint="the same file may fail in the runtime there outside edgeprune too: try it there",
            )
        try:
            said = json.loads(answer.out)
        except ValueError:
            raise LostError(f"{self.name} broke off in the middle of its answer", where=answer.err[-300:]) from None
        if "failure" in said:
            raise _error_of(self.name, said["failure"])
        return said["result"]

    def _files(self, file: LatencyFile) -> tuple[Sent, ...]:
        return sent_files(file, self.settings.folder)

    def _named(self, file: LatencyFile) -> dict[str, Any]:
        """The file as the runner is told of it."""
        sent = self._files(file)
        return {"path": sent[0].there, "digests": {one.there: one.sha256 for one in sent}}

    def _send(self, files: list[Sent]) -> None:
        """Copy what is not there yet, and check that it arrived whole."""
        wanted = {sent.there: sent for sent in files if sent.there not in self.sent}
        if not wanted:
            return
        digests = {there: sent.sha256 for there, sent in wanted.items()}
        there = set(self._ask({"do": "present", "files": digests}))
        missing = [sent for sent in wanted.values() if sent.there not in there]
        needed = sum(sent.here.stat().st_size for sent in missing)
        if needed + ROOM_BYTES > self.free_bytes:
            raise cannot_write(self.name, f"no space left: {needed:,} bytes to copy, {self.free_bytes:,} are free")
        for sent in missing:
            if sha256_of(sent.here) != sent.sha256:
                raise MeasurementError(f"{sent.here} is not the file that was to be timed", hint="export it again")
            self.sent[sent.there] = sent
            self.connection.send(sent.here, sent.there)
        arrived = set(self._ask({"do": "present", "files": digests}))
        if broken := sorted(wanted.keys() - arrived):
            raise DeviceError(f"{broken[0]} did not arrive whole on {self.name}", hint="is its disk full, or failing?")
        self.sent.update(wanted)


@dataclass(frozen=True, slots=True)
class Ssh:
    """The device plugin: any machine that plain ssh reaches."""

    name: str = "ssh"
    kind: Literal["measured-remote"] = "measured-remote"
    machine: None = None

    @contextmanager
    def attach(self, settings: RemoteConfig) -> Iterator[Attached]:
        """Connect, look the device over, send the runner; clean up at the end.

        Errors: DeviceError says whether the device cannot be reached, has no Python, or cannot be written to.
        """
        if settings.host is None:
            raise UsageError("no device was named", hint="give --host user@address")
        connection = Connection(settings.host, settings.port, settings.identity, settings.options)
        architecture = _look(connection, settings)
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
            path = write_runner(Path(name))
            runner = sent_alone(path, sha256_of(path), settings.folder)
            connection.send(path, runner.there)
            unknown = Environment(
                edgeprune="", python="", system="", cpu="", cores=1, cpu_features=(), packages={}
            )  # until it has described itself
            device = Attached(connection, settings, Path(name), unknown, architecture, 0, runner)
            device.sent[runner.there] = runner
            finished = False
            try:
                device.machine, device.free_bytes = _describe(device)
                yield device
                finished = True
            finally:
                device.close(finished=finished)

    def measure(self, request: LatencyRequest, *, progress: Progress) -> tuple[BlockSamples, ...]:
        """UsageError: no device is attached yet."""
        raise UsageError("no device is attached", hint="give --host user@address")

    def logits(self, file: LatencyFile, runtime: str, images: Floats, *, threads: int) -> tuple[RuntimeInfo, Floats]:
        """UsageError: no device is attached yet."""
        raise UsageError("no device is attached", hint="give --host user@address")

    def time_layers(self, runtime: str, threads: int, batch_size: int, points: Sequence[Point], found: Found) -> None:
        """UsageError: no device is attached yet."""
        raise UsageError("no device is attached", hint="give --host user@address")

    def probe(self) -> dict[str, Any]:
        """UsageError: no device is attached yet."""
        raise UsageError("no device is attached", hint="give --host user@address")


SSH = Ssh()


def _look(connection: Connection, settings: RemoteConfig) -> str:
    """Reach the device, make the folder, find Python; its architecture as `uname -m` says it."""
    python, folder = shlex.quote(settings.python), shlex.quote(settings.folder)
    answer = connection.run(
        f"uname -m; umask 077; mkdir -p {folder} || exit {_NO_FOLDER}; "
        f"command -v {python} >/dev/null 2>&1 || exit {_NO_PYTHON}; "
        f"exec {python} -c 'import sys; print(\"%d %d\" % sys.version_info[:2])'"
    )
    if answer.code == _NO_FOLDER:
        raise cannot_write(connection.host, answer.err)
    if answer.code == _NO_PYTHON:
        raise DeviceError(
            f"{connection.host} has no {settings.python}",
            hint="install Python 3.8 or newer there, or name it with --remote-python",
        )
    lines = answer.out.decode("utf-8", errors="replace").split("\n")
    try:
        major, minor = map(int, lines[1].split())
    except (IndexError, ValueError):
        raise DeviceError(
            f"{settings.python} does not run on {connection.host}", where=answer.err[-300:] or lines[0]
        ) from None
    if (major, minor) < LEAST_PYTHON:
        raise DeviceError(
            f"{settings.python} on {connection.host} is Python {major}.{minor}: the runner needs 3.8",
            hint="name a newer one with --remote-python",
        )
    return lines[0].strip()


def _describe(device: Attached) -> tuple[Environment, int]:
    """The machine as a record, and the free bytes of the folder."""
    found = device._ask({"do": "describe", "folder": device.settings.folder})
    try:
        machine = Environment(
            edgeprune=edgeprune.__version__,
            **{name: found[name] for name in ("python", "system", "cpu", "cores", "cpu_features", "packages")},
        )
        return machine, int(found["free_bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise DeviceError(f"{device.name} gave a description that is none: {error}") from error


def _error_of(host: str, failure: dict[str, str]) -> DeviceError | MeasurementError | UsageError:
    """The runner's failure as an exception of ours."""
    kind, what, hint = failure["kind"], f"{host}: {failure['what']}", failure["hint"]
    if kind in _RETRIED:
        return LostError(what, hint=hint)
    if kind == "cores":
        return UsageError(what, hint=hint)
    if kind in ("numpy", "runtime"):
        return DeviceError(what, hint=f"on the device: {hint}" if hint else "")
    return MeasurementError(what, hint=hint)


def _blocks(found: dict[str, Any], process: int) -> tuple[BlockSamples, ...]:
    """A process's answer as records. MeasurementError when it is not one."""
    try:
        return tuple(
            BlockSamples(
                process=process,
                position=position,
                runtime=RuntimeInfo(**found["runtime"]),
                cores=tuple(found["cores"]),
                peak_rss_bytes=found["peak_rss_bytes"],
                cold_start_ms=found["opened"][block["label"]]["load_ms"] + found["opened"][block["label"]]["first_ms"],
                heat=tuple(found["heat"]),
                **found["opened"][block["label"]],
                **block,
            )
            for position, block in enumerate(found["blocks"])
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise MeasurementError(f"the device gave an answer that is none: {str(error).splitlines()[0]}") from error
