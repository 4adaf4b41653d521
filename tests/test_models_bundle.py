"""Bundles: bit-equal after reloading in a fresh process, deterministic, verified, never a pickle."""

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import model_examples as examples
import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.config import ModelConfig
from edgeprune.errors import ModelError, UntrustedModelError, UsageError
from edgeprune.models import digest, from_module
from edgeprune.pruning.criteria import l2
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import allocate, apply, make_plan
from edgeprune.types import Goal

HERE = Path(__file__).parent
SHAPE = (3, 8, 8)
TRUST = ModelConfig(trust=("model_examples",))

FRESH = """
import json, sys, torch
torch.set_num_threads(1)
import edgeprune
from edgeprune.config import ModelConfig
equal = {}
for name in sys.argv[2:]:
    images, logits = torch.load(f"{sys.argv[1]}/{name}.expected")
    trust = () if name.endswith("program") else ("model_examples",)
    with torch.no_grad():
        module = edgeprune.load(f"{sys.argv[1]}/{name}.pt", ModelConfig(trust=trust)).module
        equal[name] = all(torch.equal(module(images[:n]), logits[n]) for n in logits)
print(json.dumps(equal))
"""


def bundle_of(module, arch=None, **settings):
    return from_module(module, ModelConfig(input_shape=SHAPE, arch=arch, **settings))


def form_of(path):
    return json.loads(zipfile.ZipFile(path).read("edgeprune.json"))["form"]


