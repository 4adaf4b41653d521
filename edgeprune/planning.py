"""From a network to a plan inside of a run: score, allocate, and have candidates measured where the goal is in time.

One step at a time: `edgeprune.steps` recovers between them. Nothing that is measured on the way is kept.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from edgeprune import protocols
from edgeprune.artifacts import Destination, export_network, timed_file
from edgeprune.config import Config, PruneConfig
from edgeprune.console import Console
from edgeprune.errors import ExportError, MeasurementError, ParityError
from edgeprune.keys import model_key
from edgeprune.latency.settings import LatencyConfig
from edgeprune.placing import in_place
from edgeprune.records import Artifact, LatencyFile, PrunePlan, QuickRatio, Record, Side
from edgeprune.sweeping.sharing import Shared, digest_of
from edgeprune.trying import Contest, Target, best_tried, opened_trial, or_short, or_uniform, proposals_of
from edgeprune.types import ChannelGraph, Goal, ModelBundle, Split

if TYPE_CHECKING:
    from edgeprune.export.stamping import Stamp
    from edgeprune.latency.costs import Table, Wanted
    from edgeprune.pruning.aim import Timing
    from edgeprune.pruning.allocation import Rules
    from edgeprune.pruning.timed import Tables
    from edgeprune.types import Floats, Progress

TIMED_GOALS = ("speedup", "latency_ms")


@dataclass(frozen=True)
class Planner:
    """Plans the steps of one run, all of them counted from the dense `bundle`."""

    bundle: ModelBundle
    config: Config
    multiple: int
    train: Split | None
    gauge: Gauge
    console: Console
    shared: Shared

    @cached_property
    def graph(self) -> ChannelGraph:
        """The proved groups of the dense network: traced once, when they are needed."""
        asked = {"model": model_key(self.bundle), "ignore": self.config.prune.ignore, "scope": self.config.prune.scope}
        return self.shared.graph(asked, lambda: self._trace(self.bundle))

    def step(self, number: int, start: ModelBundle, before: PrunePlan | None) -> tuple[PrunePlan | None, ModelBundle]:
        """The plan after step `number`, relative to the dense network, and the network cut by it, not yet recovered.

        `start` is what the step before left, recovered, and `before` its plan; in the first step the dense network
        and None. A step of several in which no group is due gives both back as they are.
        """
        from edgeprune.pruning.allocation import NothingLeftError, Rules
        from edgeprune.pruning.iterative import compose, step_goal
        from edgeprune.pruning.limits import bounds_of
        from edgeprune.pruning.plan import apply, check_same_shapes
        from edgeprune.pruning.shortfall import notes_on

        prune, steps = self.config.prune, self.config.prune.iterations
        last, timed = prune.goal(), prune.goal().kind in TIMED_GOALS
        dense_ms = self.gauge.dense_ms() if number < steps and last.kind == "latency_ms" else None
        goal = step_goal(last, number, steps, prune.schedule, dense_ms=dense_ms)
        widths = {group.name: group.width for group in self.graph.groups}
        rules = Rules(prune.ranking, bounds_of(self.graph, prune.limits()), widths)
        graph = self._trace(start) if before else self.graph
        if goal.kind == "macs_ratio":
            goal = Goal(goal.kind, goal.value * self.graph.macs / graph.macs)
        device = self.config.run.device if self.config.recover.trains else None
        wish = Wish(goal, prune, self.multiple, rules, self.train, self.config.run.seed, device)
        try:
            plan = plan_for(start, graph, wish, self.gauge, self.console)
        except NothingLeftError:
            if number == steps and before is None:
                raise
            return before, start
        pruned = apply(plan, start, graph)
        if before is None:
            return plan, pruned
        whole = compose(before, plan)
        kept = {group.name: len(group.kept) for group in whole.groups}
        notes = plan.notes if timed else notes_on(self.graph, kept, last, self.multiple, rules)
        whole = whole.model_copy(update={"goal": last.kind, "goal_value": last.value, "notes": notes})
        check_same_shapes(apply(whole, self.bundle, self.graph), pruned)
        return whole, pruned

    def _trace(self, bundle: ModelBundle) -> ChannelGraph:
        from edgeprune.pruning.graph import trace

        with self.console.task("tracing and proving groups") as progress:
            graph = trace(bundle, ignore=self.config.prune.ignore, progress=progress)
        if self.config.prune.scope == "channels":
            return graph
        from edgeprune.pruning.blocks import with_blocks

        with self.console.task("finding and proving blocks"):
            return with_blocks(bundle, graph, ignore=self.config.prune.ignore)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a plan is asked for. `trials_on`: the torch device where candidates may be trained a little (None: none)."""

    goal: Goal
    settings: PruneConfig
    multiple: int
    rules: Rules
    train: Split | None
    seed: int
    trials_on: str | None = None


