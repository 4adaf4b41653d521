"""The attack stage of a run: both files under the same attack, and what is compared of them.

Each file is a stage of its own, and so is every part of a sequential attack: a killed run goes on inside the attack.
Beside the comparison stand the replay gap (the dense file's adversarials shown to the compressed one) and divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune import protocols, spreading
from edgeprune.files import replacing
from edgeprune.records import (
    AttackedFile,
    Divergence,
    Record,
    Replay,
    RobustnessComparison,
    Sequential,
    Side,
    ThreatModel,
)
from edgeprune.robustness import evaluate
from edgeprune.robustness.archives import write_arrays
from edgeprune.robustness.divergence import Pair, diverge
from edgeprune.robustness.evaluate import on_device
from edgeprune.robustness.outcome import FileOutcome, joined
from edgeprune.robustness.second_look import verify
from edgeprune.robustness.sequential import Decision, confidence_of_a_look, decide, parts_of_images
from edgeprune.robustness.stage import Stage
from edgeprune.robustness.statistics import paired_drop, proportion
from edgeprune.robustness.twin.source import Gradients
from edgeprune.runfolder import STAGES
from edgeprune.types import AttackBudget, Course, Split, Victim

if TYPE_CHECKING:
    from edgeprune.stages import Exported
    from edgeprune.steps import Run

SIDES: tuple[Side, Side] = ("dense", "compressed")
_RESTARTS = 1  # of the search for divergence


def attack_both(run: Run, exported: Exported, test: Split) -> RobustnessComparison:
    """Attack both files in the first runtime and compare them.

    Their outcomes are left in the run folder as `attack-SIDE.npz`, what divides them as `divergence.npz`.
    """
    wanted, seed = run.config.attack, run.config.run.seed
    subset = evaluate.attack_subset(test, wanted.samples, seed, without=wanted.target)
    scene = _Scene(run, exported, subset)
    outcomes, sequential = _in_looks(scene)
    attacked = subset if len(outcomes[0].ids) == len(subset) else evaluate.part_of(subset, outcomes[0].ids)
    threat, dense, compressed = scene.threat(attacked), outcomes[0], outcomes[1]
    info = run.open(exported, "compressed", run.config.latency.runtimes[0]).info
    confidence = run.config.budget.confidence
    compared = evaluate.compare(dense, compressed, threat, info, confidence)
    if sequential is not None:
        drop = paired_drop(dense.robust_right, compressed.robust_right, sequential.spent)
        compared = compared.model_copy(update={"drop": drop, "sequential": sequential})
        for side, outcome in zip(SIDES, outcomes, strict=True):
            outcome.save(scene.path(f"attack-{side}"))
    replay, divergence = _replayed(scene, dense, compressed, threat), _divergence(scene, attacked, compressed)
    return compared.model_copy(update={"replay": replay, "divergence": divergence})


@dataclass(frozen=True)
class _Scene:
    """A run, its files and the images that are to be attacked."""

    run: Run
    exported: Exported
    subset: Split

    def threat(self, split: Split) -> ThreatModel:
        config = self.run.config
        return evaluate.threat_model(config.attack, self.run.bundle.preprocessing.bounds, split, config.run.seed)

    def path(self, name: str) -> Path:
        return self.run.folder.path / STAGES / f"{name}.npz"

    def attacked(self, side: Side, split: Split, name: str) -> FileOutcome:
        """The stage of one file on these images: kept where it was made before."""
        run, threat = self.run, self.threat(split)
        path = self.path(name)
        inputs = {**run.attack_inputs(self.exported), "threat": threat.model_dump()}
        work = partial(self._attack, side, split, threat, path)
        run.folder.stage(name, AttackedFile, inputs, run.on_one(side, name, AttackedFile, inputs, work))
        return FileOutcome.load(path)

    def _attack(self, side: Side, split: Split, threat: ThreatModel, path: Path) -> tuple[AttackedFile, list[Path]]:
        run, source = self.run, self.source(side)
        with run.console.task(f"attacking the {side} file in {self.runtime.name}") as progress:
            outcome = spreading.attack(
                source,
                split,
                threat,
                run.config.attack,
                sha256=self.exported.of(side, self.runtime.format).sha256,
                device=run.config.run.device,
                journal=run.folder.scratch(path.stem) / "journal.npz",
                progress=progress,
            )
        outcome.save(path)
        return outcome.record, [path]

    @property
    def runtime(self) -> protocols.Runtime:
        runtime: protocols.Runtime = protocols.find("runtime", self.run.config.latency.runtimes[0])
        return runtime

    @cached_property
    def _sources(self) -> dict[Side, Gradients]:
        return {}

    def source(self, side: Side) -> Gradients:
        """How the file is judged and differentiated; made once."""
        if side not in self._sources:
            self._sources[side] = self.run.gradients(self.exported, side, self.subset)
            spreading.warn_if_alone(self._sources[side], self.run.config.attack, self.run.console)
        return self._sources[side]


def _in_looks(scene: _Scene) -> tuple[list[FileOutcome], Sequential | None]:
    """Both files on all images, or part by part until the paired bound has decided the budget."""
    config = scene.run.config
    looks, tolerance = config.attack.sequential, config.budget.robust_accuracy_drop
    if looks < 2 or tolerance is None:
        return [scene.attacked(side, scene.subset, f"attack-{side}") for side in SIDES], None
    parts = parts_of_images(scene.subset.ids, looks, config.run.seed)
    spent = confidence_of_a_look(config.budget.confidence, len(parts))
    found: dict[Side, list[FileOutcome]] = {side: [] for side in SIDES}
    decided: Decision = "no"
    for at, ids in enumerate(parts, start=1):
        split = evaluate.part_of(scene.subset, ids)
        for side in SIDES:
            found[side].append(scene.attacked(side, split, f"attack-{side}-{at}"))
        dense, compressed = (joined(found[side]) for side in SIDES)
        decided = decide(paired_drop(dense.robust_right, compressed.robust_right, spent), tolerance, spent)
        if decided != "no":
            break
    said = Sequential(
        looks=len(parts), at=at, planned=len(scene.subset), tolerance=tolerance, spent=spent, decided=decided
    )
    return [dense, compressed], said


def _replayed(scene: _Scene, dense: FileOutcome, compressed: FileOutcome, threat: ThreatModel) -> Replay:
    """The dense file's adversarials on the compressed one, each verified there."""
    stage = Stage(scene.source("compressed").session, None, threat)
    looked, truth, rows = stage, dense.labels, np.flatnonzero(dense.fell & compressed.clean_right)
    if threat.target is not None:
        looked, truth = stage.towards(threat.target), np.zeros_like(dense.labels)
    origins = scene.subset.source.read(dense.ids[rows])
    seen = verify(looked.predict, dense.adversarials[rows], origins, truth[rows], threat)
    right, total = int(compressed.clean_right.sum()), len(compressed.ids)
    robust = proportion(right - int(seen.believed.sum()), total, scene.run.config.budget.confidence)
    return Replay(robust=robust, gap=robust.value - compressed.record.robust.value)


