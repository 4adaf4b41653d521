"""Many files beside one: real ones of known relations, in ONNX Runtime, and what is kept of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeprune.errors import MeasurementError
from edgeprune.latency import places
from edgeprune.latency.copies import Operator, write_copies
from edgeprune.latency.costs import Bench
from edgeprune.latency.crowd import CrowdJob, time_crowd
from edgeprune.latency.places import shares_of

CONV = Operator(kind="conv", size=(16, 16), kernel=(3, 3), pads=(1, 1, 1, 1))
CHANNELS = 16
BENCH = Bench("onnxruntime", 1, 1)


def silent(text: str, share: float) -> None:
    assert text
    assert 0 <= share <= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 1, 8 and 16 copies of a layer, and images."""
    root = tmp_path_factory.mktemp("crowd")
    for copies in (1, 8, 16):
        write_copies(CONV, CHANNELS, CHANNELS, copies, root / f"{copies}.onnx")
    np.save(root / "images.npy", np.random.default_rng(0).random((4, CHANNELS, 16, 16), dtype=np.float32))
    return root


def job(folder: Path, reference: str, *files: str) -> CrowdJob:
    return CrowdJob(
        runtime="onnxruntime",
        threads=1,
        batch_size=1,
        cores=(),
        images=str(folder / "images.npy"),
        reference=str(folder / reference),
        files=tuple(str(folder / name) for name in files),
    )


def test_shares_are_of_the_reference(folder: Path) -> None:
    found: dict[int, float] = {}

    def keep(number: int, share: float, apart: float) -> bool:
        found[number] = share
        assert 0 <= apart < 1
        return True

    time_crowd(job(folder, "8.onnx", "1.onnx", "8.onnx", "16.onnx"), keep)
    assert sorted(found) == [0, 1, 2]
    assert found[0] < 0.6
    assert found[1] == pytest.approx(1, abs=0.25)
    assert found[2] > 1.4


def test_more_than_a_dozen_take_turns_and_time_may_run_out(folder: Path) -> None:
    taken: list[int] = []

    def enough(number: int, share: float, apart: float) -> bool:
        taken.append(number)
        return len(taken) < 14

    time_crowd(job(folder, "1.onnx", *["1.onnx"] * 30), enough)
    assert taken == list(range(14))


def test_a_file_that_does_not_open_is_an_error_with_the_runtimes_words(folder: Path) -> None:
    (folder / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(MeasurementError, match="cannot time networks in onnxruntime"):
        time_crowd(job(folder, "1.onnx", "broken.onnx"), lambda *_: True)


disturbed: set[str] = set()
"""Files whose rounds are far apart."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A crowd that takes as long as its file's name says, in a cache of its own; the files that were timed."""
    files: list[str] = []

    def fake(job: CrowdJob, found: object) -> None:
        for number, file in enumerate(job.files):
            files.append(Path(file).stem)
            if not found(number, float(Path(file).stem) / 8, 0.5 if file in disturbed else 0.01):  # type: ignore[operator]
                return

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(places, "time_crowd", fake)
    return files


def shares(folder: Path, *names: str, network: str = "abc", seconds: float = 60.0) -> dict[str, float]:
    wanted = {name: (lambda name=name: folder / f"{name}.onnx") for name in names}
    return shares_of(BENCH, (network, folder / "8.onnx"), folder / "images.npy", wanted, seconds, silent)


def test_what_was_timed_is_kept_for_this_network_alone(asked: list[str], folder: Path) -> None:
    assert shares(folder, "1", "16") == {"1": 1 / 8, "16": 2.0}
    assert asked == ["1", "16"]
    assert shares(folder, "16") == {"16": 2.0}
    assert asked == ["1", "16"]
    assert shares(folder, "16", network="other") == {"16": 2.0}
    assert asked == ["1", "16", "16"]


def test_a_figure_of_a_bad_minute_serves_and_is_not_kept(
    asked: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_crowd.disturbed", {str(folder / "16.onnx")})
    assert shares(folder, "1", "16") == {"1": 1 / 8, "16": 2.0}
    assert shares(folder, "1", "16") == {"1": 1 / 8, "16": 2.0}
    assert asked == ["1", "16", "16"]


def test_the_reference_is_its_own_time_and_not_timed(asked: list[str], folder: Path) -> None:
    assert shares(folder, "8", "1") == {"8": 1.0, "1": 1 / 8}
    assert asked == ["1"]


def test_when_time_is_up_what_was_found_is_given(asked: list[str], folder: Path) -> None:
    assert shares(folder, "1", "16", seconds=0.0) == {"1": 1 / 8}


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": "0"}', "[]"])
def test_a_damaged_cache_is_timed_anew(asked: list[str], folder: Path, tmp_path: Path, text: str) -> None:
    shares(folder, "1")
    (kept,) = (tmp_path / "edgeprune" / "places").glob("*.json")
    assert json.loads(kept.read_text())["network"] == "abc"
    kept.write_text(text)
    assert shares(folder, "1") == {"1": 1 / 8}
    assert asked == ["1", "1"]


def test_a_crowd_that_dies_leaves_what_it_found(
    asked: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(job: CrowdJob, found: object) -> None:
        found(0, 0.25, 0.01)  # type: ignore[operator]
        raise MeasurementError("died")

    alive = places.time_crowd
    monkeypatch.setattr(places, "time_crowd", dies)
    with pytest.raises(MeasurementError):
        shares(folder, "1", "16")
    monkeypatch.setattr(places, "time_crowd", alive)
    assert shares(folder, "1", "16") == {"1": 0.25, "16": 2.0}
    assert asked == ["16"]
