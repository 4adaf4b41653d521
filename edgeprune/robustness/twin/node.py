"""One operator of a graph as the table's rules see it, and how a rule says that it does not know a variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

Compute = Callable[..., Any]
"""What an operator does: tensors in (None where an optional input is left out), one tensor or a tuple out."""
Rule = Callable[["Node"], Compute]
"""Reads a node's attributes once and returns what it does; `Unsupported` for a variant that the table lacks."""

DTYPES: Mapping[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.int32,  # uint16: torch computes little in it, and no value is lost
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.int64,  # uint32
    13: torch.int64,  # uint64
    16: torch.bfloat16,
    21: torch.uint8,  # uint4
    22: torch.int8,  # int4
}
"""ONNX element type to the torch type that carries it."""

LARGEST = 2**29
"""Elements that one tensor of a twin may have: a file of a few bytes can ask for terabytes."""


class Unsupported(Exception):
    """A rule does not cover this variant of its operator; the text says which."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """An operator: `opset` is the version of its own domain; `kinds[i]` the ONNX element type of input i, if known.

    `attributes` are plain Python values (text, numbers, lists, TensorProto and GraphProto).
    """

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 0
    kinds: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The operator's name as an error gives it, with its domain where that is not ONNX's own."""
        return f"{self.domain}.{self.op}" if self.domain else self.op

    def integer(self, name: str, default: int) -> int:
        return int(self.attributes.get(name, default))

    def real(self, name: str, default: float) -> float:
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        return str(self.attributes.get(name, default))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """The list of whole numbers, None where the attribute is absent."""
        found = self.attributes.get(name)
        return None if found is None else tuple(int(value) for value in found)

    def refuse(self, name: str, *values: object) -> None:
        """Unsupported when the attribute is set to anything but one of `values`."""
        if name in self.attributes and self.attributes[name] not in values:
            raise Unsupported(f"{name}={self.attributes[name]}")

    def only_first_output(self) -> None:
        """Unsupported when something reads a further output."""
        if any(self.outputs[1:]):
            raise Unsupported("its further outputs are used")


def numbers(values: Tensor | None) -> list[int] | None:
    """A tensor of whole numbers as a list; None stays None."""
    return None if values is None else [int(value) for value in values.reshape(-1).tolist()]


def require_reasonable(shape: tuple[int, ...] | list[int]) -> None:
    """Unsupported for a tensor of more than `LARGEST` elements."""
    elements = 1
    for size in shape:
        elements *= max(int(size), 0)
    if elements > LARGEST:
        raise Unsupported(f"a tensor of shape {list(shape)}")
