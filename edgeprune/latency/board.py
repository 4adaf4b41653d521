"""What runs on a device that is reached over ssh: one job a process, JSON in by stdin, JSON out by stdout.

Promise: needs Python 3.8, numpy and the runtime of the file, and nothing of edgeprune but the modules that travel with
it (`increments`, `machine`, `probing`, `serving`, `timing`). The protocol is the one of this machine, by the same code.
A file that was sent is hashed before it is opened. Nothing outside its folder is written, and only what edgeprune put
there is removed.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import os
import platform
import shutil
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.latency import machine, timing

if TYPE_CHECKING:
    from collections.abc import Callable

BATCHES = 32  # as in the timing process of this machine
PACKAGES = ("numpy", "onnxruntime", "openvino")


class FailureError(Exception):
    """Why a job has no result: `kind` is a word for the caller, the rest is for people."""

    def __init__(self, kind: str, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.kind, self.what, self.hint = kind, what, hint


def describe(job: dict[str, Any]) -> dict[str, Any]:
    """The machine, its packages, and the room in the folder."""
    flags = machine.cpuinfo()[1]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "architecture": platform.machine(),
        "cpu": machine.processor(),
        "cores": os.cpu_count() or 1,
        "cpu_features": [feature for feature in machine.FEATURES if feature in flags],
        "packages": {name: found for name, found in ((name, _version(name)) for name in PACKAGES) if found},
        "governor": machine.governor(),
        "memory_bytes": machine.memory_bytes(),
        "free_bytes": shutil.disk_usage(job["folder"]).free,
        "heat": machine.heat(()),
    }


def probe(job: dict[str, Any]) -> dict[str, Any]:
    """`describe`, and what was measured: a matrix product and a copy on one core, its caches."""
    from edgeprune.latency import probing

    numpy, cores = _numpy(), machine.fastest_cores(1)
    if cores:
        os.sched_setaffinity(0, cores)
    rates = {"gflops": probing.product_gflops(numpy), "copy_gb_s": probing.copy_gb_s(numpy)}
    return {**describe(job), **rates, "caches": probing.caches()}


def present(job: dict[str, Any]) -> list[str]:
    """Which of the files {path: sha256} are there, whole."""
    return [path for path, digest in job["files"].items() if _sha256(path) == digest]


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Time the files in interleaved blocks; what `BlockSamples` needs, process and runtime once."""
    numpy, opener = _numpy(), _opener(job["runtime"])
    parent, cores = os.getppid(), _pinned(job["threads"])
    with _alone(Path(job["folder"])):
        for files in job["files"].values():
            _check(files)
        batches = _batches(numpy, job)
        openers = {label: _open_later(opener, files, job["threads"]) for label, files in job["files"].items()}
        blocks = timing.Blocks(job["rounds"], job["block_ms"], job["seed"], job["process"], job["iterations"])
        clock = timing.system_clock(job["threads"])
        opened = timing.open_each(openers, lambda served: _run_of(served, batches), clock, blocks)
        gc.collect()
        gc.disable()
        before = machine.heat(cores)
        done, warm = timing.interleave(opened, clock, blocks, lambda: _check_parent(parent))
    return {
        "runtime": opened["dense"].session.info(),
        "cores": list(cores),
        "heat": [before, machine.heat(cores)],
        "peak_rss_bytes": machine.peak_rss_bytes(),
        "opened": {
            label: {"load_ms": one.load_ms, "first_ms": one.first_ms, "settled": warm[label].settled}
            for label, one in opened.items()
        },
        "blocks": [
            {
                "round": one.round,
                "label": one.label,
                "samples_ms": one.block.samples_ms,
                "preempted": one.block.preempted,
                "runtime_ms": one.block.runtime_ms,
                "started_s": one.started_s,
            }
            for one in done
        ],
    }


def layers(job: dict[str, Any]) -> dict[str, Any]:
    """Time single layers: milliseconds of one more copy of each, in the order of the job's points.

    Their files come with the job, without weights: those are random numbers, made here once.
    """
    from edgeprune.latency import increments

    numpy, opener = _numpy(), _opener(job["runtime"])
    parent = os.getppid()
    _pinned(job["threads"])
    place, found = Path(job["folder"]) / "layers", []
    with _alone(Path(job["folder"])):
        place.mkdir(exist_ok=True)
        _make_weights(numpy, place / "weights.bin", job["weights_bytes"])
        gc.disable()
        for point in job["points"]:
            _check_parent(parent)
            image, runs = numpy.random.default_rng(0).random(point["shape"], dtype=numpy.float32), []
            for position, copies in enumerate(increments.COPIES):
                path = place / f"copies{copies}.onnx"
                path.write_bytes(base64.b64decode(point["files"][position]))
                served = _open_later(opener, {"path": str(path)}, job["threads"])()
                runs.append(partial(served.logits, image))
            found.append(increments.one_more_ms(runs))
            gc.collect(0)
    return {"ms": found}


