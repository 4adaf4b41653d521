"""The training loop: a schedule by epochs or by the clock, the best state on held-out images, and ways back.

Promise: what comes out is no worse on the held-out images than what went in, by more than chance. A state is written
after each epoch, and a training that was killed goes on from it: on one thread it ends with the same weights (by the
clock it ends when the time does). A loss that explodes, and single-step adversarial training that collapses, are taken
back by an epoch and tried again, once with a lower rate, or with an adversary of two steps; a second explosion is an
error.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeprune.errors import RecoveryError
from edgeprune.models.folding import NOTHING, Folding
from edgeprune.recovery.adversary import collapsed
from edgeprune.recovery.calibration import recalibrate
from edgeprune.recovery.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from edgeprune.recovery.draws import Draws
from edgeprune.recovery.held_out import Judged, Jury
from edgeprune.recovery.images import mixed, shuffled
from edgeprune.recovery.learner import Course, Learner, State, optimizer_of, peak_rate, state_of
from edgeprune.recovery.precision import Precision, choose
from edgeprune.recovery.recipes import Lesson
from edgeprune.recovery.schedules import Pace, rate_share, to_go
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.types import Progress

_LOWER = 0.1
_EXPLODED, _WATCHED = 20.0, 8  # times the loss of the first steps, over so many steps
_SAFER_STEPS = 2
_SETTLED = 0.8  # of the schedule: before that the rate is high, and no state is worth a look of the jury
_GLANCE, _GLANCE_STEPS = 64, 5  # images and steps that tell a collapse, which is total, in every epoch


@dataclass(frozen=True, slots=True, eq=False)
class Workshop:
    """What a training works with: its lesson, who judges, seed, and where checkpoints go (under which key).

    `before`: seconds that recovery took before its training, which a budget of minutes covers, too; `look`: seconds
    that the jury takes for a look, the last of which a budget of minutes covers.
    """

    lesson: Lesson
    jury: Jury
    seed: int
    checkpoints: Path | None
    key: str
    before: float = 0.0
    look: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The best state, what the jury said about it, and how the training went."""

    state: State
    judged: Judged
    epochs: int
    course: Course


class _DivergedError(Exception):
    """The loss, or a gradient, is not finite, or the loss exploded; the text says which."""


def train(network: nn.Module, start: Judged, workshop: Workshop, progress: Progress | None = None) -> Trained:
    """Train `network` (pixels to logits, in place); `start` is what the jury says about it now.

    Errors: RecoveryError when training diverges twice.
    """
    settings = workshop.lesson.settings
    if settings.robust:
        folding = Folding.of(network, workshop.lesson.images.batch(np.arange(1)))
        workshop = replace(workshop, lesson=replace(workshop.lesson, folding=folding))
    learner = _opened(network, start, workshop)
    course = learner.course
    lesson = replace(workshop.lesson, precision=course.precision)
    with _own_randomness(lesson.images.device):
        workshop = replace(workshop, lesson=lesson)
        if course.reserve is None:  # for the last look
            course.reserve = 0.0 if settings.minutes is None else workshop.look
        pace, draws = Pace.of(settings, course.spent, course.reserve), Draws(lesson, workshop.seed)
        while not pace.over(learner.epoch, course.spent) and not _tired(course, settings.patience):
            saved = learner.snapshot()
            try:
                perturbed = _epoch(learner, draws, pace, progress)
            except _DivergedError as error:
                learner.restore(saved)
                course.spent = pace.elapsed()
                _lower_rate(course, str(error), peak_rate(network, settings))
                continue
            done = pace.done(learner.epoch + 1, 0, 1)
            if perturbed and _overfitted(learner, workshop):
                learner.restore(saved)
                course.spent = pace.elapsed()
                course.first, course.steps = None, _SAFER_STEPS
                course.notes.append(
                    f"single-step training collapsed in epoch {learner.epoch + 1}: taken back, then PGD with 2 steps"
                )
                continue
            learner.epoch += 1
            if done >= _SETTLED or settings.patience is not None:
                _judge(learner, workshop)
            course.spent = pace.elapsed()
            _keep(learner, workshop)
    if _tired(course, settings.patience):
        course.notes.append(f"stopped early: {course.stale} epochs without a better held-out result")
    return Trained(learner.best, _kept(course), learner.epoch, course)


def train_briefly(network: nn.Module, lesson: Lesson, seed: int) -> bool:
    """The epochs of the lesson's settings, in place, with no look at held-out images; False where it diverged."""
    settings = lesson.settings
    course = Course("bfloat16" if lesson.precision == "bfloat16" else "float32", settings.adversary_steps)
    learner = Learner(network, optimizer_of(network, settings.optimizer), {}, course, {})
    with _own_randomness(lesson.images.device):
        draws, pace = Draws(lesson, seed), Pace.of(settings, 0.0, 0.0)
        try:
            while not pace.over(learner.epoch, course.spent):
                _epoch(learner, draws, pace, None)
                learner.epoch += 1
        except _DivergedError:
            return False
    return True


