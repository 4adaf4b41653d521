"""From a network to groups of channels that must go together, each proved before it is used.

torch-pruning's `DependencyGraph` finds out how layers hang together; it is not trusted blindly. What it says is
turned into plain data (`Group`, `Member`) and proved; two prunings share nothing. The bundle that is traced is never
changed. Nothing is left out in silence: a layer whose channels are in no group is in a refusal, with the reason.
"""

from __future__ import annotations

import fnmatch
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from edgeprune.errors import PruningError
from edgeprune.pruning.candidates import covered_by, proved, recorded
from edgeprune.pruning.proof import Bench, scrambled
from edgeprune.pruning.second_look import followed
from edgeprune.pruning.surgery import replica
from edgeprune.pruning.units import is_final, weights_that_cannot_be_cut
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
    bench = scrambled(module, bundle.input_shape)
    left_alone = partial(_refused, ignore=ignore)
    first, second = _parts(progress)
    try:
        found = list(recorded(module, bundle.input_shape, until))
    except Exception:  # noqa: BLE001  # the user's forward pass, under observation: others look, too
        found = []
    groups, refusals = proved(bench, found, left_alone, until=until, progress=first)
    if _leaves_something(module, groups, refusals):
        odd = weights_that_cannot_be_cut(module)
        watched, others = more_groups(module, bundle.input_shape, bench, groups, odd, left_alone, until=until)
        groups, refusals = (*groups, *watched), _still_refused(refusals, others, watched)
    more, refusals = _second_look(module, bundle, limits, bench, (groups, refusals), left_alone, until, second)
    groups = (*groups, *more)
    return ChannelGraph(
        groups=groups,
        refusals=(*refusals, *_unmentioned(module, groups, refusals)),
        layers=layers,
        macs=sum(layer.macs for layer in layers),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        seconds=time.monotonic() - started,
    )


def _second_look(
    module: nn.Module,
    bundle: ModelBundle,
    limits: Limits,
    bench: Bench,
    first: tuple[tuple[Group, ...], tuple[Refusal, ...]],
    left_alone: Callable[[Group], str | None],
    until: float,
    progress: Progress | None,
) -> tuple[tuple[Group, ...], tuple[Refusal, ...]]:
    """Groups that torch-pruning finds where the recording found none, and all refusals that remain."""
    groups, refusals = first
    closed = {name for each in refusals if is_final(each.reason) for name in (each.name, *each.layers)}
    covered = covered_by(groups)
    names = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, WEIGHTED)
        and name not in closed
        and name not in covered
        and not _inside_whole(module, name)
    ]
    if not names:
        return (), refusals
    found = []
    try:
        looked = followed(module, bundle.input_shape, names, covered, seconds=limits.group_s, until=until)
        for candidate, done in looked:
            found.append(candidate)
            if progress:
                progress(f"following the channels of {candidate.name}", done)
    except PruningError:
        if not groups and not refusals:
            raise
    more, others = proved(bench, found, left_alone, until=until)
    made = covered_by(more)
    known = {each.name for each in refusals}
    kept = tuple(each for each in refusals if each.name not in made)
    return more, (*kept, *(each for each in others if each.name not in known))


def _leaves_something(module: nn.Module, groups: Sequence[Group], refusals: Sequence[Refusal]) -> bool:
    """Does a layer remain whose channels are in no group, beside those that make the network's output?"""
    made = {member.name for group in groups for member in group.members if member.role == "out"}
    made |= {refusal.name for refusal in refusals if "the network's output" in refusal.reason}
    return any(isinstance(layer, WEIGHTED) and name not in made for name, layer in module.named_modules())


def _still_refused(
    refusals: Sequence[Refusal], others: Sequence[Refusal], more: Sequence[Group]
) -> tuple[Refusal, ...]:
    """The refusals that remain when further groups were found, without saying anything twice."""
    made = {member.name for group in more for member in group.members if member.role == "out"}
    seen = {refusal.name for refusal in others}
    kept = [
        refusal
        for refusal in refusals
        if refusal.name not in made and not ("mixes channels" in refusal.reason and refusal.name in seen)
    ]
    said = {layer for refusal in kept for layer in refusal.layers}
    return (*kept, *(refusal for refusal in others if not said & {refusal.name, *refusal.layers[:1]}))


def _parts(progress: Progress | None) -> tuple[Progress | None, Progress | None]:
    """Progress in two halves."""
    if progress is None:
        return None, None
    return (lambda text, done: progress(text, done / 2)), (lambda text, done: progress(text, 0.5 + done / 2))


def _refused(group: Group, ignore: Sequence[str]) -> str | None:
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
        if isinstance(layer, _WHOLE) and name not in owners and name not in mentioned:
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
