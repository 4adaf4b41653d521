"""What stands beside an attack, in sentences: replay, divergence, an early stop, and what was not finished.

The same words in every rendering; nothing is said of what was not done.
"""

from __future__ import annotations

from edgeprune.records import AttackedFile, Divergence, Replay, RobustnessComparison, Sequential, Unmeasured
from edgeprune.reporting import numbers as n

_DECIDED = {
    "within": "the drop was within the tolerance of {tolerance}",
    "beyond": "the drop was beyond the tolerance of {tolerance} for certain",
    "no": "the tolerance of {tolerance} was not decided",
}


def attack_lines(found: RobustnessComparison | Unmeasured) -> tuple[tuple[str, str], ...]:
    """(name, sentence) for each thing that was done beside the attack, or that it left undone."""
    if isinstance(found, Unmeasured):
        return ()
    lines = [("Unfinished", unfinished(side, file)) for side, file in _sides(found) if file.unfinished]
    if found.sequential is not None:
        lines.append(("Stopped early" if _early(found.sequential) else "Looks", _sequential(found.sequential)))
    if found.replay is not None:
        lines.append(("Replay", _replay(found.replay, found.compressed)))
    if found.divergence is not None:
        lines.append(("Divergence", _divergence(found.divergence, found.threat.epsilon)))
    return tuple(lines)


def unfinished(side: str, file: AttackedFile) -> str:
    """What was still to do in the attack on the `side` file when the time was up."""
    left = "; ".join(file.unfinished)
    return f"not all of the attack on the {side} file was run ({left}): its robust accuracy is the higher for it"


def _sides(found: RobustnessComparison) -> tuple[tuple[str, AttackedFile], ...]:
    return (("dense", found.dense), ("compressed", found.compressed))


def _early(done: Sequential) -> bool:
    return done.at < done.looks


def _sequential(done: Sequential) -> str:
    decided = _DECIDED[done.decided].format(tolerance=n.points(done.tolerance))
    return (
        f"after look {done.at} of at most {done.looks}, {decided}; {done.planned:,} images were planned, and each look "
        f"was taken at {100 * done.spent:.4g} %"
    )


def _replay(made: Replay, file: AttackedFile) -> str:
    share = f"{n.percent(made.robust.value)} ({n.span(made.robust.interval, n.percent, unit=False)})"
    told = f"{n.points(abs(made.gap))} {'too much' if made.gap >= 0 else 'less'}"
    if not made.gap:
        told = "the same"
    return (
        f"the dense file's adversarials, shown to the compressed file as they are, leave {share} standing; the attack "
        f"on the file itself leaves {n.percent(file.robust.value)}, so replay alone would say {told}"
    )


def _divergence(made: Divergence, epsilon: str) -> str:
    found, efforts = made.found, f"{made.steps} steps, {made.restarts} start{'s' if made.restarts != 1 else ''}"
    cut = "" if made.finished else "; the time was up before the end"
    return (
        f"within {epsilon} an image that the dense file gets right and the compressed one wrong was found for "
        f"{found.count:,} of the {found.total:,} images that both get right ({n.percent(found.value)}), by the attack "
        f"itself for {made.replayed:,} ({efforts}{cut})"
    )
