"""An attack in shards: parts of the images that other processes attack, as if one had attacked them all.

Promise: the same images fall, to the same adversarials, wherever a shard runs and in whatever order. What happens to
an image depends on that image, and the shards are cut by place alone, whatever the engine. A shard that is done stays
done, and one that was killed goes on from its journal. A process builds the file's twin anew and refuses a file that is
not the one that is attacked.

Refusal: gradients that no file gives (the network that was exported) are not sent anywhere; the attack runs here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.errors import DataError, MeasurementError
from edgeprune.files import sha256_of
from edgeprune.robustness.evaluate import attack_file
from edgeprune.robustness.outcome import FileOutcome, joined
from edgeprune.robustness.twin.source import Origin, made_again
from edgeprune.types import Split

if TYPE_CHECKING:
    from edgeprune.records import ThreatModel
    from edgeprune.robustness.twin import Gradients
    from edgeprune.types import Floats, Ints, Progress

SIZE = 64
"""Images of a shard: small networks are no faster with more at once, and a lost shard costs no more than these."""


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """What a process needs to attack a part of the images; it can be sent.

    ids, labels: int64 (M,); images: float32 (M, C, H, W). `outcome`: where what was found is written; `journal`: how
    far it got. `threads`: torch's.
    """

    origin: Origin
    sha256: str
    threat: ThreatModel
    device: str
    ids: Ints
    labels: Ints
    images: Floats
    outcome: Path
    journal: Path
    threads: int


Engine = Callable[[Sequence[Shard]], Iterator[int]]
"""Runs shards, in any order and place; yields the number of images of each as it ends."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Where shards are run. `workers`: how many at once, `folder`: where their outcomes lie, kept for a killed run."""

    engine: Engine
    workers: int
    folder: Path


def attack_spread(
    source: Gradients,
    split: Split,
    threat: ThreatModel,
    spread: Spread,
    *,
    sha256: str,
    device: str = "cpu",
    progress: Progress,
) -> FileOutcome:
    """`attack_file` on shards of `split`, by the engine of `spread`. `source.origin` must be known."""
    if not len(split):
        raise DataError("no images to attack", hint="give test data, or a larger --attack-samples")
    assert source.origin is not None
    spread.folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        _shard(source.origin, split, ids, (sha256, threat, device), spread)
        for ids in (split.ids[start : start + SIZE] for start in range(0, len(split), SIZE))
    ]
    done = sum(len(task.ids) for task in tasks if task.outcome.is_file())
    progress(f"{done} of {len(split)} images were attacked before", done / len(split))
    for count in spread.engine([task for task in tasks if not task.outcome.is_file()]):
        done += count
        progress(f"{done} of {len(split)} images attacked", done / len(split))
    found = joined([FileOutcome.load(task.outcome) for task in tasks])
    for task in tasks:
        task.outcome.unlink()
    with suppress(OSError):  # somebody else keeps something there
        spread.folder.rmdir()
    return found


def work(shard: Shard) -> int:
    """Attack one shard in this process, and write what was found; the number of its images."""
    import torch

    from edgeprune.data.arrays import ArraySource
    from edgeprune.single import open_file

    file = shard.origin.file
    if not file.is_file() or sha256_of(file) != shard.sha256:
        raise MeasurementError(
            f"{file} is not the file that is attacked, as another process sees it",
            hint="share the folder between the machines, and leave the file alone while it is attacked",
        )
    before = torch.get_num_threads()
    torch.set_num_threads(shard.threads)
    try:
        _, session = open_file(file, shard.origin.threads)
        source = made_again(shard.origin, session)
        pixels = ArraySource(shard.images, shard.labels, shard.threat.bounds)
        split = Split("test", "shard", pixels, np.arange(len(shard.ids)), shard.threat.samples_digest)
        found = attack_file(
            source,
            split,
            shard.threat,
            sha256=shard.sha256,
            device=shard.device,
            journal=shard.journal,
            progress=lambda _text, _share: None,
        )
    finally:
        torch.set_num_threads(before)
    replace(found, ids=shard.ids).save(shard.outcome)
    return len(shard.ids)


def here(shards: Sequence[Shard]) -> Iterator[int]:
    """In this process, one after the other."""
    return map(work, shards)


def _shard(origin: Origin, split: Split, ids: Ints, what: tuple[str, ThreatModel, str], spread: Spread) -> Shard:
    sha256, threat, device = what
    images, labels = np.array(split.source.read(ids), np.float32), split.source.labels[ids]
    key = hashlib.sha256(f"{sha256}\n{threat.to_json()}\n{device}".encode())
    key.update(images.tobytes() + np.ascontiguousarray(labels).tobytes())
    name = key.hexdigest()[:16]
    if threat.seconds is not None:  # the time is for all images, and several shards run at once
        share = min(spread.workers * len(ids) / len(split), 1.0)
        threat = threat.model_copy(update={"seconds": threat.seconds * share})
    places = (spread.folder / f"{name}.npz", spread.folder / f"{name}.journal")
    return Shard(origin, sha256, threat, device, ids, labels, images, *places, 1)
