"""The run folder: finished stages are kept, and nothing in it is ever half written.

A stage is known by a key: the digest of everything that it depends on. Its record under `stages/` is written last
and names every file that the stage made with its sha256; the same command again finds the record, checks the files
and goes on from there. When a stage is made again, what later stages and the report left is removed first, so that a
folder never mixes two runs; a stage that breaks off takes what it has written with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from edgeprune.errors import OutputError
from edgeprune.files import sha256_of, write_text, writing
from edgeprune.records import Record

T = TypeVar("T", bound=Record)

STAGES = "stages"
CONCLUSIONS = ("report.json", "report.md", "report.html", "junit.xml", "evidence.npz", "attestation.json")
"""What is made from the stages: stale as soon as one of them is made again."""


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
        self._passed: list[str] = []

    @classmethod
    @contextmanager
    def opened(cls, path: Path, say: Callable[[str], None]) -> Iterator[RunFolder]:
        """Create the folder if needed and lock it; OutputError when it cannot be written or is in use."""
        with writing(path):
            (path / STAGES).mkdir(parents=True, exist_ok=True)
            lock = (path / STAGES / ".lock").open("w")
        with lock:
            try:
                with writing(path):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OutputError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
                raise OutputError(
                    f"another edgeprune run is writing to {path}", hint="wait for it, or give --out another folder"
                ) from None
            for left in path.rglob(".*.partial*"):  # by a run that was killed: nobody else writes here now
                with writing(left):
                    left.unlink()
            yield cls(path, say)

    def stage(
        self, name: str, kind: type[T], inputs: Mapping[str, Any], work: Callable[[], tuple[T, Sequence[Path]]]
    ) -> T:
        """The result of a stage: kept when it finished before on the same inputs, else made by `work`.

        `inputs` must be JSON data. `work` returns the result and the files that it made inside the folder.
        """
        key = hashlib.sha256(json.dumps([name, inputs], sort_keys=True, default=str).encode()).hexdigest()
        kept = self._read(name, kind, key)
        if kept is not None:
            self._say(f"{name}: kept from the run before")
            self._passed.append(name)
            return kept.result
        self._forget_what_follows()
        with self._undone_on_failure():
            result, files = work()
            made = {str(path.relative_to(self.path)): sha256_of(path) for path in files}
            record = StageRecord[kind](key=key, order=len(self._passed) + 1, files=made, result=result)  # type: ignore[valid-type]
            write_text(self._record_path(name), record.to_json())
        self._passed.append(name)
        for path in (self.path / STAGES).iterdir():
            if path.is_dir():  # scratch: of this stage, or of one that will never be finished
                shutil.rmtree(path, ignore_errors=True)
        return result

    def scratch(self, name: str) -> Path:
        """A folder for what an unfinished stage wants to find again (checkpoints); gone when a stage is finished."""
        path = self.path / STAGES / name
        with writing(path):
            path.mkdir(exist_ok=True)
        return path

    def _record_path(self, name: str) -> Path:
        return self.path / STAGES / f"{name}.json"

    def _read(self, name: str, kind: type[T], key: str) -> StageRecord[T] | None:
        try:
            text = self._record_path(name).read_text(encoding="utf-8")
            record = StageRecord[kind].model_validate_json(text)  # type: ignore[valid-type]
        except (OSError, ValidationError):
            return None
        return record if record.key == key and self._whole(record.files) else None

    def _whole(self, files: Mapping[str, str]) -> bool:
        try:
            return all(_is_inside(path) and sha256_of(self.path / path) == sha256 for path, sha256 in files.items())
        except OSError:
            return False

    def _forget_what_follows(self) -> None:
        """Remove the records and the files of all stages but those that this run has passed, and the report."""
        stale = [self.path / name for name in CONCLUSIONS]
        for path in (self.path / STAGES).glob("*.json"):
            if path.stem not in self._passed:
                stale += [path, *(self.path / name for name in _files_of(path) if _is_inside(name))]
        for path in stale:
            with writing(path):
                path.unlink(missing_ok=True)

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Removes the files that the block has written when it breaks off; scratch stays."""
        before = self._inventory()
        try:
            yield
        except BaseException:
            for path, identity in self._inventory().items():
                if before.get(path) != identity:
                    with suppress(OSError):
                        path.unlink()
            raise

    def _inventory(self) -> dict[Path, tuple[int, int]]:
        """Every file but those in scratch folders, and what tells one version of it from the next."""
        found = {}
        for path in self.path.rglob("*"):
            scratch = (self.path / STAGES) in path.parent.parents
            if path.is_file() and not scratch:
                status = path.stat()
                found[path] = (status.st_ino, status.st_mtime_ns)
        return found


def _files_of(record: Path) -> list[str]:
    """The files that a stage's record names; none where it cannot be read."""
    try:
        return [str(name) for name in json.loads(record.read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _is_inside(name: str) -> bool:
    """A record is a file, too: it names nothing outside of its run folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts
