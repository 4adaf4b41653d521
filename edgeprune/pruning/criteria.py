"""What makes a channel important. Each criterion is a function; each is registered like a third party's.

Every criterion gives one score a unit of every group; scores are then divided by their mean inside the group
(`NORMALISATION`), which makes groups of different size and depth comparable under one budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from edgeprune.errors import PruningError, UsageError
from edgeprune.pruning.surgery import per_unit, replica
from edgeprune.types import ChannelGraph, Group, ModelBundle, Scores, Split

NORMALISATION = "mean of each group = 1"
_TAYLOR_IMAGES, _TAYLOR_BATCH = 2048, 128
_WEIGHT_KINDS = {"CONV", "LINEAR", "DEPTHWISE_CONV"}

PerGroup = Callable[[Group], torch.Tensor]


def l1(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Sum of absolute weights that make or read a channel (Li et al. 2017, "Pruning Filters for Efficient ConvNets").

    Li et al. sum over the filter that makes it alone; a group has readers and further makers, too.
    """
    return _scores("l1", graph, lambda group: _weights(bundle.module, group, torch.abs))


def l2(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Euclidean norm of all weights that make or read a channel (the group norm of Fang et al. 2023)."""
    return _scores("l2", graph, lambda group: _weights(bundle.module, group, torch.square).sqrt())


def random(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Uniform noise: the baseline that every other criterion has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return _scores("random", graph, lambda group: torch.rand(group.width, generator=generator, dtype=torch.float64))


def taylor(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Squared first-order change of the loss when a channel goes (Molchanov et al. 2019).

    A channel goes when nothing reads it, as in `edgeprune.pruning.surgery.silence`: (sum over the weights that read
    the channel of gradient times weight)^2, which is the squared gradient at a gate of 1 on the channel; averaged
    over batches of 128 of at most 2,048 training images, drawn by the seed. Errors: UsageError without labelled
    training data; PruningError when a gradient is not finite.
    """
    if train is None:
        raise UsageError("the criterion taylor needs training data", hint="give --train, or use --criterion l2")
    module = replica(bundle.module).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    network = dataclasses.replace(bundle, module=module).network()
    sums = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in graph.groups}
    ids = np.sort(np.random.default_rng(seed).permutation(train.ids)[:_TAYLOR_IMAGES])
    chosen = dataclasses.replace(train, ids=ids)
    for images, labels in chosen.batches(_TAYLOR_BATCH):
        module.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(network(torch.from_numpy(images)), torch.from_numpy(labels))
            loss.backward()  # type: ignore[no-untyped-call]
        for group in graph.groups:
            sums[group.name] += _effect(module, group).square()
    return _scores("taylor", graph, lambda group: sums[group.name])


def _scores(name: str, graph: ChannelGraph, score: PerGroup) -> Scores:
    values = {}
    for group in graph.groups:
        raw = score(group).double().numpy()
        mean = raw.mean()
        if not np.isfinite(mean):
            raise PruningError(f"the criterion {name} finds scores of {group.name} that are not finite")
        values[group.name] = raw / mean if mean > 0 else np.ones_like(raw)
    return Scores(name, values, NORMALISATION)


def _weights(module: nn.Module, group: Group, measure: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Sum of `measure` over all weights of a unit: rows of its makers, columns of its readers. float64 (width,)."""
    total = torch.zeros(group.width, dtype=torch.float64)
    with torch.no_grad():
        for member in group.members:
            if member.kind in _WEIGHT_KINDS:
                layer = module.get_submodule(member.name)
                total += per_unit(layer, measure(module.get_parameter(f"{member.name}.weight").double()), member)
    return total


def _effect(module: nn.Module, group: Group) -> torch.Tensor:
    """Gradient times weight, summed over all weights that read a unit. float64 (width,)."""
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in group.members:
        weight = module.get_parameter(f"{member.name}.weight") if member.role == "in" else None
        if weight is not None and weight.grad is not None:
            effect = weight.detach().double() * weight.grad.double()
            total += per_unit(module.get_submodule(member.name), effect, member)
    return total
