"""An attack in shards: the same answer, whoever attacks which part, and nothing done twice."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from attack_examples import grid_images, silent, split_of
from twin_examples import graph_of, node, save

from edgeprune import spreading
from edgeprune.config import AttackConfig
from edgeprune.errors import MeasurementError
from edgeprune.files import sha256_of
from edgeprune.robustness import evaluate, shards
from edgeprune.robustness.outcome import FileOutcome
from edgeprune.robustness.shards import Engine, Shard, Spread, attack_spread, here, work
from edgeprune.robustness.twin.source import Gradients, gradients_of, twin_of, unguided
from edgeprune.single import open_file
from edgeprune.types import Preprocessing, Split

COUNT, SHAPE = 22, (3, 6, 6)


def file_of(folder: Path) -> Path:
    draw = np.random.default_rng(1).standard_normal
    weights = {"w": draw((4, 3, 3, 3)).astype(np.float32), "head": draw((144, 5)).astype(np.float32)}
    nodes = [node("Conv", "x w", "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Relu", "c", "r")]
    last = [node("Flatten", "r", "f"), node("MatMul", "f head", "y")]
    return save(graph_of([*nodes, *last], 17, ("n", *SHAPE), weights), folder)


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Gradients, Split, str]:
    file, images = file_of(tmp_path), grid_images(COUNT, shape=SHAPE)
    _, session = open_file(file, 1)
    labels = session.logits(images).argmax(1).astype(np.int64)
    labels[3] = (labels[3] + 1) % 5  # one that the file gets wrong
    source = gradients_of(twin_of(file), file, session, images, Preprocessing())
    return source, split_of(images, labels), sha256_of(file)


def outcome(scene: tuple[Gradients, Split, str], folder: Path, engine: Engine | None, **config: object) -> FileOutcome:
    source, split, sha256 = scene
    wanted = AttackConfig(**{"attack": "quick", "eps": "8/255", **config})
    threat = evaluate.threat_model(wanted, (0.0, 1.0), split, 0)
    if engine is None:
        return evaluate.attack_file(source, split, threat, sha256=sha256, progress=silent)
    spread = Spread(engine, 2, folder)
    return attack_spread(source, split, threat, spread, sha256=sha256, progress=silent)


def require_same(one: FileOutcome, other: FileOutcome) -> None:
    for name in ("ids", "labels", "fell", "adversarials", "adversarial_predictions", "rounded_fell", "dead_gradient"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    timeless = {"seconds": 0.0}
    assert one.record.model_copy(update=timeless) == other.record.model_copy(update=timeless)


@pytest.mark.parametrize("size", [5, 64])
def test_shards_find_what_one_attack_finds(
    scene: tuple[Gradients, Split, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(shards, "SIZE", size)
    whole = outcome(scene, tmp_path, None)
    parts = outcome(scene, tmp_path / "parts", here)
    assert 0 < whole.record.fell < COUNT - 1
    require_same(whole, parts)
    assert not (tmp_path / "parts").exists()


def test_a_file_without_gradients_is_shared_too(
    scene: tuple[Gradients, Split, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SIZE", 3)
    guided, split, sha256 = scene
    assert guided.origin
    file = guided.origin.file
    blind = unguided(twin_of(file), file, open_file(file, 1)[1], Preprocessing(), "a test")
    asked = (blind, evaluate.part_of(split, split.ids[:6]), sha256)
    whole = outcome(asked, tmp_path, None, attack="black-box", eps="16/255")
    assert 0 < whole.record.fell < 6
    require_same(whole, outcome(asked, tmp_path / "parts", here, attack="black-box", eps="16/255"))


def test_processes_find_the_same(
    scene: tuple[Gradients, Split, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SIZE", 11)
    require_same(outcome(scene, tmp_path, None), outcome(scene, tmp_path / "parts", spreading.processes(2)))
    assert multiprocessing.active_children() == []


def test_a_killed_attack_goes_on_with_the_shards_that_are_left(
    scene: tuple[Gradients, Split, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SIZE", 8)
    asked: list[int] = []

    def killed(given: Sequence[Shard]) -> Iterator[int]:
        yield work(given[1])  # not the first: the order is nobody's business
        raise KeyboardInterrupt

    def counted(given: Sequence[Shard]) -> Iterator[int]:
        asked.extend(int(shard.ids[0]) for shard in given)
        return here(given)

    with pytest.raises(KeyboardInterrupt):
        outcome(scene, tmp_path / "parts", killed)
    found = outcome(scene, tmp_path / "parts", counted)
    assert asked == [0, 16]
    require_same(outcome(scene, tmp_path, None), found)


def test_other_settings_do_not_take_up_shards(
    scene: tuple[Gradients, Split, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SIZE", 8)

    def killed(given: Sequence[Shard]) -> Iterator[int]:
        yield work(given[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcome(scene, tmp_path / "parts", killed)
    found = outcome(scene, tmp_path / "parts", here, eps="6/255")
    require_same(outcome(scene, tmp_path, None, eps="6/255"), found)


def test_time_is_shared_by_the_images_and_what_is_left_is_said(
    scene: tuple[Gradients, Split, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SIZE", 11)
    seconds: list[float | None] = []

    def watched(given: Sequence[Shard]) -> Iterator[int]:
        seconds.extend(shard.threat.seconds for shard in given)
        return here(given[:2])

    found = outcome(scene, tmp_path / "parts", watched, minutes=1e-6)
    assert seconds == [pytest.approx(60e-6)] * 2  # two workers: each half of the images has all of the time
    assert found.record.unfinished


def test_another_file_at_the_same_place_is_refused(scene: tuple[Gradients, Split, str], tmp_path: Path) -> None:
    source, split, _ = scene
    with pytest.raises(MeasurementError, match="not the file that is attacked"):
        outcome((source, split, "0" * 64), tmp_path / "parts", here)


def test_settings_choose_the_engine(tmp_path: Path) -> None:
    journal = tmp_path / "journal.npz"
    assert spreading.spread_of(AttackConfig(), journal) is None
    spread = spreading.spread_of(AttackConfig(processes=3), journal)
    assert spread is not None
    assert spread.workers == 3
    assert spread.folder == tmp_path / "journal.npz.shards"


def test_ray_finds_the_same(
    scene: tuple[Gradients, Split, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'edgeprune[ray]'")
    from edgeprune.spreading import ray_shards

    monkeypatch.setattr(shards, "SIZE", 11)
    engine, workers = ray_shards(None)
    assert workers >= 1
    require_same(outcome(scene, tmp_path, None), outcome(scene, tmp_path / "parts", engine))
