"""What training computes in: bfloat16 is chosen where it was measured to be faster on this machine, not by its name.

A processor may know bfloat16 and emulate it; small networks spend their time elsewhere. So a few steps are timed in
both. The choice stands in the checkpoint: a resumed training does not measure again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch

_WORTH_ASKING_S = 0.02  # shorter steps are mostly overhead, and their times mostly noise
_WORTH_HAVING = 0.87
_ROUNDS = 3


Precision = Literal["float32", "bfloat16"]


def choose(wanted: Literal["auto", "float32", "bfloat16"], device: str, step: Callable[[Precision], None]) -> Precision:
    """ "float32" or "bfloat16"; `step` trains one batch in the precision that it is given.

    Interleaved, the best of three each: what else the machine does costs both alike.
    """
    if wanted != "auto":
        return wanted
    step("float32")
    if _seconds(device, step, "float32") < _WORTH_ASKING_S:
        return "float32"
    try:
        step("bfloat16")
    except RuntimeError:  # an operator without a bfloat16 kernel
        return "float32"
    both: tuple[Precision, ...] = ("float32", "bfloat16")
    rounds = [[_seconds(device, step, each) for each in both] for _ in range(_ROUNDS)]
    whole, half = (min(times) for times in zip(*rounds, strict=True))
    return "bfloat16" if half < _WORTH_HAVING * whole else "float32"


def _seconds(device: str, step: Callable[[Precision], None], precision: Precision) -> float:
    on_cuda = torch.device(device).type == "cuda"
    alone = not on_cuda and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter  # the work itself, whoever else is on the processor
    if on_cuda:  # what was asked for before is no part of this
        torch.cuda.synchronize(device)
    started = clock()
    step(precision)
    if on_cuda:
        torch.cuda.synchronize(device)
    return clock() - started
