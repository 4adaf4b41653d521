"""What is known of every image, and how far an attack has come: what a killed attack goes on from.

Promise: an attack that is taken up again ends with the result of one that was never interrupted. What is done to an
image depends on that image alone, so it is enough to note which images the present pass is done with; those that it was
at work on begin the pass again, from what was known of them before it. A journal of other images, another file or
another threat model is not taken up.
"""

from __future__ import annotations

import time
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.files import replacing
from edgeprune.robustness.archives import read_arrays, write_arrays
from edgeprune.types import AttackOutcome, Course

if TYPE_CHECKING:
    from edgeprune.types import Floats

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Reals = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

SAVED_EVERY = 20.0
"""Seconds between two entries of the journal."""
_BY_PASS = ("start", "lowest", "gain", "late")
_KEPT = ("fell", "asked", "usable", "black_box", "clean", *_BY_PASS)


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """What is known so far of every image (N,): the only state that a run writes.

    Margins are the runtime's: of the clean image, of the current start, the lowest inside the ball, and the largest
    fall from a start. `late`: how far the lowest fell in the last steps of the last pass.
    """

    adversarials: Floats
    fell: Bools
    asked: Bools
    usable: Bools
    black_box: Bools
    clean: Reals
    start: Reals
    lowest: Reals
    gain: Reals
    late: Reals

    @classmethod
    def of(cls, images: Tensor) -> Ledger:
        fell, asked, usable, black_box = (np.zeros(len(images), np.bool_) for _ in range(4))
        clean, start, lowest, gain, late = (np.zeros(len(images), np.float64) for _ in range(5))
        pixels = images.numpy().copy()
        return cls(pixels, fell, asked, usable, black_box, clean, start, lowest, gain, late)

    def outcome(self) -> AttackOutcome:
        scale = np.maximum(self.clean, np.finfo(np.float64).tiny)
        gain, late = (torch.from_numpy(change / scale).float() for change in (self.gain, self.late))
        healthy = torch.from_numpy(~self.asked | self.usable)
        fell, black_box = torch.from_numpy(self.fell), torch.from_numpy(self.black_box)
        return AttackOutcome(torch.from_numpy(self.adversarials), fell, healthy, gain, late, black_box)


@dataclass(slots=True, eq=False)
class Way:
    """Where an attack is: in pass `turn` of part `part`, and `done` (bool (N,)) with these images of it.

    `stood`: bool (N,), stood when the part began. `before`: the ledger's figures when the pass began. `spent`: seconds
    before this process took the attack up. `skipped`: parts that failed, and why.
    """

    course: Course
    part: int
    turn: int
    done: Bools
    stood: Bools
    before: dict[str, Reals]
    spent: float = 0.0
    share: float = 0.0
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def begun(cls, course: Course, ledger: Ledger) -> Way:
        """A new way, or the one in the journal, whose ledger takes the place of the given one's entries."""
        none = np.zeros(len(ledger.fell), np.bool_)
        way = cls(course, 0, -1, none, none.copy(), {})
        if course.journal is not None and course.journal.is_file():
            way._take_up(course.journal, ledger)
        return way

    def begin(self, part: int, ledger: Ledger) -> None:
        """The first pass of a part is next; nothing changes where the journal is in the middle of it."""
        if part != self.part or self.turn < 0:
            self.part, self.turn, self.stood = part, -1, ~ledger.fell

    def open(self, turn: int, ledger: Ledger) -> Bools:
        """The images that pass `turn` has yet to attack: none of them where it was done before."""
        if turn > self.turn:
            self.turn = turn
            self.done[:] = False
            self.before = {name: getattr(ledger, name).copy() for name in _BY_PASS}
        return ~self.done if turn == self.turn else np.zeros_like(self.done)

    def pause(self, ledger: Ledger, share: float) -> bool:
        """Between two steps: write the journal where it is time to; True when the attack's time is up."""
        now, course, self.share = time.monotonic(), self.course, share
        over = course.seconds is not None and self.spent + now - self.began >= course.seconds
        if course.journal is not None and (over or now - self.saved >= SAVED_EVERY):
            self._note(course.journal, ledger)
        return over

    def left(self, parts: list[str]) -> tuple[str, ...]:
        """What is still to do, in words."""
        later = tuple(f"{name} not begun" for name in parts[self.part + 1 :])
        return (f"{parts[self.part]} {self.share:.0%} done", *later)

    def _note(self, path: Path, ledger: Ledger) -> None:
        arrays: dict[str, np.ndarray[Any, Any]] = {name: getattr(ledger, name).copy() for name in _KEPT}
        again = ~ledger.fell & ~self.done
        for name, values in self.before.items():
            arrays[name][again] = values[again]
        arrays["adversarials"] = ledger.adversarials[ledger.fell]
        arrays |= {"done": self.done, "stood": self.stood, "place": np.array([self.part, self.turn])}
        arrays["spent"] = np.array([self.spent + time.monotonic() - self.began])
        arrays["key"] = np.frombuffer(self.course.key.encode(), np.uint8)
        with replacing(path) as beside:
            write_arrays(beside, arrays)
        self.saved = time.monotonic()

    def _take_up(self, path: Path, ledger: Ledger) -> None:
        """A journal that cannot be read, or is about something else, is passed over: the attack begins anew."""
        names = (*_KEPT, "adversarials", "done", "stood", "place", "spent", "key")
        try:
            arrays = read_arrays(path, names)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
            return
        if arrays["key"].tobytes().decode("utf-8", "replace") != self.course.key or len(arrays["fell"]) != len(
            self.done
        ):
            return
        if not np.array_equal(arrays["clean"], ledger.clean):  # another runtime's figures, or other images
            return
        for name in _KEPT:
            getattr(ledger, name)[:] = arrays[name]
        ledger.adversarials[ledger.fell & (ledger.clean > 0)] = arrays["adversarials"][
            (arrays["clean"] > 0)[ledger.fell]
        ]
        self.part, self.turn = (int(number) for number in arrays["place"])
        self.done, self.stood = arrays["done"].astype(np.bool_), arrays["stood"].astype(np.bool_)
        self.before = {name: getattr(ledger, name).copy() for name in _BY_PASS}
        self.spent = float(arrays["spent"][0])
