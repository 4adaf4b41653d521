"""What an attack on one file left behind: the counts, and the evidence image by image.

Promise: an outcome survives a killed run (`save`, `load`), and the evidence of both files can be replayed by anyone.
The archives are plain .npz without pickle, and the same content always makes the same bytes.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import DataError
from edgeprune.files import replacing
from edgeprune.records import AttackedFile, Record, RuntimeInfo
from edgeprune.robustness.health import Health

if TYPE_CHECKING:
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_EPOCH = (1980, 1, 1, 0, 0, 0)
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
            with zipfile.ZipFile(path) as archive:
                arrays: dict[str, Any] = {name: _read_array(archive, name) for name in _ARRAYS}
                texts = {name: _read_array(archive, name).tobytes() for name in _RECORDS}
            records: dict[str, Any] = {n: kind.model_validate_json(texts[n]) for n, kind in _RECORDS.items()}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{path} is not the outcome of an attack: {type(error).__name__}", hint="delete it and run again"
            ) from error
        return cls(**records, **arrays)


def evidence(dense: FileOutcome, compressed: FileOutcome) -> dict[str, np.ndarray[Any, Any]]:
    """What `evidence.npz` holds, N images in ascending order of their ids.

    ids, labels: int64 (N,), the sample ids in the test data and their classes.
    dense_clean, compressed_clean: int64 (N,), what each file says of the clean image in its runtime.
    dense_adversarial, compressed_adversarial: int64 (N,), what each says of its own adversarial.
    dense_fell, compressed_fell: bool (N,), right on the clean image and verified wrong on its adversarial.
    dense_rounded, compressed_rounded: bool (N,), fell, and still wrong after rounding to 8 bits.
    dense_adversarials, compressed_adversarials: float32 (N, C, H, W) pixels, found against that file; the clean image
    where none was found. Give them to the file of that name to see it fail.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {"ids": dense.ids, "labels": dense.labels}
    for side, outcome in (("dense", dense), ("compressed", compressed)):
        arrays[f"{side}_clean"] = outcome.clean_predictions
        arrays[f"{side}_adversarial"] = outcome.adversarial_predictions
        arrays[f"{side}_fell"] = outcome.fell
        arrays[f"{side}_rounded"] = outcome.rounded_fell
        arrays[f"{side}_adversarials"] = outcome.adversarials
    return arrays


def write_evidence(path: Path, dense: FileOutcome, compressed: FileOutcome) -> None:
    """Write `evidence` to an .npz, whole or not at all; the same outcomes always make the same bytes."""
    with replacing(path) as beside:
        write_arrays(beside, evidence(dense, compressed))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """An .npz of `arrays` in their order, compressed, without times or the machine's marks, and without pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(member, buffer.getbuffer(), compresslevel=1)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray[Any, Any]:
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)
