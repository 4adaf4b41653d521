"""Every kind of file that a user may bring, and what happens: the table."""

import json
import pickle
import sys
import types
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path

import model_examples as examples
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import edgeprune
from edgeprune.config import ModelConfig
from edgeprune.errors import ModelError, UntrustedModelError, UsageError
from edgeprune.models import from_module

HERE = Path(__file__).parent
SHAPE = (3, 8, 8)
ARCH = "model_examples:Residual"


def net():
    return examples.seeded(examples.Residual)


def state(prefix=""):
    return OrderedDict((prefix + key, value) for key, value in net().state_dict().items())


def weights():
    return state()


def other_state(prefix=""):
    torch.manual_seed(9)
    return OrderedDict((prefix + key, value) for key, value in examples.Residual().state_dict().items())


def plain_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


def write_bundle(path):
    edgeprune.save(from_module(net(), ModelConfig(input_shape=SHAPE, arch=ARCH)), path)


def write_program(path):
    batch = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(net(), (torch.zeros(2, *SHAPE),), dynamic_shapes=batch), path)


def lightning(path):
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {**state("model."), "loss.weight": torch.ones(4)},
        "hyper_parameters": {"lr": 0.1, "path": Path("runs")},
        "optimizer_states": [{"state": defaultdict(dict), "param_groups": []}],
        "callbacks": {},
    }
    torch.save(content, path)


def script_class():
    """A class that pickles as one of a training script, with the script's file beside it."""
    module = types.ModuleType("train_script_example")
    sys.modules[module.__name__] = module
    cls = type("ScriptNet", (examples.Residual,), {"__module__": module.__name__})
    module.ScriptNet = cls
    return cls


def write_script_module(path):
    path.with_name("train_script_example.py").write_text(
        "import model_examples\n\n\nclass ScriptNet(model_examples.Residual):\n    pass\n"
    )
    torch.save(examples.seeded(script_class()), path)
    del sys.modules["train_script_example"]


def averaged():
    return AveragedModel(net())


def truncated(path):
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:2000])


def torchscript(path):
    # Traced, not scripted: scripting compiles torch's own sources, which once failed in the middle of a busy CI run.
    torch.jit.trace(plain_net().eval(), torch.zeros(1, 3, 32, 32)).save(path)


def quantized_state():
    return {**state(), "stem.weight": torch.quantize_per_tensor(net().stem.weight.detach(), 0.1, 0, torch.qint8)}


