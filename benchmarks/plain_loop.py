"""The peer's recovery: a plain loop as a first script has it.

SGD, one-cycle, six epochs of distillation; eager, contiguous, float32; on images as they are, or on images that one
step of an adversary has moved.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from fractions import Fraction

import torch
from recovery_cases import CASES, Case  # beside this file
from torch import nn

from edgeprune.models import digest
from edgeprune.recovery.images import shuffled
from edgeprune.recovery.learner import peak_rate
from edgeprune.recovery.schedules import rate_share
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.types import ModelBundle

BATCH = 128
_EPOCHS, _TEMPERATURE = 6, 4.0


def plain_step(
    network: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    seen: torch.Tensor | None = None,
) -> None:
    """One step of distillation as a first script has it: eager, contiguous, float32. `seen`: what the student sees."""
    with torch.no_grad():
        wanted = nn.functional.log_softmax(teacher(images) / _TEMPERATURE, 1)
    given = nn.functional.log_softmax(network(images if seen is None else seen) / _TEMPERATURE, 1)
    nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True).mul(_TEMPERATURE**2).backward()
    optimizer.step()
    optimizer.zero_grad()


def plain_adversary(network: nn.Module, teacher: nn.Module, images: torch.Tensor, case: Case) -> torch.Tensor:
    """Images that one step from a random start has moved away from the teacher's answers (Wong et al. 2020)."""
    reach, bounds = float(Fraction(case.attack.eps)), case.dense.preprocessing.bounds
    noise = torch.empty_like(images).uniform_(-reach, reach)
    start = (images + noise).clamp(*bounds).requires_grad_()
    with torch.no_grad():
        wanted = nn.functional.log_softmax(teacher(images), 1)
    given = nn.functional.log_softmax(network(start), 1)
    far = nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
    (slope,) = torch.autograd.grad(far, start)
    return (images + (noise + 1.25 * reach * slope.sign()).clamp(-reach, reach)).clamp(*bounds)


def plain_loop(case: Case, pruned: ModelBundle, seed: int, *, robust: bool = False) -> tuple[ModelBundle, float]:
    """The peer's recovery, on a copy: (recovered, seconds). The last state is kept, as a plain loop does.

    `robust`: the student looks at perturbed images, the teacher at those that they were made of.
    """
    started = time.perf_counter()
    student = dataclasses.replace(pruned, module=copy.deepcopy(pruned.module))
    network, teacher = student.network(), case.dense.network()
    torch.manual_seed(seed)
    peak = CASES[case.name].peak or peak_rate(network, RecoverConfig(optimizer="sgd"))  # 0.05; 0.01 without batch norm
    optimizer = torch.optim.SGD(network.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=5e-4)
    network.train()
    for epoch in range(_EPOCHS):
        batches = shuffled(len(case.train), seed + epoch, BATCH)
        for step, positions in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate_share((epoch + step / len(batches)) / _EPOCHS)
            images = torch.from_numpy(case.train.source.read(case.train.ids[positions]))
            seen = plain_adversary(network, teacher, images, case) if robust else None
            plain_step(network, teacher, optimizer, images, seen)
    network.eval()
    return dataclasses.replace(student, digest=digest(student.module)), time.perf_counter() - started
