"""Networks with several inputs: all but the images are held at values that the user gives, up to the exported file."""

import json
import zipfile

import model_examples as examples
import numpy as np
import onnx
import pytest
import torch
from edgeprune.export.onnx import RUNTIME, export_onnx
from torch import nn

import edgeprune
from edgeprune.config import ModelConfig
from edgeprune.errors import DataError, ModelError, UsageError
from edgeprune.models import from_module
from edgeprune.models.inputs import HeldInputs, held_in
from edgeprune.models.outputs import SelectedOutput
from edgeprune.pruning.criteria import l2
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import allocate, apply, make_plan
from edgeprune.pruning.surgery import cut, silence
from edgeprune.types import Goal

SHAPE = (3, 8, 8)
CONTEXT = np.linspace(-1, 1, 5)
TRUST = ModelConfig(trust=("model_examples",))


def held(folder, **arrays):
    np.savez(folder / "held.npz", **arrays)
    return folder / "held.npz"


def gated(folder, arch="model_examples:Gated", context=CONTEXT, **settings):
    values = held(folder, context=context)
    settings = ModelConfig(held=values, arch=arch, input_shape=SHAPE, **settings)
    return from_module(examples.seeded(examples.Gated), settings)


def images(count):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(count))


def refused(module, error, words, **settings):
    with pytest.raises(error, match=words) as caught:
        from_module(module, ModelConfig(**{"input_shape": SHAPE, **settings}))
    assert caught.value.hint
    return str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_image_meets_the_same_held_value(count, tmp_path):
    module = examples.seeded(examples.Gated)
    context = torch.tensor(CONTEXT, dtype=torch.float32).repeat(count, 1)
    assert torch.equal(gated(tmp_path).module(images(count)), module(images(count), context))


def test_images_may_be_any_argument_and_the_output_one_of_several(tmp_path):
    mask = np.random.default_rng(0).random((8, 8)) > 0.5
    settings = ModelConfig(
        input_shape=SHAPE, held=held(tmp_path, task=np.int32(2), mask=mask), image_input="images", output="logits"
    )
    module = examples.seeded(examples.Conditioned)
    bundle = from_module(module, settings)
    expected = module(torch.full((3,), 2), images(3), mask=torch.from_numpy(mask).expand(3, 8, 8))["logits"]
    assert torch.equal(bundle.module(images(3)), expected)
    edgeprune.save(bundle, tmp_path / "b.pt")
    again = edgeprune.load(tmp_path / "b.pt", TRUST)
    assert torch.equal(again.module(images(3)), expected)
    assert held_in(again.module) == {"mask": (8, 8), "task": ()}


def test_truth_values_whole_numbers_and_floats_keep_their_kind(tmp_path):
    path = held(tmp_path, task=np.uint8(2), mask=np.ones((8, 8), bool))
    module = from_module(
        examples.Conditioned(), ModelConfig(input_shape=SHAPE, held=path, image_input="images", output="logits")
    ).module
    assert (module.module.held_task.dtype, module.module.held_mask.dtype) == (torch.int64, torch.bool)
    assert gated(tmp_path).module.held_context.dtype == torch.float32


def test_optional_inputs_need_no_value(tmp_path):
    class Optional(nn.Module):
        def forward(self, mask=None, x=None):
            return x.mean((2, 3)) if mask is None else x.mean((2, 3)) * mask

    one, other = (
        from_module(Optional(), ModelConfig(input_shape=SHAPE, image_input="x", held=path))
        for path in (None, held(tmp_path, mask=np.full(3, 0.5)))
    )
    assert torch.equal(one.module(images(2)), images(2).mean((2, 3)))
    assert torch.equal(other.module(images(2)), images(2).mean((2, 3)) * 0.5)


def test_naming_the_first_argument_changes_nothing():
    module = examples.Residual()
    assert from_module(module, ModelConfig(input_shape=SHAPE, image_input="x")).module is module


def test_the_held_value_is_part_of_the_digest(tmp_path):
    assert gated(tmp_path).digest != gated(tmp_path, context=CONTEXT + 1).digest


def test_pruning_and_export_work_behind_held_inputs(tmp_path):
    bundle = gated(tmp_path, mean=(0.5,), std=(0.25,))
    graph, goal = trace(bundle), Goal("ratio", 0.5)
    assert {group.name: group.width for group in graph.groups} == {"module.conv1": 16, "module.conv2": 12}
    scores = l2(bundle, graph, None, seed=0)
    pruned = apply(make_plan(bundle, graph, scores, allocate(graph, scores, goal, 4), goal, 4, 0), bundle, graph)
    assert pruned.module.module.gate.out_features == 8
    export_onnx(pruned, tmp_path / "m.onnx")
    assert [each.name for each in onnx.load(tmp_path / "m.onnx").graph.input] == ["images"]
    session = RUNTIME.open(tmp_path / "m.onnx", threads=1)
    for count in (1, 8):
        with torch.no_grad():
            expected = pruned.network()(images(count)).numpy()
        assert np.abs(session.logits(images(count).numpy()) - expected).max() < 1e-5


