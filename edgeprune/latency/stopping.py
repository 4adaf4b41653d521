"""When timing stops: after so many processes, after so much time, or when the ratio is known well enough. Pure.

Promise: no rule looks at whether a file came out faster; and where a rule looks at the results at all, the intervals
are widened until they hold whenever it stops.

- `--timing-processes N` and `--for 20s` fix the length before anything is seen, so an ordinary 95 % interval holds.
- Otherwise there are at most three looks, after 5, 8 and 12 processes, and timing stops at the first where the interval
  is narrower than `--timing-precision`. Stopping on the *width* follows Chow and Robbins (1965, "On the asymptotic
  theory of fixed-width sequential confidence intervals"). It stops sooner when the spread happened to come out small,
  which makes plain intervals cover too little; stopping on significance would be worse. So the interval of every look
  is a repeated confidence interval (Jennison and Turnbull 1989, "Interim analyses: the repeated confidence interval
  approach"): each is computed at 1 - 0.05 / 3, so that by Bonferroni's inequality all three cover together in 95 % of
  the runs, whichever of them is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgeprune.latency.settings import LatencyConfig
from edgeprune.records import LatencyComparison, Ratio

LOOKS = (5, 8, 12)
LEAST_TIMED = 3
"""Processes that even a short `--for` runs: with fewer there is no interval to speak of."""
RUN_PROCESSES = 5
STARTUP_MS = 700.0
"""What a process spends before its first block, roughly: interpreter, runtime, warm-up."""
ERROR = 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """How many processes run at the looks, of how many rounds and iterations, and the error of each look's interval.

    `limit_ms`: stop once this time is spent, whatever was seen (None: the looks decide). `precision`: the width that
    is narrow enough (None: all processes run).
    """

    looks: tuple[int, ...]
    rounds: int
    iterations: int | None
    error: float
    limit_ms: float | None
    precision: float | None


def plan_of(settings: LatencyConfig, files: int) -> Plan:
    """The plan that the settings ask for; `files` counts the labels of a round (2 alone, 3 for a pair)."""
    if settings.duration is not None:
        share = settings.duration / RUN_PROCESSES - STARTUP_MS
        rounds = int(min(settings.blocks, max(2.0, share / (files * settings.block_ms))))
        return Plan((LEAST_TIMED,), rounds, None, ERROR, settings.duration, None)
    if settings.runs is not None:
        processes = settings.processes or RUN_PROCESSES
        rounds = min(settings.blocks, max(2, settings.runs // processes))
        return Plan((processes,), rounds, -(-settings.runs // (processes * rounds)), ERROR, None, None)
    if settings.processes is not None:
        return Plan((settings.processes,), settings.blocks, None, ERROR, None, None)
    return Plan(LOOKS, settings.blocks, None, ERROR / len(LOOKS), None, settings.precision)


def run(
    plan: Plan, more: Callable[[int, int], None], judge: Callable[[], LatencyComparison], clock_ms: Callable[[], float]
) -> LatencyComparison:
    """Follow the plan: `more(first, count)` runs processes, `judge` looks at all samples so far.

    The comparison says in `stopped` why timing ended.
    """
    if plan.limit_ms is not None:
        done = _until(plan, plan.limit_ms, more, clock_ms)
        return judge().model_copy(update={"stopped": f"{plan.limit_ms / 1000:g} s were asked for: {done} processes"})
    for look, count in _looks(plan):
        more(count - look, look)
        found = judge()
        width = width_of(found)
        if plan.precision is None or count == plan.looks[-1]:
            break
        if width <= plan.precision:
            said = f"the interval was {width:.1%} wide after {count} processes ({plan.precision:.1%} is enough)"
            return found.model_copy(update={"stopped": said})
    if plan.precision is None:
        return found.model_copy(update={"stopped": f"{count} processes were asked for"})
    enough = "" if width <= plan.precision else f", still {width:.1%} wide ({plan.precision:.1%} would be enough)"
    return found.model_copy(update={"stopped": f"{count} processes are the most{enough}"})


def width_of(found: LatencyComparison) -> float:
    """Width of the widest interval that a verdict rests on: the control's, and the speed-up's where there is one."""
    return max(_width(ratio) for ratio in (found.control, found.speedup) if ratio is not None)


def _width(ratio: Ratio) -> float:
    return ratio.interval.high / ratio.interval.low - 1


def _looks(plan: Plan) -> Iterator[tuple[int, int]]:
    """(processes to add, processes in all) at each look."""
    before = 0
    for count in plan.looks:
        yield count - before, count
        before = count


def _until(plan: Plan, limit_ms: float, more: Callable[[int, int], None], clock_ms: Callable[[], float]) -> int:
    """Run processes until another one would end beyond the limit; how many ran."""
    begun, done = clock_ms(), 0
    while done < plan.looks[0] or (clock_ms() - begun) * (done + 1) / done <= limit_ms:
        more(done, 1)
        done += 1
    return done
