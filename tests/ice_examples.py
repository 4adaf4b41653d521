"""Thin ice and a security curve with known numbers, in agreement with each other."""

from __future__ import annotations

from typing import Any

from edgeprune.records import (
    CurveCheck,
    CurveSide,
    Decile,
    DistanceSearch,
    FlipRank,
    ImageAtRisk,
    Interval,
    PairedDrop,
    Proportion,
    RuntimeInfo,
    SecurityCurve,
    ThinIce,
)

SEARCH = DistanceSearch(attack="fmn", norm="linf", steps=60, restarts=1, seed=7, samples=100, samples_digest="6" * 64)
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAMAAAADCAIAAADZSiLoAAAAI0lEQVR42gXBwQ"
    "0AIAgEME340B2OuVjTDW3v2UejMoFWk6D5L0cCdGd77NYAAAAASUVORK5CYII="
)


def example_ice(runtime: RuntimeInfo, dense: str, compressed: str, **changes: Any) -> ThinIce:
    """90 of 100 images right in the dense file; 6 lost among the nearest, 1 won, 8 and 2 at epsilon."""
    fields: dict[str, Any] = {
        "dense_sha256": dense,
        "compressed_sha256": compressed,
        "runtime": runtime,
        "search": SEARCH,
        "epsilon": "4/255",
        "right": 90,
        "censored": 3,
        "quartiles": (3 / 255, 6 / 255, None),
        "ranks": (
            FlipRank(
                kind="lost", images=90, flipped=6, auroc=0.91, interval=Interval(low=0.74, high=0.97), p_value=2e-5
            ),
            FlipRank(kind="won", images=10, flipped=0, unmeasured="no image flipped this way"),
            FlipRank(
                kind="lost at epsilon",
                images=60,
                flipped=8,
                auroc=0.61,
                interval=Interval(low=0.41, high=0.78),
                p_value=0.31,
            ),
            FlipRank(
                kind="won at epsilon",
                images=40,
                flipped=2,
                auroc=0.08,
                interval=Interval(low=0.01, high=0.42),
                p_value=0.049,
                exact=False,
            ),
        ),
        "deciles": tuple(
            Decile(
                low=index / 255,
                high=None if index == 9 else (index + 1) / 255,
                lost=proportion(5 if index == 0 else int(index == 1), 9),
                lost_at_epsilon=None if index < 3 else proportion(2 if index < 7 else 0, 9 if index > 3 else 6),
            )
            for index in range(10)
        ),
        "net_lost": 6,
        "net_lost_at_epsilon": 6,
        "at_risk": (
            example_risk(17, "lost", 0.002, compressed=2),
            example_risk(40, "lost at epsilon", 0.017),
            example_risk(3, "held", 0.003),
            example_risk(5, "held", None),
        ),
        "conclusive": True,
    }
    return ThinIce(**{**fields, **changes})


def example_risk(id: int, fate: str, distance: float | None, compressed: int = 0) -> ImageAtRisk:
    return ImageAtRisk(
        id=id,
        label=0,
        dense=0,
        compressed=compressed,
        distance=distance,
        fate=fate,
        thumbnail=PICTURE,  # type: ignore[arg-type]
    )


def example_curve(runtime: RuntimeInfo, dense: str, compressed: str, **changes: Any) -> SecurityCurve:
    """100 images; dense falls one image a 255th, compressed one every half of it; two checks."""
    fields: dict[str, Any] = {
        "runtime": runtime,
        "search": SEARCH,
        "confidence": 0.95,
        "dense": CurveSide(sha256=dense, right=90, distances=tuple(index / 2550 for index in range(1, 88))),
        "compressed": CurveSide(sha256=compressed, right=85, distances=tuple(index / 3825 for index in range(1, 84))),
        "checks": (example_check("2/255", 70, 60, 0.01), example_check("4/255", 50, 44, 0.2, found=3)),
    }
    return SecurityCurve(**{**fields, **changes})


def example_check(epsilon: str, dense: int, compressed: int, p_holm: float, found: int = 0) -> CurveCheck:
    return CurveCheck(
        epsilon=epsilon,
        epsilon_value=int(epsilon.split("/")[0]) / 255,
        attack="pgd",
        dense_alone=dense + found,
        compressed_alone=compressed,
        dense=proportion(dense, 100),
        compressed=proportion(compressed, 100),
        drop=PairedDrop(
            total=100, dense_only=dense - compressed, compressed_only=0, upper=0.2, confidence=0.95, p_value=p_holm / 2
        ),
        p_holm=p_holm,
        warnings=("dense: one check is in doubt",) if found else (),
    )


def proportion(count: int, total: int) -> Proportion:
    """With an interval that is only about right: nothing but the standard library is needed where reports are read."""
    share, room = count / total, 1 / total**0.5
    return Proportion(count=count, total=total, interval=Interval(low=max(share - room, 0), high=min(share + room, 1)))
