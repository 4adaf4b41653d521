"""The adversary that training images are perturbed by, and the check that it still means anything.

One step is FGSM from a random start with a step of 1.25 epsilon (Wong, Rice and Kolter 2020, "Fast is better than
free"); more are PGD (Madry et al. 2018). Single-step training can overfit to its own attack within an epoch and lose
all robustness (Andriushchenko and Flammarion 2020); `collapsed` says so from held-out images under PGD.

The network is in eval mode while it is attacked, as in TRADES: its statistics are those of what it is trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Loss = Callable[[torch.Tensor], torch.Tensor]
"""Logits -> a scalar that the adversary raises."""
CHECK_STEPS = 10
_SINGLE_STEP = 1.25
_SAID = 0.2  # an accuracy below this says nothing about a collapse


@dataclass(frozen=True, slots=True)
class Adversary:
    """linf adversary: `reach` (epsilon) in pixel units, gradient `steps`, pixels stay inside `bounds`."""

    reach: float
    steps: int
    bounds: tuple[float, float]

    @property
    def step_size(self) -> float:
        """1.25 epsilon for one step, 2.5 epsilon shared by several (at most epsilon each)."""
        return self.reach * (_SINGLE_STEP if self.steps == 1 else min(1.0, 2.5 / self.steps))


def perturb(
    network: nn.Module, images: torch.Tensor, loss: Loss, adversary: Adversary, generator: torch.Generator
) -> torch.Tensor:
    """Images within reach of `images` (both float32 (N, C, H, W)) that raise the loss. The mode is left as it was."""
    was_training, reach = network.training, adversary.reach
    network.eval()
    try:
        perturbed = (images + _start(images, reach, generator)).clamp_(*adversary.bounds)
        for _ in range(adversary.steps):
            perturbed.requires_grad_(True)
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(loss(network(perturbed)), perturbed)
            with torch.no_grad():
                moved = perturbed + adversary.step_size * gradient.sign()
                perturbed = torch.clamp(moved, images - reach, images + reach).clamp_(*adversary.bounds)
        return perturbed.detach()
    finally:
        network.train(was_training)


def _start(images: torch.Tensor, reach: float, generator: torch.Generator) -> torch.Tensor:
    """Where the adversary starts, for every pixel: one of 256 steps between `-reach` and `reach`, each as likely.

    Eight are drawn at once: floats, one by one, took an eighth of the adversary's time.
    """
    drawn = torch.empty(-(-images.numel() // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    strides = torch.empty_like(images, device="meta").stride()  # as the images lie in memory
    levels = drawn.view(torch.uint8).as_strided(images.shape, strides).to(images.device)
    return levels.to(images.dtype).mul_(reach / 127.5).sub_(reach)


def collapsed(single_step: float, pgd: float, best_pgd: float) -> bool:
    """Whether single-step training overfitted: PGD does far better than the step that was trained against.

    All three are accuracies on held-out images: under one step, under PGD, and the best under PGD so far.
    """
    return (single_step > _SAID and pgd < single_step / 2) or (best_pgd > _SAID and pgd < best_pgd / 2)
