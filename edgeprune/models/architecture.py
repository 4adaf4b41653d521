"""Names of constructors, and calling them.

Accepted: ``torchvision:resnet18`` and ``timm:mobilenetv3_small_100`` (without pretrained weights: nothing is fetched),
``package.module:callable`` and ``path/to/file.py:callable``. Naming a constructor with `--arch` or in edgeprune.toml
*is* naming the code. A constructor that a *file* names is called only when it is one of torchvision's or timm's
registered ones, an nn.Module class that `edgeprune.models.trust` admits, or when the user names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.errors import ModelError, RuntimeMissingError, UntrustedModelError, UsageError
from edgeprune.models.trust import Trust, admitted_class, import_named
from edgeprune.protocols import did_you_mean
from edgeprune.types import Architecture

_FETCHES = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "weights",
    "weights_backbone",
)


_ZOO_MODULES = {"torchvision.models": "torchvision", "timm.models": "timm"}


def named_by_user(arch: str, arguments: Mapping[str, Any], trust: Trust) -> tuple[Architecture, nn.Module]:
    """The architecture that the user asked for, and a network of it with fresh weights.

    UsageError: not a constructor's name, or the arguments do not fit. ModelError: the constructor fails.
    """
    package, _, name = arch.rpartition(":")
    package = _ZOO_MODULES.get(package, package)
    if not package or (not name.isidentifier() and package not in ("timm", "torchvision")):
        raise UsageError(
            f"--arch {arch} is not the name of a constructor",
            hint="write package.module:callable, file.py:callable, torchvision:NAME or timm:NAME",
        )
    if package in ("torchvision", "timm"):
        architecture = Architecture("constructor", f"{package}:{name}", dict(arguments))
        return architecture, _from_zoo(package, name, arguments)
    if package.endswith(".py"):
        stem = Path(package).stem
        module = import_named(stem, Trust.of((package,)))
        package = stem
    else:
        module = import_named(package, trust)
    build = getattr(module, name, None)
    if not callable(build):
        known = tuple(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UsageError(f"{package} has no constructor {name}", hint=did_you_mean(name, known))
    return Architecture("constructor", f"{package}:{name}", dict(arguments)), _call(build, arguments, arch)


def named_by_file(architecture: Architecture, trust: Trust, named: str | None, path: str) -> nn.Module:
    """A network of the architecture that a bundle names; `named` is the user's own `--arch`, if any.

    UntrustedModelError when the user has not admitted it.
    """
    package, _, name = architecture.reference.rpartition(":")
    if package in ("torchvision", "timm"):
        return _from_zoo(package, name, architecture.arguments)
    reference = f"{package}.{name}"
    asked = named is not None and _same(named, architecture.reference)
    if asked:
        return named_by_user(named or "", architecture.arguments, trust)[1]
    cls = admitted_class(reference, trust)
    if cls is not None and issubclass(cls, nn.Module):
        return _call(cls, architecture.arguments, architecture.reference)
    if trust.names(reference):
        return named_by_user(architecture.reference, architecture.arguments, trust)[1]
    is_function = trust.covers(package)
    raise UntrustedModelError(
        f"{path} is built by {architecture.reference}, which was not admitted",
        where="a prefix admits classes; a function is admitted by its full name" if is_function else "it was not run",
        hint=f"if you trust that code: --arch {architecture.reference}"
        + ("" if is_function else f", or --trust {package} where it is a class"),
    )


def check_reference(named: str | None, architecture: Architecture, path: str) -> None:
    """UsageError when the user's `--arch` is another one than the bundle's."""
    if named is not None and not _same(named, architecture.reference):
        built = architecture.reference or "a whole module, without a constructor"
        raise UsageError(f"{path} was not made by {named}", where=f"it was made by {built}", hint="leave --arch out")


def _same(named: str, reference: str) -> bool:
    package, _, name = named.rpartition(":")
    return reference == f"{Path(package).stem if package.endswith('.py') else package}:{name}"


def _from_zoo(package: str, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    fetching = [key for key in arguments if key in _FETCHES]
    if fetching:
        raise UsageError(
            f"the argument {fetching[0]} of {package}:{name} would fetch or open another file",
            hint="leave it out: the weights come from the model file",
        )
    if package == "torchvision":
        models = _zoo("torchvision.models")
        if name not in models.list_models():
            raise UsageError(f"torchvision has no model {name}", hint=did_you_mean(name, tuple(models.list_models())))
        builder = models.get_model_builder(name)
        backbone = {"weights_backbone": None} if "weights_backbone" in _parameters(builder) else {}
        return _call(builder, {**arguments, "weights": None, **backbone}, f"torchvision:{name}")
    timm = _zoo("timm")
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name}", hint=did_you_mean(name, tuple(timm.list_models())))
    return _call(timm.create_model, {**arguments, "model_name": name, "pretrained": False}, f"timm:{name}")


def _zoo(module: str) -> Any:
    try:
        return import_named(module)
    except ModelError as error:
        raise RuntimeMissingError(
            f"{module.split('.')[0]} cannot be imported: {error.what}",
            hint="pip install edgeprune[zoo]; beside a CPU torch, torchvision must be its CPU build",
        ) from error


def _parameters(function: Any) -> tuple[str, ...]:
    import inspect

    return tuple(inspect.signature(function).parameters)


def _call(build: Any, arguments: Mapping[str, Any], name: str) -> nn.Module:
    """Call a constructor without disturbing the global random numbers."""
    with torch.random.fork_rng(devices=[]):
        try:
            module = build(**arguments)
        except TypeError as error:
            raise UsageError(
                f"{name} does not take these arguments: {error}", hint="set them with --arch-args"
            ) from error
        except Exception as error:  # code of the user's: whatever it raises, it is not ours to interpret
            raise ModelError(
                f"{name} failed: {type(error).__name__}: {error}", hint="set its arguments with --arch-args"
            ) from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{name} made a {type(module).__name__}, not a torch module", hint="check --arch")
    return module
