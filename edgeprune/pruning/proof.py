"""Is it sound to remove a group's channels? Tried on a copy before any plan may use the group.

Some of the group's channels (drawn at random) are silenced, by zeroing the weights that read them, and the same
channels are cut. Both networks must compute the same. The copy has random weights and runs in float64, so that a
dead channel, a symmetric layer or rounding cannot hide a wrong index; where the network's output does not react to
its channels, the proof would be blind and the group is refused. Two draws of different sizes: one catches what the
other misses (an exchange of two channels that both go; a reshape that only works for even widths).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from edgeprune.errors import PruningError
from edgeprune.pruning import block_surgery
from edgeprune.pruning.halving import failing
from edgeprune.pruning.settling import settle
from edgeprune.pruning.surgery import Removals, cut, per_unit, replica, silence, weight_name
from edgeprune.types import Block, Group, Progress, Shape

_IMAGES = 2
_BLIND = 1e3  # a reaction below this many tolerances could be rounding


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A scrambled network on the bench: what goes in, what comes out, and what difference counts as none."""

    network: nn.Module
    images: torch.Tensor
    output: torch.Tensor
    tolerance: float


def scrambled(module: nn.Module, input_shape: Shape, *, seed: int = 0) -> Bench:
    """A copy of `module` with random weights, in float64 where its forward pass allows that, else in float32.

    Errors: PruningError when the network runs in neither.
    """
    reason = ""
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-4)):
        generator = torch.Generator().manual_seed(seed)
        network = _randomized(replica(module).to(dtype).eval(), generator)
        images = torch.rand(_IMAGES, *input_shape, generator=generator, dtype=torch.float64).to(dtype)
        try:
            settle(network, images, generator)
            with torch.no_grad():
                return Bench(network, images, network(images), tolerance)
        except Exception as error:  # noqa: BLE001  # the user's forward pass: a constant of another dtype, for one
            reason = _short(error)
    raise PruningError("the network does not run with random weights, so nothing can be proved", where=reason)


def prove(
    bench: Bench, groups: Sequence[Group], *, until: float = math.inf, progress: Progress | None = None
) -> dict[str, str]:
    """Group name -> why it is left alone, in words, for every group that does not pass.

    All are tried at once and, where that fails, in halves: the ones that pass were proved together. Nothing is tried
    after `until` (on the monotonic clock); a forward pass cannot be broken off.
    """
    reasons = {group.name: _too_narrow(group) for group in groups if group.width < 2}
    rest = tuple(group for group in groups if group.width >= 2)
    unseen = _unseen(bench, rest) if rest else {}
    reasons |= unseen
    wanted = [group for group in rest if group.name not in unseen]
    return reasons | failing(wanted, lambda together: _drawn(bench, tuple(together)), until=until, progress=progress)


def compare(bench: Bench, groups: tuple[Group, ...], removals: Removals, blocks: Sequence[Block] = ()) -> str | None:
    """None when cutting units and silencing them come to the same on the bench; else the reason, in words.

    With `blocks`, these are removed on one side and silenced on the other too.
    """
    try:
        with torch.no_grad():
            rest = cut(bench.network, groups, removals, share=True)  # first: it is what fails early
            actual = (block_surgery.remove(rest, blocks, share=True) if blocks else rest)(bench.images)
            quiet = bench.network
            if blocks:
                quiet = block_surgery.silence(quiet, blocks, share=True)
            expected = silence(quiet, groups, removals, share=True)(bench.images)
    except PruningError as error:
        return f"the cut failed: {error.what}"
    except Exception as error:  # noqa: BLE001  # a network with wrong widths fails wherever its forward pass notices
        return f"the network does not run without its channels: {_short(error)}"
    return _judge(bench, expected, actual)


