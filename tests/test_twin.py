"""The twin of whole networks: parity and gradients, layouts and batches, and what is refused."""

import copy
import warnings

import numpy as np
import onnx
import pytest
import torch
from edgeprune.export.onnx import RUNTIME
from model_examples import Grouped, Mobile, Residual, Vit, seeded
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from twin_examples import graph_of, node, run_runtime, run_twin, save

from edgeprune.errors import EdgepruneError, ModelError, UsageError
from edgeprune.robustness.twin import Served, build, check

SHAPE = (3, 8, 8)


def images(count, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).random((count, *shape)).astype(np.float32)


def exported(module, folder, *, dynamo=True, free=True, shape=SHAPE, opset=None):
    path, example = folder / "model.onnx", torch.zeros(2 if free else 1, *shape)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        names = {"input_names": ["images"], "output_names": ["logits"]}
        if dynamo:
            dims = {"dynamic_shapes": ({0: torch.export.Dim("batch", min=1)},)} if free else {}
            torch.onnx.export(
                module, (example,), str(path), dynamo=True, verbose=False, opset_version=opset, **names, **dims
            )
        else:
            dims = {"dynamic_axes": {"images": {0: "batch"}, "logits": {0: "batch"}}} if free else {}
            torch.onnx.export(module, (example,), str(path), dynamo=False, opset_version=opset, **names, **dims)
    return path


def served(path, twin):
    return Served(RUNTIME.open(path, threads=1), twin.layout)


def gradient(module, x):
    points = torch.from_numpy(x).requires_grad_(True)
    logits = module(points)
    return torch.autograd.grad((logits * torch.linspace(-1, 1, logits.shape[1])).sum(), points)[0]


