"""From a network to groups of channels that must go together, each proved before it is used.

torch-pruning's `DependencyGraph` (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning") finds the groups;
it is not trusted blindly. What it finds is turned into plain data (`Group`, `Member`): from there on neither its
graph nor its state is needed, and two prunings share nothing. The bundle that is traced is never changed.
"""

from __future__ import annotations

import copy
import fnmatch
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch_pruning.ops import OPTYPE, module2type

from edgeprune.errors import PruningError
from edgeprune.pruning.proof import prove
from edgeprune.types import ChannelGraph, Group, Layer, Member, ModelBundle, Progress, Refusal

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_FLOW = {
    OPTYPE.CONCAT,
    OPTYPE.SPLIT,
    OPTYPE.ELEMENTWISE,
    OPTYPE.RESHAPE,
    OPTYPE.UNBIND,
    OPTYPE.EXPAND,
    OPTYPE.SLICE,
}


def trace(bundle: ModelBundle, *, ignore: Sequence[str] = (), progress: Progress | None = None) -> ChannelGraph:
    """Find, convert and prove the groups of a network.

    `ignore` are layer names or patterns (``layer3.*``): a group that makes channels in one of them is left alone.
    Every group that is not in the result's `groups` is in its `refusals`, with the reason.
    Errors: PruningError when the network cannot be traced at all.
    """
    started = time.perf_counter()
    module = copy.deepcopy(bundle.module).cpu().eval()
    for parameter in module.parameters():  # torch-pruning reads autograd's graph: a frozen layer would be invisible
        parameter.requires_grad_(parameter.is_floating_point())
    layers = _layers(module, bundle)
    groups: list[Group] = []
    refusals: list[Refusal] = []
    found = list(_find(module, bundle))
    for done, candidate in enumerate(found):
        if progress:
            progress(f"proving {candidate.name}", done / len(found))
        reason = candidate.reason or _ignored(candidate, ignore)
        if reason is None:
            assert candidate.group is not None
            reason = prove(module, candidate.group, bundle.input_shape)
        if reason is None and candidate.group is not None:
            groups.append(candidate.group)
        else:
            refusals.append(Refusal(candidate.name, reason or "", candidate.layers))
    return ChannelGraph(
        groups=tuple(groups),
        refusals=tuple(refusals),
        layers=layers,
        macs=sum(layer.macs for layer in layers),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        seconds=time.perf_counter() - started,
    )


class _Candidate:
    """A group as torch-pruning names it, converted if it could be; `reason` says why not."""

    def __init__(self, name: str, layers: tuple[str, ...], group: Group | None, reason: str | None) -> None:
        self.name, self.layers, self.group, self.reason = name, layers, group, reason


def _find(module: nn.Module, bundle: ModelBundle) -> Iterator[_Candidate]:
    example = torch.randn(2, *bundle.input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-pruning warns of what the proof will judge
        try:
            # Every default of this call is passed: some of them are mutable and would outlive it.
            graph = tp.DependencyGraph().build_dependency(
                module,
                example_inputs=example,
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
        seen: set[str] = set()
        for name, layer in module.named_modules():
            if not isinstance(layer, WEIGHTED) or name in seen:
                continue
            if layer not in graph.module2node:
                yield _Candidate(name, (name,), None, "the traced forward pass does not reach it")
                continue
            if module2type(layer) == OPTYPE.DEPTHWISE_CONV:
                continue  # it belongs to the group of whatever feeds it
            yield _convert(graph, name, layer, seen)


def _convert(graph: Any, name: str, layer: nn.Module, seen: set[str]) -> _Candidate:
    pruner = graph.get_pruner_of_module(layer)
    width = pruner.get_out_channels(layer)
    try:
        items = list(graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(width))))
    except Exception as error:  # index mappings of torch-pruning fail in many ways
        seen.add(name)
        return _Candidate(name, (name,), None, f"torch-pruning cannot follow its channels: {error}")
    members: list[Member] = []
    reason = None
    for item in items:
        target = item.dep.target
        kind = target.type
        if kind == OPTYPE.OUTPUT:
            reason = "it makes the network's output"
        if kind in _FLOW or kind == OPTYPE.OUTPUT:
            continue
        member = _member(graph, item, width)
        if isinstance(member, str):
            reason = reason or member
        else:
            members.append(member)
    makers = [m.name for m in members if m.role == "out"]
    seen.update(makers, [name])
    layers = tuple(dict.fromkeys(m.name for m in members))
    if reason is None and not any(m.role == "in" for m in members):
        reason = "nothing takes its channels in: it makes the network's output"
    group = None if reason else _couple_grouped(graph.model, Group(name, width, tuple(members)))
    return _Candidate(name, layers, group, reason)


