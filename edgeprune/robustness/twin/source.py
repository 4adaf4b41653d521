"""Where an attack's gradients come from: the file's twin, held against the runtime on real images before it is used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.errors import ModelError, ParityError
from edgeprune.protocols import Session
from edgeprune.robustness.twin.building import TOLERANCES, Twin, build, check
from edgeprune.robustness.twin.layout import Served
from edgeprune.robustness.verdicts import checked_logits
from edgeprune.types import Preprocessing, Shape

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.types import Floats

EXPORTED_MODULE = "the torch module that was exported"
"""What a report calls the source of gradients where it is not a twin."""
CHECKED = 16
"""Images on which twin and runtime are compared."""
_OTHERWISE = "give --gradients: the pruned.pt or the model file that it was exported from"


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """`module`: images (N, C, H, W) to scores; `session`: the runtime on the same images; `said`: what `module` is."""

    module: nn.Module
    session: Session
    said: str


def twin_of(file: Path, input_shape: Shape | None = None) -> Twin:
    """The twin of an ONNX file, or of the ONNX file that stands beside an OpenVINO IR under the same stem.

    ModelError when there is none: no ONNX file, a file that cannot be read, operators without a rule (all are named).
    """
    onnx = file.with_suffix(".onnx")
    if not onnx.is_file():
        raise ModelError(
            f"{file} has no twin to take gradients from: there is no {onnx.name} beside it",
            hint=f"put the ONNX file that it was converted from there, or {_OTHERWISE}",
        )
    twin = build(onnx, input_shape)
    if twin.unsupported:
        raise ModelError(
            f"{onnx} has no twin to take gradients from: no rule for {', '.join(twin.unsupported)}",
            where=f"opset {twin.opset}, made by {twin.producer}",
            hint=_OTHERWISE,
        )
    return twin


def gradients_of(twin: Twin, file: Path, session: Session, images: Floats, preprocessing: Preprocessing) -> Gradients:
    """The twin against `session`, which opened `file`, on `images` (float32 pixels); then what an attack needs.

    A file that edgeprune exported has its preprocessing inside; a foreign one has none, so that mean and std of
    `preprocessing` go before it, in the runtime as in the twin. Errors: MeasurementError for logits that are none,
    ParityError when twin and runtime differ by more than the tolerance of the file's precision.
    """
    from edgeprune.models.preprocessing import with_preprocessing

    assert twin.module is not None
    assert twin.scores is not None
    before = preprocessing if twin.parent is None else Preprocessing(bounds=preprocessing.bounds)
    served: Session = session
    if not twin.layout.plain or before.mean:
        served = Served(session, twin.layout, before)
    checked_logits(served.logits, images[:CHECKED], who=session.info.name)
    module = with_preprocessing(twin.module, before)
    parity = check(replace(twin, module=module), served, images[:CHECKED])
    allowed = TOLERANCES[twin.precision]
    if not parity <= allowed:
        raise ParityError(
            f"the twin of {file} and the runtime differ by {parity:.2g} of the largest logit (allowed: {allowed:g})",
            where=f"{session.info.name} {session.info.version}, {session.info.precision}",
            hint=f"its gradients would belong to another function; {_OTHERWISE}",
        )
    origin = "twin of the file" if file.suffix == ".onnx" else "twin of the ONNX file beside it"
    shown = f"{parity:.0e}".replace("e-0", "e-")
    return Gradients(with_preprocessing(twin.scores, before), served, f"{origin} (parity {shown})")
