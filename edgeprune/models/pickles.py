"""Reads what `torch.save` wrote without running any of it.

`torch.load(weights_only=True)` makes tensors and plain containers. Every other name in the file is bound to a
placeholder: a class that remembers the name, the arguments and the state that the file gives it, and does nothing.
What comes back is therefore data: whether a placeholder may become an object is decided later, name by name
(`edgeprune.models.trust`).

Refused before anything is read: archives that unpack to more than their size, and TorchScript.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import _weights_only_unpickler

from edgeprune.errors import ModelError, UntrustedModelError

_NEVER = frozenset(
    ("os", "posix", "nt", "sys", "subprocess", "shutil", "runpy", "importlib", "ctypes", "socket", "pty", "webbrowser")
)
_NEVER_FUNCTIONS = frozenset(
    ("io.open", "_io.open", "_io.FileIO", "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__")
)
_DICTS_BY_CALL = {"collections.defaultdict"}
_DICTS_BY_NEW = {
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
}


class Placeholder:
    """An object that a file describes: its class (`reference`), the arguments of its making, and its state."""

    reference: ClassVar[str]
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Placeholder:
        self = super().__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def placeholder(reference: str) -> type[Placeholder]:
    """The class that stands for `reference`."""
    return type("Placeholder", (Placeholder,), {"reference": reference})


def read(path: Path) -> Any:
    """What the file holds: tensors (on the CPU), plain containers, placeholders.

    ModelError: damaged, not a file of `torch.save`, or an archive that is larger inside than outside.
    UntrustedModelError: it names functions that only an attack would name.
    """
    check_archive(path)
    try:
        names = _names(path)
        _refuse_attacks(names, path)
        stand_ins: list[Any] = [(_stand_in(name), name) for name in names]
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _explained(error, path) from error
    except (OSError, EOFError, ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise broken(path, error) from error
    except (AssertionError, RecursionError, MemoryError, OverflowError, ImportError) as error:
        raise broken(path, error) from error


def check_archive(path: Path) -> None:
    """ModelError for what torch.save cannot have written: cut short, TorchScript, unpacking to more than its size."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            start = file.read(4)
        if start.startswith(b"PK"):
            raise broken(path, EOFError("the archive is cut short"))
        if not start.startswith(b"\x80"):
            raise broken(path, ValueError("it does not begin like a file of torch.save"))
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise broken(path, error) from error
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise ModelError(
            f"{path} is TorchScript, which cannot be pruned",
            hint="bring the module it was made from: torch.save(model, ...), or its state_dict with --arch",
        )
    inside = sum(member.file_size for member in members)
    if inside > path.stat().st_size:
        raise ModelError(
            f"{path} unpacks to {inside:,} bytes from {path.stat().st_size:,}: it was not written by torch.save",
            hint="if it is yours, open it in torch and save it again with torch.save",
        )


def broken(path: Path, error: BaseException) -> ModelError:
    """The error for a file that cannot be read as a model."""
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return ModelError(
        f"{path} is damaged or not a model", where=reason[:160], hint="bring a file that torch.save wrote, whole"
    )


def _names(path: Path) -> list[str]:
    """Names in the file's pickles that torch does not know as safe."""
    if zipfile.is_zipfile(path):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    known = _weights_only_unpickler._get_allowed_globals().keys()
    found: set[str] = set()
    with path.open("rb") as file:  # before torch 1.6: magic number, protocol, system, object, one pickle each
        for _ in range(4):
            found |= _weights_only_unpickler.get_globals_in_pkl(file)
    return sorted(found - known)


def _refuse_attacks(names: list[str], path: Path) -> None:
    """A courtesy, not the defence: nothing of the file would run anyway, but its owner should know."""
    bad = [name for name in names if name.split(".")[0] in _NEVER or name in _NEVER_FUNCTIONS]
    if bad:
        raise UntrustedModelError(
            f"{path} names {', '.join(bad)}: no model needs that, and the file may be an attack",
            where="nothing of it was run",
            hint="get the file from a source you know; --trust does not admit this",
        )


def _stand_in(name: str) -> Any:
    if name in _DICTS_BY_CALL:
        return _empty_dict
    if name in _DICTS_BY_NEW:
        return OrderedDict
    return placeholder(name)


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _explained(error: pickle.UnpicklingError, path: Path) -> ModelError:
    message = " ".join(str(error).split())
    if "Unsupported operand" in message:
        return ModelError(
            f"{path} uses a pickle protocol that cannot be read without running it",
            hint="save it again with torch.save(model, path) and its default protocol, or bring the state_dict",
        )
    return broken(path, error)
