"""How ONNX Runtime and OpenVINO serve a file: the settings, in one place, here as on a device over ssh.

Promise: needs Python 3.8, numpy and the runtime, and nothing of edgeprune. Both compute in float32 on the CPU; every
setting that decides speed is set explicitly and stands in `Served.options`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

ONNX_OPTIONS = {"graph_optimization": "all", "allow_spinning": "1", "arena": "on"}
OPENVINO_OPTIONS = {"performance_hint": "LATENCY", "num_streams": "1"}
PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


class RefusedError(Exception):
    """The runtime does not open the file; the runtime's own words."""


@dataclass(frozen=True)
class Served:
    """A file opened in a runtime. `logits` maps float32 (N, C, H, W) to (N, K); `input_shape` None: left open.

    `runtime_ms` says what the runtime itself counts for the last inference; None where it tells no such time.
    """

    name: str
    version: str
    precision: str
    threads: int
    logits: Callable[[Any], Any]
    input_shape: tuple[int, int, int] | None
    options: dict[str, str] = field(default_factory=dict)
    runtime_ms: Callable[[], float] | None = None

    def info(self) -> dict[str, Any]:
        """What a `RuntimeInfo` says: everything but how to run it."""
        return {
            "name": self.name,
            "version": self.version,
            "precision": self.precision,
            "threads": self.threads,
            "options": self.options,
        }


def onnxruntime_serves(path: str, threads: int) -> Served:
    """Open an ONNX file. Errors: RefusedError; ImportError when the runtime is not installed."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_cpu_mem_arena = True
    options.add_session_config_entry("session.intra_op.allow_spinning", ONNX_OPTIONS["allow_spinning"])
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions live in a private module
        raise RefusedError(_first_line(error)) from error
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise RefusedError(f"it takes {len(inputs)} inputs: one image tensor is what edgeprune serves")
    name, run = inputs[0].name, session.run
    return Served(
        name="onnxruntime",
        version=ort.__version__,
        precision="float32",
        threads=threads,
        logits=lambda images: np.asarray(run(None, {name: images})[0]),
        input_shape=_fixed(inputs[0].shape[1:]),
        options=dict(ONNX_OPTIONS),
    )


def openvino_serves(path: str, threads: int) -> Served:
    """Compile an IR (or ONNX) file: latency hint, one stream, float32. Errors: as for ONNX Runtime."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": OPENVINO_OPTIONS["performance_hint"],
        "NUM_STREAMS": int(OPENVINO_OPTIONS["num_streams"]),
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # the timing process pins itself; two pinnings fight
    }
    try:
        model = openvino.Core().compile_model(path, "CPU", settings)
    except RuntimeError as error:
        raise RefusedError(_last_line(error)) from error
    if len(model.inputs) != 1:
        raise RefusedError(f"it takes {len(model.inputs)} inputs: one image tensor is what edgeprune serves")
    tensor, request = openvino.Tensor, model.create_infer_request()

    def logits(images: Any) -> Any:
        # Set as a tensor rather than passed to infer(): Python's dispatch of inputs costs as much as a small layer.
        request.set_input_tensor(tensor(np.ascontiguousarray(images), shared_memory=True))
        request.infer()
        return np.array(request.get_output_tensor(0).data)

    precision = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    sizes = [side.get_length() for side in list(model.inputs[0].get_partial_shape())[1:] if side.is_static]
    return Served(
        name="openvino",
        version=version("openvino"),
        precision=PRECISIONS.get(precision, precision),
        threads=int(model.get_property("INFERENCE_NUM_THREADS")),
        logits=logits,
        input_shape=_fixed(sizes),
        options=dict(OPENVINO_OPTIONS),
        runtime_ms=lambda: float(request.latency),  # the one that benchmark_app prints
    )


SERVERS: dict[str, Callable[[str, int], Served]] = {
    "onnxruntime": onnxruntime_serves,
    "openvino": openvino_serves,
}


def _fixed(dimensions: list[Any]) -> tuple[int, int, int] | None:
    sizes = [size for size in dimensions if isinstance(size, int)]
    return (sizes[0], sizes[1], sizes[2]) if len(sizes) == len(dimensions) == 3 else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