def reload_in_fresh_process(folder, modules):
    """Name -> whether NAME.pt, opened in a process of its own, computes bit for bit what `modules[name]` does.

    A name that ends in "program" is opened without trust in anything.
    """
    images = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, module in modules.items():
            torch.save((images, {n: module(images[:n]) for n in (1, 3, 8)}), folder / f"{name}.expected")
    code = [sys.executable, "-c", FRESH, str(folder), *modules]
    done = subprocess.run(code, cwd=HERE, capture_output=True, text=True, env={"PYTHONPATH": str(HERE)}, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def cut_by_edgeprune(bundle):
    """The bundle without half of the channels of every group that edgeprune itself finds and proves."""
    graph, goal = trace(bundle), Goal("ratio", 0.5)
    scores = l2(bundle, graph, None, seed=0)
    plan = make_plan(bundle, graph, scores, allocate(graph, scores, goal, 1), goal, 1, 0)
    return apply(plan, bundle, graph)


FAMILIES = {"residual": "stem", "mobile": "features.3", "dense": "layers.1", "vit": "mlp.1", "grouped": "conv2"}
"""Family -> a layer that must have lost channels: a residual sum, a depthwise convolution, a concatenation, an MLP, and
a grouped convolution."""


@dataclass(frozen=True)
class Reloaded:
    """Pruned networks by name, their bundles NAME.pt in `folder`, and what a fresh process said of each."""

    folder: Path
    pruned: dict
    equal: dict


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Every kind of pruned network in every form, opened again in one process."""
    folder = tmp_path_factory.mktemp("reloaded")
    np.savez(folder / "held.npz", context=np.linspace(-1, 1, 5))
    held = {"held": folder / "held.npz"}
    bundles = {}
    for kind in FAMILIES:
        cls = examples.KINDS[kind]
        for form, arch in (("constructor", f"model_examples:{cls.__name__}"), ("module", None)):
            bundles[f"{kind}-{form}"] = cut_by_edgeprune(bundle_of(examples.seeded(cls), arch))
    for form, arch in (("constructor", "model_examples:Gated"), ("module", None)):
        bundles[f"held-{form}"] = cut_by_edgeprune(bundle_of(examples.seeded(examples.Gated), arch, **held))
    opaque = examples.seeded(examples.Gated)
    opaque.nameless = lambda x: x
    bundles["held-program"] = cut_by_edgeprune(bundle_of(opaque, **held))
    for kind in ("mobile", "vit"):  # torch-pruning cuts the attention's heads, too
        cls = examples.KINDS[kind]
        cut = examples.pruned(examples.seeded(cls))
        bundles[f"torch-pruning-{kind}-constructor"] = bundle_of(cut, f"model_examples:{cls.__name__}")
    bundles["opaque-program"] = bundle_of(examples.pruned(examples.seeded(examples.Lambda)))
    for name, bundle in bundles.items():
        edgeprune.save(bundle, folder / f"{name}.pt")
    pruned = {name: bundle.module for name, bundle in bundles.items()}
    return Reloaded(folder, pruned, reload_in_fresh_process(folder, pruned))


@pytest.mark.parametrize("form", ["constructor", "module"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_pruned_family_is_bit_equal_in_a_fresh_process(kind, form, reloaded):
    name = f"{kind}-{form}"
    before = examples.KINDS[kind]().get_submodule(FAMILIES[kind])
    after = reloaded.pruned[name].get_submodule(FAMILIES[kind])
    assert after.weight.shape[0] == before.weight.shape[0] / 2
    assert form_of(reloaded.folder / f"{name}.pt") == form
    assert reloaded.equal[name]


@pytest.mark.parametrize("form", ["constructor", "module", "program"])
def test_pruned_network_with_a_held_input_is_bit_equal_in_a_fresh_process(form, reloaded):
    name = f"held-{form}"
    assert reloaded.pruned[name].module.gate.out_features == 8
    assert form_of(reloaded.folder / f"{name}.pt") == form
    assert reloaded.equal[name]


@pytest.mark.parametrize("kind", ["mobile", "vit"])
def test_network_that_torch_pruning_cut_is_bit_equal_in_a_fresh_process(kind, reloaded):
    assert form_of(reloaded.folder / f"torch-pruning-{kind}-constructor.pt") == "constructor"
    assert reloaded.equal[f"torch-pruning-{kind}-constructor"]


def test_network_without_a_form_of_its_own_becomes_a_program(reloaded):
    assert form_of(reloaded.folder / "opaque-program.pt") == "program"
    assert reloaded.equal["opaque-program"]


@pytest.mark.parametrize("kind", ["residual", "mobile", "dense", "vit", "grouped", "tied"])
def test_whole_module_is_saved_without_its_constructor(kind, tmp_path):
    module = examples.seeded(examples.KINDS[kind])
    module = module if kind == "tied" else examples.pruned(module)
    bundle = bundle_of(module)
    edgeprune.save(bundle, tmp_path / "pruned.pt")
    assert form_of(tmp_path / "pruned.pt") == "module"
    again = edgeprune.load(tmp_path / "pruned.pt", TRUST)
    images = torch.rand(2, *SHAPE)
    assert torch.equal(again.module(images), module(images))
    assert again.digest == bundle.digest


def test_program_keeps_its_layers_and_can_be_saved_again(tmp_path):
    edgeprune.save(bundle_of(examples.seeded(examples.Lambda)), tmp_path / "one.pt")
    again = edgeprune.load(tmp_path / "one.pt")
    assert isinstance(again.module.get_submodule("body.layer1.0.conv1"), nn.Conv2d)
    edgeprune.save(
        replace(again, module=examples.pruned(again.module), digest=digest(again.module)), tmp_path / "two.pt"
    )
    assert form_of(tmp_path / "two.pt") == "module"
    assert edgeprune.load(tmp_path / "two.pt").module.get_submodule("body.layer1.0.conv1").out_channels == 4


def test_removed_block_is_restored_as_identity(tmp_path):
    module = examples.seeded(examples.Residual)
    module.layer1[1] = nn.Identity()
    edgeprune.save(bundle_of(module, "model_examples:Residual"), tmp_path / "pruned.pt")
    again = edgeprune.load(tmp_path / "pruned.pt", TRUST)
    assert form_of(tmp_path / "pruned.pt") == "constructor"
    assert isinstance(again.module.layer1[1], nn.Identity)


def test_tied_weights_stay_tied(tmp_path):
    for arch in (None, "model_examples:Tied"):
        edgeprune.save(bundle_of(examples.seeded(examples.Tied), arch), tmp_path / "tied.pt")
        again = edgeprune.load(tmp_path / "tied.pt", TRUST).module
        assert again.a.weight is again.b.weight
        assert again.act is again.again


def test_frozen_parameters_stay_frozen(tmp_path):
    module = examples.seeded(examples.Residual)
    module.stem.weight.requires_grad_(False)
    edgeprune.save(bundle_of(module, "model_examples:Residual"), tmp_path / "pruned.pt")
    again = edgeprune.load(tmp_path / "pruned.pt", TRUST).module
    assert not again.stem.weight.requires_grad
    assert again.fc.weight.requires_grad


def test_everything_that_a_bundle_states_comes_back(tmp_path):
    bundle = bundle_of(
        examples.seeded(examples.Residual),
        "model_examples:Residual",
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
        classes=("a", "b", "c", "d"),
        fit="crop",
        resize=10,
    )
    edgeprune.save(bundle, tmp_path / "b.pt")
    again = edgeprune.load(tmp_path / "b.pt", TRUST)
    assert again.preprocessing == bundle.preprocessing
    assert (again.classes, again.input_shape, again.architecture) == (bundle.classes, SHAPE, bundle.architecture)


def test_settings_win_over_the_bundle(tmp_path):
    edgeprune.save(bundle_of(examples.seeded(examples.Residual), mean=(0.5,), std=(0.5,)), tmp_path / "b.pt")
    settings = ModelConfig(trust=("model_examples",), mean=(0.2,), std=(0.3,), classes=("w", "x", "y", "z"))
    again = edgeprune.load(tmp_path / "b.pt", settings)
    assert (again.preprocessing.mean, again.preprocessing.std, again.classes[0]) == ((0.2,), (0.3,), "w")


def test_logits_of_a_dict_are_saved_with_the_choice(tmp_path):
    bundle = bundle_of(examples.seeded(examples.Heads), "model_examples:Heads", output="logits")
    edgeprune.save(bundle, tmp_path / "b.pt")
    assert edgeprune.load(tmp_path / "b.pt", TRUST).module(torch.zeros(2, *SHAPE)).shape == (2, 4)


def test_same_network_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        edgeprune.save(bundle_of(examples.seeded(examples.Vit), "model_examples:Vit"), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_bundle_holds_json_and_safetensors_alone(tmp_path):
    edgeprune.save(bundle_of(examples.seeded(examples.Residual)), tmp_path / "b.pt")
    assert zipfile.ZipFile(tmp_path / "b.pt").namelist() == ["edgeprune.json", "weights.safetensors"]


def test_building_again_leaves_the_global_random_numbers_alone(tmp_path):
    bundle = bundle_of(examples.seeded(examples.Residual), "model_examples:Residual")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    edgeprune.save(bundle, tmp_path / "b.pt")
    edgeprune.load(tmp_path / "b.pt", TRUST)
    assert torch.equal(torch.rand(1), expected)


def test_classes_of_others_need_trust(tmp_path):
    edgeprune.save(bundle_of(examples.seeded(examples.Residual), "model_examples:Residual"), tmp_path / "b.pt")
    with pytest.raises(UntrustedModelError, match="model_examples:Residual"):
        edgeprune.load(tmp_path / "b.pt")
    named = edgeprune.load(tmp_path / "b.pt", ModelConfig(arch="model_examples:Residual"))
    assert type(named.module) is examples.Residual


def test_function_of_a_trusted_module_is_not_called_until_it_is_named(tmp_path):
    bundle = bundle_of(examples.seeded(examples.Residual), "model_examples:build_residual")
    edgeprune.save(bundle, tmp_path / "b.pt")
    with pytest.raises(UntrustedModelError, match="build_residual"):
        edgeprune.load(tmp_path / "b.pt", TRUST)
    for settings in (
        ModelConfig(arch="model_examples:build_residual"),
        ModelConfig(trust=("model_examples.build_residual",)),
    ):
        assert (
            edgeprune.load(tmp_path / "b.pt", ModelConfig(**settings.model_dump(exclude_unset=True))).digest
            == bundle.digest
        )


def test_other_arch_than_the_bundles_is_refused(tmp_path):
    edgeprune.save(bundle_of(examples.seeded(examples.Residual), "model_examples:Residual"), tmp_path / "b.pt")
    with pytest.raises(UsageError, match="was not made by model_examples:Vit"):
        edgeprune.load(tmp_path / "b.pt", ModelConfig(arch="model_examples:Vit"))


def rewritten(path, **members):
    """The bundle with some members replaced or added."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**content, **members}.items():
            archive.writestr(name, data)


def test_changed_weights_are_noticed(tmp_path):
    edgeprune.save(bundle_of(examples.seeded(examples.Residual)), tmp_path / "b.pt")
    weights = bytearray(zipfile.ZipFile(tmp_path / "b.pt").read("weights.safetensors"))
    weights[-1] ^= 0xFF
    rewritten(tmp_path / "b.pt", **{"weights.safetensors": bytes(weights)})
    with pytest.raises(ModelError, match=r"digest|NaN"):
        edgeprune.load(tmp_path / "b.pt", TRUST)


@pytest.mark.parametrize("name", ["../escaped.py", "/tmp/escaped", "data.pkl"])
def test_bundle_with_other_members_is_refused(name, tmp_path):
    edgeprune.save(bundle_of(examples.seeded(examples.Residual)), tmp_path / "b.pt")
    rewritten(tmp_path / "b.pt", **{name: b"x"})
    with pytest.raises(ModelError, match="it holds other files"):
        edgeprune.load(tmp_path / "b.pt", TRUST)


def test_truncated_bundle_is_an_error(tmp_path):
    edgeprune.save(bundle_of(examples.seeded(examples.Residual)), tmp_path / "b.pt")
    data = (tmp_path / "b.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="damaged or not a model"):
        edgeprune.load(tmp_path / "b.pt", TRUST)


def test_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(edgeprune.errors.OutputError):
        edgeprune.save(bundle_of(examples.seeded(examples.Residual)), tmp_path / "file" / "b.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
