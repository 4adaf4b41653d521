"""Networks that take more than images: the other inputs are held at values that the user gives.

A device serves images; whatever else a network was trained with (a mask, the angle of the camera, the number of the
task) must be one value for all of them. `HeldInputs` keeps these values as buffers: they count in the digest, travel
with the bundle, and are constants of every exported graph. Refuses to guess: an input without a value is an error that
names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.config import ModelConfig
from edgeprune.data.archives import Archive
from edgeprune.errors import UsageError
from edgeprune.models.outputs import SelectedOutput
from edgeprune.protocols import did_you_mean

_BUFFER = "held_"
_KINDS: Mapping[str, type[np.generic]] = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float32}
_HOW = "write one sample of each, without a batch dimension, to an .npz by name, and give it with --held (model.held)"


class HeldInputs(nn.Module):
    """A network behind its other inputs: images (N, C, H, W) alone to whatever `module` returns.

    `held` names those inputs; the value of each, for one sample, is the buffer ``held_NAME``, and the network gets it
    as (N, *value.shape). `image_input` names the argument that takes the images (None: the first).
    """

    def __init__(self, module: nn.Module, image_input: str | None, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module, self.image_input, self.held = module, image_input, tuple(values)
        for name, value in values.items():
            self.register_buffer(_BUFFER + name, value)

    def forward(self, images: Tensor) -> Any:
        given = {name: value.expand(images.shape[0], *value.shape) for name, value in self.values().items()}
        if self.image_input is None:
            return self.module(images, **given)
        return self.module(**{self.image_input: images}, **given)

    def values(self) -> dict[str, Tensor]:
        """The held value of each input, for one sample, by its name."""
        return {name: getattr(self, _BUFFER + name) for name in self.held}


def with_held_inputs(module: nn.Module, settings: ModelConfig, path: str) -> nn.Module:
    """`module` with its other inputs held as `settings` say; `module` itself where it takes images alone.

    A network that came with held inputs keeps them, unless the settings name others.
    UsageError: a required input without a value, a value without an input, a file that is not there.
    DataError: the file is no .npz.
    """
    inner, images, values = module, settings.image_input, {}
    if isinstance(module, HeldInputs):
        inner, images, values = module.module, images or module.image_input, module.values()
    if settings.held is not None:
        values = _read(settings.held)
    images = _image_input(inner, images, tuple(values), path)
    return HeldInputs(inner, images, values).eval() if values or images else inner


def held_in(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the inputs that are held anywhere in `module`."""
    return {
        name: tuple(value.shape)
        for part in module.modules()
        if isinstance(part, HeldInputs)
        for name, value in part.values().items()
    }


def ends_of(module: nn.Module) -> dict[str, str | None]:
    """Which argument takes the images and which output is the logits, where that was chosen: no weight says it."""
    parts = list(module.modules())
    return {
        "image_input": next((part.image_input for part in parts if isinstance(part, HeldInputs)), None),
        "output": next((part.key for part in parts if isinstance(part, SelectedOutput)), None),
    }


def _image_input(module: nn.Module, images: str | None, held: tuple[str, ...], path: str) -> str | None:
    """The argument that takes the images (None: the first), once every name is known to have its place."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # a forward that Python cannot look into: the first batch will tell
        return images
    named = [each for each in parameters.values() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    known, takes = tuple(each.name for each in named), f"its forward takes ({', '.join(parameters)})"
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        for name in (images, *held):
            if name is not None and name not in known:
                setting = "--image-input" if name == images else "the file of --held"
                what = f"{setting} names {name}, which is no input of the network of {path}"
                raise UsageError(what, where=takes, hint=did_you_mean(name, known))
    first = known[0] if known else None
    chosen = images or first
    if chosen in held:
        raise UsageError(
            f"the input {chosen} takes the images and cannot be held",
            where=takes,
            hint="leave it out of the file, or name the one that takes the images with --image-input",
        )
    missing = [each.name for each in named if each.default is each.empty and each.name not in (chosen, *held)]
    if missing:
        raise UsageError(
            f"the network of {path} needs values for its other inputs: {', '.join(missing)}", where=takes, hint=_HOW
        )
    return None if images == first else images


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz as tensors, sorted by name."""
    if not path.is_file():
        raise UsageError(f"no such file of held inputs: {path}", hint=_HOW)
    archive = Archive(path)
    try:
        return {name: _tensor(archive.array(name), name, path) for name in archive.names}
    finally:
        archive.close()


def _tensor(array: np.ndarray[Any, np.dtype[Any]], name: str, path: Path) -> Tensor:
    """Floats in float32, as the network is; whole numbers in int64, as embeddings want them; truth values as such."""
    kind = _KINDS.get(array.dtype.kind)
    if kind is None or not name.isidentifier():
        raise UsageError(f"{name} in {path} ({array.dtype}) cannot be an input of a network", hint=_HOW)
    if not np.isfinite(array).all():
        raise UsageError(f"{name} in {path} has values that are NaN or infinite", hint="hold it at finite values")
    return torch.from_numpy(np.array(array, dtype=kind))