def logits(job: dict[str, Any]) -> dict[str, Any]:
    """The file's logits for the images: float32 in base64, with their shape, and what ran it."""
    numpy, opener = _numpy(), _opener(job["runtime"])
    _check(job["file"])
    served = _open_later(opener, job["file"], job["threads"])()
    images = numpy.load(job["images"], allow_pickle=False)
    size = job["batch_size"]
    parts = [served.logits(numpy.ascontiguousarray(images[at : at + size])) for at in range(0, len(images), size)]
    found = numpy.ascontiguousarray(numpy.concatenate(parts), dtype=numpy.float32)
    words = base64.b64encode(found.tobytes()).decode("ascii")
    return {"runtime": served.info(), "shape": list(found.shape), "float32": words}


def forget(job: dict[str, Any]) -> list[str]:
    """Remove the named files, then folders of ours that are empty now; what was removed."""
    removed = []
    for name in job["files"]:
        try:
            Path(name).unlink()
        except OSError:
            continue
        removed.append(name)
    for folder in job["folders"]:  # innermost first; one with anything in it stays
        try:
            Path(folder).rmdir()
        except OSError:
            continue
    return removed


ACTIONS = {
    "describe": describe,
    "present": present,
    "probe": probe,
    "measure": measure,
    "layers": layers,
    "logits": logits,
    "forget": forget,
}


def main() -> int:
    """Read a job, do it, write {"result": ...} or {"failure": ...}; whatever a runtime prints goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as result:
        os.dup2(2, 1)
        job = json.loads(sys.stdin.buffer.read().decode("utf-8"))
        try:
            written = {"result": ACTIONS[job["do"]](job)}
        except FailureError as failure:
            written = {"failure": {"kind": failure.kind, "what": failure.what, "hint": failure.hint}}
        json.dump(written, result)
    return 0


class _alone:
    """Holds the folder's lock: two timings on one device would spoil each other."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "timing.lock"

    def __enter__(self) -> None:
        import fcntl

        self.file = self.path.open("w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FailureError("busy", "edgeprune is timing on this device already", "wait until it is done") from None

    def __exit__(self, *_: object) -> None:
        self.file.close()


def _pinned(threads: int) -> tuple[int, ...]:
    """Keep this process on the fastest cores, one a thread."""
    try:
        cores = machine.fastest_cores(threads)
    except ValueError as error:
        raise FailureError("cores", str(error), "use fewer --threads") from None
    if cores:
        os.sched_setaffinity(0, cores)
    return cores


def _make_weights(numpy: Any, path: Path, size: int) -> None:
    """A file of at least `size` bytes of random float32 numbers, written whole or not at all."""
    if path.exists() and path.stat().st_size >= size:
        return
    draw, beside, left = numpy.random.default_rng(0), path.with_suffix(".bin.part"), -(-size // 4)
    with beside.open("wb") as file:
        while left > 0:
            count = min(left, 1 << 20)  # a board may have little memory
            file.write((draw.standard_normal(count, dtype=numpy.float32) * numpy.float32(0.05)).tobytes())
            left -= count
    beside.replace(path)


def _check_parent(parent: int) -> None:
    if os.getppid() != parent:  # the connection is gone, and nobody waits for the answer
        raise FailureError("lost", "the connection that asked for the timing is gone")


def _check(files: dict[str, Any]) -> None:
    for path, digest in files["digests"].items():
        found = _sha256(path)
        if found != digest:
            raise FailureError("changed", f"{path} is not the file that was sent (sha256 {found or 'none'})")


def _open_later(opener: Callable[[str, int], Any], files: dict[str, Any], threads: int) -> Callable[[], Any]:
    from edgeprune.latency import serving

    def opened() -> Any:
        try:
            return opener(files["path"], threads)
        except serving.RefusedError as error:
            raise FailureError("refused", f"the runtime refuses {Path(files['path']).name}: {error}") from error

    return opened


def _run_of(served: Any, batches: list[Any]) -> Callable[[int], object]:
    infer, count = served.logits, len(batches)
    return lambda i: infer(batches[i % count])


def _batches(numpy: Any, job: dict[str, Any]) -> list[Any]:
    """Contiguous batches, images in turn, starting over where they run out."""
    images, size = numpy.load(job["images"], allow_pickle=False), job["batch_size"]
    count = min(BATCHES, max(1, len(images) // size))
    ids = numpy.arange(count * size).reshape(count, size) % len(images)
    return [numpy.ascontiguousarray(images[part], dtype=numpy.float32) for part in ids]


def _opener(runtime: str) -> Callable[[str, int], Any]:
    from edgeprune.latency import serving

    if runtime not in serving.SERVERS:
        known = ", ".join(serving.SERVERS)
        raise FailureError("runtime", f"the device runner does not know the runtime {runtime}", f"it knows {known}")
    if find_spec(runtime) is None:
        raise FailureError(
            "runtime",
            f"{runtime} is not installed for {sys.executable} (Python {platform.python_version()})",
            f"{sys.executable} -m pip install {runtime}",
        )
    return serving.SERVERS[runtime]


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise FailureError(
            "numpy", f"numpy is not installed for {sys.executable}", f"{sys.executable} -m pip install numpy"
        ) from None
    return numpy


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sha256(path: str) -> str:
    """Hex sha256 of a file; empty when it is not there."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                digest.update(part)
    except OSError:
        return ""
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
