"""Importance from the network alone: norms, batch-norm scales, the geometric median; and noise to compare with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeprune.pruning.criteria.scoring import WEIGHT_KINDS, by_unit, l2_of, scores_of, weights_of, with_fallback
from edgeprune.types import ChannelGraph, Group, Member, ModelBundle, Scores, Split

LAMP_NORMALISATION = "squared norm over that of all units of the group that are no smaller"
_COLUMNS = 4096  # of filters at a time in float64: VGG's widest layer would take gigabytes


def l1(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Sum of absolute weights that make or read a channel (Li et al. 2017, "Pruning Filters for Efficient ConvNets").

    Li et al. sum over the filter that makes it alone; a group has readers and further makers, too.
    """
    return scores_of("l1", graph, lambda group: weights_of(bundle.module, group, torch.abs))


def l2(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Euclidean norm of all weights that make or read a channel (the group norm of Fang et al. 2023)."""
    return scores_of("l2", graph, lambda group: l2_of(bundle.module, group))


def random(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Uniform noise: the baseline that every other criterion has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return scores_of("random", graph, lambda group: torch.rand(group.width, generator=generator, dtype=torch.float64))


def bn_scale(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """|gamma| of a channel's batch norm (Liu et al. 2017, "Learning Efficient Convolutional Networks through Network
    Slimming"), summed over all batch norms that the channel passes.

    It says most of a network that was trained with an L1 penalty on gamma. The paper compares gammas of all layers as
    they are; here each group's mean is 1. A group without batch norm is scored by l2, and the normalisation says so.
    Errors: PruningError when no group has one.
    """
    return with_fallback("bn_scale", bundle, graph, lambda group: _gammas(bundle.module, group), "without batch norm")


def lamp(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Layer-adaptive magnitude (Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning").

    The squared l2 norm of a unit over the sum of the squared norms of all units of the group that are no smaller,
    itself included: the paper's score with a channel where it has a weight, and a group where it has a layer. The
    largest unit of every group scores 1, which is what makes groups comparable: nothing is divided by a mean.
    """

    def score(group: Group) -> torch.Tensor:
        squares = weights_of(bundle.module, group, torch.square).numpy()
        ascending = np.sort(squares)
        from_here = np.cumsum(ascending[::-1])[::-1]  # sum of this one and of all larger ones
        no_smaller = from_here[np.searchsorted(ascending, squares)]
        return torch.from_numpy(np.divide(squares, no_smaller, out=np.zeros_like(squares), where=squares != 0))

    return scores_of("lamp", graph, score, normalisation=LAMP_NORMALISATION)


def fpgm(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Filter pruning via geometric median (He et al. 2019): the sum of Euclidean distances to all other filters.

    A filter near the geometric median is one that the others can stand in for. A unit's filter is all weights that
    make it, in every maker of the group; what reads a channel does not count, as in the paper.
    """

    def score(group: Group) -> torch.Tensor:
        products = torch.zeros(group.width, group.width, dtype=torch.float64)
        for member in group.members:
            if member.role == "out" and member.kind in WEIGHT_KINDS:
                filters = _filters(bundle.module.get_submodule(member.name), member)
                for start in range(0, filters.shape[1], _COLUMNS):
                    part = filters[:, start : start + _COLUMNS].double()
                    part = part - part.mean(0)  # products of far-off vectors would lose digits
                    products += part @ part.T
        squares = products.diagonal()
        return (squares[:, None] + squares - 2 * products).clamp_min(0).sqrt().sum(1)

    return scores_of("fpgm", graph, score)


def _gammas(module: nn.Module, group: Group) -> torch.Tensor:
    """Sum of |gamma| over the batch norms of each unit, float64 (width,); empty where there is none."""
    total, found = torch.zeros(group.width, dtype=torch.float64), False
    for member in group.members:
        gamma = getattr(module.get_submodule(member.name), "weight", None) if member.kind == "BN" else None
        if gamma is not None:
            total, found = total + by_unit(gamma.abs(), member), True
    return total if found else torch.empty(0, dtype=torch.float64)


def _filters(layer: nn.Module, member: Member) -> torch.Tensor:
    """All weights that make each unit, as rows. (width, weights), in the layer's dtype."""
    weight = layer.get_parameter("weight").detach().cpu()
    if getattr(layer, "transposed", False):  # (inputs, outputs of a part, ...): each output's weights are a column
        parts = weight.reshape(int(layer.groups), -1, *weight.shape[1:])  # type: ignore[arg-type]
        weight = parts.transpose(1, 2).flatten(0, 1)
    rows = weight.flatten(1)
    owned = torch.tensor(member.channels, dtype=torch.long)  # every unit takes equally many
    return rows[owned].flatten(1)
