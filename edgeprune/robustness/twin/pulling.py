"""Gradients of a twin without torch: its way back as a graph (`edgeprune.robustness.twin.drafting`), run by a runtime.

Promise: it is used only where its scores and its gradients were those of the torch twin on real images. It is what the
same file always gets, not what is faster today: an attack must not depend on a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.robustness.twin.drafting import GRADIENT, SCORES, SEEDS, Drafted, drafted
from edgeprune.robustness.twin.node import Unsupported
from edgeprune.robustness.twin.way_back import RULES
from edgeprune.types import Preprocessing

if TYPE_CHECKING:
    from edgeprune.robustness.twin.building import Twin
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

PULLED_BY = "onnxruntime"
"""The runtime that runs both graphs."""
_CLOSE = 1e-3
"""How far a gradient may be from torch's, of its largest entry. Rounding alone gives 1e-6; but a unit at its threshold
may be on in one and off in the other, so that a share of the images may be further."""
_FAR_ONES = 0.1
_SEED = 0


def pull_of(twin: Twin, preprocessing: Preprocessing, module: nn.Module, images: Tensor, threads: int) -> Pull | None:
    """The way back of `twin` behind `preprocessing` (mean and std, where a foreign file needs them before it).

    `module` is the torch twin behind the same, and `images` (float32 pixels) are what both are compared on. None where
    an operator has no rule, the file takes a fixed number of images, its scores are not its output, or both differ.
    """
    wiring, layout = twin.wiring, twin.layout
    if wiring is None or not layout.batched or layout.dtype != "float32":
        return None
    try:
        with torch.inference_mode(False), torch.no_grad():
            pull = Pull.opened(drafted(wiring, layout.inner, RULES), twin, preprocessing, threads)
    except Unsupported:
        return None
    return pull if _agrees(pull, module, images) else None


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """A forward pass that gradients can still be asked of. `logits`: float32 (N, K). `rows`: which images of the pass
    are meant, int64 (N,); None: all."""

    logits: Floats
    kept: dict[str, Floats]
    rows: Ints | None
    way: Pull

    def of(self, mask: Bools) -> Looked:
        """The images of `mask`, bool (N,)."""
        if mask.all():
            return self
        rows = np.flatnonzero(mask) if self.rows is None else self.rows[mask]
        return Looked(self.logits[mask], self.kept, rows, self.way)

    def gradients(self, seeds: Tensor) -> Tensor:
        """The gradient of `seeds * logits` at the points that were looked at, float32 (N, C, H, W)."""
        if self.rows is None:
            return self.way.back(self.kept, seeds)
        if self.way.by_row:
            return self.way.back({name: values[self.rows] for name, values in self.kept.items()}, seeds)
        count, rows = len(next(iter(self.kept.values()))), torch.from_numpy(self.rows)
        return self.way.back(self.kept, torch.zeros(count, seeds.shape[1]).index_copy_(0, rows, seeds))[rows]


class Pull:
    """The way of a twin behind `before` (mean and std): called with points float32 (N, C, H, W) and seeds float32
    (N, K), it returns scores (N, K) and the gradient of their product, as points."""

    def __init__(self, there: Any, back: Any, drafted: Drafted, twin: Twin, before: Preprocessing) -> None:
        self.by_row, self._kept, self._layout, self._before = drafted.by_row, drafted.kept, twin.layout, before
        self._there, self._back = there, back
        self._pixels = there.get_inputs()[0].name
        self._wanted = [value.name for value in there.get_outputs()]
        self._mean, self._std = (
            torch.tensor(values).view(-1, 1, 1) for values in (before.mean or (0.0,), before.std or (1.0,))
        )

    @classmethod
    def opened(cls, drafted: Drafted, twin: Twin, before: Preprocessing, threads: int) -> Pull:
        """Both graphs in ONNX Runtime; Unsupported where it refuses them."""
        there, back = (_session(model, threads) for model in (drafted.there, drafted.back))
        return cls(there, back, drafted, twin, before)

    def __call__(self, points: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        looked = self.look(points)
        return torch.from_numpy(looked.logits), looked.gradients(seeds)

    def look(self, points: Tensor) -> Looked:
        """The forward pass at `points` float32 (N, C, H, W)."""
        ready = (points - self._mean) / self._std if self._before.mean else points
        fed = {self._pixels: self._layout.feed(ready).contiguous().numpy()}
        kept = dict(zip(self._wanted, _run(self._there, self._wanted, fed), strict=True))
        scores = kept.pop(SCORES)
        return Looked(scores, kept | fed if self._pixels in self._kept else kept, None, self)

    def back(self, kept: dict[str, Floats], seeds: Tensor) -> Tensor:
        """The gradient at the points that `kept` is of."""
        found = torch.from_numpy(_run(self._back, [GRADIENT], {**kept, SEEDS: seeds.contiguous().numpy()})[0])
        channels, height, width = self._layout.shape
        if self._layout.order == "NHWC":
            found = found.reshape(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()
        found = found.reshape(-1, channels, height, width)
        return found / self._std if self._before.mean else found


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions live in a private module
        raise Unsupported(str(error).splitlines()[0]) from error


def _run(session: Any, wanted: list[str], fed: dict[str, Floats]) -> list[Floats]:
    try:
        found: list[Floats] = session.run(wanted, fed)
    except Exception as error:
        raise Unsupported(str(error).splitlines()[0]) from error
    return found


def _agrees(pull: Pull, module: nn.Module, images: Tensor) -> bool:
    """Whether scores and gradients are those of the torch twin, for seeds drawn at random."""
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_(True)
        expected = module(leaf)
        seeds = torch.randn(expected.shape, generator=torch.Generator().manual_seed(_SEED))
        (wanted,) = torch.autograd.grad((expected * seeds).sum(), leaf)
    expected = expected.detach()
    try:
        scores, gradients = pull(images.detach(), seeds)
    except Unsupported:
        return False
    if scores.shape != expected.shape or not bool(gradients.isfinite().all()):
        return False
    largest = wanted.abs().flatten(1).amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    far = (gradients - wanted).abs().flatten(1).amax(1) > _CLOSE * largest
    same = (scores - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    return bool(same) and float(far.double().mean()) <= _FAR_ONES
