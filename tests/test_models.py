"""Loading: input shape, classes, outputs, preprocessing, digests, and the doubt about mean and std."""

from dataclasses import replace

import model_examples as examples
import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.config import ModelConfig
from edgeprune.errors import ModelError, UsageError
from edgeprune.models import digest, doubt_preprocessing, from_module, with_preprocessing
from edgeprune.types import Preprocessing, Split

SHAPE = (3, 8, 8)


def test_classes_are_counted_by_a_forward_pass():
    assert from_module(examples.Residual(classes=7), ModelConfig(input_shape=SHAPE)).classes == tuple("0123456")


def test_class_names_come_from_the_checkpoint(tmp_path):
    content = {"state_dict": examples.Residual().state_dict(), "classes": ["ant", "bee", "cat", "dog"]}
    torch.save(content, tmp_path / "m.pt")
    settings = ModelConfig(arch="model_examples:Residual", input_shape=SHAPE)
    assert edgeprune.load(tmp_path / "m.pt", settings).classes == ("ant", "bee", "cat", "dog")


def test_wrong_number_of_class_names_is_refused():
    with pytest.raises(UsageError, match="2 class names for a network with 4 classes"):
        from_module(examples.Residual(), ModelConfig(input_shape=SHAPE, classes=("a", "b")))


def test_missing_input_shape_names_the_flag_and_the_channels():
    with pytest.raises(UsageError, match="--input-shape, for example 1,28,28") as caught:
        from_module(nn.Sequential(nn.Conv2d(1, 4, 3)), ModelConfig())
    assert "takes 1 channels" in str(caught.value)


def test_wrong_channels_suggest_the_right_ones():
    with pytest.raises(UsageError, match="--input-shape 3,8,8"):
        from_module(examples.Residual(), ModelConfig(input_shape=(1, 8, 8)))


def test_wrong_size_shows_the_layers_complaint():
    with pytest.raises(UsageError, match="mat1 and mat2 shapes cannot be multiplied") as caught:
        from_module(nn.Sequential(nn.Flatten(), nn.Linear(10, 2)), ModelConfig(input_shape=SHAPE))
    assert len(str(caught.value).splitlines()) == 3


def test_gray_images_work():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    assert from_module(module, ModelConfig(input_shape=(1, 8, 8))).input_shape == (1, 8, 8)


def test_input_shape_argument_wins_over_the_settings(tmp_path):
    torch.save(examples.Residual().state_dict(), tmp_path / "m.pt")
    settings = ModelConfig(arch="model_examples:Residual", input_shape=SHAPE)
    assert edgeprune.load(tmp_path / "m.pt", settings, input_shape=(3, 16, 16)).input_shape == (3, 16, 16)


@pytest.mark.parametrize(("form", "output"), [("dict", "logits"), ("tuple", "1")])
def test_one_of_several_outputs_is_the_logits(form, output):
    module = examples.seeded(examples.Heads, form=form)
    bundle = from_module(module, ModelConfig(input_shape=SHAPE, output=output))
    images = torch.rand(2, *SHAPE)
    whole = module(images)
    assert torch.equal(bundle.module(images), whole["logits"] if form == "dict" else whole[1])


def test_several_outputs_ask_for_the_choice():
    with pytest.raises(ModelError, match=r"logits: \(2, 4\), aux: \(2, 2\)") as caught:
        from_module(examples.Heads(), ModelConfig(input_shape=SHAPE))
    assert "--output" in str(caught.value)


def test_unknown_output_names_the_known_ones():
    with pytest.raises(UsageError, match=r"no output boxes") as caught:
        from_module(examples.Heads(), ModelConfig(input_shape=SHAPE, output="boxes"))
    assert "aux: (2, 2)" in str(caught.value)


class TwoInputs(nn.Module):
    def forward(self, images, mask):
        return images.mean((2, 3)) * mask


class Broken(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, images):
        logits = images.mean((2, 3))
        return {"map": images, "one": logits[:, :1], "nan": logits / 0, "int": logits.long(), "flat": logits[0]}[
            self.form
        ]


