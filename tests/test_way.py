"""A killed attack goes on from its journal, and one whose time is up says what it left."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_examples import ModuleSession, budget_of, grid_images, labels_of, silent, small_network, split_of, victim_of

from edgeprune import protocols
from edgeprune.config import AttackConfig
from edgeprune.records import AttackPart
from edgeprune.robustness import evaluate
from edgeprune.robustness.attacks import way
from edgeprune.robustness.attacks.cascade import cascade
from edgeprune.robustness.health import warnings
from edgeprune.robustness.twin import Gradients
from edgeprune.types import Course, Victim

PARTS = (
    AttackPart(name="apgd-ce", steps=12),
    AttackPart(name="apgd-t", steps=8, targets=2),
    AttackPart(name="fab-t", steps=6, targets=2),
    AttackPart(name="square", queries=40),
    AttackPart(name="decision", queries=30),
)
FIELDS = ("adversarials", "fell", "gradient_health", "gain", "late", "black_box")


class Killed(Exception):
    pass


def attack(victim, images, labels, course, parts=PARTS):
    budget = replace(budget_of(0.012), course=course)
    return cascade(parts, victim, torch.from_numpy(images), torch.from_numpy(labels), budget, progress=silent)


def dying(module, after):
    """A victim whose runtime dies at its `after`-th question."""
    session, asked = ModuleSession(module), []

    def logits(pixels):
        asked.append(1)
        if len(asked) > after:
            raise Killed
        return session.logits(pixels)

    return Victim(logits, module, (0.0, 1.0)), asked


@pytest.mark.parametrize("after", [3, 10, 25, 33, 50, 80])
def test_a_killed_attack_ends_as_one_that_was_never_interrupted(tmp_path, monkeypatch, after):
    monkeypatch.setattr(way, "SAVED_EVERY", 0.0)
    module, images = small_network(), grid_images(24)
    labels = labels_of(module, images)
    whole = attack(victim_of(module), images, labels, Course())
    course = Course(journal=tmp_path / "journal.npz", key="same")
    victim, _ = dying(module, after)
    with pytest.raises(Killed):
        attack(victim, images, labels, course)
    again = attack(victim_of(module), images, labels, course)
    for name in FIELDS:
        assert torch.equal(getattr(whole, name), getattr(again, name)), name
    assert 0 < int(whole.fell.sum()) < 24


def test_what_was_done_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(way, "SAVED_EVERY", 0.0)
    module, images = small_network(), grid_images(24)
    labels = labels_of(module, images)
    victim, first = dying(module, 60)
    course = Course(journal=tmp_path / "journal.npz", key="same")
    with pytest.raises(Killed):
        attack(victim, images, labels, course)
    victim, second = dying(module, 10_000)
    attack(victim, images, labels, course)
    victim, whole = dying(module, 10_000)
    attack(victim, images, labels, Course())
    assert len(second) < len(whole) - 30
    assert len(first) == 61


@pytest.mark.parametrize("spoil", ["key", "broken", "images"])
def test_a_journal_of_something_else_is_passed_over(tmp_path, monkeypatch, spoil):
    monkeypatch.setattr(way, "SAVED_EVERY", 0.0)
    module, images = small_network(), grid_images(12)
    labels = labels_of(module, images)
    path = tmp_path / "journal.npz"
    attack(victim_of(module), images, labels, Course(journal=path, key="one"))
    assert path.is_file()
    if spoil == "broken":
        path.write_bytes(b"PK\x03\x04 half")
    if spoil == "images":
        images = grid_images(12, seed=9)
        labels = labels_of(module, images)
    key = "other" if spoil == "key" else "one"
    found = attack(victim_of(module), images, labels, Course(journal=path, key=key))
    whole = attack(victim_of(module), images, labels, Course())
    assert torch.equal(found.adversarials, whole.adversarials)


def test_an_attack_whose_time_is_up_says_what_it_left():
    module, images = small_network(), grid_images(12)
    found = attack(victim_of(module), images, labels_of(module, images), Course(seconds=1e-9))
    assert found.unfinished[0].startswith("apgd-ce ")
    assert found.unfinished[1:] == tuple(f"{part.name} not begun" for part in PARTS[1:])


def test_time_spent_before_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(way, "SAVED_EVERY", 0.0)
    module, images = small_network(), grid_images(12)
    labels = labels_of(module, images)
    path = tmp_path / "journal.npz"
    attack(victim_of(module), images, labels, Course(journal=path, key="one"), PARTS[:1])
    found = attack(victim_of(module), images, labels, Course(1e-3, path, "one"))
    assert found.unfinished


def test_an_unfinished_suite_is_inconclusive_and_loses_its_name(tmp_path):
    module, images = small_network(), grid_images(12)
    split = split_of(images, labels_of(module, images))
    config = AttackConfig(attack="standard", eps="3/255", minutes=1e-9)
    threat = evaluate.threat_model(config, (0.0, 1.0), split, 0)
    made = {"sha256": "0" * 64, "progress": silent}
    outcome = evaluate.attack_file(Gradients(module, ModuleSession(module), "test"), split, threat, **made)
    assert outcome.record.unfinished
    assert any("time was up" in line for line in warnings("dense", outcome.health))
    compared = evaluate.compare(outcome, outcome, threat, ModuleSession(module).info)
    assert not compared.conclusive
    assert compared.threat.attack == "standard (unfinished)"


def test_the_journal_is_gone_when_the_attack_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(way, "SAVED_EVERY", 0.0)
    module, images = small_network(), grid_images(6)
    split = split_of(images, labels_of(module, images))
    threat = evaluate.threat_model(AttackConfig(eps="3/255", steps=5), (0.0, 1.0), split, 0)
    made = {"sha256": "0" * 64, "progress": silent, "journal": tmp_path / "journal.npz"}
    evaluate.attack_file(Gradients(module, ModuleSession(module), "test"), split, threat, **made)
    assert list(tmp_path.iterdir()) == []


def test_progress_says_what_stands():
    module, images, said = small_network(), grid_images(12), []
    labels = labels_of(module, images)
    run = protocols.find("attack", "apgd-ce")
    given = torch.from_numpy(images), torch.from_numpy(labels)
    run(victim_of(module), *given, budget_of(0.012), progress=lambda text, _share: said.append(text))
    assert said[-1].startswith("apgd-ce: ")
    assert said[-1].endswith("% stand")
    assert np.all(["of 12 wrong" in text for text in said])
