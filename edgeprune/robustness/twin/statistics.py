"""Operators that reduce: sums, means, norms, and the normalisations made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.robustness.twin.node import Compute, Node, Rule, Unsupported, numbers
from edgeprune.robustness.twin.windows import pad


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Rule:
    """`function(x, axes, keepdim)`; no axes means all of them, or nothing to do where the node says so."""

    def rule(node: Node) -> Compute:
        keep, idle = bool(node.integer("keepdims", 1)), bool(node.integer("noop_with_empty_axes", 0))
        fixed = node.integers("axes")

        def reduce(x: Tensor, axes: Tensor | None = None) -> Tensor:
            chosen = list(fixed) if fixed is not None else numbers(axes)
            if not chosen and idle:
                return x
            return function(x, chosen or list(range(x.ndim)), keep)

        return reduce

    return rule


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.mean(axes, keepdim=keep) if x.is_floating_point() else x.sum(axes, keepdim=keep) // _count(x, axes)


def _count(x: Tensor, axes: list[int]) -> int:
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return count


def _arg(function: Callable[..., Tensor]) -> Rule:
    def rule(node: Node) -> Compute:
        node.refuse("select_last_index", 0)
        axis, keep = node.integer("axis", 0), bool(node.integer("keepdims", 1))
        return lambda x: function(x, axis, keepdim=keep)

    return rule


def _top_k(node: Node) -> Compute:
    axis, largest = node.integer("axis", -1), bool(node.integer("largest", 1))

    def top(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        found = x.topk(int(count.reshape(-1)[0]), axis, largest)
        return found.values, found.indices

    return top


def _cum_sum(node: Node) -> Compute:
    exclusive, reverse = node.integer("exclusive", 0), node.integer("reverse", 0)

    def cumulate(x: Tensor, axis: Tensor) -> Tensor:
        dim = int(axis)
        sums = x.flip(dim).cumsum(dim).flip(dim) if reverse else x.cumsum(dim)
        return sums - x if exclusive else sums

    return cumulate


def _batch_norm(node: Node) -> Compute:
    node.only_first_output()
    node.refuse("spatial", 1)
    epsilon, training = node.real("epsilon", 1e-5), bool(node.integer("training_mode", 0))

    def normalise(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        if training:  # as in weight standardisation, where the "batch" is the weight of a convolution
            if x.shape[0] != 1:
                raise Unsupported("statistics of the batch")
            return functional.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
        return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)

    return normalise


def _standardised(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(var + epsilon)


def _along_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.ndim - 2))


def _instance_norm(node: Node) -> Compute:
    epsilon = node.real("epsilon", 1e-5)

    def normalise(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        standard = _standardised(x, list(range(2, x.ndim)), epsilon)
        return standard * _along_channels(scale, x) + _along_channels(bias, x)

    return normalise


def _group_norm(node: Node) -> Compute:
    groups, epsilon = node.integer("num_groups", 1), node.real("epsilon", 1e-5)

    def normalise(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        standard = _standardised(x.reshape(x.shape[0], groups, -1), [2], epsilon)
        if node.opset < 21:  # one scale a group
            return (standard * scale.view(-1, 1) + bias.view(-1, 1)).reshape(x.shape)
        return standard.reshape(x.shape) * _along_channels(scale, x) + _along_channels(bias, x)

    return normalise


def _layer_norm(node: Node) -> Compute:
    node.only_first_output()
    axis, epsilon = node.integer("axis", -1), node.real("epsilon", 1e-5)

    def normalise(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = list(x.shape[axis:])
        if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
            return functional.layer_norm(x, shape, scale, bias, epsilon)
        standard = functional.layer_norm(x, shape, None, None, epsilon) * scale
        return standard if bias is None else standard + bias

    return normalise


def _rms_norm(node: Node) -> Compute:
    axis, epsilon = node.integer("axis", -1), node.real("epsilon", 1e-5)

    def normalise(x: Tensor, scale: Tensor) -> Tensor:
        axes = list(range(axis % x.ndim, x.ndim))
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale

    return normalise


def _lp_norm(node: Node) -> Compute:
    axis, p = node.integer("axis", -1), node.integer("p", 2)

    def normalise(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
        return torch.where(norm > 0, x / torch.where(norm > 0, norm, 1.0), 0.0)

    return normalise


def _mean_variance(node: Node) -> Compute:
    axes = list(node.integers("axes") or (0, 2, 3))
    if 0 in axes:
        raise Unsupported("statistics over the batch")
    return lambda x: (x - x.mean(axes, keepdim=True)) / (x.std(axes, correction=0, keepdim=True) + 1e-9)


def _lrn(node: Node) -> Compute:
    size, alpha = node.integer("size", 1), node.real("alpha", 1e-4)
    beta, bias = node.real("beta", 0.75), node.real("bias", 1.0)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2

    def normalise(x: Tensor) -> Tensor:
        squares = x.square().flatten(2).transpose(1, 2)  # (N, pixels, C)
        sums = pad(squares, ((before, after),)).unfold(-1, size, 1).sum(-1)
        return x / (bias + alpha / size * sums.transpose(1, 2).reshape(x.shape)).pow(beta)

    return normalise


RULES: Mapping[str, Rule] = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "BatchNormalization": _batch_norm,
    "CumSum": _cum_sum,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_norm,
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep)),
    "ReduceLogSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduction(_prod),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "TopK": _top_k,
}
