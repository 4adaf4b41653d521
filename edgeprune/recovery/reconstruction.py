"""Closed-form help that needs no labels: each layer is fitted to what the dense network computes there.

Layers are taken in forward order, and each sees the inputs that the layers before it now send (He et al. 2017,
"Channel pruning for accelerating very deep neural networks"; Luo et al. 2017, "ThiNet"). Its weights move by ridge
regression towards the dense layer's outputs at the channels that were kept. With `bias_only` biases alone move, so that
means agree (Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction"). What batch
norm follows has no mean to get right: its statistics are to be measured again afterwards.

Promise: only weights and biases of convolutions and linear layers change, in place; a layer that cannot be fitted is
left as it is and listed with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from edgeprune.types import ModelBundle

_POSITIONS = 16  # of a map, drawn for each batch: neighbours say the same
_BATCH, _MOST_ELEMENTS = 64, 2**26
_WIDEST = 4608  # inputs of one output: the normal equations are this size, squared
_RIDGE = 0.1  # of the mean variance of the inputs: weights stay where the images say nothing

Kept = Mapping[str, Sequence[int]]
"""Layer -> channels of the dense layer's output that were kept, ascending; a layer that is not named kept all."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Layers whose weights (or biases) moved, and those that could not be fitted, with the reason."""

    layers: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


class _ReachedError(Exception):
    """Ends a forward pass at the layer that was waited for."""


def reconstruct(
    student: ModelBundle, teacher: ModelBundle, kept: Kept, images: Tensor, *, bias_only: bool = False, seed: int = 0
) -> Fitted:
    """Fit the layers of `student` to those of `teacher`. In place; `images` are pixels, float32 (N, C, H, W)."""
    order, normed, twice = _order(student, images[:1])
    dense_layers = dict(teacher.module.named_modules())
    fitted, skipped = [], []
    for number, name in enumerate(order):
        layer: Any = student.module.get_submodule(name)
        dense = dense_layers.get(name)
        reason = "it runs more than once" if name in twice else _unfit(layer, dense, kept.get(name))
        if reason:
            skipped.append((name, reason))
        elif not (bias_only and layer.bias is None):
            generator = torch.Generator().manual_seed(seed + number)
            with torch.no_grad():
                moments = _moments(student, teacher, name, kept.get(name), images, generator)
                _move(layer, moments, bias_only=bias_only, absorbed=name in normed)
            fitted.append(name)
    return Fitted(tuple(fitted), tuple(skipped))