def attempt(bench: Bench, groups: Sequence[Group]) -> str | None:
    """One draw of every group on a bench, at once: a quick look, not a proof."""
    generator = torch.Generator().manual_seed(2)
    gone = {
        group.name: torch.randperm(group.width, generator=generator)[: group.width // 2].tolist() for group in groups
    }
    return compare(bench, tuple(groups), gone)


def quick(module: nn.Module, input_shape: Shape) -> Bench:
    """A bench for `attempt`: a single image."""
    bench = scrambled(module, input_shape, seed=3)
    return Bench(bench.network, bench.images[:1], bench.output[:1], bench.tolerance)


def _judge(bench: Bench, expected: torch.Tensor, actual: torch.Tensor) -> str | None:
    if actual.shape != expected.shape:
        return f"the output changed its shape from {tuple(expected.shape)} to {tuple(actual.shape)}"
    scale = float(expected.abs().max())
    if not math.isfinite(scale):
        return "the proof cannot see: the output of the scrambled network is not finite"
    difference = float((actual - expected).abs().max()) / max(scale, 1e-300)
    if not difference <= bench.tolerance:
        return f"the proof failed: outputs differ by {difference:.2g} of their size"
    return None


def _drawn(bench: Bench, groups: tuple[Group, ...]) -> str | None:
    """Compare on two random draws of units of every group."""
    generator = torch.Generator().manual_seed(0)
    for size in (_half, _other):
        gone = {
            group.name: torch.randperm(group.width, generator=generator)[: size(group.width)].tolist()
            for group in groups
        }
        if reason := compare(bench, groups, gone):
            return reason
    return None


def _half(width: int) -> int:
    return width // 2


def _other(width: int) -> int:
    """About a third, and odd."""
    third = max(1, width // 3)
    return third if third % 2 else third - 1


def _too_narrow(group: Group) -> str:
    tied = any(len(unit) > 1 for member in group.members for unit in member.channels)
    return "its channels all depend on each other" if tied else "it has a single channel"


def _unseen(bench: Bench, groups: tuple[Group, ...]) -> dict[str, str]:
    """Groups that the output does not react to, to first order: a proof would be blind there."""
    readers = sorted({weight_name(m) for group in groups for m in group.members if m.role in ("in", "zero")})
    readers = [name for name in readers if name in dict(bench.network.named_parameters())]
    weights = [bench.network.get_parameter(name).requires_grad_(True) for name in readers]
    generator = torch.Generator().manual_seed(1)
    with torch.enable_grad():
        output = bench.network(bench.images)
        if not (output.requires_grad and bool(torch.isfinite(output).all())):
            why = "has no gradient" if not output.requires_grad else "is not finite"
            return {group.name: f"the proof cannot see: the output of the scrambled network {why}" for group in groups}
        mixed = (output * torch.randn(output.shape, generator=generator, dtype=output.dtype)).sum()
        gradients = torch.autograd.grad(mixed, weights, allow_unused=True)
    slopes = dict(zip(readers, gradients, strict=True))
    least = _BLIND * bench.tolerance * float(output.detach().abs().max())
    unseen = {}
    for group in groups:
        reaction = 0.0
        for member in group.members:
            name = weight_name(member)
            slope = slopes.get(name) if member.role in ("in", "zero") else None
            if slope is not None:
                layer = bench.network.get_submodule(name.rpartition(".")[0])
                effect = per_unit(layer, (bench.network.get_parameter(name) * slope).detach(), member)
                reaction = max(reaction, float(effect.abs().max()))
        if not reaction > least:
            unseen[group.name] = "the proof cannot see: the output does not react to its channels"
    return unseen


def _randomized(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random weights of a size that keeps signals alive (He et al. 2015), random batch-norm statistics. In place."""
    with torch.no_grad():
        for tensor in network.parameters():
            if not tensor.is_floating_point():
                continue
            if tensor.dim() > 1:
                tensor.normal_(0, math.sqrt(2 / max(1, tensor[0].numel())), generator=generator)
            else:
                tensor.uniform_(0.5, 1.5, generator=generator)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                buffer.normal_(0, 0.1, generator=generator)
    return network


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
