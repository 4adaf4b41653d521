"""Groups: read from arrays and columns, and never on both sides of the part that is held out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn
from toy_networks import bundle_of, split_of

from edgeprune.data import open_split
from edgeprune.data.arrays import ArraySource
from edgeprune.errors import DataError
from edgeprune.recovery.held_out import hold_out, hold_out_unlabelled
from edgeprune.types import ModelBundle, Split


def network() -> ModelBundle:
    return bundle_of(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)))


def images(count: int) -> np.ndarray:
    return np.zeros((count, *network().input_shape), np.float32)


def grouped(labels: np.ndarray, groups: np.ndarray | None) -> Split:
    split = split_of(images(len(labels)), labels)
    return dataclasses.replace(split, source=ArraySource(images(len(labels)), labels, (0.0, 1.0), groups))


def test_groups_are_read_from_the_file_by_the_samples_of_the_split(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2, 3, 0, 1])
    np.savez(tmp_path / "a.npz", images=images(6), labels=labels, group=np.array(["x", "x", "y", "z", "z", "z"]))
    split = open_split(tmp_path / "a.npz", "train", network())
    assert split.groups() is not None
    assert dataclasses.replace(split, ids=np.array([1, 2, 5])).groups().tolist() == [0, 1, 2]  # type: ignore[union-attr]


def test_tracks_are_numbered_within_a_class(tmp_path: Path) -> None:
    labels, track = np.array([0, 0, 1, 1, 1]), np.array([7, 7, 7, 7, 8])
    np.savez(tmp_path / "a.npz", train_images=images(5), train_labels=labels, train_track=track)
    groups = open_split(tmp_path / "a.npz", "train", network()).groups()
    assert groups is not None
    assert groups.tolist() == [0, 0, 1, 1, 2]


def test_data_without_groups_names_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=images(2), labels=np.array([0, 1]))
    assert open_split(tmp_path / "a.npz", "train", network()).groups() is None


@pytest.mark.parametrize("group", [np.zeros(3, np.int64), np.zeros((2, 1), np.int64), np.zeros(2)])
def test_groups_that_are_not_one_number_a_sample_are_refused(tmp_path: Path, group: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", images=images(2), labels=np.array([0, 1]), group=group)
    with pytest.raises(DataError, match=r"group in a\.npz is"):
        open_split(tmp_path / "a.npz", "train", network())


def test_column_of_an_index_names_groups(tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "index.csv").write_text("path,label,group\na.png,0,ann\nb.png,1,bob\nc.png,1,ann\n")
    groups = open_split(tmp_path / "index.csv", "train", network()).groups()
    assert groups is not None
    assert groups.tolist() == [0, 1, 0]


@pytest.mark.parametrize("part", [hold_out, hold_out_unlabelled])
def test_a_group_is_held_out_whole_or_not_at_all(part) -> None:  # type: ignore[no-untyped-def]
    labels = np.repeat(np.arange(4), 100)
    split = grouped(labels, np.arange(400) // 5)  # 20 groups a class, 5 images each
    train, held_out = part(split, 0)
    assert len(held_out) == 40
    assert len(train) == 360
    assert not set(train.groups().tolist()) & set(held_out.groups().tolist())
    assert part(split, 0)[1].ids.tolist() == held_out.ids.tolist() != part(split, 1)[1].ids.tolist()


def test_every_class_gives_a_tenth_of_its_groups() -> None:
    labels = np.repeat(np.arange(4), 100)
    held_out = hold_out(grouped(labels, np.arange(400) // 5), 0)[1]
    assert np.bincount(held_out.labels()).tolist() == [10, 10, 10, 10]


def test_class_with_one_group_is_trained_on() -> None:
    labels = np.array([0] * 40 + [1] * 10)
    train, held_out = hold_out(grouped(labels, np.array([*np.repeat(np.arange(4), 10), *[4] * 10])), 0)
    assert held_out.labels().tolist() == [0] * 10
    assert (train.labels() == 1).sum() == 10