class _Divided(Record):
    """The stage's record; `figure` is None where no image is right in both files, so that nothing was looked for."""

    figure: Divergence | None


def _divergence(scene: _Scene, split: Split, compressed: FileOutcome) -> Divergence | None:
    """A stage: images that divide the files; None where they are not looked for."""
    run, threat, path = scene.run, scene.threat(split), scene.path("divergence")
    if not run.config.attack.divergence_steps or threat.target is not None:
        path.unlink(missing_ok=True)
        return None
    inputs = {
        **run.attack_inputs(scene.exported),
        "threat": threat.model_dump(),
        "steps": run.config.attack.divergence_steps,
    }
    work = partial(_diverged, scene, split, compressed, path)
    return run.folder.stage("divergence", _Divided, inputs, work).figure


def _diverged(scene: _Scene, split: Split, compressed: FileOutcome, path: Path) -> tuple[_Divided, list[Path]]:
    run, threat, steps = scene.run, scene.threat(split), scene.run.config.attack.divergence_steps
    budget = AttackBudget(
        threat.norm, threat.epsilon_value, steps, _RESTARTS, threat.seed, course=Course(threat.seconds)
    )
    sides = []
    for side in SIDES:
        source = scene.source(side)
        assert source.module is not None
        sides.append(Victim(source.session.logits, on_device(source.module, run.config.run.device), threat.bounds))
    images = np.array(split.source.read(split.ids), np.float32)
    with run.console.task("looking for images that divide the files") as progress:
        found = diverge(Pair(*sides), images, split.labels(), compressed.adversarials, budget, progress=progress)
    with replacing(path) as beside:
        write_arrays(beside, {"divergent_found": found.found, "divergent_points": found.points})
    tried = int(found.tried.sum())
    if not tried:
        return _Divided(figure=None), [path]
    figure = Divergence(
        found=proportion(int(found.found.sum()), tried),
        replayed=int(found.replayed.sum()),
        steps=steps,
        restarts=_RESTARTS,
        finished=found.finished,
    )
    return _Divided(figure=figure), [path]