class Functional(nn.Module):
    """Operators that exporters spell out: pixel shuffle, interpolation, slices, statistics over shapes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = nn.functional.gelu(self.norm(self.stem(x)))
        x = nn.functional.interpolate(nn.functional.pixel_shuffle(x, 2), scale_factor=0.5, mode="bilinear")
        x = torch.cat([x, x[:, :1].expand(-1, 6, -1, -1)], 1).flatten(2)
        return self.head(nn.functional.normalize(x.amax(-1) + x.mean(-1)))


NETWORKS = {"resnet": Residual, "mobilenet": Mobile, "transformer": Vit, "grouped": Grouped, "functional": Functional}


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "old exporter"])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_network_has_a_twin_with_its_gradients(tmp_path, name, dynamo):
    original = seeded(NETWORKS[name]).eval()
    path = exported(original, tmp_path, dynamo=dynamo)
    twin = build(path)
    assert (twin.unsupported, twin.batching, twin.layout.shape) == ((), "free", SHAPE)
    assert twin.classes == original(torch.zeros(1, *SHAPE)).shape[1]
    assert not any(tensor.requires_grad for tensor in (*twin.module.parameters(), *twin.module.buffers()))
    for batch in (1, 3):
        x = images(batch)
        assert check(twin, served(path, twin), x) < 1e-5
        expected = gradient(original, x)
        assert torch.allclose(gradient(twin.module, x), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_file_for_one_image_takes_three(tmp_path, name):
    original = seeded(NETWORKS[name]).eval()
    path = exported(original, tmp_path, dynamo=name == "transformer", free=False)
    twin = build(path)
    x = images(3)
    assert check(twin, served(path, twin), x) < 1e-5
    expected = gradient(original, x)
    assert torch.allclose(gradient(twin.module, x), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_copy_runs_on_another_device(tmp_path, name):
    """The device "meta" has shapes and no numbers, and refuses tensors of the CPU, as a GPU does."""
    twin = build(exported(seeded(NETWORKS[name]).eval(), tmp_path, dynamo=False))
    moved = copy.deepcopy(twin.module).to("meta")
    assert moved(torch.zeros(3, *SHAPE, device="meta")).shape == (3, twin.classes)
    assert twin.module(torch.zeros(1, *SHAPE)).device.type == "cpu"


def test_batch_norm_becomes_part_of_the_convolution(tmp_path):
    class Normed(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean((2, 3))

    module = Normed(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    module[1].running_mean.uniform_(-1, 1)
    module[1].running_var.uniform_(0.1, 2)
    path = exported(module, tmp_path, dynamo=False)
    model = onnx.load(path)
    if not any(each.op_type == "BatchNormalization" for each in model.graph.node):  # the exporter folded it itself
        weights = {f"p{index}": images(1, (4,), index)[0] + 0.5 for index in range(4)}
        last = model.graph.node[0]
        fixed, last.output[0] = last.output[0], "conv"
        model.graph.node.insert(1, node("BatchNormalization", "conv p0 p1 p2 p3", fixed))
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
        save(model, tmp_path)
    twin = build(path)
    assert check(twin, served(path, twin), images(3)) < 1e-5
    ops = [step.node.op for step in twin.module._graph._program.steps]
    assert "Conv" in ops
    assert "BatchNormalization" not in ops


def flat_classifier(opset=13, last="Identity", classes=4, size=12, scale=1.0):
    """y = last(x W), for inputs that flatten to `size` numbers."""
    weights = np.random.default_rng(1).standard_normal((size, classes)).astype(np.float32) * scale
    return [node("MatMul", "f w", "z"), node(last, "z")], {"w": weights}, opset


LAYOUTS = {
    "channels last": (("n", 2, 2, 3), (3, 2, 2), None, "NHWC"),
    "channels last, one at a time": ((1, 2, 2, 3), (3, 2, 2), None, "NHWC"),
    "channels first": ((None, 3, 2, 2), (3, 2, 2), None, "NCHW"),
    "gray without channels": (("n", 3, 4), (1, 3, 4), None, "NCHW"),
    "flat": (("n", 12), (3, 2, 2), (3, 2, 2), "NCHW"),
    "flat column": ((1, 12, 1), (3, 2, 2), (3, 2, 2), "NCHW"),
    "no batch axis": ((3, 2, 2), (3, 2, 2), (3, 2, 2), "NCHW"),
    "two at a time": ((2, 3, 2, 2), (3, 2, 2), None, "NCHW"),
    "open size": (("n", 3, "h", "w"), (3, 2, 2), (3, 2, 2), "NCHW"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_follows_from_the_declared_input(tmp_path, name):
    declared, shape, given, order = LAYOUTS[name]
    nodes, constants, opset = flat_classifier()
    target = (1, -1) if name == "no batch axis" else (declared[0] if isinstance(declared[0], int) else 0, 12)
    constants["s"] = np.array(target, np.int64)
    path = save(graph_of([node("Reshape", "x s", "f"), *nodes], opset, declared, constants), tmp_path)
    twin = build(path, given)
    assert (twin.layout.shape, twin.layout.order, twin.classes) == (shape, order, 4)
    x = images(5, shape)
    session = served(path, twin)
    assert check(twin, session, x) < 1e-6
    ways = {"no batch axis": "in turn", "channels last, one at a time": "reshaped"}
    ways |= {"flat column": "reshaped", "two at a time": "reshaped"}
    assert twin.batching == ways.get(name, "free")
    ordered = x.transpose(0, 2, 3, 1) if order == "NHWC" else x
    assert np.allclose(session.logits(x), ordered.reshape(5, -1) @ constants["w"], atol=1e-5)


def test_transpose_at_the_start_tells_channels_last(tmp_path):
    nodes, constants, opset = flat_classifier(size=27)
    front = [node("Transpose", "x", "t", perm=[0, 3, 1, 2]), node("Flatten", "t", "f")]
    path = save(graph_of([*front, *nodes], opset, (1, 3, 3, 3), constants), tmp_path)
    twin = build(path)
    assert twin.layout.order == "NHWC"
    assert check(twin, served(path, twin), images(4, (3, 3, 3))) < 1e-6


@pytest.mark.parametrize("last", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_scores_have_gradients_where_a_softmax_has_none(tmp_path, last):
    nodes, constants, opset = flat_classifier(last=last, scale=1000)
    path = save(graph_of([node("Flatten", "x", "f"), *nodes], opset, ("n", 3, 2, 2), constants), tmp_path)
    twin = build(path)
    x = images(4, (3, 2, 2))
    assert check(twin, served(path, twin), x) < 1e-5
    assert (gradient(twin.scores, x).flatten(1) != 0).any(1).all()
    order = [module(torch.from_numpy(x)).argmax(1) for module in (twin.module, twin.scores)]
    assert last == "Sigmoid" or torch.equal(*order)


def test_quantised_network_passes_gradients_except_where_it_saturates(tmp_path):
    constants = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), node("Flatten", "d")]
    twin = build(save(graph_of(nodes, 13, ("n", 1, 2, 3), constants), tmp_path))
    x = np.array([-100, -12.8, -1, 0.04, 12.7, 13], np.float32).reshape(1, 1, 2, 3)
    points = torch.from_numpy(x).requires_grad_(True)
    found = twin.module(points)
    assert torch.allclose(found, torch.tensor([[-12.8, -12.8, -1.0, 0.0, 12.7, 12.7]]))
    assert torch.autograd.grad(found.sum(), points)[0].flatten().tolist() == [0, 1, 1, 1, 1, 0]
    assert twin.precision == "int8"


class Calibration:
    """What onnxruntime's quantiser reads images from."""

    def __init__(self, count):
        self._images = iter([{"images": each[None]} for each in images(count)])

    def get_next(self):
        return next(self._images, None)


