"""A second look at what the recording of a forward pass lost, by torch-pruning's dependency graph.

It maps indices from layer to layer along autograd's graph, so it does not depend on rules for operations; it is slower,
and goes wrong in ways that the proof sees.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch_pruning.ops import OPTYPE, module2type

from edgeprune.pruning.candidates import Candidate, Covered
from edgeprune.pruning.dependencies import FLOW, EndlessError, build, follow
from edgeprune.pruning.units import group_of, weights_that_cannot_be_cut
from edgeprune.types import Shape


def followed(
    module: nn.Module, input_shape: Shape, layers: Sequence[str], covered: Covered, *, seconds: float, until: float
) -> Iterator[tuple[Candidate, float]]:
    """Candidates of these layers' outputs that are not `covered` (which is kept up to date), each with the share done.

    At most `seconds` go into each, and none begins after `until`. Errors: PruningError when the network cannot be
    traced.
    """
    graph = build(module, input_shape)
    odd = weights_that_cannot_be_cut(module)
    for position, name in enumerate(layers):
        layer, share = module.get_submodule(name), position / len(layers)
        if layer not in graph.module2node:
            yield Candidate(name, (name,), "the traced forward pass does not reach it"), share
        elif module2type(layer) != OPTYPE.DEPTHWISE_CONV:  # that is in the group of whatever feeds it
            width = int(graph.get_out_channels(layer))
            outputs = [index for index in range(width) if index not in covered[name]]
            if outputs:
                left = min(seconds, until - time.monotonic())
                yield _candidate(graph, name, outputs, odd, covered, left), share


def _candidate(
    graph: Any, name: str, outputs: list[int], odd: dict[str, str], covered: Covered, seconds: float
) -> Candidate:
    """Follow the given outputs of a layer; notes in `covered` whose outputs have been dealt with."""
    covered[name].update(outputs)
    try:
        touches = follow(graph, graph.model.get_submodule(name), outputs, seconds=seconds)
    except EndlessError as error:
        return Candidate(name, (name,), str(error))
    except Exception as error:  # noqa: BLE001  # index mappings of torch-pruning fail in many ways
        return Candidate(name, (name,), f"torch-pruning cannot follow its channels: {error}")
    solid = [touch for touch in touches if touch.name is not None and touch.kind not in FLOW]
    made = {touch.name or "": {channel for channel, _ in touch.channels} for touch in solid if touch.outward}
    group = group_of(name, outputs, touches, odd)
    if not isinstance(group, str) and any(made[maker] & covered[maker] for maker in made if maker != name):
        group = "some of its channels belong to another group"
    for maker, channels in made.items():
        covered[maker] |= channels
    layers = tuple(dict.fromkeys(touch.name or "" for touch in solid)) or (name,)
    return Candidate(name, layers, group)
