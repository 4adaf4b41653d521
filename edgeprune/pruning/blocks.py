"""Which modules can be removed as a whole, each proved before it is used.

A block is the outermost module that adds something to its input (a residual block: its branches go, its shortcut and
what follows the sum stay), or a link in a chain of modules whose output has the shape of its input. Not offered:
whole stages (their blocks are, one by one), parts of a block, single layers outside a chain of links. Whatever looks
like a block and is none is in `block_refusals`, with the reason.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from edgeprune.errors import PruningError
from edgeprune.pruning.block_proof import prove
from edgeprune.pruning.proof import scrambled
from edgeprune.pruning.residual import Residual, Tape
from edgeprune.pruning.surgery import replica
from edgeprune.types import Block, ChannelGraph, ModelBundle, Refusal

PROOF_S = 600.0
"""How long the blocks of one network may be tried together, in seconds."""
_MOST = 0.99
_FOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def with_blocks(bundle: ModelBundle, graph: ChannelGraph, *, ignore: Sequence[str] = ()) -> ChannelGraph:
    """The graph with the blocks of the network: found, proved, and the refused ones with the reason.

    `ignore` are names or patterns of blocks, or of layers in them. A network whose blocks cannot be followed has none,
    and one refusal that says why. The bundle is never changed.
    """
    module = replica(bundle.module).cpu().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        tape = Tape(module, bundle.input_shape)
        bench = scrambled(module, bundle.input_shape)
    except PruningError as error:
        return dataclasses.replace(graph, block_refusals=(Refusal("", error.what),))
    search = _Search(tape, graph)
    for name in _children("", module):
        search.visit(name, chain=True)
    refusals = [
        *search.refusals,
        *(Refusal(block.name, reason) for block in search.blocks if (reason := _ignored(block, ignore))),
    ]
    wanted = [block for block in search.blocks if not _ignored(block, ignore)]
    failed = prove(bench, wanted, until=time.monotonic() + PROOF_S)
    refusals += [Refusal(name, reason) for name, reason in failed.items()]
    order = {name: position for position, (name, _) in enumerate(module.named_modules())}
    return dataclasses.replace(
        graph,
        blocks=tuple(block for block in wanted if block.name not in failed),
        block_refusals=tuple(sorted(refusals, key=lambda refusal: order[refusal.name])),
    )


@dataclass(slots=True)
class _Search:
    """Goes down the tree of modules; what it finds on the way stands in `blocks` and `refusals`."""

    tape: Tape
    graph: ChannelGraph
    blocks: list[Block] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def visit(self, name: str, *, chain: bool) -> None:
        """`chain`: all modules around this one do is run their children one after the other."""
        part = self.tape.module.get_submodule(name)
        if not self.tape.is_heavy(name) or not any(True for _ in part.children()):
            return
        found = self.tape.read(name)
        if isinstance(found, str):
            self.refusals.append(Refusal(name, found))
            return
        if isinstance(found, Residual):
            self.blocks.append(self._residual(name, part, found))
            return
        blocks, refusals = len(self.blocks), len(self.refusals)
        folder = type(part) in _FOLDERS
        links = [child for child in _children(name, part) if self.tape.is_heavy(child)]
        if not folder or any(any(True for _ in self.tape.module.get_submodule(link).children()) for link in links):
            for child in _children(name, part):
                self.visit(child, chain=chain and (folder or self._is_network(name)))
        if len(self.blocks) > blocks:
            if self._same_shape(name) and len(self.blocks) > blocks + 1:
                self.refusals.append(Refusal(name, "a stage: its blocks are offered one by one"))
            return
        if folder and len(self.refusals) > refusals:
            return
        self._link(name, part, refusals, chain=chain)

    def _link(self, name: str, part: nn.Module, refusals: int, *, chain: bool) -> None:
        """A module that adds nothing to its input, and in which nothing is offered."""
        call = self.tape.calls[name]
        reason = ""
        if call.runs != 1:
            reason = f"it runs {call.runs} times in one pass"
        elif call.odd:
            reason = call.odd
        elif not self._same_shape(name):
            taken, given = (_words(shape[1:]) for shape in (call.taken, call.given))
            reason = f"it adds nothing to its input, and turns {taken} into {given}"
        elif self.tape.is_gate(name):
            reason = "it only weighs its input: a gate, not a block"
        if not chain:
            if reason and len(self._layers(name, ())) > 1:  # its parts are not worth a word each
                del self.refusals[refusals:]
                self.refusals.append(Refusal(name, reason))
        elif reason:
            del self.refusals[refusals:]
            self.refusals.append(Refusal(name, reason))
        else:
            del self.refusals[refusals:]
            self.blocks.append(self._block(name, part, Residual((), (), None), "chain"))

    def _residual(self, name: str, part: nn.Module, found: Residual) -> Block:
        keep = found.keep
        if len(keep) == 1 and self.tape.same_activation(found.source, self._activation(name, keep[0])):
            keep = ()  # its input has been through this activation already
        return self._block(name, part, dataclasses.replace(found, keep=keep), "residual")

    def _activation(self, name: str, step: tuple[str, str]) -> str:
        """The kind of a step that is an activation: a functional one, or a module."""
        return (
            step[1] if step[0] == "activation" else type(self.tape.module.get_submodule(f"{name}.{step[1]}")).__name__
        )

    def _block(self, name: str, part: nn.Module, found: Residual, kind: str) -> Block:
        kept = tuple(f"{name}.{step}" for word, step in found.keep if word == "module")
        layers = self._layers(name, kept)
        macs = {layer.name: layer.macs for layer in self.graph.layers}
        stays = {id(p) for each in kept for p in self.tape.module.get_submodule(each).parameters()}
        return Block(
            name=name,
            kind="residual" if kind == "residual" else "chain",
            layers=layers,
            macs=sum(macs[layer] for layer in layers),
            parameters=sum(p.numel() for p in part.parameters() if id(p) not in stays),
            keep=found.keep,
            silencers=found.silencers,
        )

    def _layers(self, name: str, kept: tuple[str, ...]) -> tuple[str, ...]:
        """The graph's layers in a module, without those in the parts that are kept."""
        return tuple(
            layer.name
            for layer in self.graph.layers
            if _inside(layer.name, name) and not any(_inside(layer.name, each) for each in kept)
        )

    def _is_network(self, name: str) -> bool:
        """Is this the network, and all around it a wrapper (normalisation, held inputs)?"""
        macs = sum(layer.macs for layer in self.graph.layers if _inside(layer.name, name))
        return macs >= _MOST * self.graph.macs

    def _same_shape(self, name: str) -> bool:
        call = self.tape.calls[name]
        return bool(call.taken) and call.taken == call.given


def _children(name: str, part: nn.Module) -> Iterator[str]:
    for child, _ in part.named_children():
        yield f"{name}.{child}" if name else child


def _inside(name: str, owner: str) -> bool:
    return name == owner or name.startswith(owner + ".")


def _ignored(block: Block, ignore: Sequence[str]) -> str | None:
    """The pattern that leaves the block alone: it names the block, something around it, or a layer in it."""
    for pattern in ignore:
        stem = pattern.removesuffix("*").removesuffix(".")
        for name in (block.name, *block.layers):
            if fnmatch.fnmatchcase(name, pattern) or (stem and _inside(name, stem)):
                return f"--ignore {pattern}"
    return None


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) if math.prod(shape) else "nothing"
