"""Exported files on a device that is not this machine: do they give there what they give here, and how often rightly.

Promise: a device whose logits differ from this machine's ends the run; its figures would be another network's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgeprune import protocols
from edgeprune.latency.attaching import Pixels, check_there
from edgeprune.records import AccuracyComparison, LatencyFile, Parity, Record
from edgeprune.types import Split

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

    Opened = tuple[LatencyFile, protocols.Session]


class OnDevice(Record):
    """What both files gave on a device: parity with this machine, and accuracy on a sample of the test data."""

    parity: tuple[Parity, ...]
    accuracy: AccuracyComparison | None


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Images to run there; with the labels, and the digest of the images, where they are test data."""

    pixels: Pixels
    labels: Ints | None
    digest: str | None


def sample_of(split: Split | None, samples: int, seed: int, others: tuple[Floats, Literal["real", "random"]]) -> Sample:
    """`samples` of the split, stratified by class; `others` where there is no split."""
    from edgeprune.robustness.evaluate import attack_subset

    if split is None:
        return Sample(Pixels(*others), None, None)
    part = attack_subset(split, samples, seed)
    return Sample(Pixels(part.source.read(part.ids), "real"), part.labels(), part.digest)


def on_device(
    device: protocols.Device, files: tuple[Opened, ...], sample: Sample, target: str, confidence: float
) -> OnDevice:
    """Run the dense and the compressed file (in this order) there, each against its session here.

    Errors: those of `check_there`.
    """
    from edgeprune.robustness.evaluate import FilePredictions, accuracy_comparison

    parity, sides = [], []
    for file, session in files:
        found, logits = check_there(device, file, session, sample.pixels, target)
        parity.append(found)
        sides.append(FilePredictions(file.sha256, found.runtime, logits.argmax(1)))
    if sample.labels is None:
        return OnDevice(parity=tuple(parity), accuracy=None)
    accuracy = accuracy_comparison(sides[0], sides[1], sample.labels, confidence)
    return OnDevice(parity=tuple(parity), accuracy=accuracy.model_copy(update={"target": target}))
