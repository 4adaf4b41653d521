"""Exported files: the same bytes for the same network, nothing of this machine in them, and parity that catches."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import site
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import openvino
import pytest
import torch
from edgeprune.export import onnx as onnx_room
from edgeprune.export.onnx import INPUT, OUTPUT, export_onnx, parent_of
from edgeprune.export.openvino import RUNTIME as OPENVINO
from edgeprune.export.parity import check_parity
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from toy_networks import PRUNABLE, Depthwise, Lambda, Residual, bundle_of, randomized

from edgeprune.artifacts import Destination, export_network, timed_file
from edgeprune.errors import ExportError, OutputError, ParityError
from edgeprune.files import sha256_of
from edgeprune.models import digest
from edgeprune.pruning.criteria import random as by_chance
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import allocate, apply, make_plan
from edgeprune.records import RuntimeInfo
from edgeprune.types import Goal, ModelBundle, Preprocessing

if TYPE_CHECKING:
    from edgeprune.types import Floats

PREPROCESSING = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
BOTH = ("onnxruntime", "openvino")
INFO = RuntimeInfo(name="fake", version="1", precision="float32", threads=1)


def images(count: int = 16) -> Floats:
    return np.random.default_rng(0).random((count, 3, 8, 8), dtype=np.float32)


def residual() -> ModelBundle:
    return bundle_of(randomized(Residual()), preprocessing=PREPROCESSING)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelBundle]:
    """A folder with model.onnx, model.xml and model.bin of the residual toy."""
    folder = tmp_path_factory.mktemp("exported")
    bundle = residual()
    export_network(bundle, Destination(folder, "model", "compressed"), BOTH, images(), "random")
    return folder, bundle


class Fake:
    """A session that computes what it is told to."""

    info, input_shape = INFO, None

    def __init__(self, function: Callable[[Floats], Floats]) -> None:
        self.logits = function


def honest(bundle: ModelBundle, *, off: float = 0.0) -> Fake:
    network = bundle.network()

    def logits(batch: Floats) -> Floats:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(batch)).numpy() + np.float32(off))

    return Fake(logits)


# -------------------------------------------------------------------------------------------- what is written


def test_same_network_gives_the_same_bytes(exported: tuple[Path, ModelBundle], tmp_path: Path) -> None:
    folder, _ = exported
    export_network(
        residual(), Destination(tmp_path / "else" / "where", "model", "compressed"), BOTH, images(), "random"
    )
    for name in ("model.onnx", "model.xml", "model.bin"):
        assert (tmp_path / "else" / "where" / name).read_bytes() == (folder / name).read_bytes()


def test_another_process_gives_the_same_bytes(exported: tuple[Path, ModelBundle], tmp_path: Path) -> None:
    folder, _ = exported
    code = "import sys; from test_export import *; export_onnx(residual(), Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.onnx")], env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "m.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def test_no_path_of_this_machine_is_in_a_file(exported: tuple[Path, ModelBundle]) -> None:
    folder, _ = exported
    here = {str(folder), str(Path.cwd()), str(Path.home()), str(Path(torch.__file__).parent), *site.getsitepackages()}
    for path in folder.iterdir():
        content = path.read_bytes()
        for place in here - {"/"}:
            assert place.encode() not in content
        assert b".py" not in content
        assert b"stack_trace" not in content
    assert sorted(path.name for path in folder.iterdir()) == ["model.bin", "model.onnx", "model.xml"]


def test_file_names_the_weights_that_it_came_from(exported: tuple[Path, ModelBundle]) -> None:
    folder, bundle = exported
    assert parent_of(folder / "model.onnx") == bundle.digest
    proto = onnx.load(str(folder / "model.onnx"))
    assert {entry.key for entry in proto.metadata_props} == {"edgeprune.parent_digest", "edgeprune.version"}


def test_file_takes_pixels_in_batches_of_any_size(exported: tuple[Path, ModelBundle]) -> None:
    folder, bundle = exported
    graph = onnx.load(str(folder / "model.onnx")).graph
    sizes = graph.input[0].type.tensor_type.shape.dim
    assert (graph.input[0].name, graph.output[0].name) == (INPUT, OUTPUT)
    assert (sizes[0].HasField("dim_value"), [size.dim_value for size in sizes[1:]]) == (False, [3, 8, 8])
    for path, runtime in ((folder / "model.onnx", onnx_room.RUNTIME), (folder / "model.xml", OPENVINO)):
        session = runtime.open(path, threads=1)
        assert session.input_shape == (3, 8, 8)
        for count in (1, 3, 16):
            with torch.no_grad():
                expected = bundle.network()(torch.from_numpy(images(count))).numpy()
            np.testing.assert_allclose(session.logits(images(count)), expected, rtol=1e-4, atol=1e-4)


def test_everything_is_float32(exported: tuple[Path, ModelBundle]) -> None:
    folder, _ = exported
    weights = onnx.load(str(folder / "model.onnx")).graph.initializer
    assert not any(w.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) for w in weights)
    model = openvino.Core().read_model(str(folder / "model.xml"))
    kinds = {op.get_element_type().get_type_name() for op in model.get_ops() if op.get_type_name() == "Constant"}
    assert "f32" in kinds
    assert not kinds & {"f16", "bf16", "f64"}
    for path, runtime in ((folder / "model.onnx", onnx_room.RUNTIME), (folder / "model.xml", OPENVINO)):
        assert runtime.open(path, threads=1).info.precision == "float32"


def test_artifacts_name_their_files_by_digest_and_size(tmp_path: Path) -> None:
    bundle = residual()
    made = export_network(bundle, Destination(tmp_path, "dense/model", "dense"), BOTH, images(), "real")
    plain, ir = made.artifacts
    assert (plain.path, plain.format, plain.companions) == ("dense/model.onnx", "onnx", ())
    assert (ir.path, ir.format, ir.companions[0][0]) == ("dense/model.xml", "openvino", "dense/model.bin")
    assert plain.sha256 == sha256_of(tmp_path / plain.path)
    assert ir.total_bytes == sum((tmp_path / "dense" / name).stat().st_size for name in ("model.xml", "model.bin"))
    assert {each.parent_digest for each in made.artifacts} == {bundle.digest}
    assert plain.opset == onnx.load(str(tmp_path / plain.path)).opset_import[0].version
    assert [each.sha256 for each in made.parity] == [plain.sha256, ir.sha256]
    assert all(each.inputs == "real" and each.same_labels for each in made.parity)
    timed = timed_file(tmp_path, ir)
    assert timed.companions == ((str((tmp_path / "dense" / "model.bin").resolve()), ir.companions[0][1]),)


def test_onnx_file_is_written_for_openvino_alone_too(tmp_path: Path) -> None:
    made = export_network(residual(), Destination(tmp_path, "model", "compressed"), ("openvino",), images(), "random")
    assert [artifact.format for artifact in made.artifacts] == ["onnx", "openvino"]
    assert [each.runtime.name for each in made.parity] == ["openvino"]


def test_exporting_changes_nothing_in_the_network(exported: tuple[Path, ModelBundle]) -> None:
    _, bundle = exported
    assert digest(bundle.module) == bundle.digest
    assert not any(layer.training for layer in bundle.module.modules())
    assert all(parameter.requires_grad for parameter in bundle.module.parameters())


def test_onnx_is_copied_where_it_is_wanted_elsewhere(exported: tuple[Path, ModelBundle], tmp_path: Path) -> None:
    folder, _ = exported
    (copied,) = onnx_room.RUNTIME.convert(folder / "model.onnx", tmp_path / "copy.onnx")
    assert copied.read_bytes() == (folder / "model.onnx").read_bytes()


# ---------------------------------------------------------------------------------------------------- refusals


def test_network_that_torch_cannot_export_is_an_error(tmp_path: Path) -> None:
    def forward(self: Lambda, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.flatten(1))
        return logits if float(logits.sum()) > 0 else -logits

    with pytest.raises(ExportError, match="cannot export"):
        export_onnx(bundle_of(Lambda(forward, fc=nn.Linear(192, 4))), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(64)], ids=["empty", "text", "zeros"])
def test_file_that_is_no_model_is_refused_by_every_runtime(tmp_path: Path, content: bytes) -> None:
    for runtime in (onnx_room.RUNTIME, OPENVINO):
        path = tmp_path / f"bad{runtime.suffix}"
        path.write_bytes(content)
        with pytest.raises(ExportError, match=r"refuses|is not an OpenVINO IR"):
            runtime.open(path, threads=1)


def test_openvino_says_what_it_cannot_convert(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="cannot convert"):
        OPENVINO.convert(tmp_path / "bad.onnx", tmp_path / "bad.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


@pytest.fixture
def small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_full_disk_is_an_output_error_and_leaves_nothing(exported: tuple[Path, ModelBundle], tmp_path: Path) -> None:
    folder, bundle = exported
    with pytest.raises(OutputError, match="cannot write"):
        export_onnx(bundle, tmp_path / "model.onnx")
    with pytest.raises(OutputError, match="cannot write"):
        OPENVINO.convert(folder / "model.onnx", tmp_path / "model.xml")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ parity


def test_parity_of_the_right_file_is_tight(exported: tuple[Path, ModelBundle]) -> None:
    folder, bundle = exported
    session = onnx_room.RUNTIME.open(folder / "model.onnx", threads=1)
    parity = check_parity(bundle, session, images(), sha256="0" * 64, inputs="real")
    assert parity.max_difference < 1e-4
    assert (parity.batch_sizes, parity.same_labels, parity.inputs) == ((1, 8), True, "real")


def test_parity_catches_another_network_s_file(exported: tuple[Path, ModelBundle]) -> None:
    folder, bundle = exported
    session = onnx_room.RUNTIME.open(folder / "model.onnx", threads=1)
    other = bundle_of(randomized(Residual(), seed=1), preprocessing=PREPROCESSING)
    with pytest.raises(ParityError, match="differ by"):
        check_parity(other, session, images(), sha256="0" * 64, inputs="real")
    raw = dataclasses.replace(bundle, preprocessing=Preprocessing())
    with pytest.raises(ParityError, match="differ by"):
        check_parity(raw, session, images(), sha256="0" * 64, inputs="real")


@pytest.mark.parametrize("off", [1e-2, float("nan"), float("inf")])
def test_parity_fails_on_small_differences_and_on_what_is_not_finite(off: float) -> None:
    bundle = residual()
    with pytest.raises(ParityError):
        check_parity(bundle, honest(bundle, off=off), images(), sha256="0" * 64, inputs="random")


def test_parity_fails_when_one_image_of_the_last_batch_is_wrong() -> None:
    bundle = residual()
    right = honest(bundle)

    def wrong(batch: Floats) -> Floats:
        logits = right.logits(batch).copy()
        logits[7:8] = np.nan
        return logits

    with pytest.raises(ParityError):
        check_parity(bundle, Fake(wrong), images(), sha256="0" * 64, inputs="random")


def test_parity_of_networks_that_give_nan_themselves_fails() -> None:
    bundle = residual()
    with torch.no_grad():
        bundle.module.head.fc.bias.fill_(float("nan"))
    with pytest.raises(ParityError):
        check_parity(bundle, honest(bundle), images(), sha256="0" * 64, inputs="random")


@pytest.mark.parametrize("count", [1, 3, 16])
def test_parity_is_checked_at_both_batch_sizes_however_few_images_there_are(count: int) -> None:
    bundle, seen = residual(), list[int]()
    right = honest(bundle)

    def counted(batch: Floats) -> Floats:
        seen.append(len(batch))
        return right.logits(batch)

    check_parity(bundle, Fake(counted), images(count), sha256="0" * 64, inputs="random")
    assert seen == [1, 1, 8, 8]


def test_frozen_batch_size_fails_parity_with_a_remedy(tmp_path: Path) -> None:
    bundle = residual()
    path = tmp_path / "fixed.onnx"
    export_onnx(bundle, path)
    proto = onnx.load(str(path))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(proto, str(path))
    with pytest.raises(ParityError, match="cannot run the exported file on a batch of 8") as caught:
        check_parity(bundle, onnx_room.RUNTIME.open(path, threads=1), images(), sha256="0" * 64, inputs="random")
    assert "batch size" in caught.value.hint


def test_logits_of_another_shape_fail_parity() -> None:
    bundle = residual()
    fake = Fake(lambda batch: honest(bundle).logits(batch)[:, :3])
    with pytest.raises(ParityError, match=re.escape("shape (1, 3)")):
        check_parity(bundle, fake, images(), sha256="0" * 64, inputs="random")


# --------------------------------------------------------------------------------------------- pruned networks


@settings(max_examples=3, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(PRUNABLE)), st.floats(0.3, 0.7), st.integers(0, 9))
def test_pruned_networks_compute_the_same_in_both_runtimes(
    tmp_path_factory: pytest.TempPathFactory, name: str, ratio: float, seed: int
) -> None:
    bundle = bundle_of(randomized(PRUNABLE[name](), seed), preprocessing=PREPROCESSING)
    graph = trace(bundle)
    scores, goal = by_chance(bundle, graph, None, seed=seed), Goal("ratio", ratio)
    pruned = apply(make_plan(bundle, graph, scores, allocate(graph, scores, goal, 1), goal, 1, seed), bundle, graph)
    folder = tmp_path_factory.mktemp("pruned")
    made = export_network(pruned, Destination(folder, "model", "compressed"), BOTH, images(), "random")
    assert all(parity.max_difference <= parity.tolerance for parity in made.parity)
    assert made.artifacts[0].parent_digest == pruned.digest


def test_clipped_activations_and_depthwise_layers_keep_parity(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Depthwise()

        def forward(self, x: Tensor) -> Tensor:
            return functional.hardtanh(self.inner(x), -0.5, 0.5)

    bundle = bundle_of(randomized(Odd()))
    made = export_network(bundle, Destination(tmp_path, "model", "dense"), BOTH, images(), "random")
    assert len(made.parity) == 2


def test_a_network_that_fixes_its_batch_is_refused_in_words(tmp_path: Path) -> None:
    layers = {"conv": nn.Conv2d(3, 4, 3), "fc": nn.Linear(4, 4)}
    fixed = Lambda(lambda m, x: m.fc(m.conv(x).view(len(x), 4, -1).mean(2)), **layers)
    with pytest.raises(ExportError, match="batches of one size only") as error:
        export_onnx(bundle_of(fixed), tmp_path / "model.onnx")
    assert "len(x)" in error.value.where
    assert list(tmp_path.iterdir()) == []
