"""The bundle, `pruned.pt`: a network in one file that is easy to send. JSON and safetensors in a zip, never a pickle.

How the network is built again is written in the file as `form`:

- ``constructor``: the architecture's constructor and arguments, then the recorded edits (`edgeprune.models.edits`);
- ``module``: class by class and attribute by attribute, without constructors (`edgeprune.models.encoding`);
- ``program``: as a graph of ATen operators (`edgeprune.models.program`), when the network has parts that have no
  other form. Such a network computes the same and keeps its layers' names, but is no longer of its own class.

A form is written only after the network was rebuilt from it and gave bit-equal outputs. The same network gives the
same bytes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from edgeprune import files
from edgeprune.errors import ModelError
from edgeprune.models import edits, program
from edgeprune.models.architecture import check_reference, named_by_file
from edgeprune.models.building import build
from edgeprune.models.encoding import Encoder, Json, Opaque, decode
from edgeprune.models.inputs import HeldInputs
from edgeprune.models.outputs import SelectedOutput
from edgeprune.models.probing import digest
from edgeprune.models.trust import Trust
from edgeprune.records import PrunePlan, Record, Sha256
from edgeprune.types import Architecture, ModelBundle, Preprocessing

MANIFEST, WEIGHTS = "edgeprune.json", "weights.safetensors"
_STAMP = (1980, 1, 1, 0, 0, 0)
Form = Literal["constructor", "module", "program"]
Name = Annotated[str, Field(pattern=r"^[^\W\d]\w*$")]


class Manifest(Record):
    """`edgeprune.json` of a bundle. `network` and `objects` are what `form` says how to read.

    `output`, `image_input` and `held` name what stands around the constructor's network; the other forms describe it
    with the rest.
    """

    format: Literal["edgeprune-bundle"] = "edgeprune-bundle"
    format_version: Literal["1"] = "1"
    made_with: dict[str, str]
    form: Form
    kind: Literal["constructor", "module"]
    reference: str
    arguments: dict[str, Any]
    network: Any
    objects: list[Any]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bounds: tuple[float, float]
    fit: Literal["exact", "crop", "squash"] = "exact"
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    output: str | None = None
    image_input: str | None = None
    held: tuple[Name, ...] = ()
    classes: tuple[str, ...]
    digest: Sha256
    plan: PrunePlan | None


def save(bundle: ModelBundle, path: str | Path, *, plan: PrunePlan | None = None) -> None:
    """Write a bundle to `path`, whole or not at all; `edgeprune.load(path)` gives back a bit-equal network.

    ModelError when the network can be rebuilt in none of the three forms; OutputError when the file cannot be written.
    """
    path = Path(path)
    reasons = []
    for form in ("constructor", "module", "program"):
        try:
            members = _members(bundle, form, plan)
        except Opaque as error:
            reasons.append(f"{form}: {error}")
            continue
        with files.replacing(path) as beside:
            _write(members, beside)
        return
    raise ModelError(
        "the network cannot be saved: it could not be built again",
        where="\n  ".join(reasons),
        hint="define its classes in a module of their own, and bring a state_dict with --arch",
    )


def is_bundle(path: Path) -> bool:
    """Whether the file is a zip archive with a bundle's manifest."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def read(path: Path, trust: Trust, arch: str | None = None) -> tuple[nn.Module, Manifest]:
    """The network of a bundle and its manifest. `arch` is the constructor that the user named, if any.

    ModelError: damaged. UntrustedModelError: it needs code that was not admitted.
    """
    manifest, members = _read(path)
    architecture = Architecture(manifest.kind, manifest.reference, manifest.arguments)
    check_reference(arch, architecture, str(path))
    try:
        tensors = safetensors.torch.load(members[WEIGHTS])
    except (KeyError, safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error
    module = _rebuild(manifest, tensors, trust, str(path), arch)
    if digest(module) != manifest.digest:
        raise _damaged(path, "its weights do not have the digest that it states")
    return module, manifest


def _members(bundle: ModelBundle, form: Form, plan: PrunePlan | None) -> dict[str, bytes]:
    """Contents of the file in one form, tried out; Opaque when the network has no such form."""
    encoder, module = Encoder(), bundle.module
    if form == "constructor":
        network = _as_edits(bundle, encoder)
    else:
        if form == "program":
            module = program.export(module, bundle.input_shape)
        network = encoder.value(module, "")
    tensors = {name: tensor.contiguous().clone() for name, tensor in sorted(encoder.tensors.items())}
    manifest = _manifest(bundle, form, network, encoder.objects, plan)
    again = _rebuild(manifest, tensors, _all_of(module), "the bundle", bundle.architecture.reference)
    if digest(again) != digest(module) or not edits.same_outputs(bundle.module, again.eval(), bundle.input_shape):
        raise Opaque("the network that was built again does not compute the same")
    manifest = manifest.model_copy(update={"digest": digest(module)})
    return {MANIFEST: manifest.to_json().encode(), WEIGHTS: safetensors.torch.save(tensors)}


def _as_edits(bundle: ModelBundle, encoder: Encoder) -> Json:
    architecture = bundle.architecture
    if architecture.kind != "constructor":
        raise Opaque("no constructor is known")
    if architecture.reference.startswith("__main__:"):
        raise Opaque("the constructor is in a script or notebook that another process does not have")
    try:
        json.dumps(architecture.arguments)
    except TypeError as error:
        raise Opaque(f"the constructor's arguments are not JSON: {error}") from error
    fresh = named_by_file(architecture, _all_of(bundle.module), architecture.reference, "the bundle")
    module = _without_choice(bundle.module)
    if type(fresh) is not type(module.module if isinstance(module, HeldInputs) else module):
        raise Opaque("the constructor makes another class")
    if isinstance(module, HeldInputs):
        fresh = _holding(fresh, module.image_input, module.held)
    return edits.difference(fresh, module, encoder)


def _without_choice(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, SelectedOutput) else module


def _holding(module: nn.Module, image_input: str | None, held: tuple[str, ...]) -> nn.Module:
    """The module behind inputs whose values are still to come, as edits."""
    return HeldInputs(module, image_input, {name: torch.empty(0) for name in held}).eval()


def _rebuild(manifest: Manifest, tensors: Mapping[str, Tensor], trust: Trust, path: str, arch: str | None) -> nn.Module:
    if manifest.form != "constructor":
        module = build(decode(manifest.network, manifest.objects, tensors), trust, path)
        if not isinstance(module, nn.Module):
            raise ModelError(f"{path} describes no network")
        return module
    architecture = Architecture(manifest.kind, manifest.reference, manifest.arguments)
    module = named_by_file(architecture, trust, arch, path)
    if manifest.held or manifest.image_input:
        module = _holding(module, manifest.image_input, manifest.held)
    edits.apply(manifest.network, module, manifest.objects, tensors, trust, path)
    return (module if manifest.output is None else SelectedOutput(module, manifest.output)).eval()


def _manifest(bundle: ModelBundle, form: Form, network: Json, objects: list[Json], plan: PrunePlan | None) -> Manifest:
    architecture, preprocessing = bundle.architecture, bundle.preprocessing
    inner = _without_choice(bundle.module)
    return Manifest(
        made_with=_versions(architecture.reference),
        form=form,
        kind=architecture.kind,
        reference=architecture.reference,
        arguments=dict(architecture.arguments) if form == "constructor" else {},
        network=network,
        objects=objects,
        input_shape=bundle.input_shape,
        mean=preprocessing.mean,
        std=preprocessing.std,
        bounds=preprocessing.bounds,
        fit=preprocessing.fit,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        output=bundle.module.key if isinstance(bundle.module, SelectedOutput) else None,
        image_input=inner.image_input if isinstance(inner, HeldInputs) else None,
        held=inner.held if isinstance(inner, HeldInputs) else (),
        classes=bundle.classes,
        digest=bundle.digest,
        plan=plan,
    )


def preprocessing_of(manifest: Manifest) -> Preprocessing:
    """The preprocessing that a manifest states."""
    said = manifest
    return Preprocessing(said.mean, said.std, said.bounds, said.fit, said.resize, said.interpolation)


def _versions(reference: str) -> dict[str, str]:
    found = {}
    for package in ("edgeprune", "torch", reference.partition(":")[0].partition(".")[0]):
        try:
            found[package] = version(package)
        except (PackageNotFoundError, ValueError):
            continue
    return found


def _all_of(module: nn.Module) -> Trust:
    """Trust in the code that a live module already runs."""
    return Trust(tuple(sorted({type(part).__module__ for part in module.modules()})))


def _write(members: Mapping[str, bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name, _STAMP)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)


def _read(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unknown = [m.filename for m in members if m.filename not in (MANIFEST, WEIGHTS)]
            if unknown or len({m.filename for m in members}) != len(members):
                raise _damaged(path, f"it holds other files: {', '.join(unknown)[:80]}")
            if any(m.compress_type != zipfile.ZIP_STORED for m in members) or _inside(members) > path.stat().st_size:
                raise _damaged(path, "it unpacks to more than its size")
            content = {m.filename: archive.read(m) for m in members}
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, NotImplementedError) as error:
        raise _damaged(path, str(error)) from error
    try:
        return Manifest.model_validate_json(io.BytesIO(content[MANIFEST]).getvalue()), content
    except (ValidationError, RecursionError) as error:
        reason = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else "too deep"
        raise _damaged(path, f"its {MANIFEST} is not one of this version of edgeprune: {reason}") from error


def _inside(members: list[zipfile.ZipInfo]) -> int:
    return sum(member.file_size for member in members)


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} is not a whole edgeprune bundle",
        where=(reason.splitlines() or [""])[0][:200],
        hint="copy it again, or make it again with edgeprune compress",
    )
