"""A norm that computes its statistics without some channels: the reference that a cut norm must agree with.

Silencing what reads a channel is not neutral in front of a LayerNorm: its mean and variance still see the channel. So
in the silenced copy the statistics are taken over the channels that stay. The cut network knows nothing of this:
it just runs, so the proof still compares two independent computations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_MEANS = frozenset({"mean", "var", "std", "var_mean"})


def without(layer: nn.Module, kind: str, size: int, gone: Sequence[int]) -> None:
    """Make `layer` compute its means without the channels `gone`, in place.

    `kind` is LN, GN or MIX. Of a MIX module, `size` says how many channels there are: dimensions of that size are
    meant. Called twice on a layer, both sets of channels are left out.
    """
    known: set[int] = getattr(layer, "_edgeprune_without", set())
    left_out = known | set(gone)
    layer._edgeprune_without = left_out  # type: ignore[assignment]
    plain: Callable[..., Any] = getattr(layer, "_edgeprune_plain", layer.forward)
    layer._edgeprune_plain = plain  # type: ignore[assignment]

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Without(left_out, size):
            return plain(*args, **kwargs)

    layer.forward = forward


class _Without(TorchFunctionMode):
    """While it is on, means over channels are means over the channels that stay."""

    def __init__(self, gone: set[int], size: int) -> None:
        super().__init__()
        self.gone, self.size = gone, size

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (functional.layer_norm, torch.layer_norm):
            return self._layer_norm(*args, **kwargs)
        if func in (functional.group_norm, torch.group_norm):
            return self._group_norm(*args, **kwargs)
        if func in (functional.rms_norm, torch.rms_norm):
            return self._rms_norm(*args, **kwargs)
        if getattr(func, "__name__", "") in _MEANS and args and isinstance(args[0], Tensor):
            return func(self._kept(args[0], _dims(args, kwargs)), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _stay(self, size: int) -> Tensor:
        return torch.tensor([index for index in range(size) if index not in self.gone], dtype=torch.long)

    def _kept(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        for dim in dims:
            if x.shape[dim] == self.size:
                x = x.index_select(dim, self._stay(self.size))
        return x

    def _layer_norm(
        self,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        kept = x.index_select(-1, self._stay(x.shape[-1]))
        variance, mean = torch.var_mean(kept, -1, correction=0, keepdim=True)
        return _affine((x - mean) / (variance + eps).sqrt(), weight, bias)

    def _rms_norm(
        self, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        kept = x.index_select(-1, self._stay(x.shape[-1]))
        square = kept.square().mean(-1, keepdim=True)
        return _affine(x / (square + (torch.finfo(x.dtype).eps if eps is None else eps)).sqrt(), weight, None)

    def _group_norm(
        self,
        x: Tensor,
        groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        stays = set(self._stay(x.shape[1]).tolist())
        size, parts = x.shape[1] // groups, []
        for start in range(0, x.shape[1], size):
            part = x[:, start : start + size]
            own = torch.tensor([i for i in range(size) if start + i in stays], dtype=torch.long)
            dims = tuple(range(1, x.dim()))
            variance, mean = torch.var_mean(part.index_select(1, own), dims, correction=0, keepdim=True)
            parts.append((part - mean) / (variance + eps).sqrt())
        shape = [1, -1] + [1] * (x.dim() - 2)
        affine = [None if each is None else each.reshape(shape) for each in (weight, bias)]
        return _affine(torch.cat(parts, 1), *affine)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _dims(args: Sequence[Any], kwargs: dict[str, Any]) -> list[int]:
    given = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if given is None or isinstance(given, bool):
        return list(range(args[0].dim()))
    return [int(dim) for dim in given] if isinstance(given, list | tuple) else [int(given)]
