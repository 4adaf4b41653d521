"""What surgery changed: the difference between a network and a freshly built one of the same architecture.

A plan says what to cut; the difference says what the result looks like (sizes, replaced submodules, tensors), so that
rebuilding needs no surgery and no dependency graph. Weights are not compared: every tensor is recorded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import ModelError
from edgeprune.models.building import build
from edgeprune.models.encoding import Encoder, Json, Opaque, decode
from edgeprune.models.trust import Trust

_INNER = ("_parameters", "_buffers", "_modules")


def difference(fresh: nn.Module, module: nn.Module, encoder: Encoder) -> Json:
    """Edits that turn `fresh` into `module`; Opaque when a changed attribute has no form as data."""
    edits: dict[str, list[Json]] = {"replace": [], "set": [], "delete": [], "tensors": []}
    _compare("", fresh, module, encoder, edits)
    return edits


def apply(
    edits: Json, fresh: nn.Module, objects: list[Json], tensors: Mapping[str, Tensor], trust: Trust, path: str
) -> None:
    """Carry the edits out on `fresh`, in place; ModelError when they do not fit it."""
    try:
        for name, key, content in edits["replace"]:
            fresh.get_submodule(name)._modules[key] = _made(content, objects, tensors, trust, path, nn.Module)
        for name, key in edits["delete"]:
            owner = fresh.get_submodule(name)
            _check_plain(type(owner), key)
            owner.__dict__.pop(key, None)
        for name, key, content in edits["set"]:
            owner = fresh.get_submodule(name)
            _check_plain(type(owner), key)
            owner.__dict__[key] = build(decode(content, objects, tensors), trust, path)
        _place(edits["tensors"], fresh, objects, tensors, trust, path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} does not fit its own architecture ({type(error).__name__}: {error})",
            hint="install the version of the architecture's package that it was made with",
        ) from error


def _compare(name: str, fresh: nn.Module, module: nn.Module, encoder: Encoder, edits: dict[str, list[Json]]) -> None:
    _compare_attributes(name, fresh, module, edits)
    for inner in ("_parameters", "_buffers"):
        held = vars(module)[inner]
        for key, tensor in held.items():
            content = None if tensor is None else encoder.tensor(tensor, _join(name, key))
            edits["tensors"].append([name, inner, key, content])
        for key in vars(fresh)[inner].keys() - held.keys():
            raise Opaque(f"{_join(name, key)} is gone")
    for key, child in module._modules.items():
        other = fresh._modules.get(key)
        if child is not None and other is not None and _alike(child, other):
            _compare(_join(name, key), other, child, encoder, edits)
        elif child is not None or other is not None or key not in fresh._modules:
            content = None if child is None else encoder.value(child, _join(name, key))
            edits["replace"].append([name, key, content])
    if list(fresh._modules) != list(module._modules):
        for key in fresh._modules.keys() - module._modules.keys():
            raise Opaque(f"{_join(name, key)} is gone")


def _alike(child: nn.Module, other: nn.Module) -> bool:
    """Of one class, and with a place for every tensor? A layer whose weight was baked in has lost some."""
    gone = other._parameters.keys() - child._parameters.keys() | other._buffers.keys() - child._buffers.keys()
    return type(child) is type(other) and not gone


def _compare_attributes(name: str, fresh: nn.Module, module: nn.Module, edits: dict[str, list[Json]]) -> None:
    before, after = vars(fresh), vars(module)
    for key in sorted(after.keys() | before.keys()):  # a set has another order in every process
        if key in _INNER or (_is_cache(after.get(key)) and isinstance(before.get(key), dict)):
            continue
        if key not in after:
            edits["delete"].append([name, key])
            continue
        place = _join(name, key)
        old, new = (_plain(values[key], place) if key in values else Opaque(place) for values in (before, after))
        if isinstance(new, Opaque):
            if not isinstance(old, Opaque) or key not in before or type(before[key]) is not type(after[key]):
                raise new
        elif isinstance(old, Opaque) or old != new or type(old) is not type(new):
            edits["set"].append([name, key, new])


def _is_cache(value: Any) -> bool:
    """A dictionary of tensors beside the parameters (LeViT's attention biases): the network computes it anew."""
    return isinstance(value, dict) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def _plain(value: Any, place: str) -> Json | Opaque:
    """A value's encoding when it is plain data, without tensors and objects; else the reason as an Opaque."""
    encoder = Encoder()
    try:
        content = encoder.value(value, place)
    except Opaque as error:
        return error
    return Opaque(f"{place} holds tensors or objects") if encoder.objects or encoder.tensors else content


def _place(
    entries: list[Json], fresh: nn.Module, objects: list[Json], tensors: Mapping[str, Tensor], trust: Trust, path: str
) -> None:
    """Every tensor to its place. One decoding for all of them, so that tied weights stay tied."""
    values = build(decode([content for *_, content in entries], objects, tensors), trust, path)
    for (name, inner, key, _), value in zip(entries, values, strict=True):
        if inner not in ("_parameters", "_buffers") or not isinstance(value, Tensor | None):
            raise ValueError(f"{name}.{key}")
        held = vars(fresh.get_submodule(name))[inner]
        if key not in held:
            raise ValueError(f"no place for {_join(name, key)}")
        held[key] = value


def _made(
    content: Json, objects: list[Json], tensors: Mapping[str, Tensor], trust: Trust, path: str, kind: type[Any]
) -> Any:
    made = None if content is None else build(decode(content, objects, tensors), trust, path)
    if made is not None and not isinstance(made, kind):
        raise TypeError(f"a {type(made).__name__} where a module belongs")
    return made


def _check_plain(cls: type[Any], key: str) -> None:
    if key in _INNER or key.startswith("__") or inspect.isroutine(getattr(cls, key, None)):
        raise ValueError(f"{key} cannot be set")


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def same_outputs(one: nn.Module, other: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether both give bit-equal outputs for two random images."""
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return bool(torch.equal(one(images), other(images)))
