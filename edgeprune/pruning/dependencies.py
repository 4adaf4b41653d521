"""Where a layer's channels go, followed through torch-pruning's dependency graph.

torch-pruning (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning") knows how layers hang together; its own
walk along that graph keeps one origin a channel and takes minutes where concatenations pile up. This walk keeps all
origins, so that channels which depend on each other are seen to, never looks at a channel twice, and stops in time.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
import torch_pruning as tp
from torch import nn
from torch_pruning._helpers import _HybridIndex as Step
from torch_pruning.dependency import index_mapping
from torch_pruning.ops import OPTYPE

from edgeprune.errors import PruningError
from edgeprune.types import Shape

FLOW = frozenset(
    {OPTYPE.CONCAT, OPTYPE.SPLIT, OPTYPE.ELEMENTWISE, OPTYPE.RESHAPE, OPTYPE.UNBIND, OPTYPE.EXPAND, OPTYPE.SLICE}
)
"""What hands channels on and has none of its own."""


_MOST_STEPS = 1_000_000  # VGG's widest group takes 100,000; mappings that multiply indices are soon beyond


class EndlessError(Exception):
    """The walk ran into one of its limits, and which. For `edgeprune.pruning.graph` only: it becomes a refusal."""


class Own(Enum):
    """Kinds of what loses channels that torch-pruning does not have."""

    SIZE = "a number that the forward pass takes channels apart by"
    RNN = "a recurrent layer"
    STATE = "a recurrent layer's own reading of its hidden units"
    MADE = "channels that a module without weights makes of nothing"
    CARRIED = "channels that such a module hands on"


class Apart(NamedTuple):
    """Channels that are taken apart: the part of each position, and whether all parts have to stay as large."""

    parts: tuple[int, ...]
    even: bool


class Touch(NamedTuple):
    """What loses channels: a layer's or parameter's name (None: unknown to the graph), and which with which.

    `channels` holds (index of that dimension, index of the root layer's output or None where it was lost) pairs.
    """

    name: str | None
    kind: OPTYPE | Own
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
        graph = tp.DependencyGraph()
        try:
            # Every default of this call is passed: some of them are mutable and would outlive it.
            graph.build_dependency(
                module,
                example_inputs=example,
                forward_fn=_forward,
                output_transform=None,
                unwrapped_parameters=None,
                customized_pruners={},
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
        except Exception as error:  # torch-pruning fails with whatever its tracing meets
            if not _mapped_one_by_one(graph):
                raise PruningError(
                    f"the network cannot be traced: {type(error).__name__}: {error}",
                    where="torch-pruning follows autograd from the output back to the layers",
                    hint="a forward pass under no_grad or detach, or on integers, hides the layers from it",
                ) from error
    return graph


def _forward(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = network(images)
    if not output.requires_grad:
        raise ValueError("no gradient flows from its output")
    return output


def _mapped_one_by_one(graph: Any) -> bool:
    """Set torch-pruning's index mappings node by node, where one that fails would end its own loop.

    A node whose mapping fails (a channel shuffle: division by zero) hands indices on as they are, and the proof sees
    that that is wrong. False when the failure came before the mappings.
    """
    nodes = list(getattr(graph, "module2node", {}).values())
    updates = (
        index_mapping.update_concat_index_mapping,
        index_mapping.update_split_index_mapping,
        index_mapping.update_reshape_index_mapping,
        index_mapping.update_unbind_index_mapping,
        index_mapping.update_expand_index_mapping,
        index_mapping.update_slice_index_mapping,
    )
    for node in nodes:
        for update in updates:
            with contextlib.suppress(ArithmeticError, LookupError, TypeError, AttributeError):
                update(graph, node)
    return any(node.dependencies for node in nodes)


def follow(graph: Any, layer: nn.Module, outputs: Sequence[int], *, seconds: float) -> tuple[Touch, ...]:
    """Everything that has to go when the output channels `outputs` of `layer` do, in the order it is met.

    Errors: EndlessError after `seconds` or too many steps; torch-pruning's index mappings raise whatever they like.
    """
    deadline = time.monotonic() + seconds
    seen: dict[tuple[Any, Any], dict[Any, None]] = {}
    handler = graph.get_pruner_of_module(layer).prune_out_channels
    waiting = deque([(graph.module2node[layer], handler, [Step(idx=i, root_idx=i) for i in outputs])])
    taken = 0
    while waiting:
        if time.monotonic() > deadline:
            raise EndlessError(f"following its channels took longer than {max(seconds, 0):.3g} s")
        node, handler, steps = waiting.popleft()
        known = seen.setdefault((node, handler), {})
        fresh = [step for step in steps if step not in known]
        if not fresh:
            continue
        known.update(dict.fromkeys(fresh))
        taken += len(fresh)
        for dependency in node.dependencies:
            if dependency.is_triggered_by(handler):
                onward = fresh
                for mapping in dependency.index_mapping:
                    if taken + len(onward) * getattr(mapping, "_stride", 1) > _MOST_STEPS:  # seen before it is made
                        raise EndlessError("torch-pruning cannot follow its channels: they multiply without end")
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
