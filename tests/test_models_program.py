"""torch.export programs: the same outputs, layers that can be pruned, and what is refused."""

import model_examples as examples
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.config import ModelConfig
from edgeprune.errors import ModelError
from edgeprune.models import operators

SHAPE = (3, 8, 8)
SETTINGS = ModelConfig(input_shape=SHAPE)


def exported(module, path, batch=torch.export.Dim.DYNAMIC):
    shapes = None if batch is None else ({0: batch},)
    torch.export.save(torch.export.export(module, (torch.zeros(2, *SHAPE),), dynamic_shapes=shapes), path)


@pytest.mark.parametrize("kind", ["residual", "mobile", "dense", "vit", "grouped", "tied"])
def test_program_computes_the_same_at_every_batch_size(kind, tmp_path):
    module = examples.seeded(examples.KINDS[kind])
    exported(module, tmp_path / "m.pt2")
    loaded = edgeprune.load(tmp_path / "m.pt2", SETTINGS).module
    for count in (1, 2, 5):
        images = torch.rand(count, *SHAPE)
        with torch.no_grad():
            assert torch.equal(loaded(images), module(images))


def test_layers_of_a_program_are_layers_again_and_can_be_pruned(tmp_path):
    exported(examples.seeded(examples.Residual), tmp_path / "m.pt2")
    loaded = edgeprune.load(tmp_path / "m.pt2", SETTINGS).module
    kinds = {name: type(layer) for name, layer in loaded.named_modules()}
    assert kinds["stem"] is nn.Conv2d
    assert kinds["layer1.0.bn1"] is nn.BatchNorm2d
    assert kinds["fc"] is nn.Linear
    cut = examples.pruned(loaded)
    assert cut.get_submodule("layer1.0.conv1").weight.shape == (4, 4, 3, 3)
    assert cut(torch.zeros(2, *SHAPE)).shape == (2, 4)


def test_gradients_flow_through_a_program(tmp_path):
    exported(examples.seeded(examples.Vit), tmp_path / "m.pt2")
    loaded = edgeprune.load(tmp_path / "m.pt2", SETTINGS).module
    images = torch.rand(2, *SHAPE, requires_grad=True)
    loaded(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_program_without_a_free_batch_size_is_refused_by_its_shape(tmp_path):
    batch = torch.export.Dim.STATIC
    torch.export.save(
        torch.export.export(examples.seeded(examples.Vit), (torch.zeros(3, *SHAPE),), dynamic_shapes=({0: batch},)),
        tmp_path / "m.pt2",
    )
    with pytest.raises(edgeprune.errors.EdgepruneError):
        edgeprune.load(tmp_path / "m.pt2", SETTINGS)


def test_program_of_several_outputs_is_refused(tmp_path):
    exported(examples.seeded(examples.Heads), tmp_path / "m.pt2")
    with pytest.raises(ModelError, match="2 outputs, not one and one"):
        edgeprune.load(tmp_path / "m.pt2", SETTINGS)


def test_truncated_program_is_an_error(tmp_path):
    exported(examples.seeded(examples.Residual), tmp_path / "m.pt2")
    (tmp_path / "m.pt2").write_bytes((tmp_path / "m.pt2").read_bytes()[:5000])
    with pytest.raises(ModelError, match="cut short"):
        edgeprune.load(tmp_path / "m.pt2", SETTINGS)


def test_only_tensor_operators_are_functions():
    assert operators.function("torch.ops.aten.relu.default") is torch.ops.aten.relu.default
    assert operators.function("_operator.mul")(6, 7) == 42
    with pytest.raises(ValueError, match="not one that is admitted"):
        operators.function("torch.ops.aten.from_file.default")
