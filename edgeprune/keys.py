"""What a network is, as plain data: the part of a stage's inputs that decides whether finished work can be kept."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgeprune
from edgeprune.files import sha256_of
from edgeprune.types import ModelBundle

if TYPE_CHECKING:
    from torch import nn


def model_key(bundle: ModelBundle) -> dict[str, Any]:
    """What the network is, for a stage's inputs; with the versions, since others may compute otherwise.

    Equal weights in another architecture, behind code that was edited, or with another output are another network.
    """
    import torch

    from edgeprune.models.inputs import ends_of

    return {
        "digest": bundle.digest,
        "architecture": dataclasses.asdict(bundle.architecture),
        "code": code_of(bundle.module),
        "ends": ends_of(bundle.module),
        "torch": torch.__version__,
        "input": bundle.input_shape,
        "preprocessing": dataclasses.asdict(bundle.preprocessing),
        "classes": bundle.classes,
        "edgeprune": edgeprune.__version__,
    }


def code_of(module: nn.Module) -> dict[str, str]:
    """sha256 of the source files of the module's own classes, by class; torch's are known by its version."""
    classes = {type(part) for part in module.modules() if not type(part).__module__.startswith("torch.")}
    found = {}
    for cls in classes:
        try:
            found[f"{cls.__module__}.{cls.__qualname__}"] = sha256_of(Path(inspect.getfile(cls)))
        except (OSError, TypeError):  # a class without a file: made in memory, or in a notebook
            continue
    return found
