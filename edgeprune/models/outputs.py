"""Which of several outputs is the logits: a module that picks one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from edgeprune.errors import UsageError


class SelectedOutput(nn.Module):
    """A network that returns a dict or a tuple, cut down to one of its tensors: (N, C, H, W) to (N, K)."""

    def __init__(self, module: nn.Module, key: str) -> None:
        super().__init__()
        self.module, self.key = module, key

    def forward(self, images: Tensor) -> Tensor:
        return pick(self.module(images), self.key)


def pick(outputs: Any, key: str) -> Tensor:
    """The output called `key` (a dict's key or an object's attribute), or at that position of a tuple.

    UsageError names what there is instead.
    """
    chosen: Any = None
    if isinstance(outputs, Mapping):
        chosen = outputs.get(key)
    elif key.isdecimal() and isinstance(outputs, Sequence) and int(key) < len(outputs):
        chosen = outputs[int(key)]
    elif hasattr(outputs, "_fields"):
        chosen = getattr(outputs, key, None)
    if not isinstance(chosen, Tensor):
        raise UsageError(f"the network has no output {key}", where=f"it returns {describe(outputs)}")
    return chosen


def describe(outputs: Any) -> str:
    """What a network returned, in words: the names of its outputs and their shapes."""
    if isinstance(outputs, Tensor):
        return f"one tensor of shape {tuple(outputs.shape)}"
    names: list[tuple[Any, Any]] = []
    if isinstance(outputs, Mapping):
        names = list(outputs.items())
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        names = list(enumerate(outputs))
    parts = [f"{key}: {tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__}" for key, v in names[:8]]
    return f"a {type(outputs).__name__}" + (f" ({', '.join(parts)})" if parts else "")
