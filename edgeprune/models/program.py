"""`torch.export` programs (.pt2) as modules, read as data.

`torch.export.load` unpickles weights and constants and evaluates expressions that stand in the file, so it is not
used. The graph is JSON and the weights are raw bytes: both are read here, and the graph is run by `Program`, which
calls the operators of `edgeprune.models.operators` and nothing else. Convolutions, linear layers and norms become
real layers again under their old names, so that a program can be pruned like any other network.

Refused: pickled weights or constants, compiled parts, operators that are not on the list, subgraphs, several inputs.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import ModelError
from edgeprune.models.encoding import Opaque
from edgeprune.models.layers import as_layer
from edgeprune.models.operators import function
from edgeprune.types import Shape

Json = Any
_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}


class Program(nn.Module):
    """A graph of ATen operators and layers: (N, C, H, W) to whatever its last value is.

    `steps` are (operator or "layer:NAME", arguments, keywords, names of the results); a reference to an earlier
    value is ("value", name), to a tensor of this module ("state", name).
    """

    def __init__(self, source: str, result: str, steps: list[tuple[str, list[Any], dict[str, Any], list[Any]]]) -> None:
        super().__init__()
        self.source, self.result, self.steps = source, result, steps

    def forward(self, images: Tensor) -> Any:
        values: dict[str, Any] = {self.source: images}
        for name, arguments, keywords, results in self.steps:
            given = [self._resolve(item, values) for item in arguments]
            named = {key: self._resolve(item, values) for key, item in keywords.items()}
            if name.startswith("layer:"):
                made = self.get_submodule(name.removeprefix("layer:"))(*given)
            else:
                made = function(name)(*given, **named)
            _bind(results, made, values)
        return values[self.result]

    def _resolve(self, item: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(item, tuple):
            kind, name = item
            if kind == "value":
                return values[name]
            owner, _, leaf = name.rpartition(".")
            return getattr(self.get_submodule(owner), leaf)
        return [self._resolve(part, values) for part in item] if isinstance(item, list) else item


def export(module: nn.Module, shape: Shape) -> nn.Module:
    """The module as a `Program` with a free batch size; Opaque when torch cannot export it."""
    stream = io.BytesIO()
    try:
        batch = {0: torch.export.Dim.DYNAMIC}
        exported = torch.export.export(module, (torch.zeros(2, *shape),), dynamic_shapes=(batch,))
        torch.export.save(exported, stream)
        return _program(_Archive(zipfile.ZipFile(stream), "the network"))
    except Exception as error:  # the exporter raises whatever it likes, and some of it holds the user's own code
        raise Opaque(f"torch.export failed: {(str(error).splitlines() or [''])[0][:160]}") from error


def is_program(path: Path) -> bool:
    """Whether the file is an archive of `torch.export.save`."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/archive_format") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def read(path: Path) -> nn.Module:
    """The network of a .pt2 file; ModelError says what in it is not supported."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _program(_Archive(archive, str(path)))
    except (zipfile.BadZipFile, OSError, EOFError, RecursionError, RuntimeError, NotImplementedError) as error:
        raise _unsupported(str(path), f"damaged ({error})") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _unsupported(str(path), f"its graph cannot be read ({type(error).__name__}: {error})") from error


class _Archive:
    """Names and contents of an archive, without the folder that all of them are in."""

    def __init__(self, archive: zipfile.ZipFile, path: str) -> None:
        self.archive, self.path = archive, path
        marker = next(name for name in archive.namelist() if name.endswith("/archive_format"))
        self.root = marker.removesuffix("archive_format")

    def names(self, folder: str) -> list[str]:
        return [n.removeprefix(self.root) for n in self.archive.namelist() if n.startswith(self.root + folder)]

    def bytes(self, name: str) -> bytes:
        return self.archive.read(self.root + name)

    def json(self, name: str) -> Json:
        return json.loads(self.bytes(name))

    def tensors(self, folder: str, config: str) -> dict[str, Tensor]:
        """Tensors that the archive holds as raw bytes; ModelError when it would have to be unpickled."""
        found: dict[str, Tensor] = {}
        blobs: dict[str, bytearray] = {}
        for name, entry in self.json(f"{folder}/{config}")["config"].items():
            file, meta = entry["path_name"], entry["tensor_meta"]
            if entry["use_pickle"] or meta is None:
                raise _unsupported(self.path, f"its tensor {name} is pickled")
            if file not in blobs:
                blobs[file] = bytearray(self.bytes(f"{folder}/{file}"))
            dtype = _DTYPES[meta["dtype"]]
            flat = torch.frombuffer(blobs[file], dtype=dtype) if blobs[file] else torch.empty(0, dtype=dtype)
            sizes, strides = ([part["as_int"] for part in meta[key]] for key in ("sizes", "strides"))
            view = flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
            if view.numel() > flat.numel():
                raise _unsupported(self.path, f"its tensor {name} claims values that it does not hold")
            found[name] = nn.Parameter(view, meta["requires_grad"]) if entry["is_param"] else view
        return found


def _program(archive: _Archive) -> Program:
    models = archive.names("models/")
    if len(models) != 1 or archive.names("data/aotinductor/"):
        raise _unsupported(archive.path, "it holds compiled code" if not models else "it holds several programs")
    name = models[0].removeprefix("models/").removesuffix(".json")
    described = archive.json(models[0])["graph_module"]
    tensors = {
        **archive.tensors("data/weights", f"{name}_weights_config.json"),
        **archive.tensors("data/constants", f"{name}_constants_config.json"),
    }
    sources, state = _inputs(described["signature"], archive.path)
    outputs = [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in described["signature"]["output_specs"]]
    if len(sources) != 1 or len(outputs) != 1:
        raise _unsupported(archive.path, f"it has {len(sources)} inputs and {len(outputs)} outputs, not one and one")
    program = Program(sources[0], outputs[0], [])
    for node in described["graph"]["nodes"]:
        step = _step(node, state)
        if step is not None:
            program.steps.append(as_layer(program, step, tensors))
    used = {name for step in program.steps for name in _state_names([*step[1], *step[2].values()])}
    for key in sorted(used):
        _register(program, key, tensors[key])
    return program


def _inputs(signature: Json, path: str) -> tuple[list[str], dict[str, str]]:
    """(names of the user's inputs, graph name -> name of the tensor)."""
    sources, state = [], {}
    for spec in signature["input_specs"]:
        ((kind, content),) = spec.items()
        if kind == "user_input":
            sources.append(content["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            state[content["arg"]["name"]] = content[f"{kind}_name"]
        else:
            raise _unsupported(path, f"it has an input of the kind {kind}")
    return sources, state


def _step(node: Json, state: Mapping[str, str]) -> tuple[str, list[Any], dict[str, Any], list[Any]] | None:
    if node["target"].split(".")[-2] in _CHECKS:
        return None
    function(node["target"])
    arguments = [_argument(item["arg"], state) for item in node["inputs"] if item.get("kind", 1) == 1]
    keywords = {item["name"]: _argument(item["arg"], state) for item in node["inputs"] if item.get("kind", 1) != 1}
    return node["target"], arguments, keywords, [_result(item) for item in node["outputs"]]


def _argument(given: Json, state: Mapping[str, str]) -> Any:
    ((kind, content),) = given.items()
    if kind == "as_none":
        return None
    if kind in ("as_tensor", "as_optional_tensor"):
        inner = content if "name" in content else next(iter(content.values()))
        name = inner["name"] if isinstance(inner, dict) else inner
        return ("state", state[name]) if name in state else ("value", name)
    if kind in ("as_tensors", "as_optional_tensors"):
        return [_argument({"as_tensor": item}, state) if "name" in item else _argument(item, state) for item in content]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        ((form, value),) = content.items()
        return ("value", str(value)) if form == "as_name" else value
    if kind in ("as_sym_ints", "as_sym_floats"):
        return [_argument({"as_sym_int": item}, state) for item in content]
    if kind == "as_scalar_type":
        return _DTYPES[content]
    if kind == "as_memory_format":
        return _FORMATS[content]
    if kind == "as_device":
        return torch.device("cpu")
    if kind == "as_layout":
        return torch.strided
    if kind in ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string"):
        return content
    raise ValueError(f"an argument of the kind {kind}")


def _result(given: Json) -> Any:
    ((kind, content),) = given.items()
    if kind == "as_tensor":
        return str(content["name"])
    if kind == "as_tensors":
        return [str(item["name"]) for item in content]
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return str(content["as_name"])
    if kind == "as_none":
        return ""
    raise ValueError(f"a result of the kind {kind}")


def _bind(results: list[Any], made: Any, values: dict[str, Any]) -> None:
    if len(results) == 1 and isinstance(results[0], str):
        values[results[0]] = made
        return
    parts = made if len(results) > 1 else [made]
    for names, part in zip(results, parts, strict=True):
        if isinstance(names, list):
            values.update(zip(names, part, strict=True))
        else:
            values[names] = part


def _state_names(items: list[Any]) -> list[str]:
    nested = [name for item in items if isinstance(item, list) for name in _state_names(item)]
    return nested + [item[1] for item in items if isinstance(item, tuple) and item[0] == "state"]


def _register(program: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    for part in owner.split(".") if owner else ():
        if part not in program._modules:
            program._modules[part] = nn.Module()
        program = program.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        program.register_parameter(leaf, tensor)
    else:
        program.register_buffer(leaf, tensor)


def _unsupported(path: str, reason: str) -> ModelError:
    return ModelError(
        f"{path} is a torch.export program that cannot be used: {reason}",
        hint="bring the module that it was exported from, or its state_dict with --arch",
    )
