"""Suites: several attacks in a row, the cheap ones first, each on what the ones before left standing.

Promise: a suite runs the parts that `edgeprune.robustness.suites` lists for it, in full, and takes nothing but norm,
epsilon and seed from the budget. An image that falls is not attacked again.
"""

from __future__ import annotations

from torch import Tensor

from edgeprune.records import AttackPart
from edgeprune.robustness.attacks.apgd import apgd_part
from edgeprune.robustness.attacks.fab import fab_part
from edgeprune.robustness.attacks.fmn import fmn_part
from edgeprune.robustness.attacks.run import Part, attack_with
from edgeprune.robustness.attacks.square import square_part
from edgeprune.robustness.suites import SUITES
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim


def quick(victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress) -> AttackOutcome:
    """For CI: APGD-CE, APGD-T and Square with fewer steps, targets and queries than `standard`."""
    return cascade(SUITES["quick"], victim, images, labels, budget, progress=progress)


def standard(
    victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
) -> AttackOutcome:
    """AutoAttack's standard version: APGD-CE, APGD-T, FAB-T and Square with the published settings in full.

    F. Croce and M. Hein, ICML 2020 (arXiv 2003.01690). With fewer than ten classes the targeted parts try all of them;
    with fewer than four APGD-T climbs the margin. It differs from the public code where that would weaken the result
    for an exported file: the runtime judges every iterate, the logits are rescaled before the cross-entropy, and random
    starts belong to the image.
    """
    return cascade(SUITES["standard"], victim, images, labels, budget, progress=progress)


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
    steps, restarts, targets, queries = part.steps or 1, part.restarts, part.targets or 1, part.queries or 1
    makers = {
        "apgd-ce": lambda: apgd_part("ce", steps, restarts),
        "apgd-dlr": lambda: apgd_part("dlr", steps, restarts),
        "apgd-t": lambda: apgd_part("targeted", steps, restarts, targets),
        "fab": lambda: fab_part(steps, restarts, None),
        "fab-t": lambda: fab_part(steps, restarts, targets),
        "fmn": lambda: fmn_part(steps, restarts),
        "square": lambda: square_part(queries, restarts),
    }
    return makers[part.name]()
