"""What each stage of a run depends on and what it makes. `pipeline.compress` tells the story; the rooms do the work.

A stage's inputs are plain data (digests and settings): together with the stage's name they decide whether a
finished stage can be kept. Everything that a stage writes is whole or absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from edgeprune import protocols
from edgeprune.artifacts import Destination, export_network, timed_file
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import ModelError, ParityError
from edgeprune.estimated import calibration_for
from edgeprune.files import sha256_of, write_text
from edgeprune.keys import model_key
from edgeprune.latency.estimate import Calibration
from edgeprune.latency.profiles import Profile
from edgeprune.records import (
    AccuracyComparison,
    LatencyComparison,
    PrunePlan,
    Record,
    RecoveryInfo,
    RobustnessComparison,
    Side,
    StepRecord,
    Unmeasured,
)
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.runfolder import RunFolder
from edgeprune.stages import PLAN, PRUNED, START, STEMS, Exported, Planned, Recovered, Step
from edgeprune.sweeping.sharing import Shared
from edgeprune.there import OnDevice
from edgeprune.types import ChannelGraph, ModelBundle, Split

if TYPE_CHECKING:
    from edgeprune.planning import Planner
    from edgeprune.robustness.twin import Gradients
    from edgeprune.types import Floats

T = TypeVar("T", bound=Record)
_TIMING_IMAGES = 256
_NO_TEST = Unmeasured(unmeasured="no test data was given (--test)")


@dataclass(frozen=True)
class Run:
    """Everything that the stages share."""

    bundle: ModelBundle
    file_sha256: str
    train: Split | None
    test: Split | None
    profile: Profile
    config: Config
    folder: RunFolder
    console: Console
    command: str
    warnings: tuple[str, ...]
    device: protocols.Device | None
    shared: Shared

    def plan(self) -> Planned:
        """Score, allocate (measuring candidates where the goal is in time), write plan.json.

        In several steps (`prune.iterations`), the network is recovered and scored anew between them; each is a stage.
        """
        inputs = {
            "model": model_key(self.bundle),
            "prune": self.config.prune.model_dump(),
            "multiple": self._multiple,
            "seed": self._seed,
            "train": self.train.digest if self.train else None,
            "latency": self.config.latency.model_dump() if self._timed else None,
            "there": self._there if self._timed else None,
            "tried_on": self.config.run.device if self._timed and self.config.recover.trains else None,
        }
        inputs |= {"estimate": self._calibration.model_dump()} if self._calibration else {}
        start, steps = self.bundle, list[Step]()
        for number in range(1, self._steps):
            inputs |= {
                "recover": self.config.recovery().model_dump(),
                "device": self.config.run.device,
                "of": start.digest,
            }
            work = partial(self._step, number, start, steps[-1].plan if steps else None)
            steps.append(self.folder.stage(f"step-{number}", Step, inputs, work))
            start = self._load(f"steps/{number}.pt")
        inputs["from"] = start.digest
        planned = partial(self._plan, start, steps)
        return self.folder.stage("plan", Planned, inputs, planned if steps else self._shared_plan(inputs, planned))

    def recover(self, planned: Planned) -> Recovered:
        """Cut the network and win its accuracy back; write pruned.pt."""
        inputs = {
            "plan": planned.plan.model_dump(),
            "recover": self.config.recovery().model_dump(),
            "train": self.train.digest if self.train else None,
            "seed": self._seed,
            "device": self.config.run.device,
            "iterations": self._steps,
        }
        return self.folder.stage("recover", Recovered, inputs, partial(self._recover, planned))

    def export(self, recovered: Recovered) -> Exported:
        """Write both networks for every runtime and check parity."""
        inputs = {
            "dense": model_key(self.bundle),
            "compressed": recovered.digest,
            "plan": self._plan_digest,
            "runtimes": self._versions,
            "images": [split.digest for split in (self.test, self.train) if split],
        }
        return self.folder.stage("export", Exported, inputs, self._export)

    def accuracy(self, exported: Exported) -> tuple[AccuracyComparison, ...] | Unmeasured:
        """Clean accuracy of both files in every runtime."""
        from edgeprune.accuracy_stage import Accuracies, accuracies

        if self.test is None:
            return _NO_TEST
        inputs = {
            **exported.digests(),
            **self.served,
            "test": self.test.digest,
            "confidence": self.config.budget.confidence,
        }
        return self.folder.stage("accuracy", Accuracies, inputs, partial(accuracies, self, exported, self.test)).each

    def latency(self, exported: Exported) -> tuple[LatencyComparison, ...] | Unmeasured:
        """Both files, interleaved, in every runtime; each runtime is a stage of its own."""
        if self.device is None:
            return Unmeasured(unmeasured=f"{self.profile.name} is not this machine, and no device is attached")
        settings = {"latency": self.config.latency.model_dump(), "device": self._there}
        inputs = {**exported.digests(), **settings, "seed": self._seed}
        return tuple(
            self.folder.stage(f"latency-{name}", LatencyComparison, inputs, partial(self._latency, exported, name))
            for name in self.config.latency.runtimes
        )

    def there(self, exported: Exported) -> tuple[OnDevice, ...]:
        """On a device that is not this machine: parity with this one and accuracy on a sample, in every runtime."""
        if self._there is None:
            return ()
        sample = [self.test.digest if self.test else None, self.config.remote.samples, self._seed]
        settings = {"device": self._there, "sample": sample, "confidence": self.config.budget.confidence}
        inputs = {**exported.digests(), **self.served, **settings}
        return tuple(
            self.folder.stage(f"device-{name}", OnDevice, inputs, partial(self._on_device, exported, name))
            for name in self.config.latency.runtimes
        )

    def attack(self, exported: Exported) -> RobustnessComparison | Unmeasured:
        """Attack both files in the first runtime, each a stage of its own."""
        if self.test is None:
            return _NO_TEST
        from edgeprune.attack_stage import attack_both

        return attack_both(self, exported, self.test)

    def attack_inputs(self, exported: Exported) -> dict[str, Any]:
        """What every attack on the files depends on, beside its threat model."""
        return {**exported.digests(), **self.served, "gradients": "twin 3", "device": self.config.run.device}

    def on_one(
        self, side: Side, name: str, kind: type[T], inputs: dict[str, Any], work: Callable[[], tuple[T, list[Path]]]
    ) -> Callable[[], tuple[T, Sequence[Path]]]:
        """`work` of a stage on the file of one side: what is found of the dense one is shared.

        `inputs` are the stage's; the digests of the other side's files are no part of what is shared.
        """
        if side == "compressed":
            return work
        alone = {key: value for key, value in inputs.items() if not key.startswith(f"{STEMS['compressed']}.")}
        alone |= {"versions": self._versions, "model": model_key(self.bundle)}
        return lambda: self.shared.piece(name, kind, alone, self.folder.path, work)

    def _shared_plan(
        self, inputs: dict[str, Any], work: Callable[[], tuple[Planned, list[Path]]]
    ) -> Callable[[], tuple[Planned, Sequence[Path]]]:
        """A plan is shared by the runs that differ in recovery alone: recipes are compared on the very same channels.

        One for a goal in time belongs to the processor that its candidates were measured on.
        """
        from edgeprune.environment import environment

        made = {**inputs, "versions": self._versions, "cpu": environment().cpu if self._timed else None}
        return lambda: self.shared.piece("plan", Planned, made, self.folder.path, work)

    def gradients(self, exported: Exported, side: Side, split: Split) -> Gradients:
        """How the file that is attacked is judged and differentiated."""
        return self._gradients(exported, side, self.config.latency.runtimes[0], split)

    @cached_property
    def graph(self) -> ChannelGraph:
        """The proved groups of the dense network: traced when a stage needs them, once."""
        return self._planner.graph

    @cached_property
    def _planner(self) -> Planner:
        from edgeprune.estimating import Estimating
        from edgeprune.gauging import Range
        from edgeprune.planning import Planner

        images, kind = self._images(_TIMING_IMAGES)
        range_ = Range(self.bundle, images, kind, self.config.latency, self._seed, self.device, self.shared)
        gauge = Estimating(self.bundle, self._calibration, range_.settings) if self._calibration else range_
        return Planner(self.bundle, self.config, self._multiple, self.train, gauge, self.console, self.shared)

    def images(self, count: int) -> Floats:
        """Up to `count` images to time with, float32 (M, C, H, W)."""
        return self._images(count)[0]

    # --------------------------------------------------------------------------------------------- work

    def _step(self, number: int, start: ModelBundle, before: PrunePlan | None) -> tuple[Step, list[Path]]:
        """One step of several: prune a little, recover, keep the network and the plan so far."""
        plan, pruned = self._planner.step(number, start, before)
        if pruned is start:
            bundle: ModelBundle = start
            info: RecoveryInfo | Unmeasured = Unmeasured(unmeasured="nothing was removed in this step")
        else:
            assert plan is not None  # something was removed
            bundle, info = self._recovered(pruned, plan, number)
        path = self.folder.path / "steps" / f"{number}.pt"
        _save(bundle, path)
        return Step(plan=plan, recovery=info, digest=bundle.digest), [path]

    def _plan(self, start: ModelBundle, steps: Sequence[Step]) -> tuple[Planned, list[Path]]:
        from edgeprune.pruning.plan import layer_changes

        plan, pruned = self._planner.step(self._steps, start, steps[-1].plan if steps else None)
        assert plan is not None  # the last step cuts, or an earlier one has cut
        path, files = self.folder.path / PLAN, []
        write_text(path, plan.to_json())
        if steps:
            files.append(self.folder.path / START)
            _save(pruned, files[0])
        made = tuple(StepRecord.of(step.plan, step.recovery) for step in steps if step.plan)
        return Planned(plan=plan, layers=layer_changes(plan, self.graph), steps=made), [path, *files]

    def _recover(self, planned: Planned) -> tuple[Recovered, list[Path]]:
        from edgeprune.pruning.plan import apply

        start = self._load(START) if self._steps > 1 else apply(planned.plan, self.bundle, self.graph)
        bundle, info = self._recovered(start, planned.plan, self._steps)
        path = self.folder.path / PRUNED
        _save(bundle, path, plan=planned.plan)
        return Recovered(info=info, digest=bundle.digest), [path]

    def _recovered(
        self, pruned: ModelBundle, plan: PrunePlan, number: int
    ) -> tuple[ModelBundle, RecoveryInfo | Unmeasured]:
        from edgeprune.pruning.plan import kept_outputs
        from edgeprune.recovery.recover import Task, recover

        settings = self._budgeted(last=number == self._steps)
        after = f" after step {number} of {self._steps}" if self._steps > 1 else ""
        with self.console.task(f"recovering ({settings.recipe}){after}") as progress:
            checkpoints = self.folder.scratch(f"recover-{pruned.digest[:16]}")
            kept = kept_outputs(plan, self.graph)
            task = Task(settings, self.train, self._seed, self.config.run.device, checkpoints, kept)
            return recover(pruned, self.bundle, task, progress=progress)

    def _export(self) -> tuple[Exported, list[Path]]:
        images = [split.digest for split in (self.test, self.train) if split]
        inputs = {"dense": model_key(self.bundle), "runtimes": self._versions, "images": images, "seed": self._seed}
        root, work = self.folder.path, partial(self._export_side, "dense")
        dense, files = self.shared.piece("export", Exported, inputs, root, work)
        compressed, more = self._export_side("compressed")
        artifacts, parity = (*dense.artifacts, *compressed.artifacts), (*dense.parity, *compressed.parity)
        return Exported(artifacts=artifacts, parity=parity), [*files, *more]

    def _export_side(self, side: Side) -> tuple[Exported, list[Path]]:
        images, inputs = self._images(16)
        plan = self._plan_digest if side == "compressed" else ""
        destination = Destination(self.folder.path, STEMS[side], side, plan)
        with self.console.task(f"exporting the {side} network"):
            made = export_network(self.network(side), destination, self.config.latency.runtimes, images, inputs)
        return Exported(artifacts=made.artifacts, parity=made.parity), list(made.files)

    def _latency(self, exported: Exported, name: str) -> tuple[LatencyComparison, list[Path]]:
        from edgeprune.latency.measure import Bench, measure

        images, _ = self._images(_TIMING_IMAGES)
        dense, compressed = (timed_file(self.folder.path, exported.of(side, _runtime(name).format)) for side in STEMS)
        settings, bench = self.config.latency, Bench(self.profile.name, self.device)
        with self.console.task(f"timing in {name}") as progress:
            result = measure(dense, compressed, name, images, settings, bench=bench, seed=self._seed, progress=progress)
        return result, []

    def _on_device(self, exported: Exported, name: str) -> tuple[OnDevice, list[Path]]:
        from edgeprune.there import on_device, sample_of

        assert self.device is not None
        format, images = _runtime(name).format, self._images(16)
        files = [timed_file(self.folder.path, exported.of(side, format)) for side in STEMS]
        sessions = [self.open(exported, side, name) for side in STEMS]
        sample = sample_of(self.test, self.config.remote.samples, self._seed, images)
        pairs, confidence = tuple(zip(files, sessions, strict=True)), self.config.budget.confidence
        with self.console.task(f"both files on {self.device.name}, in {name}"):
            return on_device(self.device, pairs, sample, self.profile.name, confidence), []

    def _gradients(self, exported: Exported, side: Side, name: str, subset: Split) -> Gradients:
        """The twin of the exported file; the network that was exported, whose parity is known, where there is none."""
        from edgeprune.robustness.twin.source import CHECKED, EXPORTED_MODULE, Gradients, gradients_of, twin_of

        session, preprocessing = self.open(exported, side, name), self.bundle.preprocessing
        file = self.folder.path / exported.of(side, _runtime(name).format).path
        try:
            twin = twin_of(file, self.bundle.input_shape)
            return gradients_of(twin, file, session, subset.source.read(subset.ids[:CHECKED]), preprocessing)
        except (ModelError, ParityError) as error:
            self.console.warn(f"{error.what}: the gradients come from {EXPORTED_MODULE}")
            return Gradients(self.network(side).network(), session, f"{EXPORTED_MODULE} (the file has no twin)")

    # ------------------------------------------------------------------------------------------ lookups

    @property
    def _seed(self) -> int:
        return self.config.run.seed

    @property
    def _there(self) -> dict[str, Any] | None:
        """The device that is not this machine, for a stage's inputs."""
        machine = self.device.machine if self.device else None
        return {"host": self.config.remote.host, **machine.model_dump()} if machine else None

    @property
    def _calibration(self) -> Calibration | None:
        """What a goal in time is aimed by where there is nothing to measure on."""
        return calibration_for(self.profile, self.config.latency) if self._timed and self.device is None else None

    @property
    def _timed(self) -> bool:
        return self.config.prune.goal().kind in ("speedup", "latency_ms")

    @property
    def _steps(self) -> int:
        return self.config.prune.iterations

    def _budgeted(self, *, last: bool) -> RecoverConfig:
        """[recover] with the epochs, or minutes, that one of the steps may take."""
        from edgeprune.pruning.iterative import step_epochs

        whole = self.config.recovery()
        epochs = step_epochs(whole.epochs, self._steps, whole.iteration_epochs)[1 if last else 0]
        minutes = None if whole.minutes is None else whole.minutes / self._steps
        return whole.model_copy(update={"epochs": epochs, "minutes": minutes})

    @property
    def _multiple(self) -> int:
        return self.config.prune.channel_multiple or self.profile.multiple_for(self.config.latency.runtimes[0])

    @property
    def served(self) -> dict[str, Any]:
        """How files are served where they are judged: the first runtime is the one that is attacked."""
        return {"runtimes": self.config.latency.runtimes, "threads": self.config.latency.threads}

    @property
    def _versions(self) -> dict[str, str]:
        return {name: _runtime(name).version() for name in self.config.latency.runtimes}

    @property
    def _plan_digest(self) -> str:
        return sha256_of(self.folder.path / PLAN)

    def network(self, side: Side) -> ModelBundle:
        """The dense bundle, or the compressed one as it was saved: what a user gets back is what is exported."""
        return self.bundle if side == "dense" else self._load(PRUNED)

    def _load(self, name: str) -> ModelBundle:
        from edgeprune.models import load

        return load(self.folder.path / name, self.config.model)

    def open(self, exported: Exported, side: Side, name: str) -> protocols.Session:
        runtime = _runtime(name)
        path = self.folder.path / exported.of(side, runtime.format).path
        return runtime.open(path, threads=self.config.latency.threads)

    def _images(self, count: int) -> tuple[Floats, Literal["real", "random"]]:
        """Up to `count` test images, else training images, else noise inside the pixel bounds (by the seed)."""
        for split in (self.test, self.train):
            if split is not None:
                return split.source.read(split.ids[:count]), "real"
        low, high = self.bundle.preprocessing.bounds
        noise = np.random.default_rng(self._seed).random((count, *self.bundle.input_shape), dtype=np.float32)
        return low + noise * np.float32(high - low), "random"


def _save(bundle: ModelBundle, path: Path, plan: PrunePlan | None = None) -> None:
    from edgeprune.models import save

    save(bundle, path, plan=plan)


def _runtime(name: str) -> protocols.Runtime:
    runtime: protocols.Runtime = protocols.find("runtime", name)
    return runtime
