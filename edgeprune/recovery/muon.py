"""The optimizer of recovery: Muon, with steps that are a share of each weight's length.

The momentum of a weight matrix is orthogonalised before it is applied (Jordan et al. 2024, "Muon: an optimizer for
hidden layers in neural networks"): all directions of a layer are learned at one speed, not only the strongest. That
suits a network that was just cut and has seconds to train. The step's length is the learning rate times the weight's
own length (You et al. 2017, "LARS"), since batch norm makes only directions count. What is no matrix (biases, norms,
embeddings of positions) takes plain SGD with Nesterov momentum at a fixed multiple of the same rate.

A convolution's weight is the matrix (outputs, inputs of one output); each of its groups is a matrix of its own, so
that a depthwise filter is normalised by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_MOMENTUM = 0.9
_ROUNDS = 4  # of Newton-Schulz: singular values end between 0.7 and 1.2, which is near enough
_WIDEST = 2048  # the shorter side of a matrix that is orthogonalised; wider ones are only normalised
_SHORTEST = 1e-3  # a weight that is all zero moves, too
_PLAIN = {True: 2.0, False: 0.5}  # rate of plain SGD over Muon's, with and without batch norm

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Muon(torch.optim.Optimizer):
    """Groups have `lr`, `plain` (SGD; its rate over `lr`, or None) and `blocks` (matrices in one weight)."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "plain": None, "blocks": 1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply the gradients that are there."""
        for group in self.param_groups:
            for weight in (each for each in group["params"] if each.grad is not None):
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].mul_(_MOMENTUM).add_(weight.grad)
                ahead = weight.grad.add(momentum, alpha=_MOMENTUM)
                if group["plain"] is not None:
                    weight.add_(ahead, alpha=-group["lr"] * group["plain"])
                    continue
                shape = (group["blocks"], weight.shape[0] // group["blocks"], -1)
                moved, length = orthogonal(ahead.reshape(shape)), _length(weight.reshape(shape))
                moved *= length.clamp_min(_SHORTEST) / _length(moved).clamp_min(1e-12)
                weight.add_(moved.view(weight.shape), alpha=-group["lr"])


def muon(network: nn.Module, *, normed: bool) -> Muon:
    """Muon over all parameters of `network`; `normed`: it has batch norm."""
    blocks = {module.weight: module.groups for module in network.modules() if isinstance(module, _CONVOLUTIONS)}
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for parameter in (each for each in network.parameters() if each.is_floating_point()):
        matrix = parameter.dim() == 2 or parameter in blocks
        groups.setdefault((blocks.get(parameter, 1), matrix), []).append(parameter)
    return Muon(
        [
            {"params": each, "blocks": count, "plain": None if matrix else _PLAIN[normed]}
            for (count, matrix), each in groups.items()
        ]
    )


def orthogonal(matrices: Tensor) -> Tensor:
    """The matrices (B, m, n) with all singular values near 1, float32: Newton-Schulz, Jordan's coefficients.

    A matrix whose shorter side is above 2,048 is only brought to a length of 1; one of zeros stays as it is.
    """
    scaled = matrices.float() / _length(matrices.float()).clamp_min(1e-12)
    if min(scaled.shape[1:]) > _WIDEST:
        return scaled
    tall = scaled.shape[1] > scaled.shape[2]
    found = scaled.mT if tall else scaled
    for _ in range(_ROUNDS):
        product = found @ found.mT
        found = 3.4445 * found + (-4.7750 * product + 2.0315 * product @ product) @ found
    return found.mT if tall else found


def _length(matrices: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    return lengths