def test_network_quantised_by_onnx_runtime_has_a_twin(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    original = seeded(Residual).eval()
    path = exported(original, tmp_path, opset=18)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_static(
            str(path),
            str(tmp_path / "int8.onnx"),
            Calibration(8),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
        )
    twin = build(tmp_path / "int8.onnx")
    assert (twin.precision, twin.unsupported) == ("int8", ())
    assert check(twin, served(tmp_path / "int8.onnx", twin), images(8)) < 0.1
    ours, theirs = (gradient(module, images(8)).flatten() for module in (twin.module, original))
    assert float(torch.nn.functional.cosine_similarity(ours, theirs, 0)) > 0.9


def test_operator_without_a_rule_is_named(tmp_path):
    nodes = [
        node("Magic", "x", "m", "com.acme"),
        node("NonZero", "m", "n"),
        node("Cast", "n", "c", to=1),
        node("Relu", "c"),
    ]
    twin = build(save(graph_of(nodes, 13, ("n", 3, 2, 2), domains=["com.acme"]), tmp_path))
    assert twin.unsupported == ("com.acme.Magic", "NonZero")
    assert twin.module is None


def test_variant_without_a_rule_says_which(tmp_path):
    nodes = [node("MaxPool", "x", "p i", kernel_shape=[2, 2]), node("Cast", "i", "c", to=1), node("Add", "p c")]
    twin = build(save(graph_of(nodes, 12, ("n", 3, 4, 4)), tmp_path))
    assert twin.unsupported == ("MaxPool (its further outputs are used)",)


def test_functions_of_the_file_are_inlined(tmp_path):
    doubled = helper.make_function(
        "local", "Double", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 13)]
    )
    model = graph_of([node("Double", "x", "d", "local"), node("Flatten", "d")], 13, ("n", 3, 2, 2), domains=["local"])
    model.functions.append(doubled)
    twin = build(save(model, tmp_path))
    assert np.allclose(twin.module(torch.ones(2, 3, 2, 2)), 2)


@pytest.mark.parametrize("known", [True, False])
def test_if_takes_the_branch_that_the_runtime_takes(tmp_path, known):
    def side(op, name):
        return helper.make_graph([node(op, "f", name)], name, [], [onnx.ValueInfoProto(name=name)])

    parts = {"then_branch": side("Relu", "then"), "else_branch": side("Neg", "else")}
    front = [node("Flatten", "x", "f"), node("Size", "x", "size"), node("Less", "size limit", "small")]
    condition = "yes" if known else "small"
    constants = {"limit": np.array(20, np.int64), "yes": np.array(False)}
    path = save(graph_of([*front, node("If", condition, **parts)], 13, ("n", 3, 2, 2), constants), tmp_path)
    for batch in (1, 3):
        x = images(batch, (3, 2, 2)) - 0.5
        assert np.allclose(run_twin(path, x)[0], run_runtime(path, x))


def test_file_whose_images_depend_on_their_company_takes_them_one_by_one(tmp_path):
    nodes = [node("Flatten", "x", "f"), node("ReduceMax", "f", "m", axes=[0]), node("Mul", "f m")]
    path = save(graph_of(nodes, 13, ("n", 3, 2, 2)), tmp_path)
    twin = build(path)
    assert (twin.batching, twin.layout.batch) == ("in turn", 1)
    assert check(twin, served(path, twin), images(3, (3, 2, 2))) < 1e-5


def test_tensor_beyond_reason_is_refused(tmp_path):
    nodes = [node("ConstantOfShape", "s", "c"), node("Add", "x c")]
    path = save(graph_of(nodes, 13, ("n", 3, 2, 2), {"s": np.array([10**6, 10**6, 2, 2])}), tmp_path)
    assert "1000000" in build(path).unsupported[0]


