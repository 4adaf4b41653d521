"""Cuts and silences recurrent layers (RNN, LSTM, GRU): their input features, and hidden units from all gates at once.

A hidden unit goes from every layer and direction of a module, since they share one `hidden_size`. It is read by the
module itself: silencing it means that neither its own recurrence nor the layer above listens to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Change = Callable[[Tensor, int, list[int]], Tensor]
"""A tensor, a dimension and the indices that go, to the tensor that takes its place."""


def changes(layer: Any, kind: str, role: str, gone: Sequence[int], change: Change) -> Iterator[tuple[str, Tensor]]:
    """(parameter name, new value) for all parameters that features (kind RNN, role in) or hidden units run through.

    `gone` are feature indices, or indices of the output, of which each direction has its own half.
    """
    size = layer.hidden_size
    units = sorted({index % size for index in gone})
    reading = [direction * size + unit for direction in range(2 if layer.bidirectional else 1) for unit in units]
    for name, value in layer.named_parameters(recurse=False):
        first_layer = name.removesuffix("_reverse").endswith("_l0")
        if kind == "RNN" and role == "in":
            if name.startswith("weight_ih") and first_layer:
                yield name, change(value, 1, sorted(gone))
            continue
        new = value
        if role == "out":
            rows = [gate * size + unit for gate in range(value.shape[0] // size) for unit in units]
            new = change(new, 0, rows)
        if name.startswith("weight_hh"):
            new = change(new, 1, units)
        elif name.startswith("weight_ih") and not first_layer:
            new = change(new, 1, reading)
        if new is not value:
            yield name, new


def without(value: Tensor, dim: int, gone: list[int]) -> Tensor:
    """The tensor without some of its slices."""
    kept = torch.ones(value.shape[dim], dtype=torch.bool)
    kept[gone] = False
    return value.index_select(dim, kept.nonzero().flatten().to(value.device))


def zeroed(value: Tensor, dim: int, gone: list[int]) -> Tensor:
    """The tensor with some of its slices zero."""
    return value.index_fill(dim, torch.tensor(gone, device=value.device), 0)
