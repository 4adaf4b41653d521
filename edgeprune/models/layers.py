"""Layers out of operators: conv2d, linear, batch_norm and layer_norm calls of a program become modules again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Step = tuple[str, list[Any], dict[str, Any], list[Any]]
_PREFIX = "torch.ops.aten."


def as_layer(program: nn.Module, step: Step, tensors: Mapping[str, Tensor]) -> Step:
    """The step as a call of a layer that is registered in `program` under its weight's name; else the step itself.

    A layer is made when all of its tensors stand in the program's state under one module's name, and that module
    is not another layer already (a layer that is used twice is one layer).
    """
    maker = _MAKERS.get(step[0].removeprefix(_PREFIX))
    if maker is None:
        return step
    arguments = _by_name(step)
    held = {key: item for key, item in arguments.items() if isinstance(item, tuple) and item[0] == "state"}
    owners = {item[1].rpartition(".")[0] for item in held.values()}
    if "weight" not in held or len(owners) != 1 or any(item[1].rpartition(".")[2] != key for key, item in held.items()):
        return step
    (owner,) = owners
    layer = maker(arguments, {key: tensors[item[1]] for key, item in held.items()})
    if layer is None or not owner or not _adopt(program, owner, layer):
        return step
    return f"layer:{owner}", [arguments["input"]], {}, step[3]


def _by_name(step: Step) -> dict[str, Any]:
    name, _, overload = step[0].removeprefix(_PREFIX).partition(".")
    schema = getattr(getattr(torch.ops.aten, name), overload)._schema.arguments
    values = {argument.name: argument.default_value for argument in schema}
    values.update(zip((argument.name for argument in schema), step[1], strict=False))
    return {**values, **step[2]}


def _adopt(program: nn.Module, owner: str, layer: nn.Module) -> bool:
    *path, leaf = owner.split(".")
    for part in path:
        if part not in program._modules:
            program._modules[part] = nn.Module()
        program = program.get_submodule(part)
    known = program._modules.get(leaf)
    if known is None:
        program._modules[leaf] = layer
        return True
    return type(known) is type(layer) and known.extra_repr() == layer.extra_repr()


def _filled(layer: nn.Module, held: Mapping[str, Tensor]) -> nn.Module:
    for key, tensor in held.items():
        if isinstance(tensor, nn.Parameter):
            layer._parameters[key] = tensor
        else:
            layer._buffers[key] = tensor
    return layer.eval()


def _pair(value: Any) -> tuple[int, int]:
    items = value if isinstance(value, list) else [value]
    return (items[0], items[-1])


def _conv2d(given: dict[str, Any], held: dict[str, Tensor]) -> nn.Module | None:
    if given["bias"] is not None and "bias" not in held:
        return None
    weight = held["weight"]
    layer = nn.Conv2d(
        weight.shape[1] * given["groups"],
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=_pair(given["stride"]),
        padding=given["padding"] if isinstance(given["padding"], str) else _pair(given["padding"]),
        dilation=_pair(given["dilation"]),
        groups=given["groups"],
        bias="bias" in held,
        device="meta",
    )
    return _filled(layer, held)


def _linear(given: dict[str, Any], held: dict[str, Tensor]) -> nn.Module | None:
    if given["bias"] is not None and "bias" not in held:
        return None
    weight = held["weight"]
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in held, device="meta"), held)


def _batch_norm(given: dict[str, Any], held: dict[str, Tensor]) -> nn.Module | None:
    if set(held) != {"weight", "bias", "running_mean", "running_var"} or given["training"]:
        return None
    width = held["weight"].shape[0]
    layer = nn.BatchNorm2d(width, eps=given["eps"], momentum=given["momentum"], device="meta")
    layer.num_batches_tracked = torch.zeros((), dtype=torch.int64)
    return _filled(layer, held)


def _layer_norm(given: dict[str, Any], held: dict[str, Tensor]) -> nn.Module | None:
    if set(held) != {"weight", "bias"}:
        return None
    return _filled(nn.LayerNorm(list(given["normalized_shape"]), eps=given["eps"], device="meta"), held)


_MAKERS: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], nn.Module | None]] = {
    "conv2d.default": _conv2d,
    "conv2d.padding": _conv2d,
    "linear.default": _linear,
    "batch_norm.default": _batch_norm,
    "layer_norm.default": _layer_norm,
}
