"""What operators that sum, average or multiply matrices do to labels: pooling, norms, convolutions, attention.

A mean over channels is noted as such (`Mixing`), a product of two activations, too (`Contraction`): neither has weights
that could be silenced, so the proof needs to know of them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgeprune.pruning.axes import FIXED, OPEN, Labels
from edgeprune.pruning.flow import Contraction, Flow, Maker, Mark, Mixing
from edgeprune.pruning.operators import makers_of, pointwise, rule

# ------------------------------------------------------------------------------------------- pooling and resizing


@rule("avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_bilinear2d",
       "upsample_nearest2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "avg_pool1d",
       "avg_pool3d", "_adaptive_avg_pool3d", "grid_sampler_2d")  # fmt: skip
def _pooled(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark, first = flow.mark(args[0]), output[0] if isinstance(output, tuple) else output
    for labels in mark.dims[2:]:
        flow.axes.freeze(labels, "it is pooled over its channels")
    flow.put(first, Mark([*mark.dims[:2], *[None] * (first.dim() - 2)], mark.makers))


@rule("mean", "var", "std", "var_mean")
def _mean(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensor, mark = args[0], flow.mark(args[0])
    over = _over(args, tensor)
    for dim in over:
        labels = mark.dims[dim]
        if labels is not None and _mixes(flow, "MIX", labels) is None:
            flow.axes.freeze(labels, "a mean over its channels is taken")
    for each in output if isinstance(output, tuple) else (output,):
        _reduced(flow, mark, each, over)


@rule("sum", "linalg_vector_norm", "norm")
def _sum(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensor, mark = args[0], flow.mark(args[0])
    over = _over(args, tensor) if len(args) < 3 or not isinstance(args[2], list | tuple) else _over(args[1:], tensor)
    for dim in over:
        labels = mark.dims[dim]
        if labels is not None:
            flow.contractions.append(Contraction(labels, mark.makers, mark.makers))
    _reduced(flow, mark, output, over)


@rule("amax", "amin", "max", "min", "argmax", "topk", "any", "all", "logsumexp", "prod")
def _extreme(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    if len(args) > 1 and isinstance(args[1], Tensor):
        pointwise(flow, args, kwargs, output)
        return
    tensor, mark = args[0], flow.mark(args[0])
    over = _over(args, tensor)
    for dim in over:
        flow.axes.freeze(mark.dims[dim], "the largest of its channels is taken")
    for each in output if isinstance(output, tuple) else (output,):
        _reduced(flow, mark, each, over)


def _over(args: tuple[Any, ...], tensor: Tensor) -> set[int]:
    given = args[1] if len(args) > 1 and args[1] is not None else list(range(tensor.dim()))
    along = given if isinstance(given, list | tuple) and given else [given]
    return {int(dim) % tensor.dim() for dim in along}


def _reduced(flow: Flow, mark: Mark, output: Tensor, over: set[int]) -> None:
    kept = output.dim() == len(mark.dims)
    dims = [None if i in over else d for i, d in enumerate(mark.dims) if kept or i not in over]
    if len(dims) != output.dim():
        raise ValueError("a reduction of another form")
    flow.put(output, Mark(dims, mark.makers))


# ---------------------------------------------------------------------------------------------------- norms


@rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensor, shape, mark = args[0], args[1], flow.mark(args[0])
    last = mark.dims[-1]
    if len(shape) > 1:
        for labels in mark.dims[-len(shape) :]:
            flow.axes.freeze(labels, "a LayerNorm runs over more than its channels")
        last = None
    affine = [each for each in args[2:4] if isinstance(each, Tensor)]
    for each in affine if len(shape) == 1 else ():
        last = flow.axes.same(last, flow.mark(each).dims[0], "a LayerNorm runs over positions")
    if last is not None and _mixes(flow, "LN", last) is None:
        flow.axes.freeze(last, "a LayerNorm that stands in no module of its own mixes its channels")
    dims = [*mark.dims[: tensor.dim() - len(shape)], *[None] * (len(shape) - 1), last]
    flow.put(output[0], Mark(dims, makers_of(flow, tensor, *affine)))


@rule("native_group_norm")
def _group_norm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensor, groups, mark = args[0], args[6], flow.mark(args[0])
    channels = mark.dims[1]
    affine = [each for each in args[1:3] if isinstance(each, Tensor)]
    for each in affine:
        channels = flow.axes.same(channels, flow.mark(each).dims[0], "a GroupNorm runs over positions")
    if channels is not None and groups > 1:
        first, _ = flow.axes.split(channels, [groups, len(channels) // groups])
        flow.axes.freeze(first, "the number of a GroupNorm's groups stays")
    if channels is not None and _mixes(flow, "GN", channels) is None:
        flow.axes.freeze(channels, "a GroupNorm that stands in no module of its own mixes its channels")
    for labels in mark.dims[2:]:
        flow.axes.freeze(labels, "a GroupNorm runs over it")
    dims = [mark.dims[0], channels, *[None] * (tensor.dim() - 2)]
    flow.put(output[0], Mark(dims, makers_of(flow, tensor, *affine)))


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
       "batch_norm")  # fmt: skip
def _batch_norm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    mark = flow.mark(args[0])
    channels = mark.dims[1]
    own = [each for each in args[1:5] if isinstance(each, Tensor)]
    for each in own:
        channels = flow.axes.same(channels, flow.mark(each).dims[0], "a batch norm runs over positions")
    first = output[0] if isinstance(output, tuple) else output
    flow.put(first, Mark([mark.dims[0], channels, *mark.dims[2:]], makers_of(flow, args[0], *args[1:3])))


def _mixes(flow: Flow, kind: str, labels: Labels) -> Mixing | None:
    """Notes a mean over channels when it stands in a module of its own: one without weighted layers inside."""
    name = flow.running[-1] if flow.running else ""
    layer = flow.layers[name]
    weighted = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)
    if not name or any(isinstance(each, weighted) for each in layer.modules()):
        return None
    known = {"LN": isinstance(layer, nn.LayerNorm), "GN": isinstance(layer, nn.GroupNorm)}.get(kind, False)
    flow.mixing.append(Mixing(name, kind if known else "MIX", labels))
    return flow.mixing[-1]


# ----------------------------------------------------------------------------------------------- contractions


@rule("convolution", "conv2d", "_convolution", "mkldnn_convolution")
def _convolution(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    tensor, weight, bias, groups = args[0], args[1], args[2], args[8]
    mark, own, transposed = flow.mark(tensor), flow.mark(weight), bool(args[6])
    for labels in mark.dims[2:]:
        flow.axes.freeze(labels, "a convolution runs over it")
    if not own.weight or (transposed and groups > 1):
        raise ValueError("a convolution whose weight is computed")
    taken_in, made = (0, 1) if transposed else (1, 0)
    channels, outputs = mark.dims[1], own.dims[made]
    if groups == 1:
        channels = flow.axes.same(channels, own.dims[taken_in], "its channels are those of the network's input")
    elif tensor.shape[1] == groups == output.shape[1]:
        outputs = channels = flow.axes.same(channels, outputs, "its channels are those of the network's input")
    else:
        parts, rest = flow.axes.split(channels, [groups, tensor.shape[1] // groups])
        others, _ = flow.axes.split(outputs, [groups, output.shape[1] // groups])
        flow.axes.freeze(parts, "the number of a convolution's groups stays")
        flow.axes.freeze(others, "the number of a convolution's groups stays")
        if tensor.shape[1] > groups:
            flow.axes.same(rest, own.dims[1], "its channels are those of the network's input")
    flow.inputs[own.weight] = channels
    flow.read.add((own.weight, taken_in))
    if bias is not None and outputs is not None:
        outputs = flow.axes.same(outputs, flow.mark(bias).dims[0])
    made_by = frozenset((flow.mark(each).weight, frozenset[int]()) for each in (weight, bias) if each is not None)
    flow.put(output, Mark([mark.dims[0], outputs, *[None] * (output.dim() - 2)], made_by))


@rule("mm")
def _mm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _product(flow, args[0], args[1], output)


@rule("bmm")
def _bmm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _product(flow, args[0], args[1], output)


@rule("addmm", "baddbmm", "addbmm")
def _addmm(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    _product(flow, args[1], args[2], output, bias=args[0])


@rule("linear")
def _linear(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    weight = flow.mark(args[1])
    turned = Mark(weight.dims[::-1], weight.makers, weight.weight)
    _contract(flow, flow.mark(args[0]), turned, output, args[2] if len(args) > 2 else None)


def _product(flow: Flow, left: Tensor, right: Tensor, output: Tensor, bias: Tensor | None = None) -> None:
    _contract(flow, flow.mark(left), flow.mark(right), output, bias)


def _contract(flow: Flow, left: Mark, right: Mark, output: Tensor, bias: Tensor | None) -> None:
    """A matrix product over the last dimension of one and the last but one of the other."""
    inner = flow.axes.same(left.dims[-1], right.dims[-2], "its channels are those of the network's input")
    batch = [left.dims[0] if len(left.dims) == 3 == len(right.dims) else None][: output.dim() - 2]
    if len(left.dims) == 3 == len(right.dims):
        batch = [flow.axes.same(left.dims[0], right.dims[0])]
    elif len(left.dims) > 2:
        batch = list(left.dims[:-2])
    outer = [left.dims[-2] if len(left.dims) > 1 else None, right.dims[-1]]
    sides = ((left, left.dims[-1]), (right, right.dims[-2]))
    weights = [(mark.weight, dim) for mark, dim in sides if mark.weight in flow.parameters]
    weights = weights[-1:]  # of two, the first stands for an activation: learned tokens, a table
    for name, labels in weights:
        _reads(flow, name, labels)
    if not weights and inner is not None:
        flow.contractions.append(Contraction(inner, left.makers, right.makers))
    made_by: frozenset[Maker] = frozenset((name, frozenset[int]()) for name, _ in weights)
    if not weights:
        made_by = left.makers | right.makers
    dims = [*batch, *outer]
    if bias is not None:
        own = flow.mark(bias)
        dims[-1] = flow.axes.same(dims[-1], own.dims[-1]) if bias.shape[-1] == output.shape[-1] > 1 else dims[-1]
        made_by |= frozenset({(own.weight, frozenset[int]())} if own.weight else own.makers)
    flow.put(output, Mark(dims, made_by))


def _reads(flow: Flow, name: str, labels: Labels | None) -> None:
    """Notes which dimension of a parameter takes these in."""
    wanted = set() if labels is None else set(labels.tolist()) - {FIXED, OPEN}
    for dim, own in enumerate(flow.weights[name].dims):
        if own is not None and wanted & set(own.tolist()):
            flow.read.add((name, dim))


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
       "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math_for_mps")  # fmt: skip
def _attention(flow: Flow, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    query, key, value = (flow.mark(each) for each in args[:3])
    both = [flow.axes.same(a, b) for a, b in zip(query.dims[:-2], key.dims[:-2], strict=True)]
    batch = [flow.axes.same(a, b) for a, b in zip(both, value.dims[:-2], strict=True)]
    inner = flow.axes.same(query.dims[-1], key.dims[-1])
    if inner is not None:
        flow.contractions.append(Contraction(inner, query.makers, key.makers))
    for mark in (query, key, value):
        flow.axes.freeze(mark.dims[-2], "attention runs over it")
    bias = args[5] if len(args) > 5 else kwargs.get("attn_mask")
    if isinstance(bias, Tensor):
        for back in range(3, bias.dim() + 1):
            if bias.shape[-back] > 1:
                batch[1 - back + 2] = flow.axes.same(batch[1 - back + 2], flow.mark(bias).dims[-back])
    flow.put(output[0], Mark([*batch, None, value.dims[-1]], value.makers))
