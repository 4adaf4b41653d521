"""Suites: several attacks in a row, the cheap ones first, each on what the ones before left standing.

Promise: a suite runs the parts that `edgeprune.robustness.suites` lists for it, in full, and takes nothing but norm,
epsilon and seed from the budget. An image that falls is not attacked again.
"""

from __future__ import annotations

from torch import Tensor

from edgeprune.records import AttackPart
from edgeprune.robustness.attacks.apgd import apgd_part
from edgeprune.robustness.attacks.decision import decision_part
from edgeprune.robustness.attacks.fab import fab_part
from edgeprune.robustness.attacks.fmn import fmn_part
from edgeprune.robustness.attacks.foreign import foreign_part
from edgeprune.robustness.attacks.run import Part, attack_with
from edgeprune.robustness.attacks.square import square_part
from edgeprune.robustness.suites import suite
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim


def quick(victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress) -> AttackOutcome:
    """For CI: APGD-CE, APGD-T and Square with fewer steps, targets and queries than `standard`."""
    return cascade(suite("quick", budget.norm), victim, images, labels, budget, progress=progress)


def standard(
    victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
) -> AttackOutcome:
    """AutoAttack's standard version: APGD-CE, APGD-T, FAB-T and Square with the published settings in full.

    F. Croce and M. Hein, ICML 2020 (arXiv 2003.01690). With fewer than ten classes the targeted parts try all of them;
    with fewer than four APGD-T climbs the margin. It differs from the public code where that would weaken the result
    for an exported file: the runtime judges every iterate, the logits are rescaled before the cross-entropy, and random
    starts belong to the image.
    """
    return cascade(suite("standard", budget.norm), victim, images, labels, budget, progress=progress)


def wide(victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress) -> AttackOutcome:
    """`standard`, then torchattacks' single attacks through the fence; one that fails is said, and passed over."""
    return cascade(suite("wide", budget.norm), victim, images, labels, budget, progress=progress)


def black_box(
    victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
) -> AttackOutcome:
    """No gradients at all: Square, then the decision attack, which sees labels only."""
    return cascade(suite("black-box", budget.norm), victim, images, labels, budget, progress=progress)


def cascade(
    parts: tuple[AttackPart, ...],
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    budget: AttackBudget,
    *,
    progress: Progress,
) -> AttackOutcome:
    """Any parts in a row. KeyError for a part that is not ours."""
    return attack_with([_made(part) for part in parts], victim, images, labels, budget, progress)


def _made(part: AttackPart) -> Part:
    if part.name.startswith("torchattacks:"):
        return foreign_part(part.name.partition(":")[2], part.steps or 1, part.restarts, fatal=False)
    steps, restarts, targets, queries = part.steps or 1, part.restarts, part.targets or 1, part.queries or 1
    makers = {
        "apgd-ce": lambda: apgd_part("ce", steps, restarts),
        "apgd-dlr": lambda: apgd_part("dlr", steps, restarts),
        "apgd-t": lambda: apgd_part("targeted", steps, restarts, targets),
        "fab": lambda: fab_part(steps, restarts, None),
        "fab-t": lambda: fab_part(steps, restarts, targets),
        "fmn": lambda: fmn_part(steps, restarts),
        "decision": lambda: decision_part(queries, restarts),
        "square": lambda: square_part(queries, restarts),
    }
    return makers[part.name]()
