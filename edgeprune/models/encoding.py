"""Modules as JSON and tensors, and back to placeholders: how a bundle describes a network without pickle.

Every module becomes its class's name and its attributes; tensors become names in a safetensors file. Objects that
are shared (tied weights, a module used twice) stay shared. What has no plain form (a lambda, a local class, an open
file) is an `Opaque` error that names the attribute.

A value is JSON as it is when it is None, bool, int, str, a finite float or a list; everything else is a one-key
object such as {"tuple": [...]}.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import ModelError
from edgeprune.models.pickles import Placeholder, placeholder
from edgeprune.models.trust import FUNCTIONS, VALUES

Json = Any
_EMPTY = set(nn.Module().__dict__)
_INNER = ("_parameters", "_buffers", "_modules")


class Opaque(Exception):
    """An attribute that has no form as data; the message names it."""


class Encoder:
    """Encodes modules; `objects` and `tensors` are what the encodings refer to by index and by name."""

    def __init__(self) -> None:
        self.objects: list[Json] = []
        self.tensors: dict[str, Tensor] = {}
        self._index: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._alive: list[Any] = []

    def value(self, given: Any, name: str) -> Json:
        """The JSON of a value that is found at `name`; Opaque when it has none."""
        if isinstance(given, Tensor):
            return self.tensor(given, name)
        if isinstance(given, nn.Module):
            return {"object": self._object(given, name)}
        for kind, encode in _VALUES:
            if type(given) is kind:
                return encode(given)
        if type(given) in _CONTAINERS:
            return {_CONTAINERS[type(given)]: [self.value(item, f"{name}.{i}") for i, item in enumerate(given)]}
        if type(given) in (dict, OrderedDict):
            pairs = [[self.value(k, name), self.value(v, f"{name}.{k}")] for k, v in given.items()]
            return {"dict" if type(given) is dict else "ordered": pairs}
        if type(given) is list:
            return [self.value(item, f"{name}.{i}") for i, item in enumerate(given)]
        if isinstance(given, np.generic):
            return self.value(given.item(), name)
        if isinstance(given, enum.Enum):
            return {"enum": [reference_of(type(given), name), self.value(given.value, name)]}
        if isinstance(given, partial):
            parts = (given.func, list(given.args), dict(given.keywords))
            return {"partial": [self.value(part, name) for part in parts]}
        if isinstance(given, type) or callable(given):
            return {"name": reference_of(given, name)}
        return {"object": self._object(given, name)}

    def tensor(self, given: Tensor, name: str) -> Json:
        """A reference to a tensor; the same tensor has one name."""
        if type(given) not in (Tensor, nn.Parameter) or given.layout != torch.strided or given.is_quantized:
            raise Opaque(f"{name} is a {type(given).__name__} with the layout {given.layout}")
        if id(given) not in self._names:
            self._names[id(given)] = name
            self.tensors[name] = given.detach()
            self._alive.append(given)
        kind = ["parameter", given.requires_grad] if isinstance(given, nn.Parameter) else ["buffer", False]
        return {"tensor": [self._names[id(given)], *kind]}

    def attributes(self, given: Any, name: str) -> dict[str, Json]:
        """Attributes of a module that differ from an empty module's, without its children and tensors."""
        state = given.__getstate__()
        if not isinstance(state, dict):
            raise Opaque(f"{name} ({type(given).__name__}) has a state that is not a dict")
        plain = {k: v for k, v in state.items() if not (isinstance(given, nn.Module) and k in _INNER)}
        plain = {k: v for k, v in plain.items() if not (k in _EMPTY and isinstance(v, dict | set) and not v)}
        return {key: self.value(value, _join(name, key)) for key, value in plain.items()}

    def _object(self, given: Any, name: str) -> int:
        if id(given) in self._index:
            return self._index[id(given)]
        cls = type(given)
        if any(getattr(cls, way) is not getattr(object, way) for way in ("__reduce_ex__", "__reduce__")):
            raise Opaque(f"{name} is a {cls.__module__}.{cls.__qualname__}, which pickles in a way of its own")
        index = self._index[id(given)] = len(self.objects)
        self._alive.append(given)
        entry: dict[str, Json] = {"class": reference_of(cls, name)}
        self.objects.append(entry)
        entry["state"] = self.attributes(given, name)
        if isinstance(given, nn.Module):
            for inner in _INNER:
                held = {k: None if v is None else self.value(v, _join(name, k)) for k, v in vars(given)[inner].items()}
                if held:
                    entry[inner] = [[key, value] for key, value in held.items()]
        return index


