"""A path and the user's settings to a `ModelBundle`, whatever kind of file it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from edgeprune.config import ModelConfig
from edgeprune.errors import ModelError, UsageError
from edgeprune.models import bundle as bundles
from edgeprune.models import checkpoint, pickles, program
from edgeprune.models.architecture import named_by_user
from edgeprune.models.baking import baked
from edgeprune.models.building import build
from edgeprune.models.inputs import with_held_inputs
from edgeprune.models.outputs import SelectedOutput
from edgeprune.models.preprocessing import check_channels
from edgeprune.models.probing import count_classes, digest, missing_shape, settle
from edgeprune.models.trust import Trust
from edgeprune.types import Architecture, ModelBundle, Preprocessing, Shape

DEFAULTS = ModelConfig()
_CONVERTED = {
    ".onnx": "edgeprune measure and edgeprune attack take it as it is",
    ".xml": "edgeprune measure takes it as it is",
    ".tflite": "bring the torch network that it was made from",
    ".h5": "bring a torch network",
    ".keras": "bring a torch network",
    ".pb": "bring a torch network",
    ".engine": "bring the torch network that it was made from",
    ".npz": "that is data; bring the network that it belongs to",
}


def load(path: str | Path, settings: ModelConfig = DEFAULTS, *, input_shape: Shape | None = None) -> ModelBundle:
    """Open a network: a bundle, a pickled module, a state_dict or safetensors beside `settings.arch`.

    In a notebook: ``edgeprune.load("pruned.pt")``, or
    ``edgeprune.load("weights.pt", ModelConfig(arch="torchvision:resnet18", input_shape=(3, 224, 224)))``.
    The module comes back in eval mode, float32, on the CPU. Settings win over what the file says.

    Nothing runs that the user did not name: `settings.arch` names a constructor, `settings.trust` admits the classes
    of import prefixes. UsageError: no such file, no input shape, settings that do not fit. UntrustedModelError: the
    file needs code that was not admitted. ModelError: damaged, or not a network.
    """
    path = Path(path)
    _check_file(path)
    trust = Trust.of(settings.trust)
    if bundles.is_bundle(path):
        module, manifest = bundles.read(path, trust, settings.arch)
        architecture = Architecture(manifest.kind, manifest.reference, manifest.arguments)
        said = _Said(manifest.input_shape, bundles.preprocessing_of(manifest), manifest.classes)
    elif program.is_program(path):
        pickles.check_archive(path)
        module, architecture, said = program.read(path), Architecture("module", ""), _Said(None, Preprocessing(), ())
    else:
        module, architecture, classes = _foreign(path, settings, trust)
        said = _Said(None, Preprocessing(), classes)
    return _bundle(module, architecture, settings, said, path, input_shape)


def from_module(module: nn.Module, settings: ModelConfig, *, source: str = "a module in memory") -> ModelBundle:
    """A bundle around a module that is already in memory: `settings` must say its input shape.

    With `settings.arch`, a saved bundle is rebuilt by that constructor.
    """
    architecture = Architecture("module", "")
    if settings.arch:
        architecture = Architecture("constructor", settings.arch, dict(settings.arch_args))
    return _bundle(module, architecture, settings, _Said(None, Preprocessing(), ()), Path(source), None)


@dataclass(frozen=True, slots=True)
class _Said:
    """What the file itself says about its input and output."""

    shape: Shape | None
    preprocessing: Preprocessing
    classes: tuple[str, ...]


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"no such model file: {path}", hint="check the path")
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a model file", hint="a run's network is in its pruned.pt")
    if path.suffix.lower() in _CONVERTED:
        raise ModelError(f"{path} is not a torch network", hint=_CONVERTED[path.suffix.lower()])
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty", hint="bring a file that torch.save wrote, whole")


def _foreign(path: Path, settings: ModelConfig, trust: Trust) -> tuple[nn.Module, Architecture, tuple[str, ...]]:
    """A network from a file that edgeprune did not write."""
    content = _safetensors(path) if path.suffix == ".safetensors" else pickles.read(path)
    found = checkpoint.find(content, str(path), settings.weights_entry)
    classes = _classes_in(content)
    if found.module is not None and settings.arch is None:
        module = build(found.module, trust, str(path))
        if not isinstance(module, nn.Module):
            raise ModelError(f"{path} holds a {type(module).__name__}, not a network")
        return module, Architecture("module", ""), classes
    if found.state is None:
        raise UsageError(f"{path} holds a whole module", hint="leave --arch out, or bring its state_dict")
    if settings.arch is None:
        raise UsageError(
            f"{path} holds weights without their network",
            hint="name its constructor: --arch package.module:callable, torchvision:NAME or timm:NAME",
        )
    architecture, module = named_by_user(settings.arch, settings.arch_args, trust)
    checkpoint.fill(module, found.state, str(path))
    return module, architecture, classes


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise pickles.broken(path, error) from error


def _classes_in(content: Any) -> tuple[str, ...]:
    names = content.get("classes", content.get("class_names")) if isinstance(content, dict) else None
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()


def _bundle(
    module: nn.Module,
    architecture: Architecture,
    settings: ModelConfig,
    said: _Said,
    path: Path,
    input_shape: Shape | None,
) -> ModelBundle:
    module = baked(settle(module, str(path)))
    shape = input_shape or settings.input_shape or said.shape
    if shape is None:
        raise missing_shape(module, str(path))
    inner, output = (module.module, module.key) if isinstance(module, SelectedOutput) else (module, None)
    module, output = with_held_inputs(inner, settings, str(path)), settings.output or output
    if output is not None:
        module = SelectedOutput(module, output).eval()
    count = count_classes(module, shape, str(path))
    classes = settings.classes or (said.classes if len(said.classes) == count else tuple(map(str, range(count))))
    if len(classes) != count:
        raise UsageError(f"{len(classes)} class names for a network with {count} classes", hint="set model.classes")
    preprocessing = _preprocessing(settings, said.preprocessing)
    check_channels(preprocessing, shape[0])
    return ModelBundle(module, shape, preprocessing, classes, architecture, digest(module), str(path))


def _preprocessing(settings: ModelConfig, said: Preprocessing) -> Preprocessing:
    """What the user set wins over what the file says."""
    given = {key: getattr(settings, key) for key in settings.model_fields_set if hasattr(said, key)}
    return replace(said, **given)
