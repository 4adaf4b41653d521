"""The operators that a program from a file may call: an explicit list, because a list of exceptions is never whole.

ATen holds operators that open files (`from_file`), that trust their arguments with memory (`_unsafe_index`, `set_`,
`as_strided`) and that nothing but training needs. Here are those that networks for images use when they run.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

_NAME = re.compile(r"torch\.ops\.aten\.([a-z][a-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)")
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "eq", "floordiv", "ge", "gt", "le", "lt", "mod", "mul", "ne", "neg", "sub", "truediv")
}
_WORDS = """
abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add add_ addcmul addmm alias amax amin arange argmax
argmin avg_pool1d avg_pool2d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bmm cat ceil chunk clamp clamp_
clamp_max clamp_min clone constant_pad_nd contiguous conv1d conv2d conv_transpose2d cos cumsum detach detach_ div div_
dropout dropout_ einsum elu elu_ embedding eq erf exp expand expand_as eye feature_dropout fill_ flatten flip floor
floor_divide full full_like gather ge gelu glu group_norm gt hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh
hardtanh_ im2col index index_select instance_norm layer_norm le leaky_relu leaky_relu_ lift_fresh_copy
linalg_vector_norm linear linspace log log_softmax logical_and logical_not logical_or lt masked_fill masked_fill_
matmul max max_pool2d maximum mean meshgrid min minimum mish mish_ mm movedim mul mul_ narrow ne neg new_full new_ones
new_zeros norm ones ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu prod reciprocal reflection_pad2d
relu relu6 relu6_ relu_ repeat repeat_interleave replication_pad2d reshape reshape_as roll round rsqrt rsub
scalar_tensor scaled_dot_product_attention select selu selu_ sigmoid sigmoid_ sign silu silu_ sin slice softmax
softplus split split_with_sizes sqrt square squeeze squeeze_ stack std sub sub_ sum swapaxes swapdims sym_size tan
tanh tanh_ tensor_split tile to topk transpose transpose_ tril triu type_as unbind unflatten unfold unsqueeze
unsqueeze_ upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var view view_as where zero_ zeros zeros_like
"""
NAMES = frozenset(_WORDS.split())


@lru_cache(maxsize=1024)
def function(name: str) -> Callable[..., Any]:
    """The operator called `name`, for example "torch.ops.aten.relu.default"; ValueError when it is not admitted."""
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in NAMES:
        raise ValueError(f"the operator {name} is not one that is admitted")
    packet = getattr(torch.ops.aten, match[1])
    if match[2] not in packet.overloads():
        raise ValueError(f"the operator {name} does not exist in this version of torch")
    return getattr(packet, match[2])  # type: ignore[no-any-return]
