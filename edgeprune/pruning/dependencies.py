"""Where a layer's channels go, followed through torch-pruning's dependency graph.

torch-pruning (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning") knows how layers hang together; its own
walk along that graph keeps one origin a channel and takes minutes where concatenations pile up. This walk keeps all
origins, so that channels which depend on each other are seen to, never looks at a channel twice, and stops in time.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import nn
from torch_pruning._helpers import _HybridIndex as Step
from torch_pruning.ops import OPTYPE

from edgeprune.errors import PruningError
from edgeprune.types import Shape

FLOW = frozenset(
    {OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE, OPTYPE.UNBIND, OPTYPE.EXPAND, OPTYPE.SLICE}
)
"""What hands channels on and has none of its own."""


class TooSlowError(Exception):
    """The walk ran into its time limit. For `edgeprune.pruning.graph` only: it becomes a refusal."""


class Touch(NamedTuple):
    """What loses channels: a layer's or parameter's name (None: unknown to the graph), and which with which.

    `channels` holds (index of that dimension, index of the root layer's output or None where it was lost) pairs.
    """

    name: str | None
    kind: OPTYPE
    outward: bool
    dim: int
    module: Any
    channels: tuple[tuple[int, int | None], ...]


def build(module: nn.Module, input_shape: Shape) -> Any:
    """torch-pruning's graph of a network whose parameters all require gradients.

    Errors: PruningError when the network cannot be traced.
    """
    example = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # torch-pruning warns of what the proof will judge
        try:
            # Every default of this call is passed: some of them are mutable and would outlive it.
            return tp.DependencyGraph().build_dependency(
                module,
                example_inputs=example,
                forward_fn=lambda network, images: network(images),
                output_transform=None,
                unwrapped_parameters=None,
                customized_pruners={},
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
        except Exception as error:  # torch-pruning fails with whatever its tracing meets
            raise PruningError(
                f"the network cannot be traced: {type(error).__name__}: {error}",
                where="torch-pruning follows autograd from the output back to the layers",
                hint="a forward pass under no_grad or detach, or on integers, hides the layers from it",
            ) from error


def follow(graph: Any, layer: nn.Module, outputs: Sequence[int], *, seconds: float) -> tuple[Touch, ...]:
    """Everything that has to go when the output channels `outputs` of `layer` do, in the order it is met.

    Errors: TooSlowError after `seconds`; torch-pruning's index mappings raise whatever they like.
    """
    deadline = time.monotonic() + seconds
    seen: dict[tuple[Any, Any], dict[Any, None]] = {}
    handler = graph.get_pruner_of_module(layer).prune_out_channels
    waiting = deque([(graph.module2node[layer], handler, [Step(idx=i, root_idx=i) for i in outputs])])
    while waiting:
        if time.monotonic() > deadline:
            raise TooSlowError
        node, handler, steps = waiting.popleft()
        known = seen.setdefault((node, handler), {})
        fresh = [step for step in steps if step not in known]
        if not fresh:
            continue
        known.update(dict.fromkeys(fresh))
        for dependency in node.dependencies:
            if dependency.is_triggered_by(handler):
                onward = fresh
                for mapping in dependency.index_mapping:
                    onward = onward if mapping is None else mapping(onward)
                if onward:
                    waiting.append((dependency.target, dependency.handler, onward))
    return tuple(_touch(graph, node, handler, tuple(steps)) for (node, handler), steps in seen.items())


def _touch(graph: Any, node: Any, handler: Any, steps: Sequence[Any]) -> Touch:
    channels = tuple((int(step.idx), step.root_idx) for step in steps)
    if node.type == OPTYPE.PARAMETER:
        return Touch(graph._param_to_name[node.module], node.type, True, int(node.pruning_dim), node.module, channels)
    pruner = graph.get_pruner_of_module(node.module)
    outward = handler == pruner.prune_out_channels  # where one function does both, too
    return Touch(graph._module2name.get(node.module), node.type, outward, 0, node.module, channels)
