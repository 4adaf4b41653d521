"""OpenVINO IR, made from the same ONNX graph and served by OpenVINO on the CPU in float32.

OpenVINO computes in bfloat16 by default where the CPU has it, with errors of 0.1 in the logits; the precision is
therefore set here and read back from the compiled model.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import ExportError, OutputError
from edgeprune.files import replacing
from edgeprune.protocols import Session
from edgeprune.records import RuntimeInfo

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
        import openvino

        _check_is_xml(path)
        core = openvino.Core()
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # the timing process pins itself; two pinnings fight
        }
        try:
            model = core.compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise ExportError(
                f"OpenVINO refuses {path}: {_last_line(error)}", hint="it is damaged or incomplete: export it again"
            ) from error
        if len(model.inputs) != 1:
            raise ExportError(f"{path} takes {len(model.inputs)} inputs: one image tensor is what edgeprune serves")
        self._tensor = openvino.Tensor
        self._request = model.create_infer_request()
        sizes = [d.get_length() for d in list(model.inputs[0].get_partial_shape())[1:] if d.is_static]
        self.input_shape = (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else None
        precision = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.info = RuntimeInfo(
            name="openvino",
            version=version("openvino"),
            precision={"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(precision, precision),
            threads=int(model.get_property("INFERENCE_NUM_THREADS")),
            options={"performance_hint": "LATENCY", "num_streams": "1"},
        )

    def logits(self, images: Floats) -> Floats:
        """Pixels float32 (N, C, H, W) to logits float32 (N, K)."""
        # Set as a tensor rather than passed to infer(): Python's dispatch of inputs costs as much as a small layer.
        self._request.set_input_tensor(self._tensor(np.ascontiguousarray(images), shared_memory=True))
        self._request.infer()
        return np.array(self._request.get_output_tensor(0).data)


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
