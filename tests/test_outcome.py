"""Outcomes and evidence: what is kept of an attack, whole, without pickle, and the same bytes every time."""

import dataclasses

import numpy as np
import pytest
import torch
from attack_examples import ModuleSession, grid_images, labels_of, linear, silent, small_network, split_of, threat_of

from edgeprune.errors import DataError
from edgeprune.robustness import evaluate
from edgeprune.robustness.evaluate import FileOutcome
from edgeprune.robustness.evidence import evidence as evidence_of
from edgeprune.robustness.evidence import read_evidence, write_evidence
from edgeprune.robustness.twin import Gradients

THREAT = threat_of(split_of(grid_images(20), np.zeros(20, np.int64)), 0.02)


def named(pair):
    return dict(zip(("dense", "compressed"), pair, strict=True))


def attacked(module, images, labels):
    split = split_of(images, labels)
    return evaluate.attack_file(
        Gradients(module, ModuleSession(module), "torch module"),
        split,
        threat_of(split, 0.02),
        sha256="0" * 64,
        progress=silent,
    )


@pytest.fixture(scope="module")
def pair():
    images = grid_images(20)
    dense, compressed = small_network(0), small_network(0)
    with torch.no_grad():
        compressed[4].weight.mul_(torch.linspace(0.8, 1.2, 128))
    labels = labels_of(dense, images)
    return attacked(dense, images, labels), attacked(compressed, images, labels)


def test_outcome_survives_a_killed_run(tmp_path, pair):
    pair[0].save(tmp_path / "dense.npz")
    again = FileOutcome.load(tmp_path / "dense.npz")
    for field in dataclasses.fields(FileOutcome):
        before, after = getattr(pair[0], field.name), getattr(again, field.name)
        if isinstance(before, np.ndarray):
            assert np.array_equal(before, after)
            assert before.dtype == after.dtype
        else:
            assert before == after
    threat = threat_of(split_of(again.adversarials, again.labels), 0.02)
    info = ModuleSession(linear()).info
    assert evaluate.compare(again, pair[1], threat, info) == evaluate.compare(*pair, threat, info)


def test_same_outcome_makes_the_same_bytes(tmp_path, pair):
    write_evidence(tmp_path / "a.npz", named(pair), THREAT)
    write_evidence(tmp_path / "b.npz", named(pair), THREAT)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half a zip"])
def test_a_broken_outcome_is_refused(tmp_path, content):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not the outcome of an attack"):
        FileOutcome.load(path)


def test_an_outcome_with_pickled_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", ids=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="not the outcome of an attack"):
        FileOutcome.load(tmp_path / "evil.npz")


def test_evidence_can_be_replayed_on_the_files(tmp_path, pair):
    write_evidence(tmp_path / "evidence.npz", named(pair), THREAT)
    with np.load(tmp_path / "evidence.npz", allow_pickle=False) as evidence:
        assert set(evidence.files) == set(evidence_of(named(pair), THREAT))
        adversarials, labels = evidence["dense_adversarials"], evidence["labels"]
        assert adversarials.dtype == np.float32
        assert evidence["ids"].dtype == evidence["compressed_clean"].dtype == np.int64
        assert evidence["dense_fell"].dtype == evidence["compressed_rounded"].dtype == np.bool_
        said = labels_of(small_network(0), adversarials)
        assert np.array_equal(said, evidence["dense_adversarial"])
        assert np.array_equal(said != labels, evidence["dense_fell"])
        assert 0 < evidence["dense_fell"].sum() < 20


def test_evidence_names_the_files_and_the_threat(tmp_path, pair):
    write_evidence(tmp_path / "evidence.npz", named(pair), THREAT)
    found = read_evidence(tmp_path / "evidence.npz", "1" * 64)  # a stranger gets what the first file fell to
    assert (found.name, found.about.threat) == ("dense", THREAT)
    assert np.array_equal(found.fell, pair[0].fell)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half a zip"])
def test_what_is_no_evidence_is_refused(tmp_path, content):
    (tmp_path / "broken.npz").write_bytes(content)
    with pytest.raises(DataError, match="no evidence of an attack"):
        read_evidence(tmp_path / "broken.npz", "0" * 64)
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    with pytest.raises(DataError, match="no evidence of an attack"):
        read_evidence(tmp_path / "other.npz", "0" * 64)


def test_evidence_of_a_later_version_is_refused(tmp_path, pair):
    write_evidence(tmp_path / "evidence.npz", named(pair), THREAT)
    with np.load(tmp_path / "evidence.npz") as arrays:
        later = dict(arrays)
    later["about"] = np.frombuffer(later["about"].tobytes().replace(b'"version": 1', b'"version": 9'), np.uint8)
    np.savez(tmp_path / "later.npz", **later)
    with pytest.raises(DataError, match="version 9"):
        read_evidence(tmp_path / "later.npz", "0" * 64)