class Candidate(Record):
    """A file that was made to be timed, relative to where it was made."""

    artifact: Artifact


Settled = Callable[["Timing"], bool]
"""Whether a timing is known well enough."""


class Timer(Protocol):
    """Times networks against the dense one: one of them the longer, the less `settled` its figure is."""

    def __call__(self, bundle: ModelBundle, settled: Settled = ...) -> Timing: ...

    def together(
        self, networks: Mapping[str, Callable[[], ModelBundle]], seconds: float, progress: Progress
    ) -> Mapping[str, float]:
        """Shares of the dense network's time, by key, of many networks of its structure in about so many seconds.

        Fewer than were given where time ran out, none where networks cannot be timed so. Errors: MeasurementError.
        """


class Gauge(Protocol):
    """How networks are told apart for a goal in time: by a clock (`Range`), or by an estimate."""

    @property
    def settings(self) -> LatencyConfig: ...

    @property
    def how(self) -> str:
        """What the plan's notes call it."""

    def opened(self) -> AbstractContextManager[Timer]:
        """A function that tells a network's time."""

    def dense_ms(self) -> float:
        """The time of the dense network."""

    def costs(self, wanted: Sequence[Wanted], progress: Progress) -> tuple[Table, ...]:
        """Milliseconds of layers, float64 (len(outputs), len(inputs)) each."""


def at_once(timing: Timing) -> bool:
    """Any figure will do."""
    return True


@dataclass(frozen=True, slots=True)
class Range:
    """Where candidates are timed against the dense network, not yet recovered: files on the first runtime."""

    dense: ModelBundle
    images: Floats
    inputs: Literal["real", "random"]
    settings: LatencyConfig
    seed: int
    device: protocols.Device | None = None
    shared: Shared = field(default_factory=Shared)

    @property
    def how(self) -> str:
        """Candidates are exported and timed."""
        from edgeprune.pruning.aim import MEASURED

        return MEASURED

    @contextmanager
    def opened(self) -> Iterator[Timer]:
        """Times networks; their files are gone after the block."""
        from edgeprune.export.stamping import Stamp

        with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
            root = Path(name)
            dense = self.file(self.dense, "dense", root)
            yield _Stand(self, root, dense, Stamp.of(self.dense, root / "dense.onnx"))

    def dense_ms(self) -> float:
        """p50 of the dense network."""
        with self.opened() as time:
            return time(self.dense).latency_ms

    def costs(self, wanted: Sequence[Wanted], progress: Progress) -> tuple[Table, ...]:
        """Milliseconds of layers where candidates are timed. Errors: MeasurementError, those of the device."""
        from edgeprune.latency.costs import Bench, measured

        settings = self.settings
        return measured(
            Bench(settings.runtimes[0], settings.threads, settings.batch_size, self.device), wanted, progress
        )

    def candidate(self, bundle: ModelBundle, root: Path, stamp: Stamp) -> LatencyFile:
        """A file with the dense network's graph where that is the candidate's, too, else torch's own."""
        try:
            return self.file(bundle, "compressed", root, stamp)
        except (ExportError, ParityError):
            return self.file(bundle, "compressed", root)

    def file(self, bundle: ModelBundle, side: Side, root: Path, stamp: Stamp | None = None) -> LatencyFile:
        """The network's file for the first runtime. Errors: ExportError, ParityError."""
        runtime: protocols.Runtime = protocols.find("runtime", self.settings.runtimes[0])

        def export() -> tuple[Candidate, list[Path]]:
            where = Destination(root, side, side)
            made = export_network(bundle, where, (runtime.name,), self.images, self.inputs, stamp)
            return Candidate(artifact=next(a for a in made.artifacts if a.format == runtime.format)), list(made.files)

        if bundle is not self.dense:
            return timed_file(root, export()[0].artifact)
        pixels = hashlib.sha256(self.images.tobytes()).hexdigest()
        inputs = {"dense": model_key(bundle), "runtime": [runtime.name, runtime.version()], "images": pixels}
        return timed_file(root, self.shared.piece("timed", Candidate, inputs, root, export)[0].artifact)


