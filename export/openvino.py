"""OpenVINO IR, made from the same ONNX graph and served by OpenVINO on the CPU in float32.

OpenVINO computes in bfloat16 by default where the CPU has it, with errors of 0.1 in the logits; the precision is
therefore set here and read back from the compiled model.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ExportError, OutputError
from edgeprune.files import replacing
from edgeprune.latency import serving
from edgeprune.latency.repeating import repeat, typical
from edgeprune.protocols import Session
from edgeprune.records import NodeTime, RuntimeInfo

if TYPE_CHECKING:
    from edgeprune.types import Floats


PARENT = ("edgeprune", "parent_digest")
"""Where an IR notes the digest of the weights that it came from."""


def _check_is_xml(path: Path) -> None:
    """OpenVINO tries every format that it knows on a file that is no IR, and prints about each."""
    if path.suffix != ".xml":
        return
    with path.open("rb") as file:
        if not file.read(64).lstrip().startswith(b"<"):
            raise ExportError(f"{path} is not an OpenVINO IR: it is no XML", hint="export it again")


class OpenVinoSession:
    """An IR (or ONNX) file compiled by OpenVINO: latency hint, one stream, float32."""

    def __init__(self, path: Path, threads: int) -> None:
        _check_is_xml(path)
        try:
            served = serving.openvino_serves(str(path), threads)
        except serving.RefusedError as error:
            raise ExportError(
                f"OpenVINO refuses {path}: {error}", hint="it is damaged or incomplete: export it again"
            ) from error
        self._served, self.input_shape, self.info = served, served.input_shape, RuntimeInfo(**served.info())
        self.runtime_ms = served.runtime_ms

    def logits(self, images: Floats) -> Floats:
        """Pixels float32 (N, C, H, W) to logits float32 (N, K)."""
        logits: Floats = self._served.logits(images)
        return logits


class OpenVino:
    """The runtime plugin: IR made from the ONNX file."""

    name, format, suffix = "openvino", "openvino", ".xml"

    def version(self) -> str:
        return version("openvino")

    def convert(self, onnx: Path, destination: Path) -> tuple[Path, ...]:
        """Write `destination` (.xml) and its weights (.bin) in float32; ExportError when OpenVINO cannot."""
        import openvino

        try:
            model = openvino.convert_model(str(onnx))
        except Exception as error:  # the converter has an error class of its own, in a private module
            raise ExportError(f"OpenVINO cannot convert {onnx}: {_last_line(error)}") from error
        _name_by_position(model)
        _note_parent(model, onnx)
        weights = destination.with_suffix(".bin")
        with replacing(weights) as beside_weights, replacing(destination) as beside:
            try:
                openvino.serialize(model, str(beside), str(beside_weights))
            except RuntimeError as error:  # all that OpenVINO says of a full disk
                raise OutputError(
                    f"cannot write {destination}: {_last_line(error)}", hint="is there enough space on the disk?"
                ) from error
            # The IR notes the name of the file that it was made from: no part of what it computes.
            text = re.sub(r"\s*<conversion_parameters>.*?</conversion_parameters>", "", beside.read_text(), flags=re.S)
            beside.write_text(text)
        return destination, weights

    def open(self, path: Path, *, threads: int) -> Session:
        """Compile in float32 on the CPU; ExportError when OpenVINO refuses the file."""
        return OpenVinoSession(path, threads)

    def node_times(
        self, path: Path, images: Floats, *, threads: int, seconds: float
    ) -> tuple[int, tuple[NodeTime, ...]]:
        """(inferences, what each node took), from OpenVINO's performance counts."""
        import openvino

        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "PERF_COUNT": True,
        }
        request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
        found: dict[tuple[str, str], list[float]] = {}

        def run(number: int) -> None:
            image = number % len(images)
            request.infer([images[image : image + 1]])
            for node in request.profiling_info:
                if node.status.name == "EXECUTED":
                    key = node.node_name.removesuffix("/WithoutBiases"), node.node_type
                    found.setdefault(key, []).append(node.real_time.total_seconds() * 1000)

        count = repeat(run, seconds)
        return count, tuple(NodeTime(name=name, operator=op, ms=typical(ms)) for (name, op), ms in found.items())


def _name_by_position(model: Any) -> None:
    """Names that OpenVINO makes up count what the process has made so far: count from the model's start instead."""
    for position, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Z]\w*_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}_{position}")


def _note_parent(model: Any, onnx: Path) -> None:
    """The digest of the weights that the ONNX file was exported from, where edgeprune exported it."""
    from edgeprune.export.onnx import parent_of

    parent = parent_of(onnx)
    if parent is not None:
        model.set_rt_info(parent, list(PARENT))


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


RUNTIME = OpenVino()
