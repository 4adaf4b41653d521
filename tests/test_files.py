"""Files are whole or absent, and a disk that refuses them is told as such."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.errors import ExitCode, OutputError
from edgeprune.files import replacing, sha256_of, write_text, writing


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file may grow beyond 10,000 bytes: what a full disk does, on one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield 10_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"edge")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"edge").hexdigest()


def test_file_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "model.onnx"
    with replacing(path) as beside:
        beside.write_bytes(b"new")
        assert beside.parent == path.parent
        assert beside.suffix == ".onnx"
        assert not path.exists()
    assert names(path.parent) == ["model.onnx"]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space")])
def test_block_that_raises_leaves_the_old_file_and_nothing_beside(tmp_path: Path, error: BaseException) -> None:
    write_text(tmp_path / "plan.json", "old")

    def write() -> None:
        with replacing(tmp_path / "plan.json") as beside:
            beside.write_text("half")
            raise error

    with pytest.raises((type(error), OutputError)):
        write()
    assert names(tmp_path) == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == "old"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EFBIG, "free some space"),
        (errno.EACCES, "may write to"),
        (errno.EROFS, "may write to"),
        (errno.EIO, "another folder"),
    ],
)
def test_refusal_of_the_system_is_told_with_a_remedy(tmp_path: Path, number: int, remedy: str) -> None:
    with pytest.raises(OutputError, match="cannot write") as caught, writing(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in caught.value.what
    assert str(tmp_path / "x") in caught.value.what
    assert remedy in caught.value.hint
    assert caught.value.exit_code is ExitCode.NO_RESULT


def test_file_that_is_too_big_for_the_disk_leaves_nothing(tmp_path: Path, small_files: int) -> None:
    with pytest.raises(OutputError, match="free some space"):
        write_text(tmp_path / "big", "x" * (2 * small_files))
    assert names(tmp_path) == []


def test_folder_that_is_a_file_is_an_error_about_the_output(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "runs" / "plan.json", "{}")


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "x"):
        raise ZeroDivisionError