@dataclass(frozen=True, slots=True)
class _Stand:
    """A timer (`Timer`) at an open range: the dense network's file and its mould lie in `root`."""

    range: Range
    root: Path
    dense: LatencyFile
    stamp: Stamp

    def __call__(self, bundle: ModelBundle, settled: Settled = at_once) -> Timing:
        from edgeprune.latency.measure import quick_ratio

        where = self.range
        other = self.dense if bundle is where.dense else where.candidate(bundle, self.root, self.stamp)
        return _timing(
            quick_ratio(
                self.dense,
                other,
                where.settings.runtimes[0],
                where.images,
                where.settings,
                where.seed,
                where.device,
                lambda ratio: settled(_timing(ratio)),
            )
        )

    def together(
        self, networks: Mapping[str, Callable[[], ModelBundle]], seconds: float, progress: Progress
    ) -> Mapping[str, float]:
        """On this machine, of networks that the stamp can write."""
        from edgeprune.latency.costs import Bench
        from edgeprune.latency.measure import save_images
        from edgeprune.latency.places import shares_of

        where, settings = self.range, self.range.settings
        if not networks or (where.device is not None and where.device.machine is not None):
            return {}
        try:
            where.file(next(iter(networks.values()))(), "compressed", self.root, self.stamp)
        except (ExportError, ParityError):
            return {}

        def stamped(number: int, make: Callable[[], ModelBundle]) -> Path:
            bundle, path = make(), self.root / f"crowd{number}.onnx"
            if bundle is where.dense:
                return self.root / "dense.onnx"
            self.stamp.write(bundle, path)
            return path

        wanted = {key: partial(stamped, number, make) for number, (key, make) in enumerate(networks.items())}
        images = save_images(where.images, settings.batch_size, self.root)
        bench = Bench(settings.runtimes[0], settings.threads, settings.batch_size)
        reference = digest_of(model_key(where.dense)), self.root / "dense.onnx"
        return shares_of(bench, reference, images, wanted, seconds, progress)


def _timing(ratio: QuickRatio) -> Timing:
    from edgeprune.pruning.aim import Timing

    speedup, p50 = ratio.interval, ratio.compressed_interval
    return Timing(ratio.value, ratio.compressed_p50_ms, (speedup.low, speedup.high), (p50.low, p50.high))


