"""Does the exported file compute what the network computes?

Checked at two batch sizes (a graph can have its batch frozen in), on real images where there are any, in the
precision that the runtime really uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeprune.errors import ParityError
from edgeprune.protocols import Session
from edgeprune.records import Parity

if TYPE_CHECKING:
    from edgeprune.types import Floats, ModelBundle

BATCH_SIZES = (1, 8)
TOLERANCE = 1e-4


def check_parity(
    bundle: ModelBundle, session: Session, images: Floats, *, sha256: str, inputs: Literal["real", "random"]
) -> Parity:
    """Compare logits on `images` (float32 pixels, repeated where there are fewer than two batches of 8).

    Errors: ParityError when they differ by more than allowed, are not finite, or a batch size does not run.

    The tolerance is 1e-4 times the larger of 1 and the largest logit: float32 sums in another order differ
    relative to what is summed.
    """
    import torch

    network = bundle.network()
    differences, scales, same = [0.0], [1.0], True
    for size in BATCH_SIZES:
        for start in range(0, 2 * size, size):
            batch = np.ascontiguousarray(np.take(images, range(start, start + size), axis=0, mode="wrap"))
            with torch.no_grad():
                expected = network(torch.from_numpy(batch)).numpy()
            actual = _run(session, batch)
            if actual.shape != expected.shape:
                raise ParityError(
                    f"{session.info.name} gives logits of shape {actual.shape} where torch gives {expected.shape}",
                    where=f"batch of {len(batch)} images",
                )
            differences.append(_largest(actual - expected))
            scales.append(_largest(expected))
            same &= bool((actual.argmax(1) == expected.argmax(1)).all())
    difference, scale = float(np.max(differences)), float(np.max(scales))  # np.max keeps a NaN; max() loses it
    if not difference <= TOLERANCE * scale or not np.isfinite(scale):
        raise ParityError(
            f"the exported file and the network differ by {difference:.3g} in the logits "
            f"(allowed: {TOLERANCE * scale:.0e})",
            where=f"{session.info.name} {session.info.version}, {session.info.precision}",
            hint="nothing was measured on it; report the network's operators as a bug of edgeprune",
        )
    return Parity(
        sha256=sha256,
        runtime=session.info,
        batch_sizes=BATCH_SIZES,
        max_difference=difference,
        tolerance=TOLERANCE * scale,
        same_labels=same,
        inputs=inputs,
    )


def _run(session: Session, batch: Floats) -> Floats:
    try:
        return session.logits(batch)
    except Exception as error:  # every runtime has errors of its own, and it may be a plugin
        raise ParityError(
            f"{session.info.name} cannot run the exported file on a batch of {len(batch)}",
            where=(str(error).strip().splitlines() or [type(error).__name__])[0],
            hint="a batch size that the network fixes itself (a constant in a reshape) is the usual reason",
        ) from error


def _largest(values: Floats) -> float:
    return float(np.abs(values).max())
