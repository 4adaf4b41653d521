"""Learning rates over a training, and how far a training is: by epochs or by the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgeprune.recovery.settings import RecoverConfig

_START, _END = 0.1, 1e-3
_WARMUP = {"one-cycle": 0.2, "cosine": 0.0}


def rate_share(done: float, schedule: str = "one-cycle", warmup: float | None = None) -> float:
    """Share of the peak rate after `done` of the training: up from a tenth in a line, then down along a cosine.

    one-cycle rises over a fifth of it (Smith 2018, "Super-convergence"), cosine does not rise at all (Loshchilov and
    Hutter 2017, "SGDR") unless `warmup` says so.
    """
    rise = _WARMUP[schedule] if warmup is None else warmup
    if done < rise:
        return _START + (1 - _START) * done / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - rise) / (1 - rise)))) + _END


@dataclass(frozen=True, slots=True)
class Pace:
    """How far a training is: by its epochs, or by the seconds that it may take (`seconds`).

    `spent` seconds went by before `started`, in a run that was killed. `reserve` is kept for what follows training.
    """

    epochs: int
    seconds: float | None
    spent: float
    started: float
    reserve: float = 0.0
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def of(cls, settings: RecoverConfig, spent: float, reserve: float) -> Pace:
        """The pace of a training that starts, or goes on, now."""
        seconds = None if settings.minutes is None else 60 * settings.minutes
        return cls(settings.epochs, seconds, spent, time.perf_counter(), reserve)

    def elapsed(self) -> float:
        """Seconds spent in training, in this run and before it."""
        return self.spent + self.clock() - self.started

    def done(self, epoch: int, step: int, steps: int) -> float:
        """Share of the training before step `step` of `steps` in epoch `epoch` (all from 0); 1: it is over."""
        if self.seconds is None:
            return min(1.0, (epoch + step / steps) / self.epochs)
        return min(1.0, self.elapsed() / max(self.seconds - self.reserve, 1e-9))

    def expected(self, epoch: int) -> float:
        """Epochs that the training will have, before epoch `epoch` (from 0): by the clock, at the pace so far; 0 where
        that is not known yet."""
        if self.seconds is None:
            return self.epochs
        done = self.done(epoch, 0, 1)
        return epoch / done if done > 0 else 0.0

    def over(self, epoch: int, spent: float) -> bool:
        """Whether a training with these epochs, or seconds, behind it is at its end."""
        if self.seconds is None:
            return epoch >= self.epochs
        return spent >= self.seconds - self.reserve

    def label(self, epoch: int) -> str:
        """ "epoch 2/6", or "epoch 2" where the clock decides."""
        return f"epoch {epoch + 1}" + (f"/{self.epochs}" if self.seconds is None else "")


def to_go(elapsed: float, done: float) -> str:
    """The time that is left at this pace, as m:ss; empty while there is nothing to go by."""
    if done <= 0:
        return ""
    left = round(elapsed * (1 - done) / done)
    return f"{left // 60}:{left % 60:02d} to go"
