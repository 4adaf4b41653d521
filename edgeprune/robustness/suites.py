"""What each attack is made of: its parts, with their steps, restarts, targets and queries.

Promise: one truth for what is run and for what a threat model says was run. No torch is imported here.

`standard` is AutoAttack as published (Croce and Hein 2020, version of August 2020, settings of its public code for
linf, l2 and l1), and nothing else carries that name. `quick` is for CI: the same family with a tenth of the passes.
`black-box` is for a file that gives no gradients: scores, then labels alone. `wide` is `standard`, then torchattacks'
single attacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from edgeprune.records import AttackPart

if TYPE_CHECKING:
    from edgeprune.config import AttackConfig
    from edgeprune.records import ThreatModel

BLACK_BOX: Final = ("square", "decision", "replay", "black-box")
"""Parts and suites that follow no gradient."""

SUITES: Final[Mapping[str, tuple[AttackPart, ...]]] = {
    "quick": (
        AttackPart(name="apgd-ce", steps=50),
        AttackPart(name="apgd-t", steps=30, targets=3),
        AttackPart(name="square", queries=500),
    ),
    "standard": (
        AttackPart(name="apgd-ce", steps=100),
        AttackPart(name="apgd-t", steps=100, targets=9),
        AttackPart(name="fab-t", steps=100, targets=9),
        AttackPart(name="square", queries=5000),
    ),
    "black-box": (
        AttackPart(name="square", queries=5000),
        AttackPart(name="decision", queries=5000),
    ),
}

_FOREIGN: Final[Mapping[str, tuple[str, ...]]] = {
    "linf": ("MIFGSM", "VMIFGSM", "TPGD", "Jitter", "PGDRS", "DeepFool", "CW"),
    "l2": ("PGDL2", "PGDRSL2", "DeepFool", "CW", "EADEN"),
    "l1": ("EADL1", "EADEN", "CW"),
}
"""torchattacks' single attacks of the suite `wide`: those that differ from ours in loss, step or noise, by norm."""


def suite(name: str, norm: str) -> tuple[AttackPart, ...]:
    """The parts of a suite under a norm; KeyError for a name that is none.

    `standard` in l1 has the public code's own numbers (Croce and Hein 2021): five restarts, five targets.
    """
    if name == "wide":
        foreign = (AttackPart(name=f"torchattacks:{each}", steps=50) for each in _FOREIGN[norm])
        return (*suite("standard", norm), *foreign)
    parts = SUITES[name]
    if name == "standard" and norm == "l1":
        l1 = {"apgd-ce": {"restarts": 5}, "apgd-t": {"targets": 5}}
        return tuple(part.model_copy(update=l1.get(part.name, {})) for part in parts)
    return parts


TARGETED: Final = ("apgd-t", "fab-t")


def parts_of(config: AttackConfig) -> tuple[AttackPart, ...]:
    """What the attack of this configuration runs.

    An attack that is not ours is one part with the steps and restarts that it is given.
    """
    name, steps, restarts = config.attack, config.steps, config.restarts
    if name in (*SUITES, "wide"):
        return suite(name, config.norm)
    if name == "fgsm":
        return (AttackPart(name=name, steps=1),)
    if name in ("square", "decision"):
        return (AttackPart(name=name, restarts=restarts, queries=config.queries),)
    targets = config.targets if name in TARGETED else None
    return (AttackPart(name=name, steps=steps, restarts=restarts, targets=targets),)


def effort(threat: ThreatModel) -> str:
    """What was spent, in words: "40 steps, 2 restarts", or "apgd-ce 100 steps, then square 5,000 queries"."""
    if len(threat.parts) > 1:
        return ", then ".join(f"{part.name} {_spent(part)}" for part in threat.parts)
    if threat.parts and (threat.parts[0].targets or threat.parts[0].queries):
        return _spent(threat.parts[0])
    return f"{_count('step', threat.steps)}, {_count('restart', threat.restarts)}"


def _spent(part: AttackPart) -> str:
    restarts = part.restarts if part.restarts > 1 else None
    counts = (("step", part.steps), ("query", part.queries), ("target", part.targets), ("restart", restarts))
    return " x ".join(_count(word, number) for word, number in counts if number)


def _count(word: str, number: int) -> str:
    plural = "queries" if word == "query" else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"