def test_a_held_value_that_gates_channels_loses_them_too(tmp_path):
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

        def forward(self, x, gate):
            return self.head(torch.relu(self.b(torch.relu(self.a(x)) * gate[:, :, None, None])).mean((2, 3)))

    gate = np.arange(8, dtype=np.float32) + 1
    bundle = from_module(Raw(), ModelConfig(input_shape=SHAPE, held=held(tmp_path, gate=gate)))
    graph = trace(bundle)
    assert [group.name for group in graph.groups] == ["module.a", "module.b"]
    pruned = cut(bundle.module, graph.groups, {"module.a": [1, 5]}).eval()
    assert pruned.held_gate.tolist() == [1, 3, 4, 5, 7, 8]
    silenced = silence(bundle.module, graph.groups, {"module.a": [1, 5]}).eval()
    assert torch.allclose(pruned(images(2)), silenced(images(2)), atol=1e-6)
    counted = from_module(Raw(), ModelConfig(input_shape=SHAPE, held=held(tmp_path, gate=gate.astype(np.int64))))
    assert "module.a" in {refusal.name for refusal in trace(counted).refusals}  # whole numbers are not followed


@pytest.mark.parametrize("arch", ["model_examples:Gated", None])
def test_bundle_keeps_what_is_held_and_settings_win_over_it(arch, tmp_path):
    bundle = gated(tmp_path, arch)
    edgeprune.save(bundle, tmp_path / "b.pt")
    (tmp_path / "held.npz").unlink()
    again = edgeprune.load(tmp_path / "b.pt", TRUST)
    assert again.digest == bundle.digest
    assert torch.equal(again.module(images(2)), bundle.module(images(2)))
    other = held(tmp_path, context=CONTEXT + 1)
    changed = edgeprune.load(tmp_path / "b.pt", ModelConfig(trust=("model_examples",), held=other))
    assert isinstance(changed.module, HeldInputs)
    assert not isinstance(changed.module.module, HeldInputs)
    assert torch.equal(changed.module.held_context, torch.tensor(CONTEXT + 1, dtype=torch.float32))


def test_bundle_is_data_whatever_names_it_holds(tmp_path):
    edgeprune.save(gated(tmp_path), tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members["edgeprune.json"])
    for names in (["forward.x"], ["other"], ["context", "x"]):
        with zipfile.ZipFile(tmp_path / "odd.pt", "w") as archive:
            archive.writestr("edgeprune.json", json.dumps({**manifest, "held": names}))
            archive.writestr("weights.safetensors", members["weights.safetensors"])
        with pytest.raises((ModelError, UsageError)):
            edgeprune.load(tmp_path / "odd.pt", TRUST)


# ------------------------------------------------------------------------------------------------- faults


def test_missing_values_are_named_with_the_setting(tmp_path):
    said = refused(examples.Conditioned(), UsageError, "needs values for its other inputs: mask", image_input="images",
                   held=held(tmp_path, task=np.int64(1)))  # fmt: skip
    assert "(task, images, mask)" in said
    assert "--held" in said
    assert "other inputs: context" in refused(examples.Gated(), UsageError, "context")


def test_the_number_of_images_is_not_a_value(tmp_path):
    said = refused(
        examples.Gated(), UsageError, r"with context held as \(1, 5\)", held=held(tmp_path, context=CONTEXT[None, :])
    )
    assert "held inputs are for one sample, without a batch dimension" in said


def test_a_wrong_shape_shows_the_layers_complaint(tmp_path):
    said = refused(
        examples.Gated(), UsageError, r"with context held as \(7,\)", held=held(tmp_path, context=np.zeros(7))
    )
    assert "mat1 and mat2 shapes cannot be multiplied" in said
    assert "the shapes of what is held" in said


@pytest.mark.parametrize(
    ("arrays", "settings", "words"),
    [
        ({"context": CONTEXT, "contxt": CONTEXT}, {}, "contxt, which is no input"),
        ({"context": CONTEXT, "x": CONTEXT}, {}, "x takes the images"),
        ({"context": CONTEXT}, {"image_input": "y"}, "--image-input names y"),
        ({"context": CONTEXT}, {"image_input": "context"}, "context takes the images"),
        ({"context": np.full(5, np.nan)}, {}, "NaN or infinite"),
        ({"context": np.array(["a"])}, {}, "cannot be an input"),
        ({"not a name": CONTEXT}, {}, "cannot be an input"),
    ],
)
def test_what_fits_no_input_is_refused(arrays, settings, words, tmp_path):
    refused(examples.Gated(), UsageError, words, held=held(tmp_path, **arrays), **settings)


def test_superfluous_values_are_refused_for_a_network_of_one_input(tmp_path):
    said = refused(examples.Residual(), UsageError, "no input", held=held(tmp_path, context=CONTEXT))
    assert "its forward takes (x)" in said


@pytest.mark.parametrize(("content", "error"), [(None, UsageError), (b"x", DataError)])
def test_a_file_that_is_none_is_an_error(content, error, tmp_path):
    if content is not None:
        (tmp_path / "held.npz").write_bytes(content)
    refused(examples.Gated(), error, "held", held=tmp_path / "held.npz")


def test_pickled_values_are_never_opened(tmp_path):
    refused(examples.Gated(), DataError, "Python objects", held=held(tmp_path, context=np.array([object()])))


def test_output_of_a_bundle_stays_around_what_is_held(tmp_path):
    path = held(tmp_path, task=np.int64(1), mask=np.ones((8, 8)))
    settings = ModelConfig(
        input_shape=SHAPE, held=path, image_input="images", output="logits", arch="model_examples:Conditioned"
    )
    bundle = from_module(examples.seeded(examples.Conditioned), settings)
    edgeprune.save(bundle, tmp_path / "b.pt")
    for extra in ({}, {"held": path}, {"output": "features"}):
        module = edgeprune.load(tmp_path / "b.pt", ModelConfig(trust=("model_examples",), **extra)).module
        assert isinstance(module, SelectedOutput)
        assert isinstance(module.module, HeldInputs)
        assert type(module.module.module) is examples.Conditioned
        assert module.module.image_input == "images"
