"""Exported files, what runs them, and what they get right."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgeprune.records.base import PairedDrop, Proportion, Record, Sha256, Side


class Artifact(Record):
    """An exported file. `path` is relative to the run folder; `companions` are files that belong to it."""

    side: Side
    path: str
    format: str
    precision: Literal["float32", "int8"] = "float32"
    sha256: Sha256
    size_bytes: int
    companions: tuple[tuple[str, Sha256, int], ...] = ()
    opset: int | None = None
    parent_digest: Sha256

    @property
    def total_bytes(self) -> int:
        """Size of everything that ships: the file and its companions."""
        return self.size_bytes + sum(size for _, _, size in self.companions)


class RuntimeInfo(Record):
    """What ran a file. `precision` is what the runtime says that it really computes in."""

    name: str
    version: str
    precision: str
    threads: int
    options: dict[str, str] = Field(default_factory=dict)


class Parity(Record):
    """Largest absolute difference between the logits of the torch module and of the file in its runtime.

    With a `target`, the file ran there, and `reference` is the same file in the same runtime on this machine.
    """

    sha256: Sha256
    runtime: RuntimeInfo
    batch_sizes: tuple[int, ...]
    max_difference: float
    tolerance: float
    same_labels: bool
    inputs: Literal["real", "random"]
    target: str = ""
    reference: Literal["network", "this machine"] = "network"


class AccuracyComparison(Record):
    """Clean accuracy of both files, same images, same runtime; on the device `target` where that is set."""

    runtime: RuntimeInfo
    dense_sha256: Sha256
    compressed_sha256: Sha256
    dense: Proportion
    compressed: Proportion
    drop: PairedDrop
    target: str = ""
