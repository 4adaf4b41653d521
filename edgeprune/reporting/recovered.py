"""What recovery did, in sentences: the same ones in every rendering."""

from __future__ import annotations

from edgeprune.records import Correction, RecoveryInfo
from edgeprune.reporting import numbers as n


def recovery_lines(info: RecoveryInfo) -> tuple[str, ...]:
    """The recipe and its outcome first, then robustness, distance, corrections and what did not go as planned."""
    robust = () if info.robust_after is None else (_robust(info),)
    return (_outcome(info), *robust, *_distance(info), *(_correction(each) for each in info.corrections), *info.notes)


def _outcome(info: RecoveryInfo) -> str:
    epochs = f"{info.epochs} epoch{'s' if info.epochs != 1 else ''}"
    budget = f" in the {info.minutes:g} minutes given" if info.minutes is not None else ""
    speed = f", {info.images_per_second:,.0f} images/s in {info.precision}" if info.images_per_second else ""
    what = "right" if info.labels else "as the dense network has it (labels were not looked at)"
    return (
        f"recipe {info.recipe}, {epochs}{budget} on {n.count(info.train_samples)} images, "
        f"{n.significant(info.seconds)} s{speed}; on {n.count(info.held_out)} held-out training images, in torch: "
        f"{_share(info.accuracy_before)} {what} before, {_share(info.accuracy_after)} after"
    )


def _robust(info: RecoveryInfo) -> str:
    return (
        f"robustness on up to 128 of them, under PGD with 10 steps at {n.significant(info.robust_eps or 0.0)}: "
        f"{_share(info.robust_before)} before, {_share(info.robust_after)} after"
    )


def _distance(info: RecoveryInfo) -> tuple[str, ...]:
    if info.distance_before is None or info.distance_after is None:
        return ()
    before, after = n.significant(info.distance_before), n.significant(info.distance_after)
    return (f"mean distance of its answers from the dense network's there: {before} nats before, {after} after",)


def _correction(made: Correction) -> str:
    skipped = f"; {len(made.skipped)} could not be fitted" if made.skipped else ""
    return (
        f"{made.name} of {made.layers} layers, without training: {_share(made.accuracy_before)} to "
        f"{_share(made.accuracy_after)}, distance to the dense network {_nats(made.distance_before)} to "
        f"{_nats(made.distance_after)} nats, {'kept' if made.kept else 'not kept'}{skipped}"
    )


def _nats(value: float | None) -> str:
    return "unmeasured" if value is None else n.significant(value)


def _share(value: float | None) -> str:
    return "unmeasured" if value is None else n.percent(value)
