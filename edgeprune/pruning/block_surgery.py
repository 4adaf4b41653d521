"""Takes blocks out of a network: what stays in a block's place is put there, on a copy.

Layers that stay keep their names, so that groups of channels, plans and bundles mean the same before and after.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from edgeprune.errors import PruningError
from edgeprune.pruning.surgery import replica
from edgeprune.types import Block

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "ReLU": nn.ReLU,
    "ReLU6": nn.ReLU6,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "Hardswish": nn.Hardswish,
}


_INPUT = "_input_of_a_silent_block"


def remove(module: nn.Module, blocks: Sequence[Block], *, share: bool = False) -> nn.Module:
    """A copy of `module` without the blocks; with `share` it holds the very tensors of `module`.

    Errors: PruningError when the network has no such block.
    """
    shorter = replica(module, share=share)
    for block in blocks:
        _replace(shorter, block.name, remainder(_block(shorter, block), block))
    return shorter


def silence(module: nn.Module, blocks: Sequence[Block], *, share: bool = False) -> nn.Module:
    """A copy of `module` in which the blocks say nothing: what `remove` must agree with.

    The weights at the ends of a residual block's branches are zero; a link of a chain runs and its output is replaced
    by its input. Errors: as for `remove`.
    """
    silent = replica(module, share=share)
    for block in blocks:
        part = _block(silent, block)
        if block.kind == "chain":
            part.register_forward_pre_hook(_remember)
            part.register_forward_hook(_recall)
        for name in block.silencers:
            owner, _, leaf = name.rpartition(".")
            parameter = part.get_parameter(name)
            zeros = nn.Parameter(torch.zeros_like(parameter), requires_grad=parameter.requires_grad)
            setattr(part.get_submodule(owner), leaf, zeros)
    return silent


def remainder(part: nn.Module, block: Block) -> nn.Module:
    """What stays in the place of the block `part`, made of the very modules that it holds."""
    root: OrderedDict[str, object] = OrderedDict()
    for position, (kind, name) in enumerate(block.keep):
        folder = root
        path = name.split(".") if kind == "module" else [f"activation{position or ''}"]
        for step in path[:-1]:
            inner = folder.setdefault(step, OrderedDict())
            assert isinstance(inner, OrderedDict)
            folder = inner
        folder[path[-1]] = part.get_submodule(name) if kind == "module" else ACTIVATIONS[name]()
    return _nested(root) if root else nn.Identity()


def _nested(tree: OrderedDict[str, object]) -> nn.Module:
    parts = OrderedDict(
        (key, _nested(value) if isinstance(value, OrderedDict) else value) for key, value in tree.items()
    )
    return nn.Sequential(parts).eval()  # type: ignore[arg-type]


def _block(module: nn.Module, block: Block) -> nn.Module:
    try:
        return module.get_submodule(block.name)
    except AttributeError as error:
        raise PruningError(f"the plan removes a block that the network does not have: {block.name}") from error


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner)._modules[leaf] = part


def _remember(part: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    vars(part)[_INPUT] = inputs[0].clone()


def _recall(part: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    kept: torch.Tensor = vars(part).pop(_INPUT)
    return kept
