"""Candidates for a goal in time: aimed at it, and among several of one predicted time, the one that recovers best.

Promise: a choice is written down with what it rests on. The networks that were tried are thrown away: recovery begins
anew. A plan that does better in its trial and then misses the goal, or meets it with widths that do worse, is not
taken: the next best has its turn. A plan that is short of a speed-up, within the tolerance of the goal, is taken only
where it does clearly better, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from edgeprune.console import Console
from edgeprune.types import GOAL_TOLERANCE, Goal

if TYPE_CHECKING:
    from edgeprune.planning import Wish
    from edgeprune.pruning.aim import Aimed, Proposals, Timing
    from edgeprune.pruning.block_allocation import Choice
    from edgeprune.pruning.timed import TimedChoices
    from edgeprune.pruning.variants import Variant
    from edgeprune.recovery.trial import Trial
    from edgeprune.types import ChannelGraph, ModelBundle, Progress

_MOST_AIMED = 4
"""Candidates that are measured of a plan that did better: it is near the goal, and in noise each takes long."""
_PLACES = "best", "second best", "third best", "fourth best", "fifth best"
"""Plans that are aimed, from the best on, before the one that loses least importance is kept."""
_MOST_SHORT = 8
_CLEARLY = 0.9
"""Of the distance from the dense network: what is short of a speed-up must come so much nearer to be taken."""


@dataclass(frozen=True, slots=True)
class Target:
    """A goal, and how choices are timed for it: the longer, the less settled the figure is. `how` stands in notes.

    `short`: what was timed on the way and is just short of the goal.
    """

    goal: Goal
    time: Callable[[Choice, Callable[[Timing], bool]], Timing]
    how: str
    console: Console
    short: list[tuple[Choice, Timing]] = field(default_factory=list)

    def aim(self, proposals: Proposals[Choice]) -> Aimed[Choice]:
        """The choice that meets the goal, of those that are proposed."""
        from edgeprune.pruning.aim import aim_among, just_short, settled

        def measure(choice: Choice) -> Timing:
            timing = self.time(choice, partial(settled, self.goal))
            if just_short(self.goal, timing) and all(choice != other for other, _ in self.short):
                self.short.append((choice, timing))
            return timing

        with self.console.task(f"aiming at {self.goal.kind} {self.goal.value:g}") as progress:
            return aim_among(self.goal, proposals, measure, how=self.how, progress=progress)


@dataclass(frozen=True, slots=True, eq=False)
class Contest:
    """What plans are set against each other by: the goal, what they lose, and the trial of the network that each is."""

    target: Target
    timed: TimedChoices
    trial: Trial
    network_of: Callable[[Choice], ModelBundle]

    def distance(self, choice: Choice) -> float:
        """How far its network stays from the dense one in the trial, in nats."""
        return self.trial.distance(self.network_of(choice))


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """How far each variant stayed from the dense network, in nats, and the importance that it loses; the first is the
    one that was aimed at the goal."""

    nats: tuple[float, ...]
    lost: tuple[float, ...]

    @property
    def scores(self) -> tuple[float, ...]:
        """What variants are ranked by, less is better: see `_score`."""
        return tuple(_score(*each) for each in zip(self.nats, self.lost, strict=True))

    @property
    def order(self) -> tuple[int, ...]:
        """All of them, the best first."""
        return tuple(sorted(range(len(self.scores)), key=self.scores.__getitem__))

    @property
    def better(self) -> tuple[int, ...]:
        """Those that did better than the first, the best first."""
        return tuple(number for number in self.order if self.scores[number] < self.scores[0])


def _score(nats: float, lost: float) -> float:
    """Two judges in one figure, less is better: what importance says knows nothing of the images, and a trial of two
    passes is early: it is lenient with a layer that is too narrow to learn more later."""
    return nats * (1 + lost)


def proposals_of(timed: TimedChoices, first: float | None = None) -> Proposals[Choice]:
    """Choices by their share of the predicted time; a few only, where a first share is known."""
    from edgeprune.pruning.aim import Proposals

    found = Proposals(timed.propose, timed.share, "predicted time", timed.plain_loss)
    return found if first is None else replace(found, first=first, most=_MOST_AIMED)


def opened_trial(bundle: ModelBundle, graph: ChannelGraph, wish: Wish) -> Trial | None:
    """The trial that candidates are put to; None where none is wanted, or where it would tell nothing."""
    if wish.settings.trials < 2 or wish.trials_on is None or wish.train is None:
        return None
    from edgeprune.recovery.trial import Trial

    return Trial.opened(bundle, graph.macs, wish.train, wish.seed, wish.trials_on)


def best_tried(contest: Contest, aimed: Aimed[Choice], count: int) -> Aimed[Choice]:
    """`aimed`, or what is aimed anew with the weights of a variant that did better in its trial.

    A plan that misses the goal is the fastest there is, and has no rivals.
    """
    from edgeprune.pruning.aim import reached
    from edgeprune.pruning.variants import variants

    target, timed = contest.target, contest.timed
    if reached(target.goal, aimed.timing) < 1:
        return aimed
    share, console = timed.share(aimed.widths) * (1 + GOAL_TOLERANCE), target.console
    with console.task("trying plans of one predicted time") as progress:
        rivals = variants(timed, aimed.widths, share, count)
        if len(rivals) < 2:
            return aimed
        found = tried(rivals, contest, progress)
    told = partial(_note, found, contest.trial)
    if not found.better:
        return replace(aimed, notes=(*aimed.notes, told("it is the one that loses least importance, too")))
    reasons = [f"the one that loses least importance: {_nats(found.nats[0])}"]
    for place, number in zip(_PLACES, found.better, strict=False):
        chosen, nats = rivals[number], found.nats[number]
        better = target.aim(proposals_of(chosen.proposer, share))
        if reached(target.goal, better.timing) < 1:
            reasons.append(f"the {place} missed the goal")
            continue
        if better.widths != chosen.choice:  # the goal as measured asked for other widths, which nobody has tried
            with console.task("trying the plan that meets the goal"):
                nats = contest.distance(better.widths)
            reasons.append(f"{_nats(nats)} at the widths that the {place} meets the goal with")
        if _score(nats, timed.plain_loss(better.widths)) < found.scores[0]:
            taken = () if place == "best" else (f"the {place}, {_nats(nats)}, was taken",)
            return replace(better, notes=(*better.notes, told("; ".join((*reasons, *taken)))))
    reasons.append("the one that loses least importance was kept")
    return replace(aimed, notes=(*aimed.notes, told("; ".join(reasons))))


def or_uniform(contest: Contest, aimed: Aimed[Choice]) -> Aimed[Choice]:
    """`aimed`, or uniform widths (every group loses the same share) where those meet the goal and do better in a trial.

    What is optimised leans on the timed layers, errors included: of two plans it takes the one that is thought to be
    too cheap. Uniform widths lean on none.
    """
    from edgeprune.pruning.aim import reached

    target, timed = contest.target, contest.timed
    if reached(target.goal, aimed.timing) < 1 or timed.importance.scope == "blocks" or timed.rules.ranking == "local":
        return aimed
    proposer = replace(timed, rules=replace(timed.rules, ranking="local"))
    first = timed.share(aimed.widths)
    uniform = target.aim(proposals_of(proposer, first))
    if reached(target.goal, uniform.timing) < 1 or uniform.widths == aimed.widths:
        return aimed
    with target.console.task("trying uniform widths beside the plan"):
        ours, other = (contest.distance(each.widths) for each in (aimed, uniform))
    nearer = other < ours
    side = "nearer to" if nearer else "further from"
    told = f"stayed {side} the dense network in a trial: {_nats(other)} for {_nats(ours)}"
    best = uniform if nearer else aimed
    return replace(best, notes=(*best.notes, f"uniform widths meet the goal, too, and {told}"))


def or_short(contest: Contest, aimed: Aimed[Choice]) -> Aimed[Choice]:
    """`aimed`, or the best of the plans that are just short of the speed-up, where both judges prefer it (`_score`): it
    loses less importance, and does clearly better in a trial.

    Kernels have steps: a plan that is a percent short of the goal may keep a step more than any that meets it.
    """
    from edgeprune.pruning.aim import Aimed, reached

    target, lost = contest.target, contest.timed.plain_loss
    if reached(target.goal, aimed.timing) < 1:
        return aimed
    near = sorted(target.short, key=lambda one: lost(one[0]))[:_MOST_SHORT]
    near = [(choice, timing) for choice, timing in near if lost(choice) < lost(aimed.widths)]
    if not near:
        return aimed
    with target.console.task("trying plans that are just short of the goal"):
        ours = contest.distance(aimed.widths)
        found = Tried(tuple(contest.distance(choice) for choice, _ in near), tuple(lost(choice) for choice, _ in near))
    best = found.order[0]
    nats, (choice, timing) = found.nats[best], near[best]
    if not nats < _CLEARLY * ours:
        return aimed
    short, allowed = 1 - reached(target.goal, timing), f"{GOAL_TOLERANCE:.0%}"
    told = (
        f"the speed-up is {short:.1%} short of the goal, within the {allowed} that it is met by: {_nats(nats)} from "
        f"the dense network in a trial, where the best plan that reaches the goal ({aimed.timing.speedup:.2f}x) stayed "
        f"{_nats(ours)} away"
    )
    return Aimed(choice, timing, (told, f"{target.how}: {timing.speedup:.2f}x, p50 {timing.latency_ms:.3g} ms"))


def tried(variants: Sequence[Variant], contest: Contest, progress: Progress) -> Tried:
    """Train the network of every variant a little."""
    found: list[float] = []
    for variant in variants:
        said = f", the best so far at {min(found):.3g} nats" if found else ""
        progress(f"plan {len(found) + 1} of {len(variants)}{said}", len(found) / len(variants))
        found.append(contest.distance(variant.choice))
    return Tried(tuple(found), tuple(variant.lost for variant in variants))


def _note(found: Tried, trial: Trial, reason: str) -> str:
    best = _nats(found.nats[found.order[0]])
    told = f"{best} from the dense network's answers on {len(trial.jury.split)} held-out images"
    after = f"after {trial.passes} {'pass' if trial.passes == 1 else 'passes'} of {trial.images} images"
    return f"the best of {len(found.nats)} plans of one predicted time {after}: {told} ({reason})"


def _nats(value: float) -> str:
    return f"{value:.3g} nats" if math.isfinite(value) else "diverged"
