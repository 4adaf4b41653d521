"""The accuracy stage of a run: both files on every test image, in every runtime.

What the dense file says is kept with the work that runs on the same network share.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune import protocols
from edgeprune.records import AccuracyComparison, Record, RuntimeInfo, Side
from edgeprune.robustness import evaluate
from edgeprune.sweeping.sharing import Shared
from edgeprune.types import Split

if TYPE_CHECKING:
    from edgeprune.stages import Exported
    from edgeprune.steps import Run

_SIDES: tuple[Side, Side] = ("dense", "compressed")


class Accuracies(Record):
    """Clean accuracy, a comparison a runtime."""

    each: tuple[AccuracyComparison, ...]


class Predicted(Record):
    """One file's class for every test image, in their order."""

    runtime: RuntimeInfo
    predictions: tuple[int, ...]


def accuracies(run: Run, exported: Exported, test: Split) -> tuple[Accuracies, list[Path]]:
    """Clean accuracy of both files in every runtime; makes no files."""
    confidence, labels = run.config.budget.confidence, test.labels()
    each = []
    for name in run.config.latency.runtimes:
        dense, compressed = (_predictions(run, exported, side, name, test) for side in _SIDES)
        each.append(evaluate.accuracy_comparison(dense, compressed, labels, confidence))
    return Accuracies(each=tuple(each)), []


def _predictions(run: Run, exported: Exported, side: Side, name: str, test: Split) -> evaluate.FilePredictions:
    runtime: protocols.Runtime = protocols.find("runtime", name)
    sha256 = exported.of(side, runtime.format).sha256
    inputs = {"file": sha256, "runtime": [name, runtime.version()], "threads": run.config.latency.threads}
    shared = run.shared if side == "dense" else Shared()
    work = partial(_predict, run, exported, side, name, test)
    key = {**inputs, "test": test.digest}
    found, _ = shared.piece(f"accuracy-{name}", Predicted, key, run.folder.path, work)
    return evaluate.FilePredictions(sha256, found.runtime, np.array(found.predictions, np.int64))


def _predict(run: Run, exported: Exported, side: Side, name: str, test: Split) -> tuple[Predicted, list[Path]]:
    session = run.open(exported, side, name)
    with run.console.task(f"accuracy of the {side} file in {name}") as progress:
        found = evaluate.predict(session, test, progress=progress, classes=len(run.bundle.classes))
    return Predicted(runtime=session.info, predictions=tuple(found.tolist())), []
