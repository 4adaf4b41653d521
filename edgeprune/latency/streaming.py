"""A fresh process that times many small things and answers a line of JSON each: both of its ends.

Promise: one timing at a time on the machine, nothing of the calling process inside, and no process outlives the call;
one that ends early is an error with its last words, after all that it found was handed on.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from edgeprune import protocols
from edgeprune.errors import EdgepruneError, ExportError, MeasurementError
from edgeprune.latency.alone import timing_alone
from edgeprune.latency.local import tail
from edgeprune.records import Record

J = TypeVar("J", bound=Record)
Message = dict[str, Any]


def ask(module: str, job: Record, threads: int, what: str, take: Callable[[Message], bool], wanted: int) -> None:
    """Run a module's `answer` on the job and `take` each of the `wanted` messages; false from it: no more are needed.

    Errors: MeasurementError that says `what` could not be timed.
    """
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with timing_alone(), tempfile.TemporaryFile() as words:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, env=environment)
        assert child.stdin
        assert child.stdout
        try:
            with suppress(BrokenPipeError):
                child.stdin.write(job.model_dump_json().encode())
                child.stdin.close()
            done = 0
            for line in child.stdout:
                message = json.loads(line)
                if "failure" in message:
                    raise MeasurementError(f"cannot time {what}", where=message["failure"])
                done += 1
                if not take(message):
                    return
            child.wait()
        finally:
            child.stdout.close()
            if child.poll() is None:
                child.kill()
                child.wait()
        if done < wanted:
            words.seek(0)
            raise MeasurementError(f"the process that times {what} ended early", where=tail(words.read()))


def answer(kind: type[J], work: Callable[[J, Callable[[], bool]], Iterator[Message]]) -> int:
    """A module's side: a job on stdin, a line a message on stdout. `work` asks now and then whether it is orphaned."""
    parent = os.getppid()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as result:
        os.dup2(2, 1)  # whatever a runtime prints goes to stderr
        job = kind.model_validate_json(sys.stdin.read())
        gc.disable()
        try:
            for message in work(job, lambda: os.getppid() != parent):
                result.write(json.dumps(message) + "\n")
                result.flush()
        except EdgepruneError as error:
            result.write(json.dumps({"failure": str(error)}) + "\n")
    return 0


def open_onnx(runtime: protocols.Runtime, source: Path, threads: int) -> protocols.Session:
    """The file itself where the runtime reads ONNX (converting takes longer than timing), else its own format."""
    try:
        return runtime.open(source, threads=threads)
    except ExportError:
        return runtime.open(runtime.convert(source, source.with_suffix(runtime.suffix))[0], threads=threads)
