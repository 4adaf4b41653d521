"""`edgeprune attack --replay evidence.npz FILE`: adversarials that were found before, shown to a file again.

Promise: nothing of the evidence is believed. The images are those of the test data, by their digest; an adversarial
that is outside epsilon or the pixel range counts for nothing and is counted; the runtime says how many still fall. What
stands here has been attacked by nothing: a replay shows what transfers, never that a file is robust.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import DataError, UsageError
from edgeprune.files import sha256_of
from edgeprune.records import Proportion, Record, RuntimeInfo, Sha256, ThreatModel
from edgeprune.single import open_file, split_of

if TYPE_CHECKING:
    from edgeprune.protocols import Session
    from edgeprune.robustness.evidence import Evidence
    from edgeprune.types import InputForm, ModelBundle, Split


class Replayed(Record):
    """What became of `claimed` adversarials, found against the file `found_on`, on the file `sha256`.

    `outside` of them break the threat model, `already_wrong` belong to images that this file gets wrong anyway, `fell`
    fool it. `robust` is the share of all images that it gets right, clean and under the replay.
    """

    file: str
    sha256: Sha256
    runtime: RuntimeInfo
    found_on: Sha256
    threat: ThreatModel
    claimed: int
    outside: int
    already_wrong: int
    fell: int
    clean: Proportion
    robust: Proportion


def replay_file(file: Path, evidence: Path, config: Config, *, console: Console) -> Replayed:
    """Show the adversarials in `evidence` to `file`; those found against this very file, where they are there.

    Errors: UsageError (no data), DataError (no evidence, or evidence about other images).
    """
    from edgeprune.attacking import form_of
    from edgeprune.robustness.evidence import read_evidence

    if config.data.test is None:
        raise UsageError("a replay needs the test data that the attack ran on", hint="give --test")
    runtime, session = open_file(file, config.latency.threads)
    digest = sha256_of(file)
    found = read_evidence(evidence, digest)
    form, session = form_of(file, session, config)
    split = _same_images(split_of(config, form), found, form, evidence)
    with console.task(f"replaying in {runtime.name}"):
        return _shown(file, session, split, found, digest)


def _same_images(split: Split, found: Evidence, form: ModelBundle | InputForm, path: Path) -> Split:
    """The samples that the evidence is about; DataError unless they are those of the split, pixel by pixel."""
    from edgeprune.robustness.evaluate import part_of

    threat, hint = found.about.threat, "give the test data, --samples and --seed of that attack"
    if found.adversarials.shape[1:] != form.input_shape:
        raise DataError(
            f"{path} holds images of shape {found.adversarials.shape[1:]}, the file takes {form.input_shape}",
            hint="replay on a file that takes the same images",
        )
    if not np.isin(found.ids, split.ids).all():
        raise DataError(f"{path} names samples that the test data does not have", hint=hint)
    whole = np.array_equal(found.ids, split.ids)
    subset = split if whole else part_of(split, found.ids)
    candidates = {subset.digest, part_of(split, found.ids).digest}
    if threat.target is not None:  # drawn from what was left without the target's images
        rest = part_of(split, split.ids[split.labels() != threat.target])
        candidates |= {rest.digest, part_of(rest, found.ids).digest}
    if threat.samples_digest not in candidates or not np.array_equal(subset.labels(), found.labels):
        raise DataError(f"{path} was found on other images than these", hint=hint)
    return subset


def _shown(file: Path, session: Session, split: Split, found: Evidence, digest: str) -> Replayed:
    from edgeprune.robustness.second_look import verify
    from edgeprune.robustness.stage import Stage
    from edgeprune.robustness.statistics import proportion

    threat, target = found.about.threat, found.about.threat.target
    stage = Stage(session, None, threat)
    images, labels = split.source.read(split.ids), split.labels()
    right = stage.predict(images) == labels
    rows = np.flatnonzero(found.fell)
    looked = stage if target is None else stage.towards(target)
    truth = labels[rows] if target is None else np.zeros(len(rows), np.int64)
    seen = verify(looked.predict, found.adversarials[rows], images[rows], truth, threat)
    fooled = seen.predicted != truth
    fell = right.copy()
    fell[:] = False
    fell[rows[seen.believed & right[rows]]] = True
    return Replayed(
        file=str(file),
        sha256=digest,
        runtime=session.info,
        found_on=found.about.files[found.name],
        threat=threat,
        claimed=len(rows),
        outside=int(np.sum(fooled & ~seen.believed)),
        already_wrong=int(np.sum(~right[rows])),
        fell=int(fell.sum()),
        clean=proportion(int(right.sum()), len(labels)),
        robust=proportion(int(np.sum(right & ~fell)), len(labels)),
    )
