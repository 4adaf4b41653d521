"""The precision that a runtime really computes in: found by computing, since a runtime may say one and do another.

OpenVINO, for one, computes in bfloat16 by default on a processor that has it. A small convolution is run and set
against the same sums in float64; the error tells how many bits of the mantissa took part.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeprune import protocols
from edgeprune.errors import EdgepruneError
from edgeprune.records import Record

if TYPE_CHECKING:
    from edgeprune.types import Floats

Precision = Literal["float32", "float16", "bfloat16", "lower than bfloat16"]
CHANNELS, SIZE, KERNEL = 32, 8, 3
# Error relative to the largest output. Rounding the operands of this network to bfloat16 gives 2e-3, to float16 (or
# TF32) 3e-4; float32 stays under 1e-6, and under 1e-5 with Winograd's transforms.
LIMITS: tuple[tuple[float, Precision], ...] = ((5e-5, "float32"), (1e-3, "float16"), (2e-2, "bfloat16"))


class RuntimePrecision(Record):
    """`ours` was observed with edgeprune's settings, `default` with the runtime's own (None: not known how).

    `failure` says why a runtime that is installed, or should be, could not be used.
    """

    name: str
    version: str | None = None
    ours: Precision | None = None
    default: Precision | None = None
    failure: str = ""


def observe(name: str, threads: int, folder: Path) -> RuntimePrecision:
    """Run the small network in the runtime `name`; files go to `folder`."""
    source = folder / "precision.onnx"
    if not source.exists():
        write_network(source)
    try:
        runtime: protocols.Runtime = protocols.find("runtime", name)
        version = runtime.version()
        path = runtime.convert(source, folder / f"precision-{name}{runtime.suffix}")[0]
        ours = classify(runtime.open(path, threads=threads).logits(_images()))
        with_defaults = DEFAULTS.get(name)
        default = classify(with_defaults(source)) if with_defaults else None
    except (EdgepruneError, ImportError, PackageNotFoundError) as error:
        return RuntimePrecision(name=name, failure=str(error).splitlines()[0])
    except Exception as error:  # noqa: BLE001  # a foreign plugin: doctor reports its failure, it does not die of it
        return RuntimePrecision(name=name, failure=f"{type(error).__name__}: {error}".splitlines()[0])
    return RuntimePrecision(name=name, version=version, ours=ours, default=default)


def classify(logits: Floats) -> Precision:
    """The precision whose rounding explains the error of `logits`, the network's output for its own images."""
    exact = _exact()
    error = float(np.abs(np.asarray(logits, dtype=np.float64) - exact).max() / np.abs(exact).max())
    return next((precision for limit, precision in LIMITS if error < limit), "lower than bfloat16")


def write_network(path: Path) -> None:
    """One convolution without padding, then a flatten, as ONNX: images (N, 32, 8, 8) to logits (N, 32 * 36)."""
    from onnx import TensorProto, helper, numpy_helper, save

    out = CHANNELS * (SIZE - KERNEL + 1) ** 2
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["maps"], kernel_shape=[KERNEL, KERNEL]),
        helper.make_node("Flatten", ["maps"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "precision",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", out])],
        [numpy_helper.from_array(_weight(), "weight")],
    )
    # IR 10 and opset 18: old enough for every runtime version that edgeprune admits.
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


def _images() -> Floats:
    return np.random.default_rng(0).random((1, CHANNELS, SIZE, SIZE), dtype=np.float32)


def _weight() -> Floats:
    weight = np.random.default_rng(1).normal(0, 0.06, (CHANNELS, CHANNELS, KERNEL, KERNEL))
    return weight.astype(np.float32)


def _exact() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    windows = np.lib.stride_tricks.sliding_window_view(_images().astype(np.float64), (KERNEL, KERNEL), axis=(2, 3))
    maps: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    maps = np.einsum("nchwij,ocij->nohw", windows, _weight().astype(np.float64))
    return maps.reshape(1, -1)


def _onnxruntime_default(path: Path) -> Floats:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": _images()})[0])


def _openvino_default(path: Path) -> Floats:
    import openvino

    return np.asarray(openvino.Core().compile_model(str(path), "CPU")(_images())[0])


DEFAULTS: dict[str, Callable[[Path], Floats]] = {
    "onnxruntime": _onnxruntime_default,
    "openvino": _openvino_default,
}
