"""Does a noisy machine make edgeprune say "faster" of two equal files? It must not.

    python benchmarks/control.py FILE [--runs 20] [--for 5] [--quiet] [--json OUT]

Times FILE against a copy of itself, again and again, beside a neighbour process that eats the processor in bursts on
the very core that is timed. "no significant difference" and "inconclusive" are right answers; "faster" and "slower"
are wrong ones, and the exit code is 1 if there was any "faster".
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgeprune.errors import InconclusiveError
from edgeprune.latency.local import choose_cores
from edgeprune.latency.measure import Bench, latency_file, measure
from edgeprune.latency.settings import LatencyConfig
from edgeprune.single import open_file

NEIGHBOUR = """
import os, random, sys, time
os.sched_setaffinity(0, {int(core) for core in sys.argv[2].split(",")})
draw, parent = random.Random(0), int(sys.argv[1])
while os.getppid() == parent:
    end = time.perf_counter() + draw.uniform(0.001, 0.3)
    while time.perf_counter() < end:
        pass
    time.sleep(draw.uniform(0.001, 0.3))
"""


@contextmanager
def neighbour(cores: tuple[int, ...], wanted: bool) -> Iterator[None]:
    """A process that is hungry in bursts on `cores`, gone after the block."""
    if not wanted:
        yield
        return
    import os

    command = [sys.executable, "-c", NEIGHBOUR, str(os.getpid()), ",".join(map(str, cores))]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--for", dest="seconds", type=float, default=5.0)
    parser.add_argument("--quiet", action="store_true", help="without the neighbour")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runtime, session = open_file(arguments.file, 1)
    assert session.input_shape is not None
    images = np.random.default_rng(0).random((16, *session.input_shape), dtype=np.float32)
    settings = LatencyConfig(duration=f"{arguments.seconds} s")  # type: ignore[arg-type]  # read as a quantity
    found = []
    with tempfile.TemporaryDirectory() as folder, neighbour(choose_cores(1), not arguments.quiet):
        copies = [Path(folder) / f"{name}{arguments.file.suffix}" for name in ("one", "other")]
        for copy in copies:
            shutil.copyfile(arguments.file, copy)
            if arguments.file.with_suffix(".bin").exists() and arguments.file.suffix == ".xml":
                shutil.copyfile(arguments.file.with_suffix(".bin"), copy.with_suffix(".bin"))
        files = [latency_file(copy) for copy in copies]
        for seed in range(arguments.runs):
            try:
                result = measure(
                    *files, runtime.name, images, settings, bench=Bench("cpu"), seed=seed, progress=lambda *_: None
                )
                assert result.speedup is not None
                low, high = result.speedup.interval.low, result.speedup.interval.high
                lost = (result.dense.preempted) / (result.dense.samples + result.dense.preempted)
                found.append(result.verdict)
                print(f"{seed:3} {result.verdict:26} {low:.3f} to {high:.3f}, {lost:.0%} preempted", flush=True)
            except InconclusiveError as error:
                found.append("inconclusive")
                print(f"{seed:3} inconclusive: {error.what}", flush=True)
    counted = Counter(found)
    print(dict(counted))
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": len(found), "verdicts": dict(counted)}) + "\n")
    return 1 if counted["faster"] else 0


if __name__ == "__main__":
    sys.exit(main())
