"""Which names in a file may become code: the only door between a model file and the interpreter.

Promise: a name that a file carries is resolved only when it lies in one of `PACKAGES`, in a prefix that the user
trusts, or in a short explicit list; and what it resolves to must be a class that is defined there. Refused whatever
was imported from elsewhere, functions that are not listed, classes with constructors of their own below
`__init__` (`__new__`) or clean-up code (`__del__`), and classes that compile source text (`torch.fx`, `torch.jit`).

Why not every callable of torch or torchvision: `torch.load`, `torch.hub.load` or `torchvision.io.write_file` would be
among them.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from edgeprune.errors import ModelError, UntrustedModelError, UsageError

PACKAGES = (
    "edgeprune",
    "torch.nn.modules",
    "torchvision.models",
    "torchvision.ops",
    "timm.layers",
    "timm.models",
)
"""Import prefixes whose nn.Module and Enum classes are always admitted."""

_ACTIVATIONS = [
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "log_softmax",
    "logsigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
    "tanhshrink",
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "dropout",
]
FUNCTIONS = frozenset(
    {f"torch.nn.functional.{name}" for name in _ACTIVATIONS}
    | {f"torch._C._nn.{name}" for name in _ACTIVATIONS}
    | {f"torch.{name}" for name in _ACTIVATIONS}
)
"""Functions that a module may hold as an attribute, by name. None of them touches anything but tensors."""

VALUES: dict[str, object] = {
    "builtins.bool": bool,
    "builtins.dict": dict,
    "builtins.float": float,
    "builtins.int": int,
    "builtins.list": list,
    "builtins.str": str,
    "builtins.tuple": tuple,
}
"""Built-in types that a module may hold as an attribute."""

_DATA_CLASSES = frozenset({"timm.models._pretrained.PretrainedCfg"})


@dataclass(frozen=True, slots=True)
class Trust:
    """What the user admits beyond `PACKAGES`: import prefixes, and Python files (stem -> path)."""

    prefixes: tuple[str, ...] = ()
    files: tuple[tuple[str, Path], ...] = ()

    @classmethod
    def of(cls, entries: tuple[str, ...]) -> Trust:
        """From the words of `--trust`: ``package.module`` or ``path/to/file.py``. UsageError for anything else."""
        prefixes, files = [], []
        for entry in entries:
            if entry.endswith(".py"):
                path = Path(entry)
                if not path.is_file():
                    raise UsageError(f"no such file: {entry}", hint="--trust takes an import prefix or a Python file")
                files.append((path.stem, path.resolve()))
            elif entry and all(part.isidentifier() for part in entry.split(".")):
                prefixes.append(entry)
            else:
                raise UsageError(
                    f"--trust {entry!r} is neither an import prefix nor a Python file", hint="example: nets"
                )
        return cls(tuple(prefixes), tuple(files))

    def names(self, reference: str) -> bool:
        """Whether `reference` itself, in full, was named."""
        return reference in self.prefixes

    def covers(self, module: str) -> bool:
        """Whether the user trusts `module` (or the module that a name is in)."""
        return _under(module, self.prefixes) or any(module in (stem, "__main__") for stem, _ in self.files)


NOBODY = Trust()


def admitted_class(reference: str, trust: Trust) -> type[Any] | None:
    """The class that `reference` ("package.module.Class") names, if a file may make instances of it; else None.

    ModelError when it may, but is not there.
    """
    found = _find(reference, trust)
    if not isinstance(found, type) or found in VALUES.values():
        return None
    trusted = trust.covers(found.__module__) or trust.names(reference)
    if issubclass(found, (torch.jit.ScriptModule, torch.fx.GraphModule)) or hasattr(found, "__del__"):
        return None
    if issubclass(found, enum.Enum):
        return found
    if has_own_new(found) and not trusted:
        return None
    return found if trusted or issubclass(found, nn.Module) or reference in _DATA_CLASSES else None


def has_own_new(cls: type[Any]) -> bool:
    """Whether making an instance without its constructor would still run code of the class."""
    return getattr(cls, "__new__", None) is not getattr(object, "__new__", None)


def admitted_value(reference: str, trust: Trust) -> object | None:
    """The class or function that `reference` names, if a module may hold it as an attribute; else None."""
    if reference in VALUES:
        return VALUES[reference]
    if reference in FUNCTIONS:
        owner, _, name = reference.rpartition(".")
        return getattr(importlib.import_module(owner), name, None)
    if trust.names(reference):
        return _find(reference, trust)
    return admitted_class(reference, trust)


def untrusted(names: tuple[str, ...], path: str, trust: Trust = NOBODY) -> UntrustedModelError:
    """The error for names that are not admitted, with the flag that would admit them."""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    flags = sorted({f"--trust {_narrowest(name, trust)}" for name in names})
    hint = f"if you trust that code: {' '.join(flags)}"
    if len(flags) > 4:
        hint = "bring a state_dict with --arch: torch.save(model.state_dict(), path)"
    if any(name.startswith("__main__.") for name in names):
        hint = "its classes were defined in a script: --trust path/to/that_script.py, or bring a state_dict with --arch"
    return UntrustedModelError(
        f"{path} needs code that was not admitted: {shown}", where="nothing of it was run", hint=hint
    )


def _narrowest(name: str, trust: Trust) -> str:
    """What `--trust` would have to say: the module; the full name in the big libraries and for functions."""
    owner = name.rpartition(".")[0]
    whole = trust.covers(owner) or owner.split(".")[0] in (
        "torch",
        "torchvision",
        "timm",
        "builtins",
        "numpy",
        "functools",
    )
    return name if whole else owner


def _under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _find(reference: str, trust: Trust) -> object | None:
    owner, _, name = reference.rpartition(".")
    if not owner or not all(part.isidentifier() for part in reference.split(".")):
        return None
    if not (_under(owner, PACKAGES) or trust.covers(owner) or trust.names(reference)):
        return None
    found = vars(import_named(owner, trust)).get(name)
    if found is None:
        raise ModelError(
            f"{owner} has no {name}", hint="install the version of the package that the file was made with"
        )
    home = getattr(found, "__module__", None)
    if not isinstance(home, str):
        return None
    home_is_admitted = _under(home, PACKAGES) or trust.covers(home) or trust.names(f"{home}.{name}")
    return found if home_is_admitted else None


def import_named(name: str, trust: Trust = NOBODY) -> ModuleType:
    """Import a module that was admitted or that the user named; the current folder is looked at last."""
    for stem, path in trust.files:
        if name in (stem, "__main__"):
            return _from_file(stem, path)
    try:
        with _current_folder():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise ModelError(
            f"cannot import {name}: there is no module {missing}",
            hint=f"install the package that {missing} comes from, or run from the folder that holds it",
        ) from error
    except Exception as error:  # code of the user's: whatever it raises, it is not ours to interpret
        raise ModelError(f"importing {name} failed: {type(error).__name__}: {error}") from error


@contextmanager
def _current_folder() -> Iterator[None]:
    """The current folder at the end of the import path, so that it can add modules and replace none."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _from_file(stem: str, path: Path) -> ModuleType:
    known = sys.modules.get(stem)
    if known is not None:
        if Path(getattr(known, "__file__", None) or "").resolve() == path:
            return known
        raise UsageError(
            f"{path.name} has the name of a module that is already imported: {stem}", hint="rename the file"
        )
    spec = importlib.util.spec_from_file_location(stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # code of the user's: whatever it raises, it is not ours to interpret
        del sys.modules[stem]
        raise ModelError(f"importing {path} failed: {type(error).__name__}: {error}") from error
    return module
