"""edgeprune's latency beside that of OpenVINO's own benchmark_app, on the same file, in the same minutes.

    python benchmarks/benchmark_app.py FILE.xml [--rounds 5] [--seconds 4] [--json OUT]

Runs both in turn, on the same core, with the same settings (latency hint, one stream, one thread, float32), and prints
the ratio of their medians in each round and over all. Agreement within 5 % is what is asked for. benchmark_app prints
what OpenVINO itself counts for an inference; edgeprune reports that (`runtime_p50_ms`) beside its p50, which is what a
Python caller waits for, from images to logits. The first is compared; the second is printed to show what is between
them: nothing beside 33 ms (ResNet-18), a third of 0.05 ms. Both take the file as it is (`-data_shape`: `-shape` would
fix the batch that the file leaves open, which made a network of 0.05 ms a fifth faster), hand one image over before
each inference (`-inference_only False`), and benchmark_app's median is read before it is rounded to two decimals.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from edgeprune.latency.local import choose_cores
from edgeprune.latency.measure import Bench, latency_file, measure
from edgeprune.latency.settings import LatencyConfig
from edgeprune.single import open_file

START = """
from openvino.tools.benchmark import benchmark, main
loop = benchmark.Benchmark.main_loop
def whole(*arguments):
    found = loop(*arguments)
    print("median_ms", repr(found[1]))
    return found
benchmark.Benchmark.main_loop = whole
main.main()
"""
CONFIGURATION = {
    "CPU": {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": "1",
        "ENABLE_CPU_PINNING": "NO",
    }
}


def theirs_ms(file: Path, shape: tuple[int, ...], seconds: int, cores: tuple[int, ...]) -> float:
    """benchmark_app's median latency, pinned to `cores`."""
    size = f"[1,{','.join(map(str, shape))}]"
    command = [sys.executable, "-c", START, "-m", str(file), "-d", "CPU", "-api", "sync", "-t", str(seconds)]
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "settings.json"
        settings.write_text(json.dumps(CONFIGURATION))
        wanted = ["-data_shape", size, "-hint", "none", "-inference_only", "False", "-load_config", str(settings)]
        done = subprocess.run(
            [*command, *wanted],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    told = re.findall(r"^median_ms (\S+)$", done.stdout, re.MULTILINE)
    if len(told) != 1:
        raise SystemExit(f"benchmark_app told no median:\n{done.stdout[-800:]}{done.stderr[-800:]}")
    return float(told[0])


def ours_ms(file: Path, images: np.ndarray, seconds: int) -> tuple[float, float]:  # type: ignore[type-arg]
    """The runtime's own p50 of the file alone, and what its caller waits for."""
    settings = LatencyConfig(duration=f"{seconds} s")  # type: ignore[arg-type]  # read as a quantity
    timed = latency_file(file, (file.with_suffix(".bin"),))
    found = measure(timed, None, "openvino", images, settings, bench=Bench("cpu"), seed=0, progress=lambda *_: None)
    assert found.dense.runtime_p50_ms is not None
    return found.dense.runtime_p50_ms, found.dense.p50_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    _, session = open_file(arguments.file, 1)
    assert session.input_shape is not None
    images = np.random.default_rng(0).random((1, *session.input_shape), dtype=np.float32)
    rows = []
    for number in range(arguments.rounds):
        ours, waited = ours_ms(arguments.file, images, arguments.seconds)
        theirs = theirs_ms(arguments.file, session.input_shape, arguments.seconds, choose_cores(1))
        rows.append((ours, theirs, waited))
        figures = f"edgeprune {ours:.4f} ms inside the runtime, benchmark_app {theirs:.4f} ms, {ours / theirs - 1:+.1%}"
        print(f"{number}: {figures}; a caller waits {waited:.4f} ms", flush=True)
    ratio = median(ours / theirs for ours, theirs, _ in rows)
    print(f"median over {len(rows)} rounds: {ratio - 1:+.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": rows, "ratio": ratio}) + "\n")
    return 0 if abs(ratio - 1) <= 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
