"""What makes a channel important. Each criterion is a function; each is registered like a third party's.

Every criterion gives one score a unit of every group; scores are then divided by their mean inside the group
(`NORMALISATION`), which makes groups of different size and depth comparable under one budget.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from edgeprune.errors import UsageError
from edgeprune.types import ChannelGraph, Group, Member, ModelBundle, Scores, Split

NORMALISATION = "mean of each group = 1"
_TAYLOR_IMAGES = 2048
_WEIGHT_KINDS = {"CONV", "LINEAR", "DEPTHWISE_CONV"}

PerGroup = Callable[[Group], torch.Tensor]


def l1(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Sum of absolute weights that make or read a channel (Li et al. 2017, "Pruning Filters for Efficient ConvNets")."""
    return _scores("l1", graph, lambda group: _weights(bundle.module, group, lambda w: w.abs()))


def l2(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Euclidean norm of all weights that make or read a channel (the group norm of Fang et al. 2023)."""
    return _scores("l2", graph, lambda group: _weights(bundle.module, group, lambda w: w.square()).sqrt())


def random(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Uniform noise: the baseline that every other criterion has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return _scores("random", graph, lambda group: torch.rand(group.width, generator=generator, dtype=torch.float64))


def taylor(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Squared first-order change of the loss when a channel goes (Molchanov et al. 2019).

    (sum over the weights that make the channel of gradient times weight)^2, averaged over batches of at most 2,048
    training images. Needs labelled training data: UsageError without.
    """
    if train is None:
        raise UsageError("the criterion taylor needs training data", hint="give --train, or use --criterion l2")
    module = copy.deepcopy(bundle.module).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    bare = ModelBundle(
        module, bundle.input_shape, bundle.preprocessing, bundle.classes, bundle.architecture, bundle.digest
    )
    network = bare.network()
    sums = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in graph.groups}
    done = 0
    for images, labels in train.batches(128):
        module.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(network(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()  # type: ignore[no-untyped-call]
        for group in graph.groups:
            sums[group.name] += _gradient_sum(module, group).square()
        done += len(labels)
        if done >= _TAYLOR_IMAGES:
            break
    return _scores("taylor", graph, lambda group: sums[group.name])


def _scores(name: str, graph: ChannelGraph, score: PerGroup) -> Scores:
    values = {}
    for group in graph.groups:
        raw = score(group).double().numpy()
        mean = raw.mean()
        values[group.name] = raw / mean if mean > 0 else np.ones_like(raw)
    return Scores(name, values, NORMALISATION)


def _weights(module: nn.Module, group: Group, measure: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Sum of `measure` over all weights of a unit: rows of its makers, columns of its readers. float64 (width,)."""
    total = torch.zeros(group.width, dtype=torch.float64)
    with torch.no_grad():
        for member in group.members:
            if member.kind in _WEIGHT_KINDS:
                weight = module.get_parameter(f"{member.name}.weight")
                total += _per_unit(measure(weight.double()), member)
    return total


def _gradient_sum(module: nn.Module, group: Group) -> torch.Tensor:
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in group.members:
        if member.role != "out" or member.kind == "PARAMETER":
            continue
        for parameter in module.get_submodule(member.name).parameters(recurse=False):
            if parameter.grad is not None and parameter.shape[0] == sum(len(unit) for unit in member.channels):
                total += _per_unit((parameter * parameter.grad).detach().double(), member)
    return total


def _per_unit(values: torch.Tensor, member: Member) -> torch.Tensor:
    """Sum `values` (shaped like a weight) over the channels of each unit of a member. float64 (width,)."""
    axis = 0 if member.role == "out" else min(1, values.dim() - 1)
    flat = values.movedim(axis, 0).reshape(values.shape[axis], -1).sum(1)
    if member.role == "in":  # a grouped convolution's columns stand for the same place in every group
        return torch.stack([flat[[index % len(flat) for index in unit]].sum() for unit in member.channels])
    return torch.stack([flat[list(unit)].sum() for unit in member.channels])
