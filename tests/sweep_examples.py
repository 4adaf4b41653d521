"""Points of a sweep with figures of your choice."""

from __future__ import annotations

from edgeprune.records import Figure, Interval, SweepPoint, Unmeasured

NOTHING = Unmeasured(unmeasured="no test data was given (--test)")


def figure(value: float, spread: float = 0.0) -> Figure:
    return Figure(value=value, interval=Interval(low=value - spread, high=value + spread))


def point(
    name: str,
    speedup: float = 2.0,
    robust: float | None = 0.5,
    *,
    spread: float = 0.0,
    size: float = 1000.0,
    verdict: str | None = None,
    doubts: tuple[str, ...] = (),
) -> SweepPoint:
    """A point that came to an end; `spread` is half the width of its speed-up's and its robust accuracy's interval."""
    return SweepPoint.model_validate(
        {
            "name": name,
            "settings": {"prune.criterion": name},
            "status": "done",
            "folder": f"points/{name}",
            "command": f"edgeprune compress model.pt --criterion {name}",
            "seconds": 1.0,
            "speedup": figure(speedup, spread),
            "latency_ms": figure(1 / speedup),
            "accuracy": figure(0.9),
            "robust_accuracy": NOTHING if robust is None else figure(robust, spread),
            "size_bytes": Figure(value=size, interval=None),
            "verdict": verdict,
            "doubts": doubts,
        }
    )


def lost(name: str, reason: str) -> SweepPoint:
    """A point that failed."""
    nothing = dict.fromkeys(("speedup", "latency_ms", "accuracy", "robust_accuracy", "size_bytes"), NOTHING)
    return point(name).model_copy(update={"status": "failed", "reason": reason, **nothing})
