"""Has the attack failed? What is watched while a file is attacked, and when a result must not be believed.

Promise: a robust accuracy that rests on a broken attack is inconclusive, and the warning says why and what to do. A
file that survives because nothing pushed it is never called robust.

Sources: Carlini et al. 2019, On Evaluating Adversarial Robustness (section 4: gradients, unbounded epsilon, loss);
Pintor et al. 2022, Indicators of Attack Failure (unavailable gradients, loss that does not improve, transfer from
another model than the one judged). They name the failures; the thresholds are ours and stand below.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.records import Record, Side

DEAD_SHARE = 0.05
"""Attacked images without a usable gradient (Carlini et al. 2019; Pintor et al. 2022, indicator "unavailable
gradients")."""

FLAT_GAIN, FLAT_SHARE = 1e-3, 0.10
"""A loss that moved by less than FLAT_GAIN of the clean margin, and the share of survivors that may have one (Pintor
et al. 2022, "incomplete optimization"). On four networks, two of them adversarially trained, the least gain of any
survivor was 0.02 at epsilon 1/255 and 0.002 at a tenth of that."""

TWIN_SHARE = 0.02
"""Clean images on which the network that gives the gradients and the runtime disagree (Pintor et al. 2022, indicator
"transfer failure")."""

REJECTED_SHARE = 0.01
"""Claimed adversarials that the second look refused: the file does not repeat itself."""

LATE_GAIN, LATE_SHARE = 0.005, 0.10
"""A loss that still moved: in the last tenth of the last pass's steps the lowest margin of all fell by more than
LATE_GAIN of the clean margin; and the share of survivors that may have one (Pintor et al. 2022, "incomplete
optimization"). On five networks at one or two epsilons each, PGD with 40 steps and two starts had at most 4 %; with 5
steps and one start it had more than 10 % in all four cases where it left more images standing."""

BLACK_BOX_SHARE = 0.02
"""Attacked images that stood against gradients and fell to queries (Carlini et al. 2019, section 4.2: black-box attacks
should not do better; AutoAttack's own check warns at 0.2 points)."""


class Health(Record):
    """Counts of what was watched. `survivors` were attacked and stand; `flat` of them never saw the loss move.

    `probed` images were attacked once more at an epsilon that allows every image; `probe_stood` did not fall.
    `constant`: the runtime gives the same logits whatever the image. `moving` survivors saw the loss move until the
    end; `black_box` images stood against every part that follows gradients and fell to one that does not. `flat` and
    `moving` are None where an attack cannot say. `asked_only`: no part of the attack followed a gradient. `unfinished`:
    what was still to do when the time was up.
    """

    images: int
    attacked: int
    dead: int
    survivors: int
    flat: int | None
    twin_disagreements: int
    claims: int
    rejected: int
    probed: int
    probe_stood: int
    constant: bool
    moving: int | None = None
    black_box: int = 0
    asked_only: bool = False
    unfinished: tuple[str, ...] = ()


def health_of(parts: Sequence[Health]) -> Health:
    """The counts of attacks on parts of the images, together."""
    found: dict[str, object] = {}
    for name in Health.model_fields:
        values = [getattr(part, name) for part in parts]
        if any(value is None for value in values):
            found[name] = None
        elif isinstance(values[0], bool):
            found[name] = any(values) if name == "asked_only" else all(values)
        elif isinstance(values[0], tuple):
            found[name] = tuple(dict.fromkeys(line for value in values for line in value))
        else:
            found[name] = sum(values)
    return Health.model_validate(found)


def warnings(side: Side, health: Health) -> tuple[str, ...]:
    """Why this file's result is inconclusive; empty when nothing speaks against it."""
    found = (check(health) for check in _CHECKS)
    return tuple(f"{side}: {line}" for line in found if line)


def _nothing_attacked(health: Health) -> str:
    if health.attacked:
        return ""
    return "no image was classified correctly, so nothing was attacked; check the labels and the preprocessing"


def _constant(health: Health) -> str:
    if not health.constant:
        return ""
    return (
        "the file returns the same logits whatever the image: its robustness means nothing; look for a pruned-away "
        "path or broken preprocessing"
    )


def _dead(health: Health) -> str:
    if health.dead <= DEAD_SHARE * health.attacked:
        return ""
    return (
        f"{health.dead} of {health.attacked} attacked images had a zero or non-finite gradient (limit "
        f"{DEAD_SHARE:.0%}; Carlini et al. 2019): the attack was blind; look for saturated or quantised activations, "
        "and use an attack that needs no gradient"
    )


def _flat(health: Health) -> str:
    if health.flat is None or health.flat <= FLAT_SHARE * max(health.survivors, 1):
        return ""
    return (
        f"the loss of {health.flat} of {health.survivors} surviving images did not move (limit {FLAT_SHARE:.0%}; "
        "Pintor et al. 2022): the gradients do not describe the file; use an attack that needs no gradient"
    )


def _moving(health: Health) -> str:
    if health.moving is None or health.moving <= LATE_SHARE * max(health.survivors, 1):
        return ""
    return (
        f"the loss of {health.moving} of {health.survivors} surviving images was still moving in the last steps (limit "
        f"{LATE_SHARE:.0%}; Pintor et al. 2022): the attack stopped too early; raise --attack-steps (--attack-queries "
        "for square), or use --attack standard"
    )


def _black_box(health: Health) -> str:
    if health.black_box <= max(BLACK_BOX_SHARE * health.attacked, 1):
        return ""
    return (
        f"{health.black_box} of {health.attacked} attacked images stood against gradients and fell to queries alone "
        f"(limit {BLACK_BOX_SHARE:.0%}; Carlini et al. 2019): the gradients mislead; look for quantised or shattered "
        "activations, and use --attack square with more queries"
    )


def _twin(health: Health) -> str:
    if health.twin_disagreements <= max(TWIN_SHARE * health.images, 1):
        return ""
    return (
        f"network and file disagree on {health.twin_disagreements} of {health.images} clean images (limit "
        f"{TWIN_SHARE:.0%}; Pintor et al. 2022): the gradients belong to another function; check the parity of the file"
    )


def _rejected(health: Health) -> str:
    if health.rejected <= max(REJECTED_SHARE * health.claims, 1):
        return ""
    return (
        f"{health.rejected} of {health.claims} adversarials were refused when they were verified again (limit "
        f"{REJECTED_SHARE:.0%}): the file does not repeat its answers, or the attack left its bounds; run it with one "
        "thread, and look for random operators"
    )


def _probe(health: Health) -> str:
    if not health.probe_stood:
        return ""
    return (
        f"{health.probe_stood} of {health.probed} images stood even at an epsilon that allows any image (Carlini et "
        "al. 2019): the attack is too weak for this file; raise --attack-steps and --attack-restarts, or use another "
        "attack"
    )


def _asked_only(health: Health) -> str:
    if not health.asked_only:
        return ""
    return (
        "the attack followed no gradient: a black box alone is weaker evidence (Carlini et al. 2019, section 4.3); "
        "use --attack standard, with --gradients where the file has no twin"
    )


def _unfinished(health: Health) -> str:
    if not health.unfinished:
        return ""
    return f"the attack's time was up: {', '.join(health.unfinished)}; raise --attack-for, or attack fewer images"


_CHECKS = (
    *(_nothing_attacked, _constant, _asked_only, _unfinished),
    *(_dead, _flat, _moving, _black_box, _twin, _rejected, _probe),
)