def test_twin_that_disagrees_has_no_parity(tmp_path):
    nodes, constants, opset = flat_classifier()
    path = save(graph_of([node("Flatten", "x", "f"), *nodes], opset, ("n", 3, 2, 2), constants), tmp_path)
    twin, x = build(path), images(4, (3, 2, 2))

    class Other:
        def __init__(self, change):
            self.change = change

        def logits(self, given):
            return self.change(served(path, twin).logits(given))

    assert check(twin, Other(lambda found: found * 1.01), x) > 1e-3
    assert check(twin, Other(lambda found: found * np.nan), x) == np.inf
    assert check(twin, Other(lambda found: found[:, :2]), x) == np.inf


def external(folder, location):
    """A network whose weights stand elsewhere."""
    nodes, constants, opset = flat_classifier()
    model = graph_of([node("Flatten", "x", "f"), *nodes], opset, ("n", 3, 2, 2), constants)
    weights = model.graph.initializer[0]
    data = weights.raw_data
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    return save(model, folder), data


def test_external_weights_beside_the_file_are_read(tmp_path):
    path, data = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(data)
    twin = build(path)
    assert check(twin, served(path, twin), images(2, (3, 2, 2))) < 1e-6


def test_external_weights_that_escape_are_refused(tmp_path):
    (tmp_path / "inner").mkdir()
    for place in ("../secret.bin", str(tmp_path / "secret.bin")):
        path, data = external(tmp_path / "inner", place)
        (tmp_path / "secret.bin").write_bytes(data)
        with pytest.raises(ModelError, match="outside its folder"):
            build(path)
    path, _ = external(tmp_path / "inner", "link.bin")
    (tmp_path / "inner" / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="outside its folder"):
        build(path)


def test_missing_external_weights_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"missing: weights\.bin"):
        build(external(tmp_path, "weights.bin")[0])


def broken(kind, folder):
    nodes, constants, _ = flat_classifier()
    model = graph_of([node("Flatten", "x", "f"), *nodes], 13, ("n", 3, 2, 2), constants)
    if kind == "old":
        model.opset_import[0].version = 6
    if kind == "two inputs":
        model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    if kind == "whole numbers":
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    if kind == "short tensor":
        model.graph.initializer[0].raw_data = b"1234"
    if kind == "open size":
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "h"
    if kind == "giant":
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 10**9
    if kind == "one axis":
        del model.graph.input[0].type.tensor_type.shape.dim[1:]
    path = save(model, folder)
    if kind == "text":
        path.write_text("this is no network")
    if kind == "empty":
        path.write_bytes(b"")
    return path


REFUSED = {
    "text": "not an ONNX",
    "empty": "not an ONNX",
    "old": "opset 6",
    "two inputs": r"2 inputs \(x, more\)",
    "whole numbers": "floating-point pixels",
    "short tensor": "not what it says",
    "open size": "--input-shape",
    "giant": "too large",
    "one axis": "no batch of images",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_file_that_is_no_image_classifier_is_refused_with_a_reason(tmp_path, kind):
    with pytest.raises(EdgepruneError, match=REFUSED[kind]):
        build(broken(kind, tmp_path))


def test_bytes_that_changed_never_surprise(tmp_path):
    """Whatever is wrong with a file, the answer is a twin, names of operators, or an error of ours."""
    constants = {**flat_classifier()[1], "k": np.ones((3, 3, 1, 1), np.float32), "s": np.array([0, -1])}
    nodes = [node("Conv", "x k", "c"), node("Reshape", "c s", "f"), *flat_classifier()[0]]
    path = save(graph_of(nodes, 13, ("n", 3, 2, 2), constants), tmp_path)
    whole, draw, seen = path.read_bytes(), np.random.default_rng(0), set()
    for _ in range(400):
        changed = np.frombuffer(whole, np.uint8).copy()
        changed[draw.integers(0, len(whole), draw.integers(1, 4))] = draw.integers(0, 256)
        path.write_bytes(changed.tobytes())
        try:
            seen.add(build(path).module is not None)
        except EdgepruneError:
            seen.add("refused")
    assert seen == {True, False, "refused"}


def test_shape_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not hold images of shape 3,5,5"):
        build(broken("", tmp_path), (3, 5, 5))
