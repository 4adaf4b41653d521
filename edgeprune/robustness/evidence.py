"""`evidence.npz`: the adversarials themselves, so that anyone can show them to the file again.

Format, version 1: a plain .npz without pickle; the same content always makes the same bytes. N images, in ascending
order of their ids:

- `about`: the bytes of a JSON record (`About`): the version, the threat model, and the sha256 of every file attacked.
- `ids`, `labels`: int64 (N,), the sample ids in the test data, and their classes.
- for every file, by its name there ("dense" and "compressed" of a run, "file" of `edgeprune attack`):
  `NAME_clean`, `NAME_adversarial`: int64 (N,), what it says of the clean image and of its own adversarial; `NAME_fell`:
  bool (N,), right on the clean image and verified wrong on its adversarial; `NAME_rounded`: fell, and still wrong after
  rounding to 8 bits; `NAME_adversarials`: float32 (N, C, H, W) pixels, the clean image where none was found.

Further arrays may stand beside these. A run writes the distances that it searched: `distance_ids`, int64 (D,), and in
their order of each file `NAME_distance_clean`, int64 (D,), its classes of the clean images, and `NAME_distances`,
float64 (D,), to its decision boundary (inf: nothing found, NaN: not searched).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from edgeprune.errors import DataError
from edgeprune.files import replacing
from edgeprune.records import Record, Sha256, ThreatModel
from edgeprune.robustness.archives import read_arrays, write_arrays

if TYPE_CHECKING:
    from edgeprune.robustness.outcome import FileOutcome
    from edgeprune.types import Floats, Ints

    Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    Arrays = dict[str, np.ndarray[Any, Any]]

VERSION = 1


class About(Record):
    """What the evidence is about: `files` maps the name of each attacked file to its sha256."""

    version: int
    threat: ThreatModel
    files: dict[str, Sha256]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What was found against one file: the arrays of the format, N images."""

    about: About
    name: str
    ids: Ints
    labels: Ints
    fell: Bools
    adversarials: Floats


def evidence(outcomes: Mapping[str, FileOutcome], threat: ThreatModel) -> Arrays:
    """The arrays of the format for files attacked on the same images, by name."""
    about = About(version=VERSION, threat=threat, files={name: o.record.sha256 for name, o in outcomes.items()})
    first = next(iter(outcomes.values()))
    arrays: Arrays = {"about": np.frombuffer(about.to_json().encode(), np.uint8)}
    arrays |= {"ids": first.ids, "labels": first.labels}
    for name, outcome in outcomes.items():
        arrays[f"{name}_clean"] = outcome.clean_predictions
        arrays[f"{name}_adversarial"] = outcome.adversarial_predictions
        arrays[f"{name}_fell"] = outcome.fell
        arrays[f"{name}_rounded"] = outcome.rounded_fell
        arrays[f"{name}_adversarials"] = outcome.adversarials
    return arrays


def write_evidence(
    path: Path, outcomes: Mapping[str, FileOutcome], threat: ThreatModel, more: Mapping[str, Any] | None = None
) -> None:
    """Write `evidence`, and the arrays of `more`, to an .npz, whole or not at all; OutputError when it cannot be."""
    with replacing(path) as beside:
        write_arrays(beside, {**evidence(outcomes, threat), **(more or {})})


def read_evidence(path: Path, sha256: str) -> Evidence:
    """What was found against the file of this digest, else against the first one that was attacked.

    DataError for a file that is no evidence, is broken, or is of a later version.
    """
    try:
        about = About.model_validate_json(read_arrays(path, ("about",))["about"].tobytes())
        name = next((name for name, digest in about.files.items() if digest == sha256), next(iter(about.files), ""))
        arrays = read_arrays(path, ("ids", "labels", f"{name}_fell", f"{name}_adversarials"))
    except (OSError, EOFError, KeyError, ValueError, ValidationError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is no evidence of an attack: {type(error).__name__}",
            hint="give a run's evidence.npz, or what `edgeprune attack --evidence` wrote",
        ) from error
    if about.version > VERSION:
        raise DataError(
            f"{path} is evidence of version {about.version}, this edgeprune reads up to {VERSION}",
            hint="use a newer edgeprune",
        )
    ids, labels, fell, adversarials = arrays.values()
    same = len({len(array) for array in arrays.values()}) == 1
    if not same or adversarials.dtype != np.float32 or fell.dtype != np.bool_:
        raise DataError(f"{path} is broken: its arrays do not belong together", hint="make it again")
    return Evidence(about, name, ids, labels, fell, adversarials)
