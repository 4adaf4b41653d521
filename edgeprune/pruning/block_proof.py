"""Is it sound to remove a block? Tried on a scrambled copy before any plan may do it.

Three questions. Alone: does what stays in the block's place compute, bit for bit, what the block computes with its
branches silenced? (Silencing is independent of the removal: weights are zeroed, nothing is replaced.) Together: does
the network without all blocks compute, bit for bit, what it computes with all of them silenced? And does its output
depend on the block at all? Where it does not, the proof would be blind and the block is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgeprune.errors import PruningError
from edgeprune.pruning.block_surgery import remainder, remove, silence
from edgeprune.pruning.halving import failing
from edgeprune.pruning.proof import Bench
from edgeprune.types import Block

_BLIND = 1e3  # a reaction below this many tolerances could be rounding


def prove(bench: Bench, blocks: Sequence[Block], *, until: float = math.inf) -> dict[str, str]:
    """Block name -> why it is left alone, in words, for every block that does not pass.

    No more are tried together after `until` (on the monotonic clock).
    """
    if not blocks:
        return {}
    try:
        reasons = _alone(bench, blocks)
        rest = [block for block in blocks if block.name not in reasons]
        reasons |= _unseen(bench, rest) if rest else {}
    except Exception as error:  # noqa: BLE001  # the user's forward pass, with a hook around a part of it
        return {block.name: f"the proof failed: {_short(error)}" for block in blocks}
    rest = [block for block in blocks if block.name not in reasons]
    return reasons | failing(rest, lambda together: compare(bench, together), until=until)


def compare(bench: Bench, blocks: Sequence[Block]) -> str | None:
    """None when the network without the blocks and with the blocks silenced gives the same bits; else the reason."""
    try:
        with torch.no_grad():
            expected = silence(bench.network, blocks, share=True)(bench.images)
            actual = remove(bench.network, blocks, share=True)(bench.images)
    except PruningError as error:
        return f"the removal failed: {error.what}"
    except Exception as error:  # noqa: BLE001  # a network that asks its blocks for more than their output
        return f"the network does not run without it: {_short(error)}"
    return None if torch.equal(actual, expected) else "the proof failed: without it the network computes something else"


@contextmanager
def gated(module: nn.Module, blocks: Sequence[Block], *, channels: bool = False) -> Iterator[dict[str, Tensor]]:
    """Puts a gate of 1 on what each block adds to its remainder; the gates, by block, are there after a forward pass.

    The output stays what it is; its gradient at a gate is what closing the gate does, to first order. With `channels`
    a block has one gate for each index of its output's second dimension (the last, of tokens).
    """
    gates: dict[str, Tensor] = {}
    hooks = []
    inputs_of: dict[str, Tensor] = {}
    for block in blocks:
        part = module.get_submodule(block.name)
        rest = remainder(part, block)

        def before(part: nn.Module, inputs: tuple[Tensor, ...], name: str = block.name) -> None:
            inputs_of[name] = inputs[0].detach().clone()

        def after(
            part: nn.Module, inputs: object, output: Tensor, name: str = block.name, rest: nn.Module = rest
        ) -> Tensor:
            with torch.no_grad():
                added = output - rest(inputs_of.pop(name))
            axis = 1 if output.dim() == 4 else -1
            shape = [output.shape[i] if channels and i == axis % output.dim() else 1 for i in range(output.dim())]
            gates[name] = torch.ones(shape, dtype=output.dtype, requires_grad=True)
            opened: Tensor = output + (gates[name] - 1) * added
            return opened

        hooks += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def watched(module: nn.Module, blocks: Sequence[Block], look: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Calls `look(name, input, output)` whenever a block has run; both are detached."""
    hooks = []
    inputs_of: dict[str, Tensor] = {}
    for block in blocks:

        def before(part: nn.Module, inputs: tuple[Tensor, ...], name: str = block.name) -> None:
            inputs_of[name] = inputs[0].detach().clone()

        def after(part: nn.Module, inputs: object, output: Tensor, name: str = block.name) -> None:
            look(name, inputs_of.pop(name), output.detach())

        part = module.get_submodule(block.name)
        hooks += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _alone(bench: Bench, blocks: Sequence[Block]) -> dict[str, str]:
    """Each block on the input that it gets in the network: its remainder against itself, silenced."""
    met: dict[str, Tensor] = {}

    def keep(name: str, given: Tensor, output: Tensor) -> None:
        met[name] = given

    with torch.no_grad(), watched(bench.network, blocks, keep):
        bench.network(bench.images)
    reasons = {}
    shorter, silent = (edit(bench.network, blocks, share=True) for edit in (remove, silence))
    for block in blocks:
        if block.name not in met:
            reasons[block.name] = "the network does not run it"
            continue
        with torch.no_grad():
            expected = silent.get_submodule(block.name)(met[block.name].clone())
            actual = shorter.get_submodule(block.name)(met[block.name].clone())
        if not bool(torch.isfinite(expected).all()):
            reasons[block.name] = "the proof cannot see: its output on the scrambled network is not finite"
        elif not torch.equal(expected, actual):
            reasons[block.name] = "the proof failed: what stays is not the block with its branches silenced"
    return reasons


def _unseen(bench: Bench, blocks: Sequence[Block]) -> dict[str, str]:
    """Blocks that the output does not react to, to first order: a proof would be blind there."""
    with torch.enable_grad(), gated(bench.network, blocks) as gates:
        output = bench.network(bench.images)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
        found = torch.autograd.grad((output * weights).sum(), list(gates.values()), allow_unused=True)
    least = _BLIND * bench.tolerance * float(output.detach().abs().max())
    slopes = {name: 0.0 if slope is None else float(slope.abs()) for name, slope in zip(gates, found, strict=True)}
    blind = "the proof cannot see: the output does not react to it"
    return {block.name: blind for block in blocks if not slopes.get(block.name, 0.0) > least}


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