def _member(graph: Any, item: Any, width: int) -> Member | str:
    """One item of torch-pruning's group as plain data, or the reason why it cannot be."""
    target, kind = item.dep.target, item.dep.target.type
    if kind == OPTYPE.PARAMETER:
        name = graph._param_to_name[target.module]
        role, dim = "out", int(target.pruning_dim)
    else:
        name = graph._module2name.get(target.module)
        if name is None or kind in (OPTYPE.CUSTOMIZED, OPTYPE.MHA):
            return f"torch-pruning has no sound rule for {type(target.module).__name__}"
        pruner = graph.get_pruner_of_module(target.module)
        both = pruner.prune_in_channels == pruner.prune_out_channels
        role = "out" if both or item.dep.handler == pruner.prune_out_channels else "in"
        dim = 0
    channels: list[list[int]] = [[] for _ in range(width)]
    for local, root in zip(item.idxs, item.root_idxs, strict=True):
        if root is None or not 0 <= root < width:
            return f"its channels cannot be followed into {name}"
        channels[root].append(int(local))
    return Member(name, kind.name, "in" if role == "in" else "out", tuple(tuple(c) for c in channels), dim)


def _couple_grouped(module: nn.Module, group: Group) -> Group:
    """Tie channel i of every convolution group together, so that grouped convolutions stay even.

    With 4 groups of 8 channels, a width of 32 becomes 8 units of 4 channels.
    """
    modules = dict(module.named_modules())
    parts = 1
    for member in group.members:
        layer = modules.get(member.name)
        groups = getattr(layer, "groups", 1)
        if member.kind != "DEPTHWISE_CONV" and isinstance(groups, int) and groups > 1:
            parts = max(parts, groups)
    if parts == 1 or group.width % parts:
        return group
    units = group.width // parts
    members = tuple(
        Member(
            member.name,
            member.kind,
            member.role,
            tuple(tuple(sorted(sum((member.channels[u + p * units] for p in range(parts)), ()))) for u in range(units)),
            member.dim,
        )
        for member in group.members
    )
    return Group(group.name, units, members)


def _ignored(candidate: _Candidate, ignore: Sequence[str]) -> str | None:
    assert candidate.group is not None
    for member in candidate.group.members:
        for pattern in ignore:
            if member.role == "out" and (
                fnmatch.fnmatchcase(member.name, pattern) or member.name.startswith(pattern.rstrip("*.") + ".")
            ):
                return f"--ignore {pattern}"
    return None


def _layers(module: nn.Module, bundle: ModelBundle) -> tuple[Layer, ...]:
    """Convolutions and linear layers with their MACs, counted in one forward pass."""
    macs: dict[str, int] = {}
    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, WEIGHTED):

            def count(layer: nn.Module, inputs: Any, output: torch.Tensor, name: str = name) -> None:
                channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
                positions = output.numel() // (output.shape[0] * int(channels))  # type: ignore[arg-type]
                if isinstance(layer, nn.modules.conv._ConvTransposeNd):
                    positions = inputs[0].numel() // (inputs[0].shape[0] * layer.in_channels)
                macs[name] = macs.get(name, 0) + positions * layer.weight.numel()  # type: ignore[operator]

            hooks.append(layer.register_forward_hook(count))
    with torch.no_grad():
        module(torch.zeros(1, *bundle.input_shape))
    for hook in hooks:
        hook.remove()
    modules = dict(module.named_modules())
    return tuple(_layer(name, modules[name], count) for name, count in macs.items())


def _layer(name: str, layer: Any, macs: int) -> Layer:
    linear = isinstance(layer, nn.Linear)
    return Layer(
        name=name,
        kind=type(layer).__name__,
        out_channels=int(layer.out_features if linear else layer.out_channels),
        in_channels=int(layer.in_features if linear else layer.in_channels),
        macs=macs,
        parameters=int(layer.weight.numel()),
    )
