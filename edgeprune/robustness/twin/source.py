"""Where an attack's gradients come from: the file's twin, held against the runtime on real images before it is used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.errors import ModelError, ParityError, UsageError
from edgeprune.protocols import Session
from edgeprune.robustness.twin.building import TOLERANCES, Twin, build, check
from edgeprune.robustness.twin.layout import Served
from edgeprune.robustness.verdicts import checked_logits
from edgeprune.types import Preprocessing, Shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from edgeprune.robustness.twin.pulling import Pull
    from edgeprune.types import Floats, Looked

EXPORTED_MODULE = "the torch module that was exported"
"""What a report calls the source of gradients where it is not a twin."""
CHECKED = 16
"""Images on which twin and runtime are compared."""
_OTHERWISE = "give --gradients: the pruned.pt or the model file that it was exported from"


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """What makes the same gradients again, in another process: the file, its image shape (C, H, W), what goes before a
    foreign one, the images that the twin is checked on, the runtime's threads, and why there are none (None: there
    are)."""

    file: Path
    shape: Shape
    preprocessing: Preprocessing
    checked: Floats
    threads: int
    unguided: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """`module`: images (N, C, H, W) to scores, None where there is nothing to follow; `session`: the runtime on the
    same images; `said`: what `module` is; `pull`: its gradients without torch, None where torch computes them;
    `origin`: how another process gets the same, None where no file gives them; `look`: `pull`'s forward pass, where it
    is that of the file in the runtime that judges it."""

    module: nn.Module | None
    session: Session
    said: str
    pull: Pull | None = None
    origin: Origin | None = None
    look: Callable[[Tensor], Looked] | None = None


def twin_of(file: Path, input_shape: Shape | None = None) -> Twin:
    """The twin of a file: from its own graph, or, for an IR that names its parent, from the ONNX file of that parent.

    That one must stand beside the IR under the same stem. ModelError for a file that cannot be read, and for operators
    without a rule (all are named).
    """
    twin = any_twin(file, input_shape)
    if twin.unsupported:
        raise ModelError(
            f"{twin.path} has no twin to take gradients from: no rule for {', '.join(twin.unsupported)}",
            where=f"opset {twin.opset}, made by {twin.producer}",
            hint=_OTHERWISE,
        )
    return twin


def any_twin(file: Path, input_shape: Shape | None = None) -> Twin:
    """The same, also where operators have no rule: such a twin names them, knows the layout and gives no gradients."""
    if file.suffix == ".onnx":
        return build(file, input_shape)
    twin, onnx = build(file, input_shape), file.with_suffix(".onnx")
    if twin.parent is None or not onnx.is_file():
        return twin
    try:
        beside = build(onnx, input_shape)
    except (ModelError, UsageError):  # whatever it is, it is not needed
        return twin
    return twin if beside.parent != twin.parent or beside.unsupported else beside


def made_again(origin: Origin, session: Session) -> Gradients:
    """What an attack has of a file in one process, in another that opened the file as `session`. Errors: those of
    `gradients_of`."""
    if origin.unguided is not None:
        twin = any_twin(origin.file, origin.shape)
        return unguided(twin, origin.file, session, origin.preprocessing, origin.unguided)
    twin = twin_of(origin.file, origin.shape)
    return gradients_of(twin, origin.file, session, origin.checked, origin.preprocessing)


def unguided(twin: Twin, file: Path, session: Session, preprocessing: Preprocessing, why: str) -> Gradients:
    """The runtime alone, for an attack that asks: there is nothing to take gradients from, and `why`."""
    shape = twin.layout.shape
    anew = Origin(file.resolve(), shape, preprocessing, np.zeros((0, *shape), np.float32), session.info.threads, why)
    return Gradients(None, _served(twin, session, preprocessing)[0], f"nothing: {why}", origin=anew)


def _served(twin: Twin, session: Session, preprocessing: Preprocessing) -> tuple[Session, Preprocessing]:
    """The session on images in the user's pixels, and what goes before the file to make it so."""
    before = preprocessing if twin.parent is None else Preprocessing(bounds=preprocessing.bounds)
    if twin.layout.plain and not before.mean:
        return session, before
    return Served(session, twin.layout, before), before


def gradients_of(twin: Twin, file: Path, session: Session, images: Floats, preprocessing: Preprocessing) -> Gradients:
    """The twin against `session`, which opened `file`, on `images` (float32 pixels); then what an attack needs.

    A file that edgeprune exported has its preprocessing inside; a foreign one has none, so that mean and std of
    `preprocessing` go before it, in the runtime as in the twin. Errors: MeasurementError for logits that are none,
    ParityError when twin and runtime differ by more than the tolerance of the file's precision.
    """
    import torch

    from edgeprune.models.preprocessing import with_preprocessing
    from edgeprune.robustness.twin.pulling import PULLED_BY, pull_of

    assert twin.module is not None
    assert twin.scores is not None
    served, before = _served(twin, session, preprocessing)
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
    origin = "twin of the file" if twin.path == file else "twin of the ONNX file beside it"
    shown = f"{parity:.0e}".replace("e-0", "e-")
    scores, threads = with_preprocessing(twin.scores, before), session.info.threads
    pull = pull_of(twin, before, scores, torch.from_numpy(np.array(images[:CHECKED], np.float32)), threads)
    anew = Origin(file.resolve(), twin.layout.shape, preprocessing, np.array(images[:CHECKED], np.float32), threads)
    same = session.info.name == PULLED_BY and twin.precision == "float32" and twin.path == file
    look = pull.look if pull is not None and same else None
    return Gradients(scores, served, f"{origin} (parity {shown})", pull, anew, look)
