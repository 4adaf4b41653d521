"""Reading ahead: the next batch is decoded while this one is being used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, made by a thread that is at most `depth` items ahead.

    An exception of the source is raised here, in its place. The thread ends when the reader stops early.
    """
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # noqa: BLE001  # carried over to the reader's thread and raised there
            put("error", error)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if isinstance(value, BaseException):
                raise value
            yield value  # type: ignore[misc]  # "item" carries a T
    finally:
        stopped.set()
        thread.join()
