"""The twin of a file: a torch module built from the file's own graph, for gradients and nothing else.

Promise: it works on any ONNX or OpenVINO classifier whose operators are in the table
(`edgeprune.robustness.twin.table`), ours or foreign, without the network that the file came from; its weights ask for
no gradient; an operator without a rule is named. That it computes what the file computes is not assumed: `check`
measures it against the runtime.

Public converters stop earlier (onnx2torch at opset 16, and at quantised files), hence ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import ModelError
from edgeprune.robustness.twin.drafting import Wiring
from edgeprune.robustness.twin.ir import read_ir
from edgeprune.robustness.twin.layout import Layout, layout_of
from edgeprune.robustness.twin.node import Unsupported, require_reasonable
from edgeprune.robustness.twin.program import (
    Compiled,
    Graph,
    before_softmax,
    compile_network,
    with_free_batch,
)
from edgeprune.robustness.twin.reading import Network, read
from edgeprune.types import Shape

if TYPE_CHECKING:
    from edgeprune.protocols import Session
    from edgeprune.types import Floats

Precision = Literal["float32", "float16", "int8"]
Batching = Literal["free", "reshaped", "in turn"]

TOLERANCES: dict[Precision, float] = {"float32": 1e-4, "float16": 2e-2, "int8": 0.1}
"""Largest parity that a twin may have. A quantised file differs by steps of quantisation, since its runtime rounds
where it fuses: 0.03 was the most on a ResNet-20 and a traffic-sign network, quantised in five ways, in ONNX Runtime and
OpenVINO, with the same labels on at least 98.5 % of 200 images. Whether that misleads an attack is judged by labels
(`edgeprune.robustness.health`), not by this number alone."""

_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "QGemm", "Integer", "FakeQuantize")
_TRIALS = 3
_ROWS: dict[Precision, float] = {"float32": 1e-3, "float16": 2e-2, "int8": 0.1}
"""How far an image's logits alone and in company may differ: by the order of sums, and what rounding makes of it."""
_BY_COMPANY = ("DynamicQuantizeLinear",)
"""Operators whose scale comes from the whole batch: whatever the size of the difference, such a file goes in turn."""


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """A torch module that stands for an ONNX file.

    `module` maps images, float32 (N, C, H, W), any N, to what the file returns, (N, K); `scores` stops before a last
    softmax or sigmoid, whose gradient dies where it is sure: the same order of classes, for gradients. Both are None
    where `unsupported` names operators without a rule. `batching` says how a file made for a fixed number of images
    takes more: "free" (it always did), "reshaped" (its reshapes were freed), "in turn" (one batch after the other).
    `parent` is the digest of the weights that edgeprune exported, None for a foreign file. `path` is the file that it
    was built from. `wiring`: what a way back can be drafted from; None where the file fixes its batch, or ends in what
    `scores` leaves out.
    """

    path: Path
    module: nn.Module | None
    scores: nn.Module | None
    unsupported: tuple[str, ...]
    layout: Layout
    opset: int
    producer: str
    precision: Precision
    classes: int = 0
    batching: Batching = "free"
    parent: str | None = None
    parity: float | None = None
    wiring: Wiring | None = None


def build(path: Path, input_shape: Shape | None = None) -> Twin:
    """The twin of the ONNX file, or of the IR, at `path`; `input_shape` (C, H, W) for a file that leaves it open.

    Errors: ModelError when the file is not a network of one image input (see `edgeprune.robustness.twin.reading`),
    UsageError when its image shape cannot be told or is not the given one.
    """
    try:
        network = read_ir(path) if path.suffix == ".xml" else read(path)
    except Unsupported as error:
        raise ModelError(f"{path} has no twin: {error}") from error
    layout = layout_of(
        network.dimensions, network.element, input_shape, transposed=_begins_transposed(network), file=str(path)
    )
    try:
        require_reasonable((max(layout.batch or 1, _TRIALS), *layout.shape))
    except Unsupported as error:
        raise ModelError(f"{path} takes images that are too large: {error}") from error
    with torch.inference_mode(False), torch.no_grad():
        compiled = compile_network(network, path)
        if compiled.unsupported:
            return _twin(path, network, layout, compiled.unsupported)
        try:
            return _tried(network, layout, compiled, path)
        except Unsupported as error:  # what only shows with sizes, as in a resize
            return _twin(path, network, layout, (str(error),))


def check(twin: Twin, session: Session, images: Floats) -> float:
    """Parity: the largest difference of logits between twin and runtime on `images`, relative to max(1, largest).

    `session` takes images (N, C, H, W) in any number (`Served`); `images` are float32 pixels. Infinite when the two
    return different shapes or anything that is not a number.
    """
    assert twin.module is not None
    expected = np.asarray(session.logits(images))
    with torch.inference_mode():
        device = next((b.device for b in twin.module.buffers()), torch.device("cpu"))
        found = twin.module(torch.from_numpy(np.array(images, np.float32)).to(device)).float().cpu().numpy()
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))


