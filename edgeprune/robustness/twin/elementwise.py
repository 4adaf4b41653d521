"""Operators that work element by element: arithmetic, comparisons, activations.

Rounding and sign have no useful derivative. A twin serves backward passes, so they pass the gradient straight through
(Bengio et al. 2013; for attacks: BPDA, Athalye et al. 2018); sign only where its input is within [-1, 1] (Hubara et
al. 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeprune.robustness.twin.node import DTYPES, Compute, Node, Rule, Unsupported


def plain(function: Callable[..., Any]) -> Rule:
    """The rule of an operator without attributes."""
    return lambda _node: function


def straight_through(forward: Tensor, backward: Tensor) -> Tensor:
    """The value of `forward`, exactly, with the gradient of `backward`."""
    result: Tensor = _StraightThrough.apply(backward, forward)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, _backward: Tensor, forward: Tensor) -> Tensor:
        return forward.detach().clone()

    @staticmethod
    def backward(_context: Any, *gradients: Any) -> Any:
        return gradients[0], None


def _rounded(function: Callable[[Tensor], Tensor]) -> Rule:
    return plain(lambda x: straight_through(function(x), x) if x.is_floating_point() else x)


def _sign(x: Tensor) -> Tensor:
    return straight_through(x.sign(), x.clamp(-1, 1)) if x.is_floating_point() else x.sign()


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    return plain(lambda *tensors: reduce(function, tensors))


def _mean(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors) / len(tensors)


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _pow(base: Tensor, exponent: Tensor) -> Tensor:
    if exponent.numel() == 1 and exponent.device.type == "cpu":  # a number has the cheaper, exact derivative
        number = exponent.item()
        return torch.pow(base, number).to(base.dtype)
    return torch.pow(base, exponent).to(base.dtype)


def _mod(node: Node) -> Compute:
    return torch.fmod if node.integer("fmod", 0) else torch.remainder


def _clip(node: Node) -> Compute:
    if node.opset < 11:
        low, high = node.attributes.get("min"), node.attributes.get("max")
        return lambda x: x if low is None and high is None else torch.clamp(x, low, high)

    def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        return x if low is None and high is None else torch.clamp(x, low, high)

    return clip


def _leaky_relu(node: Node) -> Compute:
    slope = node.real("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, slope)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _elu(node: Node) -> Compute:
    alpha = node.real("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


def _selu(node: Node) -> Compute:
    alpha, gamma = node.real("alpha", 1.67326319217681884765625), node.real("gamma", 1.05070102214813232421875)
    return lambda x: gamma * functional.elu(x, alpha)


def _celu(node: Node) -> Compute:
    alpha = node.real("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


def _thresholded_relu(node: Node) -> Compute:
    alpha = node.real("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, 0.0)


def _gelu(node: Node) -> Compute:
    how = node.text("approximate", "none")
    return lambda x: functional.gelu(x, approximate=how)


def _hard_sigmoid(node: Node) -> Compute:
    alpha, beta = node.real("alpha", 0.2), node.real("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


def _swish(node: Node) -> Compute:
    alpha = node.real("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


def _shrink(node: Node) -> Compute:
    bias, bound = node.real("bias", 0.0), node.real("lambd", 0.5)
    return lambda x: torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, 0.0))


def _softmax(function: Callable[..., Tensor]) -> Rule:
    """From opset 13 along one axis; before, over everything from that axis on, flattened."""

    def rule(node: Node) -> Compute:
        if node.opset >= 13:
            axis = node.integer("axis", -1)
            return lambda x: function(x, dim=axis)
        start = node.integer("axis", 1)
        return lambda x: function(x.flatten(start), dim=-1).reshape(x.shape) if start else _whole(function, x)

    return rule


def _whole(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    return function(x.reshape(1, -1), dim=-1).reshape(x.shape)


def _cast(node: Node) -> Compute:
    kind = node.integer("to", 1)
    if kind not in DTYPES:
        raise Unsupported(f"to element type {kind}")
    dtype = DTYPES[kind]
    return lambda x: x.to(dtype)


def _is_inf(node: Node) -> Compute:
    above, below = node.integer("detect_positive", 1), node.integer("detect_negative", 1)
    return lambda x: torch.isinf(x) & ((x > 0) & bool(above) | (x < 0) & bool(below))


def _gemm(node: Node) -> Compute:
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    first, second = node.integer("transA", 0), node.integer("transB", 0)

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        left, right = a.t() if first else a, b.t() if second else b
        if c is None:
            return alpha * (left @ right)
        return torch.addmm(c, left, right, beta=beta, alpha=alpha)

    return gemm


def _einsum(node: Node) -> Compute:
    equation = node.text("equation", "")
    return lambda *tensors: torch.einsum(equation, *tensors)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": torch.add,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Div": _div,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": functional.hardswish,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mean": _mean,
    "Mish": functional.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Sign": _sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Where": torch.where,
    "Xor": torch.logical_xor,
    "CastLike": lambda x, like: x.to(like.dtype),
}

RULES: Mapping[str, Rule] = {
    **{name: plain(function) for name, function in _FUNCTIONS.items()},
    "Cast": _cast,
    "Ceil": _rounded(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Einsum": _einsum,
    "Elu": _elu,
    "Floor": _rounded(torch.floor),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "IsInf": _is_inf,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _softmax(torch.log_softmax),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mod": _mod,
    "Round": _rounded(torch.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Softmax": _softmax(torch.softmax),
    "Sum": _variadic(torch.add),
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
}
