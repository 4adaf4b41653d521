"""From a network to groups of channels that must go together, each proved before it is used.

torch-pruning's `DependencyGraph` finds out how layers hang together; it is not trusted blindly. What it says is
turned into plain data (`Group`, `Member`) and proved; two prunings share nothing. The bundle that is traced is never
changed. Nothing is left out in silence: a layer whose channels are in no group is in a refusal, with the reason.
"""

from __future__ import annotations

import fnmatch
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch_pruning.ops import OPTYPE, module2type

from edgeprune.errors import PruningError
from edgeprune.pruning.dependencies import FLOW, EndlessError, build, follow
from edgeprune.pruning.proof import prove, scrambled
from edgeprune.pruning.surgery import replica
from edgeprune.pruning.units import group_of, weights_that_cannot_be_cut
from edgeprune.pruning.watched import more_groups
from edgeprune.types import ChannelGraph, Group, Layer, ModelBundle, Progress, Refusal

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_WHOLE = (nn.MultiheadAttention, nn.RNNBase)
_PER_CHANNEL = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.Embedding)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one layer's channels may take to be followed, and all of tracing and proving, in seconds."""

    group_s: float = 20.0
    total_s: float = 600.0


def trace(
    bundle: ModelBundle, *, ignore: Sequence[str] = (), limits: Limits | None = None, progress: Progress | None = None
) -> ChannelGraph:
    """Find, convert and prove the groups of a network.

    `ignore` are layer names or patterns (``layer3.*``): a group that makes channels in one of them is left alone.
    Every layer that is in none of the result's `groups` is in one of its `refusals`, with the reason.
    Errors: PruningError when the network cannot be traced at all.
    """
    started, limits = time.monotonic(), limits or Limits()
    module = replica(bundle.module).cpu().eval()
    for parameter in module.parameters():  # torch-pruning reads autograd's graph: a frozen layer would be invisible
        parameter.requires_grad_(parameter.is_floating_point())
    layers = _layers(module, bundle)
    until = started + limits.total_s
    found = []
    for candidate, done in _candidates(module, bundle, limits, until):
        found.append(candidate)
        if progress:
            progress(f"following the channels of {candidate.name}", done / 2)
    wanted = [each.group for each in found if isinstance(each.group, Group) and not _refused(each.group, ignore)]
    bench = scrambled(module, bundle.input_shape)
    second_half = (lambda text, done: progress(text, 0.5 + done / 2)) if progress else None
    failed = prove(bench, wanted, until=until, progress=second_half)
    refusals = [
        Refusal(each.name, reason, each.layers)
        for each in found
        if (reason := _refused(each.group, ignore) or failed.get(each.name))
    ]
    proved = [group for group in wanted if group.name not in failed]
    odd = weights_that_cannot_be_cut(module)
    more: list[Group] = []
    others: list[Refusal] = []
    if _leaves_something(module, proved, refusals):
        more, others = more_groups(
            module, bundle.input_shape, bench, proved, odd, lambda group: _refused(group, ignore), until=until
        )
    groups = (*proved, *more)
    refusals = _still_refused(refusals, others, more)
    return ChannelGraph(
        groups=groups,
        refusals=(*refusals, *_unmentioned(module, groups, refusals)),
        layers=layers,
        macs=sum(layer.macs for layer in layers),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A layer's channels as a group, or the reason why they are none."""

    name: str
    layers: tuple[str, ...]
    group: Group | str


def _candidates(
    module: nn.Module, bundle: ModelBundle, limits: Limits, until: float
) -> Iterator[tuple[_Candidate, float]]:
    """Candidates, layer by layer, each with the share of the layers that is done."""
    graph = build(module, bundle.input_shape)
    odd = weights_that_cannot_be_cut(module)
    covered: dict[str, set[int]] = defaultdict(set)
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, WEIGHTED)]
    for position, (name, layer) in enumerate(layers):
        share = position / len(layers)
        if layer not in graph.module2node:
            if not _inside_whole(module, name):
                yield _Candidate(name, (name,), "the traced forward pass does not reach it"), share
        elif module2type(layer) != OPTYPE.DEPTHWISE_CONV:  # that is in the group of whatever feeds it
            width = int(graph.get_out_channels(layer))
            outputs = [index for index in range(width) if index not in covered[name]]
            if outputs:
                seconds = min(limits.group_s, until - time.monotonic())
                yield _candidate(graph, name, outputs, odd, covered, seconds), share


