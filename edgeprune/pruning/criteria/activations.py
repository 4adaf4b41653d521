"""Importance from what flows: how often a channel says anything at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeprune.pruning.criteria.scoring import by_unit, channel_axis, drawn, private, readers, with_fallback
from edgeprune.types import ChannelGraph, Group, ModelBundle, Scores, Split

_IMAGES, _BATCH = 2048, 128


def apoz(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Share of a channel's activations that are not zero: 1 - APoZ (Hu et al. 2016, "Network Trimming").

    Counted over positions and at most 2,048 training images, drawn by the seed, where the channel is *read*: behind
    its ReLU, and behind a pooling that lies between. A group in which nothing is ever zero (no ReLU: GELU, SiLU, a
    linear bottleneck) is scored by l2, and the normalisation says so. Errors: UsageError without training data;
    PruningError when there are no zeros in any group.
    """
    chosen = drawn("apoz", train, _IMAGES, seed)
    working = private(bundle)
    network = working.network()
    alive: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    hooks = []
    for name in sorted(readers(graph.groups)):

        def look(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            seen = inputs[0].detach().movedim(channel_axis(layer), -1).flatten(0, -2)
            alive[name] = alive.get(name, torch.zeros(())) + (seen != 0).sum(0).cpu()
            count[name] = count.get(name, 0) + len(seen)

        hooks.append(working.module.get_submodule(name).register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            for images, _ in chosen.batches(_BATCH):
                network(torch.from_numpy(images))
    finally:
        for hook in hooks:
            hook.remove()

    def score(group: Group) -> Tensor:
        lively, of = torch.zeros(group.width, dtype=torch.float64), 0
        for member in group.members:
            if member.role == "in" and member.name in alive:
                lively += by_unit(alive[member.name], member)
                of += count[member.name] * len(member.channels[0])
        return lively / of if of and bool((lively < of).any()) else torch.empty(0)

    return with_fallback("apoz", bundle, graph, score, "without zeros")
