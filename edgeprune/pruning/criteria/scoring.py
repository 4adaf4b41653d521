"""From raw importance to scores: one finite number a unit of every group, comparable between groups.

Scores are divided by their mean inside the group (`NORMALISATION`), which makes groups of different size and depth
comparable under one budget. Where a criterion cannot see a group (no batch norm, no zeros), the group is scored by
its weights, and the normalisation says how many were: nothing is ranked by chance in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from edgeprune.errors import PruningError, UsageError
from edgeprune.pruning.surgery import per_unit, replica, weight_name
from edgeprune.types import ChannelGraph, Group, Member, ModelBundle, Scores, Split

NORMALISATION = "mean of each group = 1"
WEIGHT_KINDS = frozenset({"CONV", "LINEAR", "DEPTHWISE_CONV"})

PerGroup = Callable[[Group], torch.Tensor]


def scores_of(name: str, graph: ChannelGraph, score: PerGroup, *, normalisation: str = NORMALISATION) -> Scores:
    """Scores from the raw importance of each group, a tensor (width,) of which no entry is negative.

    With a `normalisation` of its own, a criterion's values stay as they are. Errors: PruningError when they are not
    finite.
    """
    values = {}
    for group in graph.groups:
        raw = score(group).double().numpy()
        mean = raw.mean()
        if not np.isfinite(mean):
            raise PruningError(f"the criterion {name} finds scores of {group.name} that are not finite")
        divisor = mean if normalisation == NORMALISATION else 1.0
        values[group.name] = raw / divisor if mean > 0 else np.ones_like(raw)
    return Scores(name, values, normalisation)


def with_fallback(name: str, bundle: ModelBundle, graph: ChannelGraph, score: PerGroup, lacking: str) -> Scores:
    """As `scores_of`, but a group whose importance is empty, since it is `lacking` something, is scored by l2.

    Errors: PruningError when that is so of every group.
    """
    raw = {group.name: score(group) for group in graph.groups}
    unseen = [name for name, values in raw.items() if not values.numel()]
    if unseen and len(unseen) == len(raw):
        raise PruningError(f"the criterion {name} cannot see any group: all are {lacking}", hint="use --criterion l2")
    scores = scores_of(
        name, graph, lambda group: l2_of(bundle.module, group) if group.name in unseen else raw[group.name]
    )
    if not unseen:
        return scores
    said = f"{scores.normalisation}; {len(unseen)} of {len(raw)} groups by l2, being {lacking}"
    return dataclasses.replace(scores, normalisation=said)


def weights_of(module: nn.Module, group: Group, measure: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Sum of `measure` over all weights of a unit: rows of its makers, columns of its readers. float64 (width,)."""
    total = torch.zeros(group.width, dtype=torch.float64)
    with torch.no_grad():
        for member in group.members:
            if member.kind in WEIGHT_KINDS or _is_matrix(module, member):
                name = weight_name(member)
                layer = module.get_submodule(name.rpartition(".")[0])
                total += per_unit(layer, measure(module.get_parameter(name).double()), member)
    return total


def _is_matrix(module: nn.Module, member: Member) -> bool:
    """A bare parameter that is some layer's weight: the fused projections of nn.MultiheadAttention."""
    if member.kind != "PARAMETER" or member.role == "zero":
        return False
    parameter = dict(module.named_parameters()).get(member.name)
    return parameter is not None and parameter.dim() == 2


def l2_of(module: nn.Module, group: Group) -> torch.Tensor:
    """Euclidean norm of all weights of a unit. float64 (width,)."""
    return weights_of(module, group, torch.square).sqrt()


def by_unit(channels: torch.Tensor, member: Member) -> torch.Tensor:
    """Sum over the channels of each unit: (..., channels of the member's layer) to float64 (..., width)."""
    units = torch.tensor([unit for unit, owned in enumerate(member.channels) for _ in owned], dtype=torch.long)
    owned = torch.tensor([channel for owned in member.channels for channel in owned], dtype=torch.long)
    empty = torch.zeros(*channels.shape[:-1], len(member.channels), dtype=torch.float64)
    return empty.index_add_(-1, units, channels.detach().cpu().double().index_select(-1, owned))


def drawn(criterion: str, train: Split | None, images: int, seed: int) -> Split:
    """At most `images` training images, drawn by the seed. UsageError when there are none to draw from."""
    if train is None:
        raise UsageError(f"the criterion {criterion} needs training data", hint="give --train, or use --criterion l2")
    ids = np.sort(np.random.default_rng(seed).permutation(train.ids)[:images])
    return dataclasses.replace(train, ids=ids)


def private(bundle: ModelBundle) -> ModelBundle:
    """The bundle around a copy of its module in eval mode, every weight of which takes gradients."""
    module = replica(bundle.module).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return dataclasses.replace(bundle, module=module)


def readers(groups: Iterable[Group]) -> set[str]:
    """Names of the layers that read a channel of some group."""
    return {m.name for group in groups for m in group.members if m.role == "in" and m.kind in WEIGHT_KINDS}


def channel_axis(layer: nn.Module) -> int:
    """The dimension of a reader's input that holds its channels: the last of a linear layer's, else the second."""
    return -1 if isinstance(layer, nn.Linear) else 1
