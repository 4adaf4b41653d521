"""From a network to a plan inside of a run: score, allocate, and have candidates measured where the goal is in time.

One step at a time: `edgeprune.steps` recovers between them. Of what is measured on the way, the plan keeps what its own
network was timed at.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from edgeprune.config import Config, PruneConfig
from edgeprune.console import Console
from edgeprune.errors import MeasurementError
from edgeprune.keys import model_key
from edgeprune.placing import in_place
from edgeprune.records import Interval, PlanTiming, PrunePlan
from edgeprune.sweeping.sharing import Shared
from edgeprune.trying import Contest, Target, best_tried, opened_trial, or_short, or_uniform, proposals_of
from edgeprune.types import ChannelGraph, Goal, ModelBundle, Split

if TYPE_CHECKING:
    from edgeprune.gauging import Gauge
    from edgeprune.pruning.aim import Timing
    from edgeprune.pruning.allocation import Rules
    from edgeprune.pruning.timed import Tables

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
        of_last = {"notes": notes, "timing": plan.timing}
        whole = whole.model_copy(update={"goal": last.kind, "goal_value": last.value, **of_last})
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
    kept = _kept_timing(gauge.settings.runtimes[0], aimed.timing)
    return plan_with(choice).model_copy(update={"notes": notes, "timing": kept})


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


def _kept_timing(runtime: str, timing: Timing) -> PlanTiming | None:
    """What the plan keeps of a timing; None of one where nothing ran."""
    if timing.dense_ms is None or timing.speedup_interval is None:
        return None
    low, high = timing.speedup_interval
    return PlanTiming(
        runtime=runtime,
        speedup=timing.speedup,
        interval=Interval(low=low, high=high),
        dense_p50_ms=timing.dense_ms,
        compressed_p50_ms=timing.latency_ms,
    )