class Behind(nn.Module):
    """A graph behind its layout: images (N, C, H, W) to (N, K); `size` images at once, None for all."""

    def __init__(self, graph: nn.Module, layout: Layout, size: int | None) -> None:
        super().__init__()
        self._graph, self._layout, self._size = graph, layout, size

    def forward(self, images: Tensor) -> Tensor:
        """As many batches as the file needs; a last one that is too short is filled up."""
        if self._size is None:
            return self._rows(images)
        parts = []
        for part in torch.split(images, self._size):
            missing = self._size - len(part)
            whole = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            parts.append(self._rows(whole)[: len(part)])
        return torch.cat(parts)

    def _rows(self, images: Tensor) -> Tensor:
        result: Tensor = self._graph(self._layout.feed(images))
        return result.reshape(len(images), -1).float()


def _tried(network: Network, layout: Layout, compiled: Compiled, path: Path) -> Twin:
    """The twin in the first way of taking several images that gives each the answer it gets alone.

    A file that leaves its batch open but does not treat images alike is taken for one that wants one at a time.
    """
    noise = torch.rand(_TRIALS, *layout.shape, generator=torch.Generator().manual_seed(0))
    alone = _outcome(compiled, network, layout, layout.batch or 1, noise)
    fixed = layout if layout.batch is not None else replace(layout, batch=1)
    assert fixed.batch is not None
    together: list[tuple[Batching, Compiled, Layout]] = [("free", compiled, layout)]
    together.append(("reshaped", with_free_batch(compiled, fixed.batch), fixed))
    for batching, candidate, said in together if layout.batched else ():
        if _same_rows(candidate, network, layout, noise, alone):
            return _paired(path, (network, candidate, said), None, batching, alone.shape[1])
    return _paired(path, (network, compiled, fixed), fixed.batch, "in turn", alone.shape[1])


def _paired(
    path: Path, parts: tuple[Network, Compiled, Layout], size: int | None, batching: Batching, classes: int
) -> Twin:
    network, compiled, layout = parts
    module = Behind(Graph(compiled, network.input, network.output), layout, size)
    inner = before_softmax(compiled.steps, network.output)
    scores = module if inner == network.output else Behind(Graph(compiled, network.input, inner), layout, size)
    whole = scores is module and size is None
    wiring = Wiring(compiled, network.input, network.output) if whole else None
    return replace(_twin(path, network, layout, (), module, scores, classes=classes, batching=batching), wiring=wiring)


def _outcome(compiled: Compiled, network: Network, layout: Layout, size: int, noise: Tensor) -> Tensor:
    """What the graph says to each image by itself; ModelError, naming the operator, when it cannot run."""
    try:
        result: Tensor = Behind(Graph(compiled, network.input, network.output), layout, size)(noise)
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        where = " ".join(getattr(error, "__notes__", ()))
        raise ModelError(f"the twin of the file does not run: {str(error).splitlines()[0]}", where=where) from error
    return result


def _same_rows(compiled: Compiled, network: Network, layout: Layout, noise: Tensor, alone: Tensor) -> bool:
    if any(node.op in _BY_COMPANY for node in network.nodes):
        return False
    try:
        together = Behind(Graph(compiled, network.input, network.output), layout, None)(noise)
    except (Unsupported, RuntimeError, ValueError, IndexError, TypeError, KeyError):
        return False  # a size that is fixed somewhere: the next way is tried
    scale = max(1.0, float(alone.abs().max()))
    return together.shape == alone.shape and bool((together - alone).abs().max() <= _ROWS[_precision(network)] * scale)


def _twin(
    path: Path,
    network: Network,
    layout: Layout,
    unsupported: tuple[str, ...],
    module: nn.Module | None = None,
    scores: nn.Module | None = None,
    *,
    classes: int = 0,
    batching: Batching = "free",
) -> Twin:
    return Twin(
        path=path,
        module=module,
        scores=scores,
        unsupported=unsupported,
        layout=layout,
        opset=network.opset,
        producer=network.producer,
        precision=_precision(network),
        classes=classes,
        batching=batching,
        parent=network.parent,
    )


def _precision(network: Network) -> Precision:
    if any(word in node.op for node in network.nodes for word in _QUANTISED):
        return "int8"
    halves = {torch.float16, torch.bfloat16}
    return "float16" if any(tensor.dtype in halves for tensor in network.constants.values()) else "float32"


def _begins_transposed(network: Network) -> bool:
    """Whether the first thing that happens to the images is that channels come to the front."""
    readers = [node for node in network.nodes if network.input in node.inputs]
    return len(readers) == 1 and readers[0].op == "Transpose" and readers[0].integers("perm") == (0, 3, 1, 2)
