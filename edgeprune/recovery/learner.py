"""A network in training, and everything about it that a checkpoint holds."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from edgeprune.recovery.muon import muon
from edgeprune.recovery.settings import RecoverConfig

State = dict[str, torch.Tensor]
Saved = tuple[State, dict[str, Any], State]
_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4
_RATE = 0.014
_SGD_RATE, _SGD_RATE_WITHOUT_NORM = 0.05, 0.01


@dataclass(slots=True)
class Course:
    """How a training went so far: plain numbers and texts, as they stand in a checkpoint.

    `rate`: what the schedule is multiplied by. `steps`: of the adversary. `spent`: seconds in all. `reserve`: seconds
    that the last look of the jury takes. `training`: seconds in training steps, over `seen` images. `first`: mean loss
    of the first steps. `stale`: epochs since the best. `accuracy`, `robust`, `far`, `further`: what the jury said of
    the state that is kept. `floor`: the score under which a state is worse than the best one by more than chance.
    """

    precision: Literal["float32", "bfloat16"]
    steps: int
    rate: float = 1.0
    spent: float = 0.0
    reserve: float | None = None
    training: float = 0.0
    seen: int = 0
    first: float | None = None
    stale: int = 0
    accuracy: float | None = None
    robust: float | None = None
    far: float | None = None
    further: float | None = None
    floor: float = 0.0
    best_robust: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Learner:
    """A network in training: what a checkpoint holds, and what is gone back to."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: State
    course: Course
    best: State
    epoch: int = 0

    def snapshot(self) -> Saved:
        """What `restore` needs to take back what follows."""
        return state_of(self.network), copy.deepcopy(self.optimizer.state_dict()), dict_of(self.average)

    def restore(self, saved: Saved) -> None:
        """Take back what followed the snapshot."""
        self.network.load_state_dict(saved[0])
        self.optimizer.load_state_dict(saved[1])
        self.average = saved[2]


def optimizer_of(network: nn.Module, kind: str = "muon") -> torch.optim.Optimizer:
    """Muon, or SGD with Nesterov momentum and weight decay on weights, not on biases and norms."""
    parameters = [p for p in network.parameters() if p.is_floating_point()]
    for parameter in parameters:  # a frozen network is trained all the same: it was cut
        parameter.requires_grad_(True)
    if kind == "muon":
        return muon(network, normed=has_norm(network))
    matrices = [p for p in parameters if p.dim() > 1]
    vectors = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.0, momentum=_MOMENTUM, nesterov=True)


def peak_rate(network: nn.Module, settings: RecoverConfig) -> float:
    """The peak of the schedule: what was asked for, or what suits the optimizer, the network and the recipe."""
    if settings.optimizer == "sgd":
        return settings.learning_rate or (_SGD_RATE if has_norm(network) else _SGD_RATE_WITHOUT_NORM)
    return settings.learning_rate or _RATE


def has_norm(network: nn.Module) -> bool:
    """Whether there is batch norm in a network."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def state_of(network: nn.Module) -> State:
    """A copy of a network's tensors."""
    return dict_of(network.state_dict())


def dict_of(tensors: State) -> State:
    """Copies of tensors, by name."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
