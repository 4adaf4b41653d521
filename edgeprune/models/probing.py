"""What a network takes and gives, found by asking it: one forward pass on zeros.

Promise: a bundle's module is float32, in eval mode, finite, and maps (N, C, H, W) to one float tensor (N, K), K >= 2.
"""

from __future__ import annotations

import hashlib
import warnings

import torch
from torch import Tensor, nn

from edgeprune.errors import ModelError, UsageError
from edgeprune.models.inputs import held_in
from edgeprune.models.outputs import describe
from edgeprune.types import Shape

_ONE_INPUT = "hold its other inputs with --held, or wrap it in a module whose forward takes images alone"


def digest(module: nn.Module) -> str:
    """sha256 over sorted names, shapes, dtypes and bytes of the state_dict."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        total.update(flat.view(torch.uint8).numpy())
    return total.hexdigest()


def settle(module: nn.Module, path: str) -> nn.Module:
    """`module` on the CPU, in float32 and eval mode; ModelError when a weight is not a finite number."""
    module = module.to("cpu").float().eval()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{name} in {path} has {bad} values that are NaN or infinite",
                hint="the training diverged, or the file is damaged: bring an earlier checkpoint",
            )
    return module


def count_classes(module: nn.Module, shape: Shape, path: str) -> int:
    """Number of logits of `module` for images of `shape`; UsageError when the shape does not fit."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = module(torch.zeros(2, *shape))
    except UsageError:
        raise
    except Exception as error:  # code of the user's: it raises whatever it likes when a shape does not fit
        if isinstance(error, TypeError) and "positional argument" in str(error):
            raise ModelError(
                f"the network of {path} does not take one batch of images alone", where=str(error), hint=_ONE_INPUT
            ) from error
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        beside = "".join(f", with {name} held as {size}" for name, size in held_in(module).items())
        raise UsageError(
            f"the network does not take images of shape {','.join(map(str, shape))} (channels, height, width){beside}",
            where=f"{_layer_of(error)}{reason[:200]}",
            hint=_advice(module, shape),
        ) from error
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"the network of {path} does not return one tensor of logits",
            where=f"it returns {describe(logits)}",
            hint="name the one that is the logits with --output, by its key or its position",
        )
    if logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ModelError(
            f"the network of {path} returns {logits.dtype} of shape {tuple(logits.shape)} for 2 images",
            hint="it must return logits, float of shape (images, classes), for at least two classes",
        )
    if not torch.isfinite(logits).all():
        raise ModelError(f"the network of {path} returns logits that are not finite, for an image of zeros")
    return int(logits.shape[1])


def suggested_channels(module: nn.Module) -> int | None:
    """Channels that the first convolution takes; None without one."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
    return None


def missing_shape(module: nn.Module, path: str) -> UsageError:
    """The error for a network whose input shape nobody has said."""
    channels = suggested_channels(module)
    example = f"{channels or 3},224,224" if channels != 1 else "1,28,28"
    known = f"its first convolution takes {channels} channels" if channels else ""
    return UsageError(
        f"the input shape of {path} is not known", where=known, hint=f"set --input-shape, for example {example}"
    )


def _layer_of(error: Exception) -> str:
    """The place in the network's own code, for errors that come with a traceback."""
    return "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "


def _advice(module: nn.Module, shape: Shape) -> str:
    channels = suggested_channels(module)
    if channels is not None and channels != shape[0]:
        return f"its first convolution takes {channels} channels: --input-shape {channels},{shape[1]},{shape[2]}?"
    held = held_in(module)
    batched = next((name for name, size in held.items() if size[:1] == (1,)), None)
    if batched is not None:
        return f"{batched} is {held[batched]}: held inputs are for one sample, without a batch dimension"
    either = "check --input-shape, and the shapes of what is held" if held else "set --input-shape"
    return f"{either} to what it was trained on"
