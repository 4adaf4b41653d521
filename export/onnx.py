"""ONNX: written by torch's dynamo exporter, served by ONNX Runtime.

Promise: the file takes pixels (N, C, H, W) with any N and gives logits (N, K); it names the weights it came from
and holds nothing of the machine that made it (no paths, no stack traces), so the same network gives the same bytes.
Importing this module loads neither torch nor onnx: a timing process needs only the runtime.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ExportError
from edgeprune.files import replacing, writing
from edgeprune.latency import serving
from edgeprune.latency.repeating import repeat, typical
from edgeprune.protocols import Session
from edgeprune.records import NodeTime, RuntimeInfo

if TYPE_CHECKING:
    from edgeprune.types import Floats, ModelBundle

INPUT, OUTPUT = "images", "logits"
PARENT_KEY, VERSION_KEY, PLAN_KEY = "edgeprune.parent_digest", "edgeprune.version", "edgeprune.plan_digest"


def export_onnx(bundle: ModelBundle, path: Path, *, plan_digest: str = "") -> int:
    """Write the bundle's network, preprocessing included, to `path`; return the opset.

    The file names the weights that it holds, the version that wrote it and, where one is given, the sha256 of the
    plan that they were pruned by.

    Errors: ExportError when torch cannot export the network (with torch's own reason) or the file is not valid.
    """
    import onnx

    proto = _trace(bundle)
    _forget_where_from(proto)
    names = {PARENT_KEY: bundle.digest, VERSION_KEY: version("edgeprune"), PLAN_KEY: plan_digest}
    for key, value in ((key, value) for key, value in names.items() if value):
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported ONNX graph is not valid: {_first_line(error)}") from error
    with replacing(path) as beside:
        beside.write_bytes(proto.SerializeToString(deterministic=True))
    return opset_of(proto)


def _forget_where_from(message: Any) -> None:
    """Clear all notes of a protobuf message and of what it holds: stack traces, names of files. In place."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if isinstance(value, Sequence) else (value,):
                _forget_where_from(part)


def opset_of(proto: Any) -> int:
    """Version of the default operator set of an ONNX ModelProto."""
    return int(next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")))


def parent_of(path: Path) -> str | None:
    """Digest of the weights that an ONNX file was exported from; None when the file does not say."""
    import onnx

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own family of errors, none of them exported
        raise ExportError(f"{path} is not an ONNX file: {_first_line(error)}") from error
    return next((entry.value for entry in proto.metadata_props if entry.key == PARENT_KEY), None)


def _trace(bundle: ModelBundle) -> Any:
    """The network as a ModelProto with a dynamic batch; two images in the example, since torch fixes a batch of 1."""
    import torch

    network = bundle.network()
    example = torch.zeros(2, *bundle.input_shape)
    batch = torch.export.Dim("batch", min=1)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
        except Exception as error:  # torch wraps every exporter failure in its own, partly private, classes
            cause = error.__cause__ or error
            raise ExportError(
                f"torch cannot export the network to ONNX: {_first_line(cause)}",
                hint="data-dependent control flow and unusual operators are the usual reasons",
            ) from error
    assert program is not None
    proto = program.model_proto
    if not proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:  # torch fixes it rather than to fail
        raise ExportError(
            "the exported network would take batches of one size only",
            where="its forward pass turns the batch size into a number, as len(x) and int(x.shape[0]) do",
            hint="x.shape[0], or -1 in a view, keeps it open",
        )
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter warns about torchvision's absence and about its own deprecations: nothing a user can mend."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class OnnxSession:
    """An ONNX file in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        try:
            served = serving.onnxruntime_serves(str(path), threads)
        except serving.RefusedError as error:
            raise ExportError(
                f"ONNX Runtime refuses {path}: {error}", hint="it is damaged or not ONNX: export it again"
            ) from error
        self._served, self.input_shape, self.info = served, served.input_shape, RuntimeInfo(**served.info())

    def logits(self, images: Floats) -> Floats:
        """Pixels float32 (N, C, H, W) to logits float32 (N, K)."""
        logits: Floats = self._served.logits(images)
        return logits


class OnnxRuntime:
    """The runtime plugin: ONNX files as they are."""

    name, format, suffix = "onnxruntime", "onnx", ".onnx"

    def version(self) -> str:
        return version("onnxruntime")

    def convert(self, onnx: Path, destination: Path) -> tuple[Path, ...]:
        """The ONNX file itself (copied when `destination` is elsewhere)."""
        if onnx != destination:
            with replacing(destination) as beside, writing(destination):
                shutil.copyfile(onnx, beside)
        return (destination,)

    def open(self, path: Path, *, threads: int) -> Session:
        """Open in float32 on the CPU; ExportError when ONNX Runtime refuses the file."""
        return OnnxSession(path, threads)

    def node_times(
        self, path: Path, images: Floats, *, threads: int, seconds: float
    ) -> tuple[int, tuple[NodeTime, ...]]:
        """(inferences, what each node took), from ONNX Runtime's profiler; fused nodes bear the name of an output."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.enable_profiling = True
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            feed = [{session.get_inputs()[0].name: images[index : index + 1]} for index in range(len(images))]
            count = repeat(lambda number: session.run(None, feed[number % len(feed)]), seconds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        found: dict[tuple[str, str], list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")
                found.setdefault((name, event["args"]["op_name"]), []).append(event["dur"] / 1000)
        return count, tuple(NodeTime(name=name, operator=op, ms=typical(ms)) for (name, op), ms in found.items())


RUNTIME = OnnxRuntime()