def _opened(network: nn.Module, start: Judged, workshop: Workshop) -> Learner:
    """The learner as a checkpoint left it, or at its start; its precision is decided, and written down, here."""
    lesson, settings = workshop.lesson, workshop.lesson.settings
    optimizer, folder, device = optimizer_of(network, settings.optimizer), workshop.checkpoints, lesson.images.device
    found = read_checkpoint(folder, device, task=workshop.key) if folder else None
    if found:
        network.load_state_dict(found.network)
        optimizer.load_state_dict(found.optimizer)
        course = Course(**found.course)
        course.notes += _taken_up(found.epoch, settings, device)
        return Learner(network, optimizer, found.average, course, found.best_network, found.epoch)
    began = time.perf_counter()
    course = Course(_precision(network, workshop), settings.adversary_steps)
    course.spent = workshop.before + time.perf_counter() - began
    course.best_robust = start.robust or 0.0
    _note(course, start)
    course.floor = 0.0 if start.score is None else start.score - start.error
    weights = {name: p.detach().clone() for name, p in network.named_parameters()} if settings.average else {}
    learner = Learner(network, optimizer, weights, course, state_of(network))
    if settings.precision == "auto":
        _keep(learner, workshop)
    return learner


def _taken_up(epoch: int, settings: RecoverConfig, device: str) -> list[str]:
    """What is to be said about a training that goes on after a stop; nothing where it ends as if there was none."""
    if settings.minutes is not None:
        return [f"taken up again after epoch {epoch}, with the minutes that were left"]
    if torch.device(device).type != "cpu" or torch.get_num_threads() > 1:
        where = "several threads" if torch.device(device).type == "cpu" else device  # neither adds in a fixed order
        return [f"taken up again after epoch {epoch}, on {where}: the weights are the same within noise only"]
    return []


def _precision(network: nn.Module, workshop: Workshop) -> Precision:
    """What to compute in, timed on a copy of the network."""
    lesson, trial = workshop.lesson, copy.deepcopy(network).train()
    positions = np.arange(min(lesson.settings.batch_of(len(lesson.images)), len(lesson.images)))

    def step(precision: Precision) -> None:
        one = replace(lesson, precision=precision)
        one.loss(trial, positions, lesson.settings.adversary_steps, torch.Generator()).backward()  # type: ignore[no-untyped-call]

    with _own_randomness(lesson.images.device):
        return choose(lesson.settings.precision, lesson.images.device, step)


def _epoch(learner: Learner, draws: Draws, pace: Pace, progress: Progress | None) -> bool:
    """One pass over the images, or what the time allows of it, in place; whether some were perturbed.

    Errors: _DivergedError.
    """
    course, epoch, network, settings = learner.course, learner.epoch, learner.network, draws.lesson.settings
    began, count = time.perf_counter(), len(draws.lesson.images)
    epochs = pace.expected(epoch)
    if progress and draws.due(epoch, epochs):
        progress(f"{settings.recipe}: {pace.label(epoch)}, the teacher looks at it", pace.done(epoch, 0, 1))
    lesson = draws.at(epoch, epochs, lambda: pace.done(epoch, 0, 1) >= 1)
    course.training += time.perf_counter() - began
    peak = peak_rate(network, settings) * course.rate
    batches = shuffled(count, draws.seed + epoch, settings.batch_of(count))
    torch.manual_seed(mixed(draws.seed, epoch))  # for dropout: an epoch is the same wherever training was resumed
    network.train()
    losses: list[float] = []
    perturbed = False
    for step, positions in enumerate(batches):
        done = pace.done(epoch, step, len(batches))
        if done >= 1:
            break
        started = time.perf_counter()
        for group in learner.optimizer.param_groups:
            group["lr"] = peak * rate_share(done, settings.schedule, settings.warmup)
        generator = torch.Generator().manual_seed(mixed(draws.seed, epoch, int(lesson.images.split.ids[positions[0]])))
        hard = settings.robust and done >= settings.natural_share
        losses.append(_step(learner, lesson, positions, course.steps * hard, generator))
        perturbed |= hard
        _watch(losses, course)
        course.seen += len(positions)
        course.training += time.perf_counter() - started
        if progress and step % 8 == 0:
            progress(_said(settings.recipe, pace, epoch, (losses[-1], course.seen / course.training), done), done)
    return perturbed


def _said(recipe: str, pace: Pace, epoch: int, figures: tuple[float, float], done: float) -> str:
    """The line of progress; `figures`: loss, images a second."""
    text = f"{recipe}: {pace.label(epoch)}, loss {figures[0]:.3f}, {figures[1]:,.0f} images/s"
    return ", ".join(part for part in (text, to_go(pace.elapsed(), done)) if part)


