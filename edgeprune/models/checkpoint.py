"""What is in a checkpoint: which module or which weights, under the wrappings that training scripts leave.

Known wrappings: dicts such as {"state_dict": ...} and {"model": ...}, averaged copies ("ema", preferred where there
is one, as timm does), DataParallel's `module.`, torch.compile's `_orig_mod.`, the prefix of a Lightning module's
attribute. Where two candidates remain, the file is not guessed about: `--weights-entry` names one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgeprune.errors import ModelError, UsageError
from edgeprune.models.building import clean_tensor
from edgeprune.models.pickles import Placeholder

_AVERAGED = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "params_ema")
_ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
_SHELLS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
_LEFTOVERS = ("total_ops", "total_params", "n_averaged", "num_batches_tracked")


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A module as placeholders, or the tensors of a state_dict; `entry` is where in the file it was."""

    module: Placeholder | None
    state: Mapping[str, Tensor] | None
    entry: str


def find(content: Any, path: str, entry: str | None = None) -> Found:
    """Look through the wrappings. ModelError when nothing in the file is a network, UsageError when two may be."""
    place = ""
    if entry is not None:
        if not isinstance(content, dict) or entry not in content:
            keys = ", ".join(map(str, content)) if isinstance(content, dict) else "no entries"
            raise UsageError(f"{path} has no entry {entry}", where=f"it holds: {keys}")
        content, place = content[entry], entry
    for _ in range(4):
        content = _without_shell(content)
        if isinstance(content, Placeholder):
            return Found(content, None, place)
        if not isinstance(content, dict) or not content:
            break
        if _is_state(content):
            return Found(None, content, place)
        key = _choose(content, path)
        if key is None:
            break
        content, place = content[key], f"{place}.{key}".lstrip(".")
    what = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) and content else type(content).__name__
    raise ModelError(
        f"{path} holds no network", where=f"it holds: {what}", hint="bring a state_dict with --arch, or a whole module"
    )


def fill(module: nn.Module, state: Mapping[str, Any], path: str) -> None:
    """Put the file's tensors into `module`, under whatever prefix they stand; ModelError when they do not fit."""
    tensors = {_plain(key): clean_tensor(value, key, path) for key, value in state.items() if isinstance(value, Tensor)}
    wanted = module.state_dict()
    prefix = _prefix(tuple(wanted), tuple(tensors), path)
    given = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
    missing = [key for key in wanted if key not in given and not key.endswith(_LEFTOVERS)]
    extra = [key for key in given if key not in wanted and not key.endswith(_LEFTOVERS)]
    other = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    if missing or extra or other:
        raise _misfit(path, missing, extra, [(key, tuple(given[key].shape), tuple(wanted[key].shape)) for key in other])
    filled = OrderedDict((key, value) for key, value in given.items() if key in wanted)
    filled._metadata = getattr(wanted, "_metadata", {})  # type: ignore[attr-defined]  # versions: shapes fit this one
    module.load_state_dict(filled, strict=False)


def _without_shell(content: Any) -> Any:
    """The network inside DataParallel and the like: its child, or the first argument that it was made with."""
    for _ in range(4):
        if not isinstance(content, Placeholder) or content.reference not in _SHELLS:
            break
        children = content.state.get("_modules") if isinstance(content.state, dict) else None
        inner = children.get(_SHELLS[content.reference]) if isinstance(children, dict) else None
        inner = inner or next(iter(content.arguments), None)
        if not isinstance(inner, Placeholder):
            break
        content = inner
    return content


def _is_state(content: dict[Any, Any]) -> bool:
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    plain = sum(isinstance(value, int | float | str | bool) or value is None for value in content.values())
    return (
        tensors > 0
        and tensors + plain == len(content)
        and all(isinstance(key, str) for key in content)
        and (tensors > 1 or any(key.endswith(("weight", "bias")) for key in content))
    )


def _holds_network(value: Any, depth: int = 3) -> bool:
    value = _without_shell(value)
    if isinstance(value, Placeholder):
        return isinstance(value.state, dict) and "_modules" in value.state
    if not isinstance(value, dict) or not value:
        return False
    inner = (value.get(key) for key in (*_AVERAGED, *_ENTRIES))
    return _is_state(value) or (depth > 0 and any(_holds_network(item, depth - 1) for item in inner))


def _choose(content: dict[Any, Any], path: str) -> str | None:
    candidates = [key for key, value in content.items() if isinstance(key, str) and _holds_network(value)]
    for known in (*_AVERAGED, *_ENTRIES):
        if known in candidates:
            return known
    if len(candidates) > 1:
        raise UsageError(
            f"{path} holds {len(candidates)} networks: {', '.join(candidates)}", hint="name one with --weights-entry"
        )
    return candidates[0] if candidates else None


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def _prefix(wanted: tuple[str, ...], given: tuple[str, ...], path: str) -> str:
    """The prefix under which all wanted names are given; the empty one when there is none."""
    names = set(given)
    needed = [key for key in wanted if not key.endswith(_LEFTOVERS)] or list(wanted)
    if not needed or set(needed) <= names:
        return ""
    prefixes = [key[: -len(needed[0])] for key in given if key.endswith("." + needed[0])]
    whole = [prefix for prefix in prefixes if all(prefix + key in names for key in needed)]
    averaged = [prefix for prefix in whole if "ema" in prefix.lower()]
    if len(whole) > 1 and len(averaged) != 1:
        raise ModelError(
            f"{path} holds this network {len(whole)} times: {', '.join(p.rstrip('.') for p in whole)}",
            hint="save the state_dict of the one that you mean",
        )
    if whole:
        return averaged[0] if averaged else whole[0]
    return "module." if given and all(key.startswith("module.") for key in given) else ""


def _misfit(
    path: str, missing: list[str], extra: list[str], other: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
) -> ModelError:
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing ({', '.join(missing[:3])})")
    if extra:
        parts.append(f"{len(extra)} have no place ({', '.join(extra[:3])})")
    if other:
        name, found, expected = other[0]
        parts.append(f"{len(other)} have another shape ({name}: {found} in the file, {expected} in the network)")
    hint = "check --arch and --arch-args"
    if (
        other
        and not missing
        and not extra
        and {name.rpartition(".")[0] for name, _, _ in other} == {other[0][0].rpartition(".")[0]}
    ):
        hint = f"the file's last layer has {other[0][1][0]} outputs: set the number of classes with --arch-args"
    return ModelError(f"the weights in {path} do not fit the architecture", where="; ".join(parts), hint=hint)
