"""ONNX's Attention (opset 23), as classification networks use it: no cache of past keys, one output."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from edgeprune.robustness.twin.node import Compute, Node, Rule


def _attention(node: Node) -> Compute:
    node.only_first_output()
    node.refuse("qk_matmul_output_mode", 0)
    causal, softcap = bool(node.integer("is_causal", 0)), node.real("softcap", 0.0)
    heads = (node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0))

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        flat = q.ndim == 3
        if flat:
            q, k, v = (_by_head(x, count) for x, count in zip((q, k, v), (heads[0], heads[1], heads[1]), strict=True))
        repeats = q.shape[1] // k.shape[1]
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = q @ k.transpose(-1, -2) * (node.real("scale", 0.0) or 1 / math.sqrt(q.shape[-1]))
        allowed = _allowed(scores, mask, causal)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        result = _weights(scores, allowed) @ v
        return result.transpose(1, 2).flatten(2) if flat else result

    return attend


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(N, tokens, heads * size) to (N, heads, tokens, size)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _weights(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax over the tokens that one may look at; zeros where there is none, as ONNX Runtime has it, and no NaN."""
    if allowed is None:
        return torch.softmax(scores, -1)
    nowhere = torch.isneginf(allowed).all(-1, keepdim=True)
    return torch.softmax(scores + allowed.masked_fill(nowhere, 0.0), -1).masked_fill(nowhere, 0.0)


def _allowed(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """What is added to the scores: 0 where a token may look, minus infinity where it may not."""
    added = mask
    if mask is not None and mask.dtype == torch.bool:
        added = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)
    if causal:
        later = torch.full(scores.shape[-2:], -math.inf, dtype=scores.dtype, device=scores.device).triu(1)
        added = later if added is None else added + later
    return added


RULES: Mapping[str, Rule] = {"Attention": _attention}
