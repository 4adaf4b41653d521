"""Placeholders into modules: what a file describes becomes objects, class by class, or an error.

A module is made by `cls.__new__` and filled with attributes: no constructor runs, so a file cannot choose its
arguments. Attributes are tensors, plain data, other modules, and the classes and functions that `trust` admits.
Refused: attributes that would replace a method, hooks that are not admitted functions, tensors that claim more
values than their storage holds.
"""

from __future__ import annotations

import enum
import inspect
from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import ModelError, UntrustedModelError
from edgeprune.models.pickles import Placeholder
from edgeprune.models.trust import FUNCTIONS, Trust, admitted_class, admitted_value, has_own_new, untrusted

_INNER: dict[str, type[Any]] = {"_parameters": nn.Parameter, "_buffers": Tensor, "_modules": nn.Module}
_OLDER = "open it with the versions it was made with, and bring its state_dict with --arch"
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, range, slice)
_TORCH = (torch.Size, torch.dtype, torch.device, torch.memory_format, torch.layout)


def build(description: Any, trust: Trust, path: str) -> Any:
    """The object that a placeholder (or plain data around placeholders) describes.

    UntrustedModelError names every class and function that is not admitted; ModelError says what else is wrong.
    """
    missing = tuple(name for name in _names(description) if not _admitted(name, trust))
    if missing:
        raise untrusted(missing, path, trust)
    builder = _Builder(trust, path)
    try:
        return builder.value(description)
    except RecursionError:
        raise ModelError(f"{path} describes a network that is nested too deeply") from None


def clean_tensor(tensor: Tensor, name: str, path: str) -> Tensor:
    """The tensor without attributes or hooks that a file gave it; ModelError for those that hold no plain values."""
    kind, grad = type(tensor), tensor.requires_grad
    tensor = Tensor.detach(tensor)  # by the class: a file can give a tensor attributes that hide its methods
    if kind not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        what = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise ModelError(
            f"{name} in {path} is a {what} tensor, which is not supported",
            hint="bring the network as it was before it was quantized or converted",
        )
    if tensor.device.type != "cpu":
        raise ModelError(f"{name} in {path} has a shape but no values", hint="save the network with its weights")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        what = f"{name} in {path} claims {tensor.numel():,} values and does not hold them"
        raise ModelError(what, hint="save a contiguous copy of it")
    return nn.Parameter(tensor, grad) if kind is nn.Parameter else tensor


