"""Twin coverage: which exported files have a twin that computes what the runtime computes, and gradients that live.

    python benchmarks/twins.py [--only resnet18,vit_b_16] [--files FOLDER] [--ir] [--limit 300] [--json twins.json]

The networks are those of `benchmarks/coverage.py` (torchvision and timm, needed only here, random weights), each
exported by edgeprune as it is; `--files` takes ONNX files from elsewhere instead. `--ir`: each is converted to
OpenVINO's IR as well, and its twin is built from its own graph. Passed: no operator without a rule, parity with the
runtime within 1e-4 of the largest logit, finite gradients that are not zero on every image. Each network is tried in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

PARITY, IMAGES = 1e-4, 4


def examined(path: Path) -> dict[str, Any]:
    """What came of one file: `unsupported`, or `parity`, the share of images with a usable gradient, and seconds."""
    import numpy as np
    import torch

    from edgeprune.errors import UsageError
    from edgeprune.robustness.gradients import at_rest, input_gradients
    from edgeprune.robustness.twin import Served, build, check
    from edgeprune.single import open_file

    started = time.perf_counter()
    _, session = open_file(path, 1)
    try:
        twin = build(path)
    except UsageError:  # a flat input says nothing but its size: one row of one channel
        width = int(np.prod([int(size) for size in flat_size(path)]))
        twin = build(path, (1, 1, width))
    if twin.module is None or twin.scores is None:
        return {"unsupported": list(twin.unsupported)}
    images = np.random.default_rng(0).random((IMAGES, *twin.layout.shape), dtype=np.float32)
    parity = check(twin, Served(session, twin.layout), images)
    points = torch.from_numpy(images)
    with torch.no_grad(), at_rest(twin.scores):
        labels = twin.module(points).argmax(1)
        _, usable = input_gradients(twin.scores, points, labels)
    return {
        "opset": twin.opset,
        "batching": twin.batching,
        "parity": parity,
        "usable": float(usable.double().mean()),
        "seconds": time.perf_counter() - started,
    }


def flat_size(path: Path) -> list[int]:
    """Sizes of a file's only input, without its batch."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    known = {entry.name for entry in graph.initializer}
    entry = next(each for each in graph.input if each.name not in known)
    return [size.dim_value for size in entry.type.tensor_type.shape.dim[1:]]


def attempt(network: str, file: Path | None, formats: tuple[str, ...], answers: Any) -> None:
    """Export a network (or take the file), look at it in every format, and put what was found on the queue."""
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    try:
        import torch
        from edgeprune.export.onnx import export_onnx
        from edgeprune.export.openvino import RUNTIME

        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            path = file or Path(folder) / "model.onnx"
            if file is None:
                import coverage

                export_onnx(coverage.build(network), path)
            for form in formats:
                ready = path
                if form == "ir":
                    (ready,) = RUNTIME.convert(path, Path(folder) / "alone.xml")[:1]
                found[form] = examined(ready)
    except Exception as error:  # noqa: BLE001  # the reason of a failure is what this script is for
        line = (str(error).strip().splitlines() or ["no message"])[0]
        found["failed"] = f"{type(error).__name__}: {line}"[:200]
    answers.put(found)


def supervised(network: str, file: Path | None, formats: tuple[str, ...], limit: float) -> dict[str, Any]:
    """The same in a process of its own, for at most `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=attempt, args=(network, file, formats, answers))
    process.start()
    try:
        found: dict[str, Any] = answers.get(timeout=limit)
    except queue.Empty:
        found = {"failed": f"no answer within {limit:g} s"}
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()
    return found


def passed(found: dict[str, Any], formats: tuple[str, ...]) -> bool:
    """Whether every format has a twin within the tolerance, with a gradient for every image."""
    each = [found.get(form, {}) for form in formats]
    return all(one.get("parity", float("inf")) <= PARITY and one.get("usable") == 1.0 for one in each)


def row(network: str, found: dict[str, Any], formats: tuple[str, ...]) -> str:
    """One line for people."""
    said = [f"{network:<34}", "ok  " if passed(found, formats) else "FAIL"]
    for form in formats:
        one = found.get(form, {})
        if "parity" in one:
            said.append(f"{form}: parity {one['parity']:.1e}, gradients {one['usable']:.0%}")
        elif "unsupported" in one:
            said.append(f"{form}: no rule for {', '.join(one['unsupported'])}")
    return "  ".join([*said, found.get("failed", "")])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="names, comma-separated (default: all of benchmarks/coverage.py)")
    parser.add_argument("--files", type=Path, help="a folder of ONNX files, in place of networks")
    parser.add_argument("--ir", action="store_true", help="look at OpenVINO's IR of each, too")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a network")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    formats = ("onnx", "ir") if arguments.ir else ("onnx",)
    if arguments.files:
        wanted = {path.name: path for path in sorted(arguments.files.glob("*.onnx"))}
    else:
        import coverage

        names = arguments.only.split(",") if arguments.only else [*coverage.TORCHVISION, *coverage.TIMM]
        wanted = dict.fromkeys(names)
    results = {}
    for network, file in wanted.items():
        results[network] = supervised(network, file, formats, arguments.limit)
        print(row(network, results[network], formats), flush=True)
    good = sum(passed(found, formats) for found in results.values())
    print(f"{good} of {len(results)} have a twin with parity {PARITY:g} and gradients for every image")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
