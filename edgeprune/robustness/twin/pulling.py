"""Gradients of a twin without torch: its way back as a graph (`edgeprune.robustness.twin.drafting`), run by a runtime.

Promise: it is used only where its scores and its gradients were those of the torch twin on real images. It is what the
same file always gets, not what is faster today: an attack must not depend on a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeprune.robustness.twin.drafting import GRADIENT, SCORES, SEEDS, drafted
from edgeprune.robustness.twin.node import Unsupported
from edgeprune.robustness.twin.way_back import RULES
from edgeprune.types import Preprocessing

if TYPE_CHECKING:
    from edgeprune.robustness.twin.building import Twin
    from edgeprune.types import Floats

Pull = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Points float32 (N, C, H, W) and seeds float32 (N, K) to scores (N, K) and the gradient of their product, as points.
"""
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
            run = _opened(drafted(wiring, layout.inner, RULES), wiring.input, threads)
    except Unsupported:
        return None
    pull = _behind(run, twin, preprocessing)
    return pull if _agrees(pull, module, images) else None


def _opened(model: bytes, pixels: str, threads: int) -> Callable[[Floats, Floats], list[Floats]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions live in a private module
        raise Unsupported(str(error).splitlines()[0]) from error

    def run(points: Floats, seeds: Floats) -> list[Floats]:
        try:
            found: list[Floats] = session.run([SCORES, GRADIENT], {pixels: points, SEEDS: seeds})
        except Exception as error:
            raise Unsupported(str(error).splitlines()[0]) from error
        return found

    return run


def _behind(run: Callable[[Floats, Floats], list[Floats]], twin: Twin, before: Preprocessing) -> Pull:
    layout = twin.layout
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (before.mean or (0.0,), before.std or (1.0,)))

    def pull(points: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        ready = (points - mean) / std if before.mean else points
        fed = layout.feed(ready).contiguous().numpy()
        scores, gradients = (torch.from_numpy(found) for found in run(fed, seeds.contiguous().numpy()))
        if layout.order == "NHWC":
            channels, height, width = layout.shape
            gradients = gradients.reshape(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()
        gradients = gradients.reshape(points.shape)
        return scores, gradients / std if before.mean else gradients

    return pull


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
