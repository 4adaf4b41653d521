"""What an attack on one file left behind: the counts, and the evidence image by image.

Promise: an outcome survives a killed run (`save`, `load`), and the evidence of both files can be replayed by anyone.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import DataError
from edgeprune.files import replacing
from edgeprune.records import AttackedFile, Record, RuntimeInfo
from edgeprune.robustness.archives import read_arrays, write_arrays
from edgeprune.robustness.health import Health, health_of
from edgeprune.robustness.statistics import proportion

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_RECORDS: Mapping[str, type[Record]] = {"record": AttackedFile, "health": Health}
_ARRAYS = (
    "ids",
    "labels",
    "clean_predictions",
    "adversarials",
    "adversarial_predictions",
    "fell",
    "rounded_fell",
    "dead_gradient",
)


@dataclass(frozen=True, slots=True, eq=False)
class FilePredictions:
    """Clean predictions (int64 (N,)) of the file `sha256` in `runtime`."""

    sha256: str
    runtime: RuntimeInfo
    predictions: Ints


@dataclass(frozen=True, slots=True, eq=False)
class FileOutcome:
    """One attacked file. Arrays share their first dimension N, in the order of `ids`.

    ids, labels: int64. clean_predictions, adversarial_predictions: int64, the runtime's. adversarials: float32
    (N, C, H, W), the clean image where none was found. fell: bool, right before and verified wrong under attack.
    rounded_fell: bool, fell and still wrong after rounding to 8 bits. dead_gradient: bool, attacked without a usable
    gradient.
    """

    record: AttackedFile
    health: Health
    ids: Ints
    labels: Ints
    clean_predictions: Ints
    adversarials: Floats
    adversarial_predictions: Ints
    fell: Bools
    rounded_fell: Bools
    dead_gradient: Bools

    @property
    def clean_right(self) -> Bools:
        """Right on the clean image, bool (N,)."""
        return np.asarray(self.clean_predictions == self.labels)

    @property
    def robust_right(self) -> Bools:
        """Right on the clean image and standing under attack, bool (N,)."""
        return self.clean_right & ~self.fell

    def at(self, rows: Ints) -> FileOutcome:
        """The outcome of some of the images; the record and the health stay those of all."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _ARRAYS})

    def save(self, path: Path) -> None:
        """Write everything to an .npz, whole or not at all; OutputError when it cannot be written."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        texts = {name: np.frombuffer(getattr(self, name).to_json().encode(), np.uint8) for name in _RECORDS}
        with replacing(path) as beside:
            write_arrays(beside, {**texts, **arrays})

    @classmethod
    def load(cls, path: Path) -> FileOutcome:
        """Read what `save` wrote; DataError when it is something else or broken."""
        try:
            found = read_arrays(path, (*_ARRAYS, *_RECORDS))
            arrays: dict[str, Any] = {name: found[name] for name in _ARRAYS}
            texts = {name: found[name].tobytes() for name in _RECORDS}
            records: dict[str, Any] = {n: kind.model_validate_json(texts[n]) for n, kind in _RECORDS.items()}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path} is not the outcome of an attack: {type(error).__name__}", hint="delete it and run again"
            ) from error
        return cls(**records, **arrays)


def joined(parts: Sequence[FileOutcome]) -> FileOutcome:
    """Outcomes of one file on parts of the images, as if they had been attacked together: ascending ids, summed counts.

    What happens to an image under attack depends on that image alone, so this is what one attack would have found.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
    order = np.argsort(arrays["ids"], kind="stable")
    arrays = {name: array[order] for name, array in arrays.items()}
    right = arrays["clean_predictions"] == arrays["labels"]
    total, counted = len(order), ("fell", "rounded", "rejected", "dead_gradients", "seconds")
    differing = sum(part.record.twin_disagreement * len(part.ids) for part in parts)
    record = first.record.model_copy(
        update={
            **{name: sum(getattr(part.record, name) for part in parts) for name in counted},
            "clean": proportion(int(right.sum()), total),
            "robust": proportion(int((right & ~arrays["fell"]).sum()), total),
            "twin_disagreement": differing / total,
            "unfinished": tuple(dict.fromkeys(line for part in parts for line in part.record.unfinished)),
        }
    )
    return FileOutcome(record=record, health=health_of([part.health for part in parts]), **arrays)
