"""Work on the dense network that the points of a sweep share: once, by content, whole."""

from __future__ import annotations

import threading
from pathlib import Path

from edgeprune.records import Record
from edgeprune.sweeping.sharing import Shared


class Found(Record):
    number: int


class Work:
    """Writes a file into a run folder and counts how often it was asked to."""

    def __init__(self, root: Path) -> None:
        self.root, self.done = root, 0

    def __call__(self) -> tuple[Found, list[Path]]:
        self.done += 1
        path = self.root / "dense" / "file.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        return Found(number=7), [path]


def test_the_second_run_gets_a_copy(tmp_path: Path) -> None:
    shared, first, second = Shared(tmp_path / "shared"), Work(tmp_path / "a"), Work(tmp_path / "b")
    assert shared.piece("export", Found, {"x": 1}, first.root, first)[0].number == 7
    found, files = shared.piece("export", Found, {"x": 1}, second.root, second)
    assert (found.number, first.done, second.done) == (7, 1, 0)
    assert files == [second.root / "dense" / "file.bin"]
    assert files[0].read_bytes() == b"weights"
    assert not files[0].samefile(first.root / "dense" / "file.bin")


def test_other_inputs_are_other_work(tmp_path: Path) -> None:
    shared, work = Shared(tmp_path / "shared"), Work(tmp_path / "a")
    for inputs in ({"x": 1}, {"x": 2}):
        shared.piece("export", Found, inputs, work.root, work)
    shared.piece("attack", Found, {"x": 1}, work.root, work)
    assert work.done == 3


def test_a_kept_file_that_was_changed_is_made_again(tmp_path: Path) -> None:
    shared, work = Shared(tmp_path / "shared"), Work(tmp_path / "a")
    shared.piece("export", Found, {}, work.root, work)
    (kept,) = (tmp_path / "shared").rglob("file.bin")
    kept.write_bytes(b"another")
    shared.piece("export", Found, {}, work.root, work)
    assert (work.done, kept.read_bytes()) == (2, b"weights")


def test_two_that_want_the_same_at_once_do_it_once(tmp_path: Path) -> None:
    work = Work(tmp_path / "a")
    started, may_end = threading.Event(), threading.Event()

    def slow() -> tuple[Found, list[Path]]:
        started.set()
        may_end.wait(60)
        return work()

    def first() -> None:
        Shared(tmp_path / "shared").piece("export", Found, {}, work.root, slow)

    def second() -> None:
        Shared(tmp_path / "shared").piece("export", Found, {}, tmp_path / "b", work)

    threads = [threading.Thread(target=each) for each in (first, second)]
    threads[0].start()
    assert started.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()  # it waits for the first
    may_end.set()
    for thread in threads:
        thread.join()
    assert work.done == 1
    assert (tmp_path / "b" / "dense" / "file.bin").read_bytes() == b"weights"


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    work = Work(tmp_path / "a")
    for _ in range(2):
        Shared().piece("export", Found, {}, work.root, work)
    assert work.done == 2