def _step(learner: Learner, lesson: Lesson, positions: Any, steps: int, generator: torch.Generator) -> float:
    """One step of the optimizer, against an adversary of `steps`; the loss.

    Errors: _DivergedError when it, or the gradient, is not finite.
    """
    network, settings = learner.network, lesson.settings
    loss = lesson.loss(network, positions, steps, generator)
    loss.backward()  # type: ignore[no-untyped-call]
    value, length = float(loss.detach()), float(nn.utils.clip_grad_norm_(network.parameters(), settings.clip))
    if not math.isfinite(value):
        raise _DivergedError(f"the loss is {value}")
    if not math.isfinite(length):
        raise _DivergedError("a gradient is not finite")
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    if settings.average:
        past = learner.course.seen / len(positions)
        taken = 1 - min(settings.average, (1 + past) / (10 + past))  # the first steps must not weigh for ever
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                learner.average[name].lerp_(parameter, taken)
    return value


def _watch(losses: list[float], course: Course) -> None:
    """_DivergedError when the last losses are far above the first ones."""
    if len(losses) < _WATCHED:
        return
    recent = float(np.mean(losses[-_WATCHED:]))
    if course.first is None:
        course.first = recent
    elif recent > _EXPLODED * max(1.0, course.first):
        raise _DivergedError(f"the loss rose from {course.first:.3g} to {recent:.3g}")


def _lower_rate(course: Course, what: str, peak: float) -> None:
    """The one retry. Errors: RecoveryError when it was used up."""
    if course.rate < 1:
        raise RecoveryError(
            f"training diverged twice: {what}",
            where=f"at a learning rate of {peak:g}, and again at {peak * course.rate:g}",
            hint="lower --recover-learning-rate",
        )
    course.rate *= _LOWER
    course.notes.append(f"training diverged ({what}): taken back, then a learning rate of {peak * course.rate:g}")


def _overfitted(learner: Learner, workshop: Workshop) -> bool:
    """Whether single-step training has lost its robustness, by PGD on held-out images."""
    course = learner.course
    if course.steps > 1:
        return False
    learner.network.eval()
    with workshop.lesson.folding.done():
        single, pgd = (workshop.jury.under_attack(learner.network, steps, _GLANCE) for steps in (1, _GLANCE_STEPS))
    if single is None or pgd is None:
        return False
    if collapsed(single, pgd, course.best_robust):
        return True
    course.best_robust = max(course.best_robust, pgd)
    return False


def _judge(learner: Learner, workshop: Workshop) -> None:
    """Ask the jury about the network, or about the mean of its weights; keep the state when it is the best so far."""
    lesson, course = workshop.lesson, learner.course
    candidate, folding = learner.network, lesson.folding
    if learner.average:
        candidate, folding = copy.deepcopy(learner.network), NOTHING
        with torch.no_grad():
            for name, parameter in candidate.named_parameters():
                parameter.copy_(learner.average[name])
        recalibrate(candidate, lesson.images.split, lesson.images.device, seed=workshop.seed)
    candidate.eval()
    with folding.done():
        now = workshop.jury.judge(candidate, robust=lesson.settings.robust)
    gained = _gained(now, course, by_distance=lesson.teacher is not None)
    if gained >= 0:
        _note(course, now)
        learner.best = state_of(candidate)
    course.stale = 0 if gained > 0 or now.score is None else course.stale + 1


def _note(course: Course, judged: Judged) -> None:
    """The state that is kept is the one that was judged so."""
    course.accuracy, course.robust, course.far, course.further = (
        judged.accuracy,
        judged.robust,
        judged.far,
        judged.further,
    )


def _kept(course: Course) -> Judged:
    """What was said of the state that is kept."""
    return Judged(course.accuracy, course.robust, far=course.far, further=course.further)


def _gained(now: Judged, course: Course, *, by_distance: bool) -> float:
    """Above 0 where a state is better than the one that is kept, 0 where nothing tells them apart.

    Where there is a teacher, the better of two is the nearer one, unless it is worse than the best so far by more than
    chance.
    """
    kept = _kept(course)
    if now.score is None or kept.score is None:
        return 0.0
    course.floor = max(course.floor, now.score - now.error)
    if not by_distance or now.distance is None or kept.distance is None:
        return now.score - kept.score
    if now.score < course.floor:
        return -math.inf
    return math.inf if kept.score < course.floor else kept.distance - now.distance


def _tired(course: Course, patience: int | None) -> bool:
    return patience is not None and course.stale >= patience


def _keep(learner: Learner, workshop: Workshop) -> None:
    if workshop.checkpoints:
        network, optimizer = learner.network.state_dict(), learner.optimizer.state_dict()
        state = Checkpoint(
            *(learner.epoch, network, optimizer, learner.best, learner.average),
            *(asdict(learner.course), workshop.key),
        )
        write_checkpoint(workshop.checkpoints, state)


@contextmanager
def _own_randomness(device: str) -> Iterator[None]:
    """The block may seed torch's generators; afterwards they are as they were. Gradients are on."""
    with (
        torch.enable_grad(),
        torch.random.fork_rng(devices=[torch.device(device)] if device.startswith("cuda") else []),
    ):
        yield
