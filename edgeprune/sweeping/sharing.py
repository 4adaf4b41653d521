"""Work on the dense network that several runs share: done once, kept by content, copied into each run folder.

Promise: a piece is used again only for equal inputs (the stage's, by digest) and when its files are as they were
written. Each run folder stays whole: it gets a copy. Two processes that want the same piece do it once: the second
waits for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from edgeprune.files import replacing, sha256_of, write_text, writing
from edgeprune.records import Record
from edgeprune.types import ChannelGraph

T = TypeVar("T", bound=Record)


class Piece(Record, Generic[T]):
    """A finished piece: what it found, and its files by their path in a run folder, each with its sha256."""

    files: dict[str, str]
    result: T


@dataclass(frozen=True)
class Shared:
    """Where pieces are kept; without a folder nothing is, and all work is done where it is asked for.

    `graphs` holds traced and proved groups, in this process alone.
    """

    folder: Path | None = None
    graphs: dict[str, ChannelGraph] = field(default_factory=dict)

    def piece(
        self,
        name: str,
        kind: type[T],
        inputs: Mapping[str, Any],
        root: Path,
        work: Callable[[], tuple[T, Sequence[Path]]],
    ) -> tuple[T, list[Path]]:
        """What `work` gives, as a stage's work does: its result, and the files that it made in `root`, a run folder.

        When it was done before on the same inputs, its files are copied into `root` instead.
        """
        if self.folder is None:
            result, made = work()
            return result, list(made)
        key = digest_of([name, inputs])
        place = self.folder / f"{name}-{key[:32]}"
        with _held(place):
            kept = _read(place, kind)
            if kept is not None:
                return kept.result, [_copied(place / path, root / path) for path in kept.files]
            result, made = work()
            paths = [str(path.relative_to(root)) for path in made]
            for path in paths:
                _copied(root / path, place / path)
            record = Piece[kind](files={path: sha256_of(place / path) for path in paths}, result=result)  # type: ignore[valid-type]
            write_text(place / "piece.json", record.to_json())
            return result, list(made)

    def graph(self, inputs: Mapping[str, Any], work: Callable[[], ChannelGraph]) -> ChannelGraph:
        """The graph of these inputs; made by `work` once in this process where work is shared at all."""
        if self.folder is None:
            return work()
        key = digest_of(["graph", inputs])
        if key not in self.graphs:
            self.graphs[key] = work()
        return self.graphs[key]


def digest_of(data: Any) -> str:
    """sha256 of JSON data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _held(place: Path) -> Iterator[None]:
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        lock = (place / ".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(place: Path, kind: type[T]) -> Piece[T] | None:
    try:
        text = (place / "piece.json").read_text(encoding="utf-8")
        piece = Piece[kind].model_validate_json(text)  # type: ignore[valid-type]
        whole = all(sha256_of(place / path) == sha256 for path, sha256 in piece.files.items())
    except (OSError, ValidationError):
        return None
    return piece if whole else None


def _copied(source: Path, target: Path) -> Path:
    with replacing(target) as beside:
        shutil.copyfile(source, beside)
    return target
