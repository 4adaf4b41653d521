"""One file under attack: who stands, who fell, and what is known of every image.

Promise: an image counts as fallen only where the *runtime* misclassified a point inside the ball and the pixel
bounds; it leaves the loop there and then, and the survivors are packed together. Nothing here touches a global random
generator, leaves a gradient behind or changes the network.

Refusal: a logit that is not a number is an error of the file, never a success and never a survival.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import DataError
from edgeprune.robustness.attacks.losses import Objective
from edgeprune.robustness.attacks.watching import Watch, doubtful
from edgeprune.robustness.attacks.way import Ledger, Way
from edgeprune.robustness.gradients import at_rest, climb, judged, probabilities, seeds_of
from edgeprune.robustness.norms import distances, row_sizes
from edgeprune.robustness.verdicts import checked_logits, margins, mistaken, predictions, require_known
from edgeprune.types import AttackBudget, AttackOutcome, Looked, Progress, Victim

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

LAST_STEPS = 0.1  # the share of a run's steps that counts as its end
_BATCH_PIXELS = 2**20
_SMALLEST_BATCH, _LARGEST_BATCH = 8, 256
_FEW = 16  # every so many pixels are a sample
_NEARLY = 1.001  # of epsilon: what float32 finds further away than that is outside


@dataclass(frozen=True, slots=True)
class Part:
    """One attack of a run: `go` attacks what stands and yields the share of its own work that is done.

    `cost` weighs the parts for the progress, roughly in passes through the network. `asks_gradient` False: the part
    asks the runtime and nothing else.
    """

    name: str
    cost: float
    asks_gradient: bool
    go: Callable[[Run], Iterator[float]]


def attack_with(
    parts: Sequence[Part], victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, progress: Progress
) -> AttackOutcome:
    """The clean images, then every part on what still stands.

    images: float32 (N, C, H, W) inside the victim's bounds; labels: int64 (N,). DataError for images or labels that
    cannot be attacked, MeasurementError for broken logits.
    """
    total, done, white = sum(part.cost for part in parts), 0.0, False
    with torch.inference_mode(False), torch.no_grad(), at_rest(victim.module) as device:
        run = Run.begin(victim, images, labels, budget, device)
        taken_up = run.way.part
        for place, part in enumerate(parts):
            if place >= taken_up:
                run.way.begin(place, run.ledger)
                for share in part.go(run):
                    progress(run.said(part.name), (done + share * part.cost) / total)
                    if run.way.pause(run.ledger, share):
                        return replace(run.ledger.outcome(), unfinished=run.way.left([each.name for each in parts]))
                if white and not part.asks_gradient:
                    run.ledger.black_box[run.way.stood & run.ledger.fell] = True
            done += part.cost
            white |= part.asks_gradient
            progress(run.said(part.name), done / total)
        return replace(run.ledger.outcome(), unfinished=tuple(run.way.skipped))


def batch_size(shape: Sequence[int]) -> int:
    """How many images of this shape (C, H, W) go through network and runtime at once: fewer of larger ones."""
    return min(max(_BATCH_PIXELS // max(math.prod(shape), 1), _SMALLEST_BATCH), _LARGEST_BATCH)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the runtime said of some points (M,): `standing` (not fallen), `wrong` (misclassified, wherever the point
    is), the margins and the logits (M, K). `looked`: the pass that gave them, where gradients can be asked of it."""

    standing: Bools
    wrong: Bools
    margins: Reals
    logits: Floats
    looked: Looked | None = None

    def of(self, mask: Bools) -> Seen:
        if mask.all():
            return self
        looked = None if self.looked is None else self.looked.of(mask)
        return Seen(self.standing[mask], self.wrong[mask], self.margins[mask], self.logits[mask], looked)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One call of an attack: what it was given, its ledger, and each image's other classes, nearest first.

    images: float32, labels: int64, both on the CPU, and as arrays `pixels` and `truth`; rivals: int64 (N, K - 1), by
    the runtime's clean logits.
    """

    victim: Victim
    images: Tensor
    labels: Tensor
    budget: AttackBudget
    ledger: Ledger
    rivals: Ints
    pixels: Floats
    truth: Ints
    device: torch.device
    way: Way
    watch: Watch

    @classmethod
    def begin(cls, victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, device: torch.device) -> Run:
        """Ask the runtime about every clean image and enter what it said."""
        images, labels = images.to("cpu", torch.float32, copy=True), labels.to("cpu", torch.int64, copy=True)
        _require_fitting(images, labels, victim.bounds)
        ledger, truth, size = Ledger.of(images), labels.numpy(), batch_size(images.shape[1:])
        rivals = np.zeros((0, 1), np.int64)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            logits = checked_logits(victim.logits, images[part].numpy())
            require_known(truth[part], logits.shape[1])
            ledger.fell[part] = predictions(logits) != truth[part]
            ledger.clean[part] = margins(logits, truth[part])
            rivals = np.concatenate([rivals.reshape(-1, logits.shape[1] - 1), _rivals(logits, truth[part])])
        ledger.lowest[:] = ledger.clean
        way, watch = Way.begun(budget.course, ledger), Watch.over(victim, images.numpy())
        return cls(victim, images, labels, budget, ledger, rivals, images.numpy(), truth, device, way, watch)

    @property
    def places(self) -> int:
        """How many images are under attack at once."""
        return batch_size(self.images.shape[1:])

    @property
    def standing(self) -> Tensor:
        """Ids of the images that stand, int64, ascending."""
        return torch.from_numpy(np.flatnonzero(~self.ledger.fell))

    def said(self, part: str) -> str:
        """A line for the progress, with the robust accuracy so far."""
        count, fell = len(self.images), int(self.ledger.fell.sum())
        robust = f", {1 - fell / count:.1%} stand" if count else ""
        return f"{part}: {fell} of {count} wrong{robust}"

    def waiting(self, turn: int) -> Tensor:
        """Ids of the images that pass `turn` of the present part has yet to attack, ascending."""
        return torch.from_numpy(np.flatnonzero(~self.ledger.fell & self.way.open(turn, self.ledger)))

    def finish(self, ids: Tensor) -> None:
        """Enter that the present pass is done with these images; what was only looked at is asked about here."""
        rows = ids.numpy()
        known, points = self.watch.nearest(rows)
        stand = ~self.ledger.fell[known]
        if stand.any():
            self.judge(torch.from_numpy(known[stand]), points[stand])
        self.way.done[rows] = True

    def judge(self, ids: Tensor, points: Floats, *, inside: bool = True, follows: bool = False) -> Seen:
        """Ask the runtime about `points` of the images `ids`, and enter who fell.

        `inside`: the points are known to be in the ball; otherwise a misclassified one falls only if it is.
        `follows`: their gradients are wanted next, so that a look does where it says enough (`Watch`).
        """
        return self.ask(ids.numpy(), points, inside=inside, follows=follows)

    def ask(self, rows: Ints, points: Floats, *, inside: bool = True, follows: bool = False) -> Seen:
        """`judge` for ids that are no tensor: right after a pass through the network every call of torch is slow."""
        truth, looked = self.truth[rows], self.watch.look(points) if follows else None
        if looked is None:
            logits = checked_logits(self.victim.logits, points)
            margin = margins(logits, truth)
            wrong = mistaken(logits, truth, margin)
            fell = wrong if inside else self._within(rows, points, wrong)
        else:
            margin = margins(looked.logits, truth)
            near = doubtful(looked.logits, margin)
            near = near if inside else self._within(rows, points, near)
            logits = self.watch.asked(looked, points, near)
            margin = margin if logits is looked.logits else margins(logits, truth)
            wrong = mistaken(logits, truth, margin)
            fell = wrong & near
        if fell.any():
            self.ledger.fell[rows[fell]] = True
            self.ledger.adversarials[rows[fell]] = points[fell]
        if looked is not None and inside:
            self.watch.note(rows, points, margin)
        return Seen(~fell, wrong, margin, logits, looked)

    def _within(self, rows: Ints, points: Floats, mask: Bools) -> Bools:
        """Those of `mask`, bool (M,), whose points lie in the ball. Exactly where float32 leaves it open."""
        found, norm, epsilon = mask.copy(), self.budget.norm, self.budget.epsilon
        for step in (_FEW, 1):  # most are far outside, which a few of their pixels show
            if found.any():
                some, origins = (array.reshape(len(array), -1)[:, ::step] for array in (points, self.pixels))
                change = torch.from_numpy(some[found] - origins[rows[found]])
                found[found] = (row_sizes(change, norm) <= _NEARLY * epsilon).numpy()
        if found.any():
            found[found] = distances(points[found], self.pixels[rows[found]], norm) <= epsilon
        return found

    def climb(self, points: Tensor, seen: Seen, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """`objective` of the logits at `points`, which were just `seen`: values (N,), gradients, bool (N,): usable.

        Where the twin's way back needs no torch, the values are those of the runtime's own logits.
        """
        if self.victim.pull is None:
            return climb(self.victim.module, points, objective)
        logits = torch.from_numpy(seen.logits)
        scores = bool((seen.logits.min(axis=1) < 0).all()) or not bool(probabilities(logits).any())
        if isinstance(objective, Objective) and scores:
            found, seeds = objective.slopes(logits)
        else:
            found, seeds = seeds_of(logits, objective)
        return found, *judged(self.slopes(points, seen, seeds)[1])

    def slopes(self, points: Tensor, seen: Seen, seeds: Tensor, moved: Bools | None = None) -> tuple[Tensor, Tensor]:
        """Logits (N, K) at `points`, and the gradients of `seeds * logits`, from the twin's way back (`victim.pull`).

        `moved`: bool (N,), which points are no longer those that were `seen`; None: no point.
        """
        assert self.victim.pull is not None
        looked = seen.looked
        if looked is None or (moved is not None and moved.all()):
            return self.victim.pull(points, seeds)
        if moved is None or not moved.any():
            return torch.from_numpy(looked.logits), looked.gradients(seeds)
        logits, gradients, there = looked.logits.copy(), np.empty(points.shape, np.float32), seeds.numpy()
        gradients[~moved] = looked.of(~moved).gradients(torch.from_numpy(there[~moved])).numpy()
        said, pulled = self.victim.pull(torch.from_numpy(points.numpy()[moved]), torch.from_numpy(there[moved]))
        logits[moved], gradients[moved] = said.numpy(), pulled.numpy()
        return torch.from_numpy(logits), torch.from_numpy(gradients)

    def note(self, ids: Tensor, steps: Tensor, length: int, seen: Seen, *, inside: bool = True) -> None:
        """Enter the margins of iterates: each image is at its step (0: a start) of a pass of `length` steps."""
        rows, book, margin, step = ids.numpy(), self.ledger, seen.margins, steps.numpy()
        first = step == 0
        if first.any():
            book.start[rows[first]] = margin[first]
            book.late[rows[first]] = 0.0
        book.gain[rows] = np.maximum(book.gain[rows], book.start[rows] - margin)
        if inside:
            fall = np.maximum(book.lowest[rows] - margin, 0.0)
            book.lowest[rows] -= fall
            book.late[rows] += np.where((step > (1 - LAST_STEPS) * length) & ~first, fall, 0.0)

    def lowered(self, rows: Ints, step: int, length: int, margin: Reals) -> None:
        """Enter lower margins (M,) of points in the ball, all seen at step `step` (not 0) of a pass of `length`."""
        book = self.ledger
        book.gain[rows] = np.maximum(book.gain[rows], book.start[rows] - margin)
        fall = np.maximum(book.lowest[rows] - margin, 0.0)
        book.lowest[rows] -= fall
        if step > (1 - LAST_STEPS) * length:
            book.late[rows] += fall

    def note_gradients(self, ids: Tensor, usable: Tensor) -> None:
        """Enter whether the gradients at the starts of these images were usable."""
        self.ledger.asked[ids.numpy()] = True
        self.ledger.usable[ids[usable].numpy()] = True


def _rivals(logits: Floats, labels: Ints) -> Ints:
    """The other classes of each image, those with the largest logits first (ties: the lower index)."""
    order = np.argsort(-logits, axis=1, kind="stable")
    return np.asarray(order[order != labels[:, None]], np.int64).reshape(len(labels), -1)


def _require_fitting(images: Tensor, labels: Tensor, bounds: tuple[float, float]) -> None:
    if images.ndim < 2 or labels.shape != images.shape[:1]:
        raise DataError(f"cannot attack images {tuple(images.shape)} with labels {tuple(labels.shape)}")
    low, high = (torch.tensor(bound, dtype=torch.float32) for bound in bounds)
    inside = (images >= low) & (images <= high)  # NaN is not inside
    if not bool(inside.all()):
        raise DataError(
            f"images have pixels outside [{bounds[0]:g}, {bounds[1]:g}]",
            hint="give pixels, not normalised images; set the pixel bounds with --pixel-bounds",
        )