def plan_for(bundle: ModelBundle, graph: ChannelGraph, wish: Wish, gauge: Gauge, console: Console) -> PrunePlan:
    """The plan for a network, with notes where it does not do what was asked.

    `gauge` is used for goals in time only. Errors: PruningError when nothing can go, UsageError for limits that
    contradict each other.
    """
    from edgeprune.pruning.aim import Proposals, just_short, reached
    from edgeprune.pruning.block_allocation import Choice, by_budget, macs_after, without
    from edgeprune.pruning.importance import importance_of
    from edgeprune.pruning.plan import choose, plan_of, sketch
    from edgeprune.pruning.shortfall import obstacles
    from edgeprune.pruning.timed import TimedChoices

    goal, multiple, rules = wish.goal, wish.multiple, wish.rules
    said: tuple[str, ...] = ()
    with console.task(f"scoring {_scored(wish.settings)}"):
        importance = importance_of(bundle, graph, wish.train, wish.settings, wish.seed)

    def plan_with(choice: Choice) -> PrunePlan:
        return plan_of(bundle, graph, importance, choice, goal, multiple, wish.seed)

    def network_of(choice: Choice) -> ModelBundle:
        return sketch(plan_with(choice), bundle, graph)

    if goal.kind not in TIMED_GOALS:
        return plan_with(choose(graph, importance, goal, multiple, rules))

    def by_macs(ratio: float) -> Choice:
        return by_budget(graph, importance, ratio, multiple, rules)

    def share_of_macs(choice: Choice) -> float:
        return macs_after(graph, choice) / graph.macs

    timed: TimedChoices | None = None
    if wish.settings.cost_model == "measured":
        try:
            timed = TimedChoices(graph, importance, multiple, rules, layer_times(bundle, graph, wish, gauge, console))
        except MeasurementError as error:
            console.warn(f"{error.what}: widths are chosen by MACs")
            said = (f"widths were chosen by MACs, since layers could not be timed: {error.what}",)
    with gauge.opened() as time:
        target = Target(goal, lambda choice, known: time(network_of(choice), known), gauge.how, console)
        if timed is None:
            aimed = target.aim(Proposals(by_macs, share_of_macs))
        else:
            timed, more = in_place(timed, time, bundle, wish, network_of, console)
            said = (*said, *more)
            aimed = target.aim(proposals_of(timed))
            trial = opened_trial(bundle, graph, wish)
            if trial is not None:
                contest = Contest(target, timed, trial, network_of)
                aimed = best_tried(contest, aimed, wish.settings.trials)
                aimed = or_short(contest, or_uniform(contest, aimed))
    notes, choice = (*aimed.notes, *said), aimed.widths
    if reached(goal, aimed.timing) < 1 and not just_short(goal, aimed.timing) and wish.settings.scope != "blocks":
        notes = (*notes, *obstacles(without(graph, choice.removed), choice.widths, multiple, rules))
    return plan_with(choice).model_copy(update={"notes": notes})


def layer_times(bundle: ModelBundle, graph: ChannelGraph, wish: Wish, gauge: Gauge, console: Console) -> Tables:
    """Milliseconds of the layers on the first runtime, at the widths that they may get. Errors: those of the gauge."""
    from edgeprune.latency.copies import operators_of
    from edgeprune.latency.costs import Wanted
    from edgeprune.pruning.allocation import choices_of
    from edgeprune.pruning.knapsack import axes
    from edgeprune.pruning.timed import check_tables

    operators = operators_of(bundle)
    widths = axes(graph, choices_of(graph, wish.multiple, wish.rules))
    names = [layer.name for layer in graph.layers if layer.name in operators]
    wanted = [Wanted(operators[name], *widths[name]) for name in names]
    with console.task(f"costs of layers in {gauge.settings.runtimes[0]}") as progress:
        found = gauge.costs(wanted, progress)
    tables = {name: (each.outputs, each.inputs, ms) for name, each, ms in zip(names, wanted, found, strict=True)}
    check_tables(tables)
    return tables


def _scored(settings: PruneConfig) -> str:
    """What is scored and by which criterion, in words."""
    channels = f"channels by {settings.criterion}" if settings.scope != "blocks" else ""
    blocks = f"blocks by {settings.block_criterion or 'the default criterion'}" if settings.scope != "channels" else ""
    return " and ".join(filter(None, (channels, blocks)))
