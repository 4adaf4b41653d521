"""An ONNX file as data: nodes and constants, nothing executed, nothing read outside the file's own folder.

Refusals, each with what to do: files that are not ONNX, opsets before 7, several inputs, external data that is missing
or that points out of the folder, tensors that are not what they say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import ModelError
from edgeprune.robustness.twin.node import DTYPES, Node, Unsupported

OLDEST_OPSET = 7
Dimension = int | None


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What an ONNX file holds: `nodes` in the order of execution, `constants` and their ONNX element `kinds` by name.

    `dimensions` of the only input, None where the file leaves one open; `element` its ONNX element type. `parent` is
    the digest of the weights that edgeprune exported, None for a foreign file.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    kinds: Mapping[str, int]
    input: str
    output: str
    dimensions: tuple[Dimension, ...]
    element: int
    opset: int
    producer: str
    parent: str | None


def read(path: Path) -> Network:
    """Read an ONNX file; ModelError for what the module's docstring refuses, Unsupported for types that torch lacks."""
    proto = _load(path)
    opsets = {_domain(entry.domain): int(entry.version) for entry in proto.opset_import}
    if opsets.get("", OLDEST_OPSET) < OLDEST_OPSET:
        raise ModelError(
            f"{path} is written in opset {opsets['']}: the oldest that can be read is {OLDEST_OPSET}",
            hint="bring it up to date with onnx.version_converter.convert_version",
        )
    graph = proto.graph
    constants, kinds = _initialisers(graph, path)
    nodes = list(_nodes(graph, opsets, constants, kinds, path))
    inputs = [entry for entry in graph.input if entry.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(entry.name for entry in inputs) or "none"
        raise ModelError(f"{path} takes {len(inputs)} inputs ({names}): a classifier of images takes one")
    kind = inputs[0].type.tensor_type
    return Network(
        nodes=tuple(nodes),
        constants=constants,
        kinds=kinds,
        input=inputs[0].name,
        output=graph.output[0].name,
        dimensions=tuple(d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim),
        element=int(kind.elem_type),
        opset=opsets.get("", OLDEST_OPSET),
        producer=f"{proto.producer_name} {proto.producer_version}".strip() or "unknown",
        parent=next((e.value for e in proto.metadata_props if e.key == "edgeprune.parent_digest"), None),
    )


def branch(graph: Any, opsets: Mapping[str, int], path: Path) -> Network:
    """The graph of an If's branch, which may read names of the graph around it."""
    constants, kinds = _initialisers(graph, path)
    nodes = tuple(_nodes(graph, opsets, constants, kinds, path))
    return Network(nodes, constants, kinds, "", graph.output[0].name, (), 0, opsets.get("", OLDEST_OPSET), "", None)


def tensor_of(proto: Any) -> Tensor:
    """An ONNX TensorProto as a torch tensor; Unsupported for element types that torch does not carry."""
    import onnx

    if proto.data_type not in DTYPES:
        raise Unsupported(f"a constant of element type {onnx.TensorProto.DataType.Name(proto.data_type)}")
    values = np.asarray(onnx.numpy_helper.to_array(proto))
    if proto.data_type in (16, 21, 22):  # numpy has these types from another package, which torch does not know
        values = values.astype(np.float32)
    elif proto.data_type in (4, 12, 13):
        values = values.astype(np.int64)
    return torch.from_numpy(np.array(values)).to(DTYPES[proto.data_type])


def _load(path: Path) -> Any:
    import onnx

    if not path.is_file():
        raise ModelError(f"no such file: {path}", hint="give the .onnx file")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own family of errors, none of them exported
        raise ModelError(f"{path} is not an ONNX file: {_first_line(error)}") from error
    if not proto.ir_version or not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX network: there is no graph in it")
    if proto.functions:
        from onnx import inliner

        try:
            proto = inliner.inline_local_functions(proto)
        except Exception as error:  # the inliner is C++ and raises what it likes
            raise ModelError(f"{path} has functions that cannot be inlined: {_first_line(error)}") from error
    for tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _fetch(tensor, path)
    return proto


def _fetch(tensor: Any, path: Path) -> None:
    """Bring external data into the tensor; only from a file in the folder of the ONNX file, and below it."""
    from onnx import external_data_helper

    where = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
    folder = path.parent.resolve()
    source = (folder / where).resolve()
    if not where or Path(where).is_absolute() or not source.is_relative_to(folder):
        raise ModelError(
            f"{path} wants its weights from outside its folder: {where!r}",
            hint="refused: put the weights beside the file and name them by a relative path",
        )
    if not source.is_file():
        raise ModelError(f"the weights of {path} are missing: {where}", hint="copy them beside the file")
    try:
        external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    except Exception as error:  # onnx checks the place again and raises its own errors
        raise ModelError(f"the weights of {path} cannot be read from {where}: {_first_line(error)}") from error


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)


def _initialisers(graph: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    constants = {entry.name: _checked(entry, entry.name, path) for entry in graph.initializer}
    return constants, {entry.name: int(entry.data_type) for entry in graph.initializer}


def _nodes(
    graph: Any, opsets: Mapping[str, int], constants: dict[str, Tensor], kinds: dict[str, int], path: Path
) -> Iterator[Node]:
    """The graph's nodes; what Constant nodes hold goes into `constants` and `kinds`."""
    used = _used(graph)
    for proto in graph.node:
        if not proto.output:
            continue  # nothing can come of it
        domain = _domain(proto.domain)
        attributes = {entry.name: _plain(entry) for entry in proto.attribute}
        if proto.op_type == "Constant" and not domain:
            name = proto.output[0]
            try:
                constants[name], kinds[name] = _constant(attributes, name, path)
            except (TypeError, ValueError, OverflowError) as error:
                raise ModelError(f"{path}: the constant {name} is none: {_first_line(error)}") from error
            continue
        yield Node(
            op=_text(proto.op_type),
            domain=domain,
            inputs=tuple(_text(name) for name in proto.input),
            outputs=tuple(_text(name) if name in used or not i else "" for i, name in enumerate(proto.output)),
            attributes=attributes,
            opset=opsets.get(domain, 1),
            kinds=tuple(kinds.get(name, 0) for name in proto.input),
        )


def _used(graph: Any) -> set[str]:
    """Names that something reads: nodes, those of branches included, and the graph's outputs."""
    found = {entry.name for entry in graph.output}
    for node in graph.node:
        found.update(node.input)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found |= _used(inner)
    return found


def _constant(attributes: Mapping[str, Any], name: str, path: Path) -> tuple[Tensor, int]:
    key: str = next(iter(attributes), "without a value")
    value: Any = attributes.get(key)
    if key == "value" and hasattr(value, "data_type"):
        return _checked(value, name, path), int(value.data_type)
    if key in ("value_int", "value_ints"):
        return torch.tensor(value, dtype=torch.int64), 7
    if key in ("value_float", "value_floats"):
        return torch.tensor(value, dtype=torch.float32), 1
    raise Unsupported(f"Constant ({key})")


def _checked(proto: Any, name: str, path: Path) -> Tensor:
    try:
        return tensor_of(proto)
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"{path}: the tensor {name} is not what it says: {_first_line(error)}") from error


def _plain(attribute: Any) -> Any:
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    return _text(value)


def _text(value: Any) -> Any:
    """Text that is no UTF-8 comes out of protobuf as bytes; everything else as it is."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def _domain(name: Any) -> str:
    return "" if name == "ai.onnx" else str(_text(name))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