def _names(description: Any) -> tuple[str, ...]:
    """Every name that the description uses, in order of appearance."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    todo = [description]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        if isinstance(value, type) and issubclass(value, Placeholder):
            found[value.reference] = None
        elif isinstance(value, Placeholder):
            seen.add(id(value))
            found[value.reference] = None
            todo += [value.arguments, value.state]
        elif isinstance(value, dict):
            seen.add(id(value))
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            seen.add(id(value))
            todo += value
    return tuple(found)


def _admitted(name: str, trust: Trust) -> bool:
    return name in _MAKERS or name == _TORCH_FUNCTIONS or admitted_value(name, trust) is not None


class _Builder:
    """One pass over one description; objects that are shared there are shared here."""

    def __init__(self, trust: Trust, path: str) -> None:
        self.trust, self.path = trust, path
        self.made: dict[int, Any] = {}

    def value(self, given: Any, name: str = "") -> Any:
        if isinstance(given, type) and issubclass(given, Placeholder):
            found = admitted_value(given.reference, self.trust)
            if found is None:
                raise untrusted((given.reference,), self.path, self.trust)
            return found
        if isinstance(given, Placeholder):
            return self.made[id(given)] if id(given) in self.made else self._object(given, name)
        if isinstance(given, Tensor):
            if id(given) not in self.made:
                self.made[id(given)] = clean_tensor(given, name, self.path)
            return self.made[id(given)]
        if isinstance(given, OrderedDict):
            return OrderedDict((self.value(k, name), self.value(v, f"{name}.{k}")) for k, v in given.items())
        if isinstance(given, dict):
            return {self.value(k, name): self.value(v, f"{name}.{k}") for k, v in given.items()}
        if isinstance(given, _TORCH) or type(given) in _PLAIN:
            return given
        if type(given) in (list, tuple, set, frozenset):
            return type(given)(self.value(item, name) for item in given)
        raise ModelError(f"{name.lstrip('.')} in {self.path} is a {type(given).__name__}, which is not supported")

    def _object(self, given: Placeholder, name: str) -> Any:
        maker = _MAKERS.get(given.reference)
        if maker is not None:
            made = maker(self, given)
            self.made[id(given)] = made
            return made
        cls = admitted_class(given.reference, self.trust)
        if cls is None:
            raise UntrustedModelError(
                f"{self.path} would call {given.reference} at {name.lstrip('.') or 'its top'}, which is not a class",
                where="nothing of it was run",
                hint="bring a state_dict with --arch instead",
            )
        if issubclass(cls, enum.Enum) and len(given.arguments) == 1:
            return self._member(cls, self.value(given.arguments[0], name), name)
        return self._instance(cls, given, name)

    def _member(self, cls: type[enum.Enum], value: Any, name: str) -> enum.Enum:
        for member in cls:
            if member.value == value:
                return member
        raise ModelError(f"{name.lstrip('.')} in {self.path}: {cls.__name__} has no member {value!r}", hint=_OLDER)

    def _instance(self, cls: type[Any], given: Placeholder, name: str) -> Any:
        if given.arguments and not has_own_new(cls):
            raise UntrustedModelError(
                f"{self.path} would call the constructor of {given.reference}, not only fill it with values",
                where="nothing of it was run",
                hint="bring a state_dict with --arch instead",
            )
        made = cls.__new__(cls, *self.value(given.arguments, name))
        self.made[id(given)] = made
        state = self._state(cls, given, name)
        if isinstance(made, nn.Module):
            nn.Module.__init__(made)
            self._check_inner(state, name or cls.__name__)
        if hasattr(cls, "__setstate__"):
            made.__setstate__(state)
        else:
            made.__dict__.update(state)
        return made

    def _state(self, cls: type[Any], given: Placeholder, name: str) -> dict[str, Any]:
        state = {} if given.state is None else given.state
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise ModelError(f"{name.lstrip('.') or given.reference} in {self.path} has a state that is not a dict")
        for key in state:
            of_class = getattr(cls, key, None)
            if inspect.isroutine(of_class) or isinstance(of_class, property) or key.startswith("__"):
                raise UntrustedModelError(
                    f"{self.path} replaces the method {key} of {given.reference}",
                    where="nothing of it was run",
                    hint="bring a state_dict with --arch instead",
                )
        # children are named by their own names, not by the dict that holds them
        return {
            key: {k: self.value(v, f"{name}.{k}") for k, v in value.items()}
            if key in _INNER and isinstance(value, dict)
            else self.value(value, f"{name}.{key}")
            for key, value in state.items()
        }

    def _check_inner(self, state: dict[str, Any], name: str) -> None:
        """Parameters, buffers and children are what torch expects there."""
        for inner, kind in _INNER.items():
            held = state.get(inner, {})
            if not isinstance(held, dict) or not all(isinstance(value, kind | None) for value in held.values()):
                raise ModelError(f"{name.lstrip('.')} in {self.path} holds something else in its {inner}", hint=_OLDER)


def _partial(builder: _Builder, given: Placeholder) -> Any:
    """functools.partial: its state is (function, arguments, keywords, attributes)."""
    state = given.state if isinstance(given.state, tuple) and len(given.state) == 4 else None
    if state is None or not isinstance(state[0], type) or state[3]:
        raise ModelError(f"{builder.path} holds a functools.partial of something that has no name")
    return partial(builder.value(state[0]), *builder.value(tuple(state[1])), **builder.value(dict(state[2])))


def _torch_function(builder: _Builder, given: Placeholder) -> Any:
    """torch.relu and the like, which pickle as getattr(torch._C._VariableFunctionsClass, "relu")."""
    owner, name = (*given.arguments, None, None)[:2]
    is_torch = isinstance(owner, type) and getattr(owner, "reference", "") == _TORCH_FUNCTIONS
    if not is_torch or f"torch.{name}" not in FUNCTIONS or not hasattr(torch, name):
        raise untrusted(("builtins.getattr",), builder.path, builder.trust)
    return getattr(torch, name)


def _number(builder: _Builder, given: Placeholder) -> Any:
    """A numpy scalar, as the Python number that it is."""
    kind, data = (*given.arguments, None, None)[:2]
    code = kind.arguments[0] if isinstance(kind, Placeholder) and kind.arguments else None
    data = data.encode("latin1") if isinstance(data, str) else data
    if code not in _NUMBERS or not isinstance(data, bytes):
        raise ModelError(f"{builder.path} holds a numpy value of a kind that is not supported")
    return np.frombuffer(data, dtype="<" + code)[0].item()


def _range(builder: _Builder, given: Placeholder) -> Any:
    return range(*(int(value) for value in given.arguments))


def _frozen(builder: _Builder, given: Placeholder) -> Any:
    return frozenset(builder.value(given.arguments[0] if given.arguments else ()))


def _nothing(builder: _Builder, given: Placeholder) -> Any:
    return None


_TORCH_FUNCTIONS = "torch._C._VariableFunctionsClass"
_NUMBERS = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])
_MAKERS: dict[str, Any] = {
    "builtins.getattr": _torch_function,
    "functools.partial": _partial,
    "numpy._core.multiarray.scalar": _number,
    "numpy.core.multiarray.scalar": _number,
    "numpy.dtype": _nothing,
    "builtins.range": _range,
    "builtins.frozenset": _frozen,
}
"""Objects of the standard library and numpy that modules hold, made from their data by our own code."""