def with_value(value):
    changed = state()
    changed["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    return changed


ARCHED = {"arch": ARCH}
OPENS = {
    "a bundle": (write_bundle, {"trust": ("model_examples",), "input_shape": None}),
    "a state_dict": (weights, ARCHED),
    "a state_dict in the format before torch 1.6": (
        lambda path: torch.save(state(), path, _use_new_zipfile_serialization=False),
        ARCHED,
    ),
    "a state_dict of DataParallel": (lambda: state("module."), ARCHED),
    "a state_dict of torch.compile": (lambda: state("_orig_mod."), ARCHED),
    "a state_dict of both": (lambda: state("module._orig_mod."), ARCHED),
    "a checkpoint with the key state_dict": (
        lambda: {"epoch": 1, "state_dict": state(), "best": np.float64(0.9)},
        ARCHED,
    ),
    "a checkpoint with the key model": (
        lambda: {"epoch": 1, "model": state("module."), "optimizer": {"lr": 1}},
        ARCHED,
    ),
    "a checkpoint with an averaged copy": (lambda: {"model": other_state(), "model_ema": state()}, ARCHED),
    "a checkpoint with an odd key": (lambda: {"generator": state(), "step": 3}, ARCHED),
    "a checkpoint of two networks, one named": (
        lambda: {"teacher": other_state(), "student": state()},
        {**ARCHED, "weights_entry": "student"},
    ),
    "a state_dict of an averaged model": (lambda: averaged().state_dict(), ARCHED),
    "a Lightning checkpoint": (lightning, ARCHED),
    "a state_dict in half precision": (lambda: OrderedDict((k, v.half()) for k, v in state().items()), ARCHED),
    "a state_dict with parameters": (lambda: dict(net().named_parameters()) | dict(net().named_buffers()), ARCHED),
    "a state_dict whose constructor is a function": (
        weights,
        {"arch": "model_examples:build_residual", "arch_args": {"width": 8}},
    ),
    "a state_dict whose constructor is in a file": (weights, {"arch": f"{HERE / 'model_examples.py'}:Residual"}),
    "safetensors beside an arch": (lambda path: safetensors.torch.save_file(dict(state()), path), ARCHED),
    "a whole module of torch's classes": (plain_net, {}),
    "a whole module of DataParallel": (lambda: nn.DataParallel(plain_net()), {}),
    "a whole module of the user's classes": (net, {"trust": ("model_examples",)}),
    "a whole module in a checkpoint": (lambda: {"model": net(), "epoch": 3}, {"trust": ("model_examples",)}),
    "a whole averaged model": (averaged, {"trust": ("model_examples",)}),
    "a whole compiled model": (lambda: torch.compile(net()), {"trust": ("model_examples",)}),
    "a whole module of a class in a named file": (
        write_script_module,
        {"trust": ("FOLDER/train_script_example.py", "model_examples")},
    ),
    "a torch.export program": (write_program, {}),
}
SUFFIX = {"safetensors beside an arch": ".safetensors", "a torch.export program": ".pt2"}


def write(content, path):
    """Write what an entry of the table makes: it writes the file itself, or gives the object to save."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about the old ways of making files, which people have
        if content.__code__.co_argcount:
            content(path)
        else:
            torch.save(content(), path)


@pytest.mark.parametrize("kind", OPENS)
def test_opens(kind, tmp_path):
    content, settings = OPENS[kind]
    path = tmp_path / f"model{SUFFIX.get(kind, '.pt')}"
    write(content, path)
    settings = json.loads(json.dumps(settings).replace("FOLDER", str(tmp_path)))
    bundle = edgeprune.load(path, ModelConfig(**{"input_shape": SHAPE, **settings}))
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    original = plain_net() if content is plain_net or ("DataParallel" in kind and "whole" in kind) else net()
    tolerance = 1e-2 if "half" in kind else 0
    with torch.no_grad():
        assert torch.allclose(bundle.module(images), original(images), atol=tolerance, rtol=0)
    assert not bundle.module.training
    assert {p.dtype for p in bundle.module.parameters()} == {torch.float32}


REFUSED = {
    "no such file": (None, {}, UsageError, "no such model file"),
    "an empty file": (lambda path: path.write_bytes(b""), {}, ModelError, "is empty"),
    "a folder": (lambda path: path.mkdir(), {}, UsageError, "is a folder"),
    "a truncated file": (truncated, ARCHED, ModelError, "cut short"),
    "a text file": (lambda path: path.write_text("hello, I am a model"), {}, ModelError, "damaged or not a model"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), {}, ModelError, "not a model"),
    "a plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), {}, ModelError, "pickle protocol"),
    "ONNX": (lambda path: path.with_suffix(".onnx").write_bytes(b"x"), {}, ModelError, "edgeprune measure"),
    "TorchScript": (torchscript, {}, ModelError, "is TorchScript"),
    "a tensor": (lambda: torch.zeros(3), {}, ModelError, "holds no network"),
    "an optimizer's checkpoint": (lambda: {"epoch": 1, "optimizer": {"lr": 0.1}}, {}, ModelError, "epoch, optimizer"),
    "two networks": (lambda: {"teacher": state(), "student": state()}, ARCHED, UsageError, "--weights-entry"),
    "an entry that is not there": (weights, {**ARCHED, "weights_entry": "ema"}, UsageError, "has no entry ema"),
    "a state_dict without arch": (weights, {}, UsageError, "weights without their network"),
    "a whole module with arch": (plain_net, ARCHED, UsageError, "holds a whole module"),
    "a module of others' classes": (net, {}, UntrustedModelError, "--trust model_examples"),
    "an arch that does not exist": (weights, {"arch": "model_examples:Residul"}, UsageError, "did you mean Residual"),
    "an arch in a missing package": (weights, {"arch": "nowhere.nets:Net"}, ModelError, "no module nowhere"),
    "an arch that is no name": (weights, {"arch": "resnet18"}, UsageError, "not the name of a constructor"),
    "an arch that makes no module": (weights, {"arch": "collections:OrderedDict"}, UsageError, "not a torch module"),
    "arguments that do not fit": (weights, {**ARCHED, "arch_args": {"wdth": 8}}, UsageError, "--arch-args"),
    "other widths": (weights, {**ARCHED, "arch_args": {"width": 16}}, ModelError, "have another shape"),
    "other classes": (
        weights,
        {**ARCHED, "arch_args": {"classes": 7}},
        ModelError,
        "the file's last layer has 4 outputs",
    ),
    "another network": (weights, {"arch": "model_examples:Vit"}, ModelError, "tensors are missing"),
    "weights that are NaN": (lambda: with_value(float("nan")), ARCHED, ModelError, r"layer1\.0\.conv1\.weight .* NaN"),
    "weights that are infinite": (lambda: with_value(float("inf")), ARCHED, ModelError, "NaN or infinite"),
    "quantized weights": (quantized_state, ARCHED, ModelError, "quantized"),
    "shapes without values": (lambda: examples.Residual().to("meta").state_dict(), ARCHED, ModelError, "no values"),
    "damaged safetensors": (
        lambda path: path.with_suffix(".safetensors").write_bytes(b"xx"),
        ARCHED,
        ModelError,
        "damaged",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused(kind, tmp_path):
    content, settings, error, words = REFUSED[kind]
    path = tmp_path / "model.pt"
    if content is not None:
        write(content, path)
    path = next((entry for entry in tmp_path.iterdir() if entry.suffix != ".py"), path)
    with pytest.raises(error, match="(?s)" + words) as caught:
        edgeprune.load(path, ModelConfig(**{"input_shape": SHAPE, **settings}))
    assert len(str(caught.value).splitlines()) <= 4
    assert caught.value.hint or kind in ("an entry that is not there", "no such file")


def test_a_class_in_a_script_names_the_way_out(tmp_path):
    torch.save(examples.seeded(script_class()), tmp_path / "model.pt")
    del sys.modules["train_script_example"]
    with pytest.raises(UntrustedModelError, match="--trust train_script_example"):
        edgeprune.load(tmp_path / "model.pt")
    with pytest.raises(ModelError, match="cannot import train_script_example"):
        edgeprune.load(tmp_path / "model.pt", ModelConfig(trust=("train_script_example",)))


def test_functions_of_torch_may_be_attributes(tmp_path):
    module = examples.seeded(examples.Tied)
    torch.save(module, tmp_path / "model.pt")
    loaded = edgeprune.load(tmp_path / "model.pt", ModelConfig(trust=("model_examples",), input_shape=SHAPE)).module
    assert loaded.other is torch.relu
    assert torch.equal(loaded(torch.ones(2, *SHAPE)), module(torch.ones(2, *SHAPE)))
