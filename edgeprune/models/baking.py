"""Weights that a layer computes anew in every pass are computed once, and kept.

Weight norm and spectral norm (parametrisations and the older hooks) and convolutions that standardise their weights
compute, in eval mode, the same weight in every pass. A channel cannot be cut out of what they are computed from: a
norm over the inputs of a filter would change with every input that goes. So such layers become plain ones with that
weight. The network computes what it did; what is trained on is the plain weight.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {nn.Conv1d: torch.conv1d, nn.Conv2d: torch.conv2d, nn.Conv3d: torch.conv3d}
_HOOKS = {"WeightNorm": ("_g", "_v"), "SpectralNorm": ("_orig", "_u", "_v")}


def baked(module: nn.Module) -> nn.Module:
    """`module` with plain weights: itself where nothing is computed, else a copy. It computes the same in eval mode."""
    if not any(_hooks(layer) or _parametrised(layer) or _standardised(layer) is not None for layer in module.modules()):
        return module
    memo = {
        id(value): value.detach().clone()
        for layer in module.modules()
        for value in vars(layer).values()
        if isinstance(value, Tensor) and not value.is_leaf  # what the older hooks leave behind cannot be copied
    }
    copied: nn.Module = copy.deepcopy(module, memo)
    for layer in copied.modules():
        _bake_parametrisations(layer)
        _bake_hooks(layer)
    for name, layer in list(copied.named_modules()):
        weight = _standardised(layer)
        if weight is not None and name:
            _replace(copied, name, layer, weight)
    return copied


def _parametrised(layer: nn.Module) -> bool:
    return bool(parametrize.is_parametrized(layer))


def _bake_parametrisations(layer: nn.Module) -> None:
    if parametrize.is_parametrized(layer):
        for leaf in list(layer.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(layer, leaf, leave_parametrized=True)


def _hooks(layer: nn.Module) -> list[tuple[int, Any]]:
    """Hooks of torch.nn.utils.weight_norm and spectral_norm, by their keys."""
    return [(key, hook) for key, hook in layer._forward_pre_hooks.items() if type(hook).__name__ in _HOOKS]


def _bake_hooks(layer: nn.Module) -> None:
    for key, hook in _hooks(layer):
        with torch.no_grad():
            hook(layer, ())
            weight = getattr(layer, hook.name).detach().clone()
        del layer._forward_pre_hooks[key]
        for end in _HOOKS[type(hook).__name__]:
            for held in (layer._parameters, layer._buffers):
                held.pop(hook.name + end, None)
        vars(layer).pop(hook.name, None)
        setattr(layer, hook.name, nn.Parameter(weight))


def _standardised(layer: nn.Module) -> Tensor | None:
    """The weight that a convolution of a class of its own computes from its `weight`; None where it uses that itself.

    None, too, where more than the weight differs from the plain layer (padding of its own, a second convolution).
    """
    plain = next((kind for kind in _CONVOLUTIONS if isinstance(layer, kind)), None)
    if plain is None or type(layer) is plain or type(layer).forward is plain.forward or _parametrised(layer):
        return None
    held: Any = layer
    if isinstance(held.padding, str) or held.padding_mode != "zeros" or "weight" not in held._parameters:
        return None
    sizes = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(held.dilation, held.kernel_size, strict=True)]
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(2, held.in_channels, *sizes, generator=generator) for _ in range(2)]
    with torch.no_grad(), _Calls(_CONVOLUTIONS[plain]) as calls:
        try:
            for image in images:
                layer(image)
        except Exception:  # noqa: BLE001  # a layer of the user's, asked in a way that it may not know
            return None
    if len(calls.found) != 2 or any(call[0] is not image for call, image in zip(calls.found, images, strict=True)):
        return None
    _, weight, bias, *settings = calls.found[0]
    if weight is held.weight or not torch.equal(weight, calls.found[1][1]):  # or it depends on the image
        return None
    same = bias is held.bias and [_tuple(each, len(sizes)) for each in settings[:3]] == [
        tuple(held.stride),
        tuple(held.padding),
        tuple(held.dilation),
    ]
    fits = same and settings[3:] == [held.groups] and weight.shape == held.weight.shape
    return weight.detach().clone() if fits else None


def _tuple(value: Any, count: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * count


def _replace(module: nn.Module, name: str, layer: Any, weight: Tensor) -> None:
    """Put a plain convolution with this weight in a layer's place."""
    kind = next(kind for kind in _CONVOLUTIONS if isinstance(layer, kind))
    form = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    plain = kind(*form, groups=layer.groups, bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    plain.bias = layer.bias
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, plain.train(layer.training))


class _Calls(TorchFunctionMode):
    """Notes the arguments of every call of a convolution function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.found = function, list[list[Any]]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.function and not kwargs:
            self.found.append(list(args))
        elif func is self.function:
            self.found += [list(args), list(args)]  # a form that is not known: counted as one call too many
        return func(*args, **(kwargs or {}))
