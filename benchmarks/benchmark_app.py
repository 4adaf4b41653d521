"""edgeprune's latency beside that of OpenVINO's own benchmark_app, on the same file, in the same minutes.

    python benchmarks/benchmark_app.py FILE.xml [--rounds 5] [--seconds 4] [--json OUT]

Runs both in turn, on the same core, with the same settings (latency hint, one stream, one thread, float32), and prints
the ratio of their medians in each round and over all. Agreement within 5 % is what is asked for. It times inside of the
runtime, edgeprune what a Python caller waits for, from images to logits: nothing beside 33 ms (ResNet-18: +0.1 %), much
beside less than one (seen: +11 % at 0.8 ms, +19 % at 0.2 ms, +55 % at 0.06 ms).
"""

from __future__ import annotations

import argparse
import json
import os
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

START = "from openvino.tools.benchmark.main import main; main()"
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
        settings, report = Path(folder) / "settings.json", Path(folder) / "benchmark_report.json"
        settings.write_text(json.dumps(CONFIGURATION))
        # It gives two decimals of a millisecond: they say little of a network that takes less than one.
        wanted = ["-json_stats", "-report_type", "no_counters", "-report_folder", folder]
        done = subprocess.run(
            [*command, "-shape", size, "-hint", "none", "-load_config", str(settings), *wanted],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        if not report.exists():
            raise SystemExit(f"benchmark_app gave no report:\n{done.stdout[-800:]}{done.stderr[-800:]}")
        results = json.loads(report.read_text())["execution_results"]
    return float(results["latency (ms)"])


def ours_ms(file: Path, images: np.ndarray, seconds: int) -> float:  # type: ignore[type-arg]
    """edgeprune's p50 of the file alone."""
    settings = LatencyConfig(duration=f"{seconds} s")  # type: ignore[arg-type]  # read as a quantity
    timed = latency_file(file, (file.with_suffix(".bin"),))
    found = measure(timed, None, "openvino", images, settings, bench=Bench("cpu"), seed=0, progress=lambda *_: None)
    return found.dense.p50_ms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    _, session = open_file(arguments.file, 1)
    assert session.input_shape is not None
    images = np.random.default_rng(0).random((16, *session.input_shape), dtype=np.float32)
    rows = []
    for number in range(arguments.rounds):
        ours = ours_ms(arguments.file, images, arguments.seconds)
        theirs = theirs_ms(arguments.file, session.input_shape, arguments.seconds, choose_cores(1))
        rows.append((ours, theirs))
        print(f"{number}: edgeprune {ours:.4f} ms, benchmark_app {theirs:.4f} ms, {ours / theirs - 1:+.1%}", flush=True)
    ratio = median(ours / theirs for ours, theirs in rows)
    print(f"median over {len(rows)} rounds: {ratio - 1:+.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rounds": rows, "ratio": ratio}) + "\n")
    return 0 if abs(ratio - 1) <= 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