def _order(student: ModelBundle, images: Tensor) -> tuple[list[str], set[str], set[str]]:
    """Layers in the order in which they run, those that batch norm follows at once, those that run again."""
    names = {module: name for name, module in student.module.named_modules()}
    order, normed, twice, outputs = list[str](), set[str](), set[str](), list[tuple[str, Tensor]]()

    def ran(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        name = names[layer]
        (twice.add if name in order else order.append)(name)
        outputs.append((name, output))

    def norm_met(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        normed.update(name for name, output in outputs if output is inputs[0])

    hooks = []
    for module in names:
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(module.register_forward_hook(ran))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(norm_met))
    try:
        with torch.no_grad():
            student.network()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return order, normed, twice


def _unfit(layer: Any, dense: Any, kept: Sequence[int] | None) -> str:
    """Why a layer cannot be fitted; empty where it can."""
    if type(dense) is not type(layer):
        return "the dense network has no such layer"
    sizes = [each.weight.shape[0] for each in (layer, dense)]
    if sizes[0] != (sizes[1] if kept is None else len(kept)):
        return "which of its channels were kept is not known"
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return "its padding is not of zeros in given numbers"
        if layer.stride != dense.stride or layer.kernel_size != dense.kernel_size:
            return "it reads other positions than the dense layer"
    if layer.weight[0].numel() > _WIDEST:
        return f"more than {_WIDEST} inputs make one output"
    return ""


@dataclass(slots=True)
class _Moments:
    """Sums over samples, of each group's inputs (G, d) and of what its outputs lack (G, o). float64."""

    count: int
    inputs: Tensor
    lacks: Tensor
    squares: Tensor
    products: Tensor


def _moments(
    student: ModelBundle,
    teacher: ModelBundle,
    name: str,
    kept: Sequence[int] | None,
    images: Tensor,
    generator: torch.Generator,
) -> _Moments:
    layer: Any = student.module.get_submodule(name)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    outputs, width = layer.weight.shape[0] // groups, layer.weight[0].numel()
    zeros = partial(torch.zeros, dtype=torch.float64, device=images.device)
    found = _Moments(
        0, zeros(groups, width), zeros(groups, outputs), zeros(groups, width, width), zeros(groups, width, outputs)
    )
    size = max(1, min(_BATCH, _MOST_ELEMENTS // max(1, images[0].numel() * layer.weight[0].numel())))
    for batch in torch.split(images, size):
        (inputs, given), (_, wanted) = _seen(student, name, batch), _seen(teacher, name, batch)
        channels = 1 if isinstance(layer, nn.Conv2d) else -1
        if kept is not None:
            wanted = wanted.index_select(channels, torch.tensor(list(kept), device=wanted.device))
        x, lack = _samples(layer, inputs, wanted - given, generator)
        x, lack = x.view(len(x), groups, width).transpose(0, 1), lack.view(len(lack), groups, outputs).transpose(0, 1)
        found.count += x.shape[1]
        found.inputs += x.sum(1)  # float32 within a batch, float64 from one to the next
        found.lacks += lack.sum(1)
        found.squares += x.transpose(1, 2) @ x
        found.products += x.transpose(1, 2) @ lack
    return found


def _seen(bundle: ModelBundle, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer receives for these images, and what it makes of it."""
    with _noted(bundle.module.get_submodule(name)) as noted, suppress(_ReachedError):
        bundle.network()(images)
    return noted[0]


@contextmanager
def _noted(layer: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    noted: list[tuple[Tensor, Tensor]] = []

    def reached(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        noted.append((inputs[0].float(), output.float()))
        raise _ReachedError

    hook = layer.register_forward_hook(reached)
    try:
        yield noted
    finally:
        hook.remove()


def _samples(layer: Any, inputs: Tensor, lack: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What makes one output position, (n, groups * d), beside what that position lacks, (n, channels)."""
    if isinstance(layer, nn.Conv2d):
        padding: Any = layer.padding  # numbers: a layer with a word for its padding is left alone
        patches = unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
        missing = lack.flatten(2)
    else:
        patches = inputs.reshape(len(inputs), -1, inputs.shape[-1]).transpose(1, 2)
        missing = lack.reshape(len(lack), -1, lack.shape[-1]).transpose(1, 2)
    drawn = torch.randperm(patches.shape[-1], generator=generator)[:_POSITIONS].to(inputs.device)
    return tuple(each[..., drawn].transpose(1, 2).flatten(0, 1) for each in (patches, missing))  # type: ignore[return-value]


def _move(layer: Any, found: _Moments, *, bias_only: bool, absorbed: bool) -> None:
    """Move the weights, and the bias where there is one, to where the sums say. In place."""
    mean, lack = found.inputs / found.count, found.lacks / found.count
    if bias_only:
        layer.bias += lack.flatten().to(layer.bias.dtype)
        return
    squares, products = found.squares, found.products
    if layer.bias is not None or absorbed:
        squares = squares - found.count * mean.unsqueeze(2) * mean.unsqueeze(1)
        products = products - found.count * mean.unsqueeze(2) * lack.unsqueeze(1)
    size = squares.shape[-1]
    scale = squares.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    ridge = _RIDGE * scale[:, None, None] * torch.eye(size, dtype=squares.dtype, device=squares.device)
    moved = torch.linalg.solve(squares + ridge, products)  # (G, d, o)
    layer.weight += moved.transpose(1, 2).reshape(layer.weight.shape).to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias += (lack - (mean.unsqueeze(1) @ moved).squeeze(1)).flatten().to(layer.bias.dtype)