def _candidate(
    graph: Any, name: str, outputs: list[int], odd: dict[str, str], covered: dict[str, set[int]], seconds: float
) -> _Candidate:
    """Follow the given outputs of a layer; notes in `covered` whose outputs have been dealt with."""
    covered[name].update(outputs)
    try:
        touches = follow(graph, graph.model.get_submodule(name), outputs, seconds=seconds)
    except EndlessError as error:
        return _Candidate(name, (name,), str(error))
    except Exception as error:  # noqa: BLE001  # index mappings of torch-pruning fail in many ways
        return _Candidate(name, (name,), f"torch-pruning cannot follow its channels: {error}")
    solid = [touch for touch in touches if touch.name is not None and touch.kind not in FLOW]
    made = {touch.name or "": {channel for channel, _ in touch.channels} for touch in solid if touch.outward}
    group = group_of(name, outputs, touches, odd)
    if not isinstance(group, str) and any(made[maker] & covered[maker] for maker in made if maker != name):
        group = "some of its channels belong to another group"
    for maker, channels in made.items():
        covered[maker] |= channels
    layers = tuple(dict.fromkeys(touch.name or "" for touch in solid)) or (name,)
    return _Candidate(name, layers, group)


def _leaves_something(module: nn.Module, groups: Sequence[Group], refusals: Sequence[Refusal]) -> bool:
    """Does a layer remain whose channels are in no group, beside those that make the network's output?"""
    made = {member.name for group in groups for member in group.members if member.role == "out"}
    made |= {refusal.name for refusal in refusals if "the network's output" in refusal.reason}
    return any(isinstance(layer, WEIGHTED) and name not in made for name, layer in module.named_modules())


def _still_refused(refusals: Sequence[Refusal], others: Sequence[Refusal], more: Sequence[Group]) -> list[Refusal]:
    """The refusals that remain when further groups were found, without saying anything twice."""
    made = {member.name for group in more for member in group.members if member.role == "out"}
    seen = {refusal.name for refusal in others}
    kept = [
        refusal
        for refusal in refusals
        if refusal.name not in made and not ("mixes channels" in refusal.reason and refusal.name in seen)
    ]
    said = {layer for refusal in kept for layer in refusal.layers}
    return [*kept, *(refusal for refusal in others if not said & {refusal.name, *refusal.layers[:1]})]


def _refused(group: Group | str, ignore: Sequence[str]) -> str | None:
    if isinstance(group, str):
        return group
    for member in group.members:
        for pattern in ignore:
            inside = pattern.removesuffix("*").removesuffix(".")
            if member.role == "out" and (
                fnmatch.fnmatchcase(member.name, pattern) or (inside and member.name.startswith(inside + "."))
            ):
                return f"--ignore {pattern}"
    return None


def _unmentioned(module: nn.Module, groups: Sequence[Group], refusals: Sequence[Refusal]) -> Iterator[Refusal]:
    """What has weights and came up in no group: it is not pruned, and that is said."""
    mentioned = {member.name for group in groups for member in group.members}
    owners = {name.rpartition(".")[0] for name in mentioned}  # of parameters that are in a group
    mentioned.update(name for refusal in refusals for name in refusal.layers)
    for name, layer in module.named_modules():
        if isinstance(layer, _WHOLE) and name not in owners:
            yield Refusal(name, f"{type(layer).__name__}: no sound rule for its kind", (name,))
        elif name in mentioned or _inside_whole(module, name):
            continue
        elif isinstance(layer, WEIGHTED):
            yield Refusal(name, "its channels are those of the network's input", (name,))
        elif not isinstance(layer, _PER_CHANNEL):
            for leaf, parameter in layer.named_parameters(recurse=False):
                full = f"{name}.{leaf}".lstrip(".")
                if parameter.numel() > max(parameter.shape, default=1) and full not in mentioned:
                    yield Refusal(full, "a bare parameter: no layer says what its dimensions are", (full,))


def _inside_whole(module: nn.Module, name: str) -> bool:
    """Is the layer a part of one that is refused as a whole?"""
    parts = name.split(".")[:-1]
    return any(isinstance(module.get_submodule(".".join(parts[: i + 1])), _WHOLE) for i in range(len(parts)))


def _layers(module: nn.Module, bundle: ModelBundle) -> tuple[Layer, ...]:
    """Convolutions and linear layers with their MACs, counted in one forward pass."""
    macs: dict[str, int] = {}
    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, WEIGHTED):

            def count(layer: Any, inputs: Any, output: torch.Tensor, name: str = name) -> None:
                transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
                applied_at = inputs[0] if transposed else output  # each position of it meets the whole weight once
                width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
                channels = layer.in_channels if transposed else width
                positions = applied_at.numel() // (applied_at.shape[0] * channels)
                macs[name] = macs.get(name, 0) + positions * layer.weight.numel()

            hooks.append(layer.register_forward_hook(count))
    try:
        with torch.no_grad():
            module(torch.zeros(1, *bundle.input_shape))
    except Exception as error:  # the user's forward pass
        raise PruningError(f"the network does not run on one image of shape {bundle.input_shape}: {error}") from error
    finally:
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
        parameters=math.prod(layer.weight.shape),
    )
