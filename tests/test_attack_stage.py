"""What stands beside the comparison: the replay gap, divergence, and an attack that stops when it has decided."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_examples import (
    ModuleSession,
    budget_of,
    grid_images,
    labels_of,
    linear,
    silent,
    small_network,
    split_of,
    threat_of,
    victim_of,
)
from conftest import Command

from edgeprune.records import PairedDrop, Report, read_record
from edgeprune.robustness import evaluate
from edgeprune.robustness.divergence import Pair, diverge
from edgeprune.robustness.norms import distances
from edgeprune.robustness.outcome import joined
from edgeprune.robustness.sequential import confidence_of_a_look, decide, parts_of_images
from edgeprune.robustness.statistics import paired_drop, upper_bound
from edgeprune.robustness.twin import Gradients

# ----------------------------------------------------------------------------------------------- divergence


def shaken(seed: int = 0) -> tuple[torch.nn.Module, torch.nn.Module]:
    dense, compressed = small_network(seed), small_network(seed)
    with torch.no_grad():
        compressed[4].weight.mul_(torch.linspace(0.7, 1.3, 128))
    return dense, compressed


def found_between(dense, compressed, images, labels, epsilon, known=None, steps=20):
    pair = Pair(victim_of(dense), victim_of(compressed))
    known = images if known is None else known
    return diverge(pair, images, labels, known, budget_of(epsilon, steps=steps), progress=silent)


def test_what_divides_the_files_is_right_in_one_and_wrong_in_the_other():
    dense, compressed = shaken()
    images = grid_images(40)
    labels = labels_of(dense, images)
    found = found_between(dense, compressed, images, labels, 0.02)
    assert found.found.sum() > 0
    points = found.points[found.found]
    assert (labels_of(dense, points) == labels[found.found]).all()
    assert (labels_of(compressed, points) != labels[found.found]).all()
    assert distances(found.points, images, "linf").max() <= 0.02
    assert not (found.found & ~found.tried).any()
    assert np.array_equal(found.points[~found.found], images[~found.found])


def test_a_file_does_not_diverge_from_itself():
    module, images = small_network(), grid_images(20)
    found = found_between(module, module, images, labels_of(module, images), 0.05)
    assert found.tried.all()
    assert not found.found.any()


def test_linear_files_diverge_exactly_where_a_point_lies_between_their_boundaries():
    """Boundaries that are parallel: a point between them exists where the dense margin outlasts the compressed one."""
    dense, compressed = linear(), linear()
    with torch.no_grad():
        compressed[1].bias[0] += 0.4
    images = grid_images(60)
    labels = labels_of(dense, images)
    weight = dense[1].weight.detach().double().numpy()
    normal = weight[0] - weight[1]
    sign = np.where(labels == 0, 1.0, -1.0)
    flat = images.reshape(len(images), -1).astype(np.float64)
    bias = [float((m[1].bias[0] - m[1].bias[1]).detach()) for m in (dense, compressed)]
    margins = [sign * (flat @ normal + each) for each in bias]
    reach = np.abs(normal).sum() * 0.02
    both = (margins[0] > 0) & (margins[1] > 0)
    possible = both & (margins[1] < reach) & (margins[0] > margins[1])
    found = found_between(dense, compressed, images, labels, 0.02, steps=60)
    assert np.array_equal(found.tried, both)
    assert not (found.found & ~possible).any()
    easy = possible & (margins[1] < 0.9 * reach)
    assert found.found[easy].mean() > 0.9
    assert easy.any()


def test_known_adversarials_are_tried_first_and_forged_ones_are_not_believed():
    dense, compressed = shaken()
    images = grid_images(40)
    labels = labels_of(dense, images)
    first = found_between(dense, compressed, images, labels, 0.02)
    again = found_between(dense, compressed, images, labels, 0.02, known=first.points, steps=0)
    assert np.array_equal(again.replayed, first.found)
    assert not found_between(dense, compressed, images, labels, 0.005, known=first.points, steps=0).replayed.any() or (
        distances(first.points, images, "linf")[first.found].min() <= 0.005
    )


# ----------------------------------------------------------------------------------------------- sequential


def drop_of(dense_only: int, compressed_only: int, total: int) -> PairedDrop:
    dense, compressed = np.ones(total, bool), np.ones(total, bool)
    compressed[:dense_only] = False
    dense[dense_only : dense_only + compressed_only] = False
    return paired_drop(dense, compressed)


def test_a_look_decides_at_its_own_confidence():
    spent = confidence_of_a_look(0.95, 5)
    assert spent == pytest.approx(0.99)
    total = 300
    assert decide(drop_of(0, 0, total), upper_bound(0, 0, total, spent), spent) == "within"
    assert decide(drop_of(0, 0, total), upper_bound(0, 0, total, 0.95), spent) == "no"
    assert decide(drop_of(60, 0, total), 0.05, spent) == "beyond"
    assert decide(drop_of(9, 3, total), 0.03, spent) == "no"


def test_parts_are_all_the_images_once_in_an_order_of_the_seed():
    ids = np.arange(3, 50)
    parts = parts_of_images(ids, 4, 7)
    assert sorted(np.concatenate(parts).tolist()) == ids.tolist()
    assert all((np.diff(part) > 0).all() for part in parts)
    assert [part.tolist() for part in parts] == [part.tolist() for part in parts_of_images(ids, 4, 7)]
    assert parts[0].tolist() != parts_of_images(ids, 4, 8)[0].tolist()
    assert len(parts_of_images(ids[:3], 9, 0)) == 3


def test_looking_until_it_holds_does_not_hold_too_often():
    """At the edge of the tolerance, a gate that looks ten times passes no more often than it may."""
    draw, tolerance, looks, size = np.random.default_rng(0), 0.08, 4, 40

    def most(confidence: float) -> np.ndarray:
        """The largest number of lost images with which each look would pass."""
        totals = size * np.arange(1, looks + 1)
        return np.array(
            [next(n for n in range(40) if upper_bound(n, 0, t, confidence) > tolerance) - 1 for t in totals]
        )

    lost = draw.binomial(size, tolerance, (4000, looks)).cumsum(1)  # the true drop is the tolerance: passing is wrong
    assert (lost <= most(confidence_of_a_look(0.9, looks))).any(1).mean() <= 0.1
    assert (lost <= most(0.9)).any(1).mean() > 0.1


def test_parts_joined_are_the_whole():
    module, images = small_network(), grid_images(30)
    labels = labels_of(module, images)
    labels[::7] = (labels[::7] + 1) % 5
    split = split_of(images, labels)
    made = {"sha256": "0" * 64, "progress": silent}
    source = Gradients(module, ModuleSession(module), "test")

    def attacked(part):
        return evaluate.attack_file(source, part, threat_of(part, 0.012), **made)

    whole = attacked(split)
    parts = [attacked(evaluate.part_of(split, ids)) for ids in parts_of_images(split.ids, 3, 0)]
    found = joined(parts)
    for name in ("ids", "labels", "fell", "adversarials", "rounded_fell", "clean_predictions"):
        assert np.array_equal(getattr(whole, name), getattr(found, name)), name
    same = ("clean", "robust", "fell", "rounded", "rejected", "dead_gradients")
    assert all(getattr(whole.record, name) == getattr(found.record, name) for name in same)
    assert found.health.attacked == whole.health.attacked


# ---------------------------------------------------------------------------------------------------- runs


def report_of(project: Path, edgeprune: Command, *more: str) -> Report:
    said = edgeprune("compress", "model.pt", "--eps", "0.1", *more)
    assert said.code == 0, said.err
    return read_record(Report, project / "run" / "report.json")


def test_a_run_measures_replay_and_divergence(project: Path, edgeprune: Command) -> None:
    found = report_of(project, edgeprune).robustness
    assert found.replay.gap == pytest.approx(found.replay.robust.value - found.compressed.robust.value)  # type: ignore[union-attr]
    assert found.replay.robust.count >= found.compressed.robust.count  # type: ignore[union-attr]
    assert found.divergence.found.total <= found.threat.samples  # type: ignore[union-attr]
    assert found.sequential is None  # type: ignore[union-attr]
    with np.load(project / "run" / "evidence.npz") as evidence:
        assert evidence["divergent_found"].sum() == found.divergence.found.count  # type: ignore[union-attr]
        about = json.loads(evidence["about"].tobytes())
    assert set(about["files"]) == {"dense", "compressed"}


def test_divergence_can_be_left_out(project: Path, edgeprune: Command) -> None:
    assert report_of(project, edgeprune, "--divergence-steps", "0").robustness.divergence is None  # type: ignore[union-attr]


def test_a_sequential_attack_stops_when_the_bound_has_decided(project: Path, edgeprune: Command) -> None:
    """Every image is lost to the dense file and the compressed one alike: a wide tolerance is met early."""
    report = report_of(
        project, edgeprune, "--sequential", "3", "--attack-steps", "100", "--max-robust-accuracy-drop", "90 pt"
    )
    found = report.robustness.sequential  # type: ignore[union-attr]
    assert found is not None
    assert (found.looks, found.decided) == (3, "within")
    assert report.robustness.threat.samples < found.planned or found.at == 3  # type: ignore[union-attr]
    assert report.robustness.drop.confidence == pytest.approx(found.spent)  # type: ignore[union-attr]
    row = next(row for row in report.verdict.rows if row.metric == "robust_accuracy_drop")  # type: ignore[union-attr]
    assert row.status == "pass", row.reason
    assert row.bound == pytest.approx(report.robustness.drop.upper)  # type: ignore[union-attr]
