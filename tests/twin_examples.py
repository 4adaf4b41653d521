"""Small ONNX graphs, and both who can run them: the twin and ONNX Runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeprune.robustness.twin.program import Graph, compile_network
from edgeprune.robustness.twin.reading import read

IR = 10
IMAGE = (2, 4, 7, 6)
RANDOM = np.random.default_rng(0)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    opset: int,
    shape: Sequence[int | str | None],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    element: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """A model from the input `x` to the output `y`, whose type ONNX Runtime finds out."""
    inputs = [helper.make_tensor_value_info("x", element, shape)]
    output = onnx.ValueInfoProto(name="y")
    weights = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "graph", inputs, [output], weights)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR, producer_name="tests")


def node(op: str, inputs: str = "x", outputs: str = "y", domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by spaces, "-" leaves an optional input out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), domain=domain, **attributes)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run_twin(path: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The graph's result on `x` and, for floats in and out, the gradient of a random combination of it."""
    network = read(path)
    with torch.no_grad():
        compiled = compile_network(network, path)
    assert compiled.unsupported == ()
    graph = Graph(compiled, network.input, network.output)
    points = torch.from_numpy(x)
    if not points.is_floating_point():
        return graph(points).numpy(), None
    points.requires_grad_(True)
    found = graph(points)
    if not found.requires_grad:
        return found.detach().numpy(), None
    weights = torch.rand(found.shape, generator=torch.Generator().manual_seed(0)).to(found.dtype)
    (gradient,) = torch.autograd.grad((found * weights).sum(), points)
    return found.detach().numpy(), gradient.numpy()


def run_runtime(path: Path, x: np.ndarray, *, optimised: bool = True) -> np.ndarray:
    """ONNX Runtime's result; `optimised` False keeps it from fusing."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return (RANDOM.random(shape) + 0.5).astype(np.float32)


def number(value: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.array(value, dtype)


RELATIVE = 1e-3
"""Of a value: a tolerance above it is a step of quantised values, which is absolute."""


def compare(
    folder: Path, model: onnx.ModelProto, x: np.ndarray, tolerance: float = 2e-5, **how: bool
) -> np.ndarray | None:
    """The twin computes what ONNX Runtime computes, and its gradient (returned) is finite."""
    path = save(model, folder)
    expected = run_runtime(path, x, **how)
    found, gradient = run_twin(path, x)
    assert found.dtype == expected.dtype or not np.issubdtype(expected.dtype, np.floating)
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=min(tolerance, RELATIVE), atol=tolerance), np.abs(found - expected).max()
    assert gradient is None or np.isfinite(gradient).all()
    return gradient
