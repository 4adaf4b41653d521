"""The whole story: a trained network in, a file to ship and the evidence for it out.

Every stage is kept in the run folder when it is finished, and the same command goes on from there.
"""

from __future__ import annotations

from pathlib import Path

from edgeprune.assembly import Found, finish, open_run
from edgeprune.boundary import survey
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.layerwise import layer_times
from edgeprune.records import Report
from edgeprune.sweeping.sharing import Shared


def compress(
    model: Path, config: Config, *, command: str = "", console: Console | None = None, shared: Shared | None = None
) -> Report:
    """Prune, recover, export, measure and attack `model`; write the run folder and return its report.

    `command` goes into the report as the way to reproduce it; `shared` keeps what runs on the same network have in
    common. Errors: those of `edgeprune.errors`; whatever was finished before one is kept.
    """
    with open_run(model, config, run_folder(model, config), console or Console(), command, shared or Shared()) as run:
        planned = run.plan()
        recovered = run.recover(planned)
        exported = run.export(recovered)
        accuracy = run.accuracy(exported)
        there = run.there(exported)
        latency = run.latency(exported)
        layers = layer_times(run, exported)
        robustness = run.attack(exported)
        surveyed = survey(run, exported, robustness)
        return finish(run, Found(planned, recovered, exported, accuracy, latency, robustness, layers, surveyed, there))


def run_folder(model: Path, config: Config) -> Path:
    """Where a run goes: the configured folder, else ``runs/MODEL-TARGET``."""
    return config.run.out or Path("runs") / f"{model.stem}-{Path(config.run.target).stem}"


def written(folder: Path) -> tuple[Path, ...]:
    """The files of a finished run that a user wants, the report first."""
    names = (
        *("report.html", "report.md", "report.json", "model.onnx", "model.xml", "model.bin"),
        *("pruned.pt", "plan.json", "evidence.npz", "attestation.json"),
    )
    return tuple(folder / name for name in names if (folder / name).exists())
