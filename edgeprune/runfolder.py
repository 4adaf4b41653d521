"""The run folder: finished stages are kept, and nothing in it is ever half written.

A stage is known by a key: the digest of everything that it depends on. Its record under `stages/` is written last
and names every file that the stage made with its sha256; the same command again finds the record, checks the files
and goes on from there. When a stage is made again, what later stages left is removed first, so that a folder never
mixes two runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from edgeprune.errors import OutputError
from edgeprune.files import sha256_of, write_text, writing
from edgeprune.records import Record

T = TypeVar("T", bound=Record)

STAGES = "stages"


class StageRecord(Record, Generic[T]):
    """A finished stage: what it depended on (as a digest), what it found, which files it made."""

    key: str
    order: int
    files: dict[str, str]
    result: T


class RunFolder:
    """One run's folder, held by one process at a time (`opened`)."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say
        self._order = 0
        self._scratch: set[Path] = set()

    @classmethod
    @contextmanager
    def opened(cls, path: Path, say: Callable[[str], None]) -> Iterator[RunFolder]:
        """Create the folder if needed and lock it; OutputError when it cannot be written or is in use."""
        with writing(path):
            (path / STAGES).mkdir(parents=True, exist_ok=True)
            lock = (path / STAGES / ".lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(
                    f"another edgeprune run is writing to {path}", hint="wait for it, or give --out another folder"
                ) from None
            for left in path.rglob(".*.partial*"):  # beside what a killed run was about to rename
                left.unlink(missing_ok=True)
            yield cls(path, say)

    def stage(
        self, name: str, kind: type[T], inputs: Mapping[str, Any], work: Callable[[], tuple[T, Sequence[Path]]]
    ) -> T:
        """The result of a stage: kept when it finished before on the same inputs, else made by `work`.

        `inputs` must be JSON data. `work` returns the result and the files that it made inside the folder.
        """
        self._order += 1
        key = hashlib.sha256(json.dumps([name, inputs], sort_keys=True, default=str).encode()).hexdigest()
        kept = self._read(name, kind, key)
        if kept is not None:
            self._say(f"{name}: kept from the run before")
            return kept.result
        self._forget_from(self._order)
        result, files = work()
        made = {str(path.relative_to(self.path)): sha256_of(path) for path in files}
        record = StageRecord[kind](key=key, order=self._order, files=made, result=result)  # type: ignore[valid-type]
        write_text(self._record_path(name), record.to_json())
        while self._scratch:
            shutil.rmtree(self._scratch.pop(), ignore_errors=True)
        return result

    def scratch(self, name: str) -> Path:
        """A folder for what an unfinished stage wants to find again (checkpoints); gone when the stage is finished."""
        path = self.path / STAGES / name
        with writing(path):
            path.mkdir(exist_ok=True)
        self._scratch.add(path)
        return path

    def _record_path(self, name: str) -> Path:
        return self.path / STAGES / f"{name}.json"

    def _read(self, name: str, kind: type[T], key: str) -> StageRecord[T] | None:
        try:
            text = self._record_path(name).read_text(encoding="utf-8")
            record = StageRecord[kind].model_validate_json(text)  # type: ignore[valid-type]
        except (OSError, ValidationError):
            return None
        whole = all(
            (self.path / path).is_file() and sha256_of(self.path / path) == sha256
            for path, sha256 in record.files.items()
        )
        return record if record.key == key and whole else None

    def _forget_from(self, order: int) -> None:
        """Remove the records and the files of the stages from `order` on."""
        for path in (self.path / STAGES).glob("*.json"):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                stale, files = content["order"] >= order, list(content["files"])
            except (OSError, ValueError, KeyError, TypeError):
                stale, files = True, []
            if stale:
                with writing(path):
                    path.unlink(missing_ok=True)
                    for file in files:
                        (self.path / file).unlink(missing_ok=True)
