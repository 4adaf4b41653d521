"""One file on stage: its session, its twin and the threat model, and what is done to it.

`edgeprune.robustness.evaluate.attack_file` tells the story; the acts are here: the attack, the second look, and what is
watched to know whether the attack has failed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgeprune import protocols
from edgeprune.errors import MeasurementError
from edgeprune.robustness.attacks import batch_size
from edgeprune.robustness.gradients import at_rest
from edgeprune.robustness.health import FLAT_GAIN, LATE_GAIN, Health
from edgeprune.robustness.second_look import Verified, verify
from edgeprune.robustness.suites import BLACK_BOX
from edgeprune.robustness.targeted import TowardsNetwork, TowardsSession
from edgeprune.robustness.verdicts import checked_logits, predictions
from edgeprune.types import ENDLESS, AttackBudget, AttackOutcome, Course, Victim

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeprune.records import ThreatModel
    from edgeprune.robustness.twin.pulling import Pull
    from edgeprune.types import Floats, Ints, Looked, Progress


class Blind(nn.Module):
    """What stands for the gradients of a file that gives none."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise MeasurementError("the file gives no gradients", hint="use --attack black-box")


PROBED = 10
_SAME = 1e-6  # relative: logits that differ by less did not change


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """The file behind `session`, differentiated through `twin` (None: there is none), under `threat`."""

    session: protocols.Session
    twin: nn.Module | None
    threat: ThreatModel
    course: Course = ENDLESS
    pull: Pull | None = None
    look: Callable[[torch.Tensor], Looked] | None = None

    def towards(self, target: int) -> Stage:
        """The same file as one of two classes: class 1 is the target, class 0 all others."""
        network = None if self.twin is None else TowardsNetwork(self.twin, target)
        return replace(self, session=TowardsSession(self.session, target), twin=network, pull=None, look=None)

    def logits(self, images: Floats) -> Floats:
        """The runtime's logits for any number of images, batch by batch: float32 (N, K), checked."""
        size, who = batch_size(images.shape[1:]), self.session.info.name
        parts = [
            checked_logits(self.session.logits, images[start : start + size], who=who)
            for start in range(0, len(images), size)
        ]
        return np.concatenate(parts)

    def predict(self, images: Floats) -> Ints:
        """The runtime's classes, int64 (N,)."""
        return predictions(self.logits(images)) if len(images) else np.zeros(0, np.int64)

    def attack(self, images: Floats, labels: Ints, progress: Progress) -> AttackOutcome:
        """Run the threat model's attack on images that the file gets right."""
        budget = replace(self._budget(self.threat.epsilon_value, self.threat.restarts), course=self.course)
        return self._run(images, labels, budget, progress)

    def look_again(self, found: AttackOutcome, origins: Floats, labels: Ints) -> Verified:
        """Verify every claim of the attack; the arrays of the answer are over all N attacked images."""
        claimed = np.flatnonzero(found.fell.numpy())
        claims = found.adversarials.numpy()[claimed]
        seen = verify(self.predict, claims, origins[claimed], labels[claimed], self.threat)
        believed, rounded = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
        predicted = labels.copy()
        believed[claimed], rounded[claimed], predicted[claimed] = seen.believed, seen.rounded, seen.predicted
        return Verified(believed, rounded, predicted)

    def watch(self, found: AttackOutcome, claims: Verified, images: Floats, labels: Ints, clean: Ints) -> Health:
        """Everything that tells a broken attack from a robust file; `images` are all of them, `clean` the verdicts."""
        right = np.flatnonzero(clean == labels)
        fell = found.fell.numpy()
        probed = right[:PROBED]
        return Health(
            images=len(labels),
            attacked=len(right),
            dead=int(np.sum(~found.gradient_health.numpy())),
            survivors=int(np.sum(~fell)),
            flat=None if found.gain is None else int(np.sum(found.gain.numpy()[~fell] < FLAT_GAIN)),
            twin_disagreements=0 if self.twin is None else int(np.sum(self._twin_predictions(images) != clean)),
            claims=int(np.sum(fell)),
            rejected=int(np.sum(fell & ~claims.believed)),
            probed=len(probed),
            probe_stood=self._probe(images[probed], labels[probed]),
            constant=self._constant(images),
            moving=None if found.late is None else int(np.sum(found.late.numpy()[~fell] > LATE_GAIN)),
            black_box=0 if found.black_box is None else int(np.sum(found.black_box.numpy())),
            asked_only=self.asks_only,
            unfinished=found.unfinished,
        )

    @property
    def asks_only(self) -> bool:
        """Whether the attack follows no gradient: every part of it asks the runtime alone."""
        parts = [part.name for part in self.threat.parts] or [self.threat.attack]
        return self.twin is None or all(name in BLACK_BOX for name in parts)

    def _run(self, images: Floats, labels: Ints, budget: AttackBudget, progress: Progress) -> AttackOutcome:
        attack: protocols.Attack = protocols.find("attack", self.threat.attack)
        victim = Victim(self.session.logits, self.twin or Blind(), self.threat.bounds, self.pull, self.look)
        found = attack(victim, torch.from_numpy(images), torch.from_numpy(labels), budget, progress=progress)
        gain, late, black_box = (
            each if each is None else each.cpu() for each in (found.gain, found.late, found.black_box)
        )
        wrong, health = found.fell.cpu(), found.gradient_health.cpu()
        return AttackOutcome(found.adversarials.cpu(), wrong, health, gain, late, black_box, found.unfinished)

    def _budget(self, epsilon: float, restarts: int) -> AttackBudget:
        threat = self.threat
        budget = AttackBudget(threat.norm, epsilon, threat.steps, restarts, threat.seed)
        for part in threat.parts:
            budget = replace(budget, targets=part.targets or budget.targets, queries=part.queries or budget.queries)
        return budget

    def _probe(self, images: Floats, labels: Ints) -> int:
        """How many images stand at an epsilon that allows every image: a working attack leaves none."""
        if not len(images):
            return 0
        span = self.threat.bounds[1] - self.threat.bounds[0]
        size = images[0].size
        epsilon = span * {"linf": 1.0, "l2": float(np.sqrt(size)), "l1": float(size)}[self.threat.norm]
        found = self._run(images, labels, self._budget(epsilon, 2), lambda _text, _share: None)
        return int(np.sum(~found.fell.numpy()))

    def _twin_predictions(self, images: Floats) -> Ints:
        assert self.twin is not None
        size = batch_size(images.shape[1:])
        with at_rest(self.twin) as device, torch.inference_mode():
            parts = [
                self.twin(torch.from_numpy(images[start : start + size]).to(device)).argmax(1).cpu().numpy()
                for start in range(0, len(images), size)
            ]
        return np.concatenate(parts).astype(np.int64)

    def _constant(self, images: Floats) -> bool:
        """Whether the file answers the same to some of the images, to all-dark and to all-bright."""
        extremes = [np.full_like(images[:1], bound) for bound in self.threat.bounds]
        logits = self.logits(np.concatenate([images[:PROBED], *extremes]))
        spread = logits.max(axis=0) - logits.min(axis=0)
        return bool(spread.max() <= _SAME * max(float(np.abs(logits).max()), 1e-30))
