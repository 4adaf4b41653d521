"""Exported files of a network: made for every runtime, checked against it, named by their sha256."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeprune import protocols
from edgeprune.files import sha256_of
from edgeprune.records import Artifact, LatencyFile, Parity, Side

if TYPE_CHECKING:
    from edgeprune.export.stamping import Stamp
    from edgeprune.types import Floats, ModelBundle


@dataclass(frozen=True, slots=True)
class Made:
    """The files of one network, in the order of the runtimes, and their parity."""

    artifacts: tuple[Artifact, ...]
    parity: tuple[Parity, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a network's files go: `root`/`stem`.onnx and so on, as this side of the comparison.

    `plan_digest` is the sha256 of plan.json where the network was made by one; the ONNX file names it.
    """

    root: Path
    stem: str
    side: Side
    plan_digest: str = ""


def export_network(
    bundle: ModelBundle,
    destination: Destination,
    runtimes: tuple[str, ...],
    images: Floats,
    inputs: Literal["real", "random"],
    stamp: Stamp | None = None,
) -> Made:
    """Write the ONNX file, every runtime's own file from it, and check each against the torch module on `images`.

    The ONNX file is always written, whether ONNX Runtime is among the runtimes or not; where a `stamp` is given, with
    it in place of torch's exporter. Errors: ExportError, ParityError.
    """
    from edgeprune.export.onnx import export_onnx
    from edgeprune.export.parity import check_parity

    onnx = destination.root / f"{destination.stem}.onnx"
    opset = stamp.write(bundle, onnx) if stamp else export_onnx(bundle, onnx, plan_digest=destination.plan_digest)
    made: dict[str, tuple[Artifact, tuple[Path, ...]]] = {}
    made["onnx"] = _artifact(bundle, destination, (onnx,), "onnx", opset), (onnx,)
    parity = []
    for name in runtimes:
        runtime: protocols.Runtime = protocols.find("runtime", name)
        if runtime.format not in made:
            files = runtime.convert(onnx, onnx.with_suffix(runtime.suffix))
            made[runtime.format] = _artifact(bundle, destination, files, runtime.format, opset), files
        artifact, files = made[runtime.format]
        session = runtime.open(files[0], threads=1)
        parity.append(check_parity(bundle, session, images, sha256=artifact.sha256, inputs=inputs))
    artifacts = tuple(artifact for artifact, _ in made.values())
    return Made(artifacts, tuple(parity), tuple(path for _, files in made.values() for path in files))


def timed_file(root: Path, artifact: Artifact) -> LatencyFile:
    """The artifact as a device is asked to time it."""
    path = (root / artifact.path).resolve()
    companions = tuple((str(path.parent / Path(name).name), sha256) for name, sha256, _ in artifact.companions)
    return LatencyFile(path=str(path), sha256=artifact.sha256, companions=companions)


def _artifact(
    bundle: ModelBundle, destination: Destination, files: tuple[Path, ...], format: str, opset: int
) -> Artifact:
    main, *others = files
    return Artifact(
        side=destination.side,
        path=str(main.relative_to(destination.root)),
        format=format,
        sha256=sha256_of(main),
        size_bytes=main.stat().st_size,
        companions=tuple((str(p.relative_to(destination.root)), sha256_of(p), p.stat().st_size) for p in others),
        opset=opset,
        parent_digest=bundle.digest,
    )
