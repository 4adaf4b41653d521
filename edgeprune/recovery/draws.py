"""A few draws of the augmentation take turns, and the teacher looks at each of them once.

A teacher costs as much as the student's whole step when the student was cut to a third, and it must look at the very
image that the student sees (Beyer et al. 2022). So what it saw is shown again, epochs later. Shown again at once, it
taught less (data echoing, Choi et al. 2019; `docs/decisions/recovery.md` has the figures). Images that do not change
need no draws: the teacher's outputs are kept for good.

Promise: an epoch depends on the seed, its number and how many there are, so a training that is resumed sees what an
uninterrupted one sees, bit for bit, the teacher's outputs included: they are computed in fixed chunks. By the clock,
their number is a guess by the pace so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from edgeprune.recovery.images import MOST_BYTES, Images, mixed
from edgeprune.recovery.recipes import Lesson
from edgeprune.recovery.views import View

_CHUNK = 64  # images a look of the teacher: what it computes of them stays in the processor's cache


@dataclass(slots=True, eq=False)
class Draws:
    """A lesson whose images are augmented in one of a few ways, epoch by epoch. `known`: the lessons of those ways."""

    lesson: Lesson
    seed: int
    known: dict[int, Lesson] = field(default_factory=dict)

    def due(self, epoch: int, epochs: float) -> bool:
        """Whether the teacher has to look at a new draw before this epoch, of so many."""
        images, teacher = self.lesson.images, self.lesson.teacher
        changing = teacher is not None and teacher.kept is None and images.held is not None
        return changing and self._count(epochs) > 0 and self._number(epoch, epochs) not in self.known

    def at(self, epoch: int, epochs: float, over: Callable[[], bool]) -> Lesson:
        """The lesson of an epoch, of so many; `over` says whether the time is up, and ends the teacher's look at the
        images."""
        number = self._number(epoch, epochs)
        if self.due(epoch, epochs) and (made := self._drawn(number, self._count(epochs), over)) is not None:
            self.known[number] = made
        return self.known.get(number, self.lesson)

    def _count(self, epochs: float) -> int:
        return self.lesson.settings.draw_count(epochs)

    def _number(self, epoch: int, epochs: float) -> int:
        return epoch % max(1, self._count(epochs))

    def _drawn(self, number: int, count: int, over: Callable[[], bool]) -> Lesson | None:
        """The lesson of one draw of `count`; None when the time is up, or all draws' outputs would take too much
        memory."""
        lesson = self.lesson
        assert lesson.teacher
        images = lesson.images
        generator = torch.Generator().manual_seed(mixed(self.seed, number, _CHUNK))
        view = lesson.drawn(len(images), images.batch(np.arange(1)), generator)
        shown = _memory(images, count)
        outputs = []
        for start in range(0, len(images), _CHUNK):
            if over():  # nobody will look at the rest
                return None
            part = np.arange(start, min(start + _CHUNK, len(images)))
            seen = view.of(images.batch(part), part)
            if shown is not None:
                shown[start : start + len(part)] = seen
            outputs.append(lesson.teacher(seen, part, lesson.precision))
            if outputs[0].nbytes * len(images) * count > MOST_BYTES * len(outputs[0]):
                return None
        teacher = replace(lesson.teacher, kept=torch.cat(outputs))
        if shown is None:
            return replace(lesson, view=view, teacher=teacher)
        return replace(lesson, view=View(), images=replace(images, held=shown), teacher=teacher)


def _memory(images: Images, count: int) -> torch.Tensor | None:
    """Room for one draw's images, so that each is changed once; None where those of `count` would take too much."""
    if images.held is None or images.held.nbytes * count > MOST_BYTES:
        return None
    return torch.empty_like(images.held)
