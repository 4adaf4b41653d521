"""Which of many can be proved together: all at once and, where that fails, in halves.

What passes was proved together with everything that passed before it. Nothing is tried after a deadline; a trial
cannot be broken off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from edgeprune.types import Block, Group, Progress

T = TypeVar("T", bound=Group | Block)


def failing(
    items: Sequence[T],
    fails: Callable[[Sequence[T]], str | None],
    *,
    until: float = math.inf,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Name -> why it is left alone, in words, for every item that does not pass.

    `fails` says why the items cannot go together, None where they can; `until` is on the monotonic clock.
    """
    passed: list[T] = []
    reasons: dict[str, str] = {}
    waiting: list[list[T]] = [list(items)] if items else []
    while waiting:
        batch = waiting.pop()
        if progress:
            progress(f"proving {batch[0].name}", (len(passed) + len(reasons)) / len(items))
        if time.monotonic() > until:
            reasons |= {item.name: "not proved: there was no time left" for item in batch}
            continue
        reason = fails([*passed, *batch])
        if reason is None:
            passed.extend(batch)
        elif len(batch) == 1:
            reasons[batch[0].name] = reason
        else:
            waiting += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
    return reasons
