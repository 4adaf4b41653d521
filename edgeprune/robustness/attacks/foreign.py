"""torchattacks as a source of candidates: it proposes on the gradient network, the runtime judges.

Promise: `torchattacks:PGD`, `torchattacks:CW` and the like run on a private copy of the network; a candidate is brought
into the ball and the pixel bounds of the threat model, and counts when the *runtime* misclassifies it there.

Fenced in (torchattacks 3.5.1): it reseeds the global generators and writes `.grad` and the network's mode; it prints
and warns; it calls `.view` on tensors that need not be contiguous; it knows pixels in [0, 1] only; its CW depends on a
constant added to the logits and loses pixels at 0 and 1; its default step does not follow epsilon. Its draws belong to
the batch, so a result depends on the images it is given together. Refused: `AutoAttack`, whose parts end at 10 steps.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import MeasurementError, RuntimeMissingError, UsageError
from edgeprune.protocols import Attack, did_you_mean
from edgeprune.robustness.attacks.run import Part, Run, attack_with
from edgeprune.robustness.gradients import input_gradients
from edgeprune.robustness.norms import box, project
from edgeprune.types import AttackBudget, AttackOutcome, Progress, Victim

_REFUSED = {
    "AutoAttack": "its parts run 10 steps each, which is not AutoAttack: use --attack standard",
    "MultiAttack": "it is a list of other attacks: name one of them, or use --attack standard",
    "LGV": "it trains networks of its own and needs their training data",
    "VANILA": "it returns the images as they are",
}
_STEP = 2.5  # epsilons, divided by the steps: the length of a step, as Madry et al. 2018 choose it
_EDGE = 1e-6  # of the pixel range: atanh is infinite at 0 and 1


def torchattack(name: str) -> Attack:
    """The attack that torchattacks calls `name`.

    RuntimeMissingError when torchattacks cannot be imported, UsageError when it has no such attack, or one that is
    refused.
    """
    _class(name)

    def attack(
        victim: Victim, images: Tensor, labels: Tensor, budget: AttackBudget, *, progress: Progress
    ) -> AttackOutcome:
        part = foreign_part(name, budget.steps, budget.restarts)
        found = attack_with((part,), victim, images, labels, budget, progress)
        return replace(found, gain=None, late=None)  # it does not show its iterates

    return attack


def foreign_part(name: str, steps: int, restarts: int, *, fatal: bool = True) -> Part:
    """The part of a suite; `fatal`: a failure of the foreign code is an error, else it is noted and passed over."""
    kind = _class(name)

    def go(run: Run) -> Iterator[float]:
        given = replace(run, budget=replace(run.budget, steps=steps, restarts=restarts))
        try:
            yield from _attack(given, name, kind)
        except MeasurementError as error:
            if fatal or name not in error.what:
                raise
            run.way.skipped.append(error.what)

    return Part(f"torchattacks:{name}", float(steps * restarts), True, go)


def _class(name: str) -> Any:
    if name in _REFUSED:
        raise UsageError(f"torchattacks:{name} is not run: {_REFUSED[name]}")
    try:
        import torchattacks
    except (ImportError, RuntimeError, OSError) as error:  # beside a CPU torch, a CUDA torchvision fails like this
        raise RuntimeMissingError(
            f"torchattacks cannot be imported: {error}",
            hint="install torchattacks 3.5.1 and a torchvision for this torch",
        ) from error
    known = tuple(each for each in torchattacks.__all__ if each not in _REFUSED)
    if name not in known:
        raise UsageError(f"torchattacks has no attack {name}", hint=did_you_mean(name, known))
    return getattr(torchattacks, name)


def _attack(run: Run, name: str, kind: Any) -> Iterator[float]:
    private = copy.deepcopy(run.victim.module)
    network = _Unit(private, run.victim.bounds).eval()
    for restart in range(run.budget.restarts):
        standing = run.waiting(restart)
        for start in range(0, len(standing), run.places):
            ids = standing[start : start + run.places]
            origins, labels = run.images[ids].to(run.device), run.labels[ids].to(run.device)
            if not restart:
                run.note_gradients(ids, input_gradients(run.victim.module, origins, labels)[1])
            with _fenced(run.device, run.budget.seed + restart):
                points = _propose(run, kind, name, network, (origins, labels))
            broken = ~points.flatten(1).isfinite().all(1)
            points[broken] = origins[broken]
            points = project(points, origins, box(origins, run.budget, run.victim.bounds), run.budget)
            run.judge(ids, points.cpu().numpy())
            run.finish(ids)
            yield (restart + (start + len(ids)) / len(standing)) / run.budget.restarts


def _propose(run: Run, kind: Any, name: str, network: _Unit, given: tuple[Tensor, Tensor]) -> Tensor:
    """Candidates (N, C, H, W) in pixels, from a foreign attack with settings that follow the budget."""
    low, high = run.victim.bounds
    images = ((given[0] - low) / (high - low)).clamp(_EDGE, 1 - _EDGE).contiguous()
    classes = run.rivals.shape[1] + 1
    try:
        with torch.enable_grad():
            attack = kind(network, **_settings(kind, run.budget, high - low, classes))
            attack.set_device(run.device)
            found = attack(images, given[1].clone())
    except Exception as error:  # a foreign package: whatever it raises is about it, not about the file
        raise MeasurementError(
            f"torchattacks:{name} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint="use another attack; `standard` and `pgd` are edgeprune's own",
        ) from error
    pixels: Tensor = found.detach().float() * (high - low) + low
    return pixels


def _settings(kind: Any, budget: AttackBudget, span: float, classes: int) -> dict[str, object]:
    """What of the budget the attack's constructor knows; everything else keeps torchattacks' default."""
    known, epsilon = inspect.signature(kind.__init__).parameters, budget.epsilon / span
    settings: dict[str, object] = {
        "eps": epsilon,
        "steps": budget.steps,
        "seed": budget.seed,
        "norm": {"linf": "Linf", "l2": "L2", "l1": "L1"}[budget.norm],
        "n_classes": classes,
        "n_queries": budget.queries,
        "n_restarts": 1,
    }
    if "eps" in known:
        settings["alpha"] = min(_STEP * epsilon / budget.steps, epsilon)
    return {name: value for name, value in settings.items() if name in known}


class _Unit(nn.Module):
    """A network on images in [0, 1] whose logits are all positive, which is what CW takes for granted.

    The shift is a constant to the gradient, so differences of logits and their gradients stay as they are.
    """

    def __init__(self, network: nn.Module, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.network, self.low, self.span = network, bounds[0], bounds[1] - bounds[0]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.contiguous() * self.span + self.low)
        return logits - logits.detach().amin(1, keepdim=True) + 1.0


@contextlib.contextmanager
def _fenced(device: torch.device, seed: int) -> Iterator[None]:
    """Seeded global generators inside, everybody else's as they were outside; nothing is printed."""
    plain, legacy = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(legacy)
