"""What several test files share: the smallest project, one finished run of it, and the command line in-process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import chromium
import pytest
import tiny


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Layer costs that tests time go to a folder of theirs, for subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def edgeprune(capsys: pytest.CaptureFixture[str]) -> Command:
    """`edgeprune("compress", "model.pt", ...)` in this process, as the console script calls it."""
    from edgeprune.cli import main

    def command(*arguments: str | Path) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        found = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Said(stop.value.code, found.out, found.err)

    return command


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run has finished; nobody may write here."""
    folder = tiny.write_project(tmp_path_factory.mktemp("finished"))
    from edgeprune.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as stop:
            main(["compress", "model.pt"])
    assert stop.value.code == 0
    return folder


@pytest.fixture
def project(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project, and the current folder."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def opened() -> Iterator[chromium.Browser]:
    command = chromium.executable()
    if command is None:
        pytest.skip("no Chromium here: `.ci/run` installs Debian's where it may")
    with chromium.browser(command) as found:
        yield found
