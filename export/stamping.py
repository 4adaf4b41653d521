"""One exported graph for many networks: the same operators with other weights, without torch's exporter.

Candidates of one goal differ in their widths alone, and torch takes 2 to 9 seconds to trace each. So the dense
network's file is the mould: its values are replaced by the candidate's own, batch norm folded into convolutions as the
exporter folds it. Promise: which value comes from where is proved on the dense network, whose file must come out as it
is; and whoever takes a stamped file compares its answers with the network's, as with any exported file (a constant
that depends on a width, or a block that is missing, shows there). For candidates that are timed, never for what ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ExportError
from edgeprune.files import replacing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeprune.types import ModelBundle

_SAME = 1e-5  # of a value's largest entry: how differently float32 folds
Source = Callable[["nn.Module"], "Tensor"]


@dataclass(frozen=True, slots=True, eq=False)
class Stamp:
    """A graph without its values (ModelProto), its constants, and where each other value comes from in a network."""

    mould: Any
    constants: Mapping[str, Any]
    sources: Mapping[str, Source | None]
    opset: int

    @classmethod
    def of(cls, bundle: ModelBundle, path: Path) -> Stamp:
        """What `export_onnx` made of the bundle, as a mould. Errors: ExportError where the file cannot be read."""
        import numpy as np
        import onnx
        from edgeprune.export.onnx import opset_of

        try:
            proto = onnx.load(str(path))
        except Exception as error:  # protobuf raises its own family of errors, none of them exported
            raise ExportError(f"{path} is not an ONNX file") from error
        network = bundle.network()
        values = {each.name: each for each in proto.graph.initializer}
        known = _sources(network, bundle.input_shape)
        sources = {
            name: known[name] if name in known and _same(value, known[name](network)) else None
            for name, value in values.items()
        }
        constants = {name: value for name, value in values.items() if sources[name] is None}
        for name in _flattened(proto) & constants.keys():
            constants[name] = onnx.numpy_helper.from_array(np.array([0, -1], np.int64), name)
        del proto.graph.initializer[:], proto.graph.value_info[:]  # the shapes of the dense network
        return cls(proto, constants, sources, opset_of(proto))

    def write(self, bundle: ModelBundle, path: Path) -> int:
        """Write another network of this structure to `path`; the opset.

        Errors: ExportError where it is no network of this structure.
        """
        import onnx
        from edgeprune.export.onnx import PARENT_KEY

        proto, network = onnx.ModelProto(), bundle.network()
        proto.CopyFrom(self.mould)
        for entry in proto.metadata_props:
            if entry.key == PARENT_KEY:
                entry.value = bundle.digest
        for name, source in self.sources.items():
            if source is None:
                proto.graph.initializer.add().CopyFrom(self.constants[name])
                continue
            try:
                value = source(network)
            except (AttributeError, KeyError) as error:
                raise ExportError(f"the network has no {name}: it is of another structure") from error
            proto.graph.initializer.append(onnx.numpy_helper.from_array(value.detach().contiguous().numpy(), name))
        _group(proto, network)
        try:
            onnx.checker.check_model(proto, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError("the graph does not fit the network's widths") from error
        with replacing(path) as beside:
            beside.write_bytes(proto.SerializeToString(deterministic=True))
        return self.opset


def _group(proto: Any, network: nn.Module) -> None:
    """Convolutions of the graph have as many groups as the network's: a depthwise one has a group a channel."""
    for node in proto.graph.node:
        owner = node.input[1].removesuffix(".weight") if node.op_type in ("Conv", "ConvTranspose") else ""
        for attribute in node.attribute if owner else ():
            if attribute.name == "group" and attribute.i > 1:
                try:
                    attribute.i = network.get_submodule(owner).groups
                except AttributeError as error:
                    raise ExportError(f"whose groups are those of {node.name} is not known") from error


def _sources(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, Source]:
    """Every value that an exported file may hold, by the name that torch's exporter gives it."""
    import torch

    from edgeprune.models.folding import Folding

    found: dict[str, Source] = {}
    for name, _ in (*network.named_parameters(), *network.named_buffers()):
        found[name] = partial(_tensor, name)
    names = {module: name for name, module in network.named_modules()}
    for convolution, norm in Folding.of(network, torch.full((1, *shape), 0.5)).pairs:
        pair = names[convolution], names[norm]
        found[f"{pair[0]}.weight"] = partial(_folded, pair, 0)
        for bias in (f"{pair[0]}.weight_bias", f"{pair[0]}.bias"):
            found[bias] = partial(_folded, pair, 1)
    return found


def _flattened(proto: Any) -> set[str]:
    """Shapes that images are flattened to, (-1, features), which nothing but a Reshape reads: the number of features
    is a width. 0, for the batch as it is, and -1 say the same of any. In place: those nodes take 0 for that."""
    import onnx

    readers: dict[str, list[str]] = {}
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append(f"{node.op_type} {place}")
    shapes = {each.name: each for each in proto.graph.initializer if list(each.dims) == [2]}
    found = {
        name
        for name, value in shapes.items()
        if set(readers.get(name, ())) == {"Reshape 1"} and onnx.numpy_helper.to_array(value)[0] == -1
    }
    for node in proto.graph.node:
        if node.op_type == "Reshape" and node.input[1] in found:
            kept = [each for each in node.attribute if each.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return found


def _folded(pair: tuple[str, str], which: int, network: nn.Module) -> Tensor:
    from edgeprune.models.folding import folded

    convolution, norm = (network.get_submodule(name) for name in pair)
    return folded(convolution, norm)[which]  # type: ignore[arg-type]  # what does not fit has no such attributes


def _tensor(name: str, network: nn.Module) -> Tensor:
    owner, _, own = name.rpartition(".")
    value: Tensor = getattr(network.get_submodule(owner), own)
    return value


def _same(value: Any, found: Tensor) -> bool:
    """Whether a value of the file is this tensor, but for rounding."""
    import numpy as np
    import onnx

    there, here = onnx.numpy_helper.to_array(value), found.detach().numpy()
    if there.shape != here.shape or there.dtype != here.dtype:
        return False
    return bool(np.abs(there - here).max(initial=0) <= _SAME * np.abs(here).max(initial=0))
