"""What a clear error is, and whether a folder was left as it was: for the tests of mistakes."""

from __future__ import annotations

from pathlib import Path

from conftest import Said

USAGE, NO_RESULT = 2, 3
COMPRESS = ("compress", "model.pt", "--out", "new")


def changed(folder: Path, before: dict[str, bytes]) -> list[str]:
    """Files that are not as they were, by name."""
    after = contents(folder)
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_clear(said: Said, code: int, *words: str) -> None:
    """One error that says all of `words`, and nothing else of an error's kind."""
    assert said.code == code, said.err
    lines = said.err.splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith("error:"))
    message = lines[start:]
    assert all(line.startswith("  ") for line in message[1:]), said.err
    assert len(message) <= 6, said.err
    assert "Traceback" not in said.err
    assert "bug of edgeprune" not in said.err
    for word in words:
        assert word in said.err
    assert said.out == ""