def decode(value: Json, objects: list[Json], tensors: Mapping[str, Tensor]) -> Any:
    """Placeholders for an encoded value; ModelError when it is not one."""
    try:
        return _Decoder(objects, tensors).value(value)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"the bundle's description of the network is damaged ({type(error).__name__}: {error})"
        ) from error


class _Decoder:
    def __init__(self, objects: list[Json], tensors: Mapping[str, Tensor]) -> None:
        self.objects, self.tensors = objects, tensors
        self.made: dict[int, Placeholder] = {}
        self.parameters: dict[str, Tensor] = {}

    def value(self, given: Json) -> Any:
        if isinstance(given, list):
            return [self.value(item) for item in given]
        if not isinstance(given, dict):
            return given
        ((kind, content),) = given.items()
        if kind == "tensor":
            return self.tensor(*content)
        if kind == "object":
            return self.object(content)
        if kind in ("dict", "ordered"):
            pairs = [(self.value(k), self.value(v)) for k, v in content]
            return dict(pairs) if kind == "dict" else OrderedDict(pairs)
        if kind == "enum":
            return placeholder(content[0])(self.value(content[1]))
        if kind == "partial":
            func, args, keywords = self.value(content)
            made = placeholder("functools.partial")(func)
            made.state = (func, tuple(args), keywords, None)
            return made
        if kind == "name":
            return placeholder(str(content))
        if kind in _FROM_LISTS:
            return _FROM_LISTS[kind]([self.value(item) for item in content])
        return _FROM_WORDS[kind](content)

    def tensor(self, name: str, kind: str, requires_grad: bool) -> Tensor:
        if kind != "parameter":
            return self.tensors[name]
        if name not in self.parameters:
            self.parameters[name] = nn.Parameter(self.tensors[name], requires_grad=bool(requires_grad))
        return self.parameters[name]

    def object(self, index: int) -> Placeholder:
        if index in self.made:
            return self.made[index]
        entry = self.objects[index]
        made = self.made[index] = placeholder(str(entry["class"]))()
        state = {key: self.value(item) for key, item in entry["state"].items()}
        for inner in _INNER:
            if inner in entry:
                state[inner] = {key: self.value(item) for key, item in entry[inner]}
        made.state = state
        return made


def reference_of(thing: Any, name: str) -> str:
    """ "package.module.name" of a class or a function; Opaque for what cannot be found under it again."""
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    for known, value in VALUES.items():
        if value is thing:
            return known
    short = str(getattr(thing, "__name__", ""))
    if f"torch.{short}" in FUNCTIONS and getattr(torch, short, None) is thing:
        return f"torch.{short}"
    if module is None or not qualname.isidentifier():
        raise Opaque(f"{name} is {qualname or thing!r}, which cannot be found by name")
    if module == "__main__":
        raise Opaque(f"{name} is {qualname}, defined in a script or notebook that another process does not have")
    return f"{module}.{qualname}"


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _float(value: float) -> Json:
    return value if math.isfinite(value) else {"float": repr(value)}


def _as_is(value: Json) -> Json:
    return value


_VALUES: tuple[tuple[type[Any], Callable[[Any], Json]], ...] = (
    (type(None), _as_is),
    (bool, _as_is),
    (int, _as_is),
    (str, _as_is),
    (float, _float),
    (complex, lambda value: {"complex": repr(value)}),
    (bytes, lambda value: {"bytes": value.hex()}),
    (torch.dtype, lambda value: {"dtype": str(value).removeprefix("torch.")}),
    (torch.device, lambda value: {"device": str(value)}),
    (torch.memory_format, lambda value: {"format": str(value).removeprefix("torch.")}),
    (slice, lambda value: {"slice": [value.start, value.stop, value.step]}),
    (range, lambda value: {"range": [value.start, value.stop, value.step]}),
)
_CONTAINERS: dict[type[Any], str] = {tuple: "tuple", torch.Size: "size", set: "set", frozenset: "frozenset"}
_FROM_LISTS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "size": torch.Size,
    "set": set,
    "frozenset": frozenset,
}


def _torch_value(kind: type[Any]) -> Callable[[str], Any]:
    def find(word: str) -> Any:
        found = getattr(torch, word)
        if not isinstance(found, kind):
            raise ValueError(word)
        return found

    return find


_FROM_WORDS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "complex": complex,
    "bytes": bytes.fromhex,
    "dtype": _torch_value(torch.dtype),
    "device": torch.device,
    "format": _torch_value(torch.memory_format),
    "slice": lambda parts: slice(*parts),
    "range": lambda parts: range(*parts),
}