def test_several_inputs_ask_for_the_values_of_the_others():
    with pytest.raises(UsageError, match="needs values for its other inputs: mask") as caught:
        from_module(TwoInputs(), ModelConfig(input_shape=SHAPE))
    assert "--held" in str(caught.value)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("map", "at least two classes"),
        ("one", r"\(2, 1\)"),
        ("nan", "not finite"),
        ("int", "int64"),
        ("flat", r"\(3,\)"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(form, words):
    with pytest.raises(ModelError, match=words):
        from_module(Broken(form), ModelConfig(input_shape=SHAPE))


def test_training_mode_and_double_precision_are_put_right():
    bundle = from_module(examples.Residual().double().train(), ModelConfig(input_shape=SHAPE))
    assert not any(module.training for module in bundle.module.modules())
    assert {p.dtype for p in bundle.module.parameters()} == {torch.float32}


def test_frozen_parameters_stay_frozen_on_loading(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten())
    module[0].weight.requires_grad_(False)
    torch.save(module, tmp_path / "m.pt")
    loaded = edgeprune.load(tmp_path / "m.pt", ModelConfig(input_shape=SHAPE)).module
    assert [p.requires_grad for p in loaded.parameters()] == [False, True]


def test_loading_calls_no_constructor_of_a_whole_module(tmp_path, monkeypatch):
    module = examples.Eager()
    torch.save(module, tmp_path / "m.pt")
    monkeypatch.setattr(examples.Eager, "__init__", lambda self: pytest.fail("the constructor ran"))
    bundle = edgeprune.load(tmp_path / "m.pt", ModelConfig(trust=("model_examples",), input_shape=SHAPE))
    assert type(bundle.module) is examples.Eager


def test_digest_knows_names_shapes_types_and_bytes():
    module = nn.Linear(2, 3)
    known = {digest(module)}
    for change in (
        lambda m: m.weight.data.add_(1),
        lambda m: m.half(),
        lambda m: m.register_parameter("other", nn.Parameter(torch.zeros(1))),
        lambda m: setattr(m, "bias", nn.Parameter(m.bias.data.view(3, 1))),
    ):
        change(module)
        assert digest(module) not in known
        known.add(digest(module))


def test_digest_ignores_the_order_of_registration():
    one, two = nn.Module(), nn.Module()
    for module, names in ((one, "ab"), (two, "ba")):
        for name in names:
            module.register_buffer(name, torch.full((2,), ord(name)))
    assert digest(one) == digest(two)


def test_preprocessing_subtracts_the_mean_and_divides_by_the_std():
    network = with_preprocessing(nn.Identity(), Preprocessing(mean=(0.25, 0.5, 0.0), std=(0.5, 0.25, 2.0)))
    pixels = torch.full((1, 3, 1, 1), 0.75)
    assert network(pixels).flatten().tolist() == [1.0, 1.0, 0.375]


def test_preprocessing_without_mean_is_the_module_itself():
    module = examples.Residual()
    assert with_preprocessing(module, Preprocessing()) is module


def test_preprocessing_shares_weights_and_exports():
    module = examples.seeded(examples.Residual)
    network = with_preprocessing(module, Preprocessing(mean=(0.5,), std=(0.5,)))
    exported = torch.export.export(network, (torch.zeros(2, *SHAPE),)).module()
    images = torch.rand(2, *SHAPE)
    assert torch.equal(exported(images), network(images))
    with torch.no_grad():
        module.fc.bias.add_(1)
    assert torch.equal(network(images), module((images - 0.5) / 0.5))


def test_mean_for_another_number_of_channels_is_refused():
    with pytest.raises(UsageError, match="2 values, the images have 3 channels"):
        from_module(examples.Residual(), ModelConfig(input_shape=SHAPE, mean=(0.1, 0.2), std=(1.0, 1.0)))


class Images:
    """Half of the images darker than 0.5, half brighter; the label says which."""

    def __init__(self, count=200):
        self.labels = np.arange(count, dtype=np.int64) % 2

    def read(self, ids):
        shade = 0.3 + 0.4 * self.labels[ids].astype(np.float32)
        return np.broadcast_to(shade[:, None, None, None], (len(ids), 1, 2, 2)).copy()


class Sign(nn.Module):
    """Class 1 where the normalised image is positive: right on mean 0.5, all class 1 on plain pixels."""

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


@pytest.mark.parametrize(("mean", "std", "doubted"), [((), (), True), ((0.5,), (0.5,), False), ((0.5,), (0.1,), False)])
def test_wrong_mean_and_std_are_doubted_and_right_ones_are_not(mean, std, doubted):
    bundle = from_module(Sign(), ModelConfig(input_shape=(1, 2, 2), mean=mean, std=std))
    split = Split("test", "shades", Images(), np.arange(200), "0" * 64)
    warning = doubt_preprocessing(bundle, split)
    assert bool(warning) == doubted
    if doubted:
        assert "on 100.0 % with mean and std of half the pixel range" in warning


def test_doubt_needs_more_than_a_few_images():
    bundle = from_module(Sign(), ModelConfig(input_shape=(1, 2, 2)))
    split = Split("test", "shades", Images(), np.arange(8), "0" * 64)
    assert doubt_preprocessing(bundle, split) == ""


def test_bundle_network_is_pixels_to_logits():
    bundle = from_module(Sign(), ModelConfig(input_shape=(1, 2, 2), mean=(0.5,), std=(0.5,)))
    assert bundle.network()(torch.full((1, 1, 2, 2), 0.75)).tolist() == [[-0.5, 0.5]]
    assert replace(bundle, preprocessing=Preprocessing()).network() is bundle.module
