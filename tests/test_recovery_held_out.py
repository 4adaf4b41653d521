"""The jury: images that are held out, what is right there, and how far from the teacher its answers are."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from toy_networks import Chain, bundle_of, split_of, stripes

from edgeprune.recovery.adversary import Adversary
from edgeprune.recovery.held_out import Judged, Jury, hold_out_unlabelled
from edgeprune.recovery.recover import Task, recover
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.types import ModelBundle, Split


def data(count: int) -> Split:
    return split_of(*stripes(count))


@pytest.fixture(scope="module")
def teacher() -> ModelBundle:
    torch.manual_seed(0)
    bundle = bundle_of(Chain())
    settings = RecoverConfig(recipe="finetune", epochs=6, batch_size=16, learning_rate=0.02)
    found, _ = recover(bundle, bundle, Task(settings, data(256), 0))
    return found


def untaught() -> ModelBundle:
    torch.manual_seed(1)
    return bundle_of(Chain())


def test_unlabelled_images_are_held_out_without_a_look_at_labels() -> None:
    split = data(100)
    train, held_out = hold_out_unlabelled(split, 0)
    assert len(held_out) == 10
    assert sorted([*train.ids, *held_out.ids]) == list(range(100))


def test_jury_without_labels_asks_for_agreement_with_the_teacher(teacher: ModelBundle) -> None:
    split = dataclasses.replace(data(40), ids=np.arange(40))
    jury = Jury.of(split, teacher.network(), "cpu", None, 0, labels=False)
    assert jury.judge(teacher.network(), robust=False).accuracy == 1.0
    assert jury.judge(teacher.network(), robust=True).robust is None
    assert jury.distance(teacher.network()) == pytest.approx(0, abs=1e-9)
    assert jury.distance(untaught().network()) > 0.1


def test_jury_with_labels_knows_the_distance_from_the_teacher_too(teacher: ModelBundle) -> None:
    split = dataclasses.replace(data(40), ids=np.arange(40))
    jury = Jury.of(split, teacher.network(), "cpu", None, 0)
    wrong = dataclasses.replace(jury, wanted=1 - jury.wanted)
    judged = wrong.judge(teacher.network(), robust=False)
    assert judged.accuracy is not None
    assert judged.accuracy < 0.2
    assert judged.far == pytest.approx(0, abs=1e-9)
    assert Jury.of(split, None, "cpu", None, 0).judge(teacher.network(), robust=False).far is None


def test_distance_is_of_attacked_answers_as_well_where_there_is_an_adversary(teacher: ModelBundle) -> None:
    split = dataclasses.replace(data(40), ids=np.arange(40))
    jury = Jury.of(split, teacher.network(), "cpu", Adversary(0.1, 1, (0.0, 1.0)), 0)
    clean, attacked = (jury.judge(teacher.network(), robust=robust) for robust in (False, True))
    assert clean.far == pytest.approx(0, abs=1e-9)
    assert attacked.far == clean.far == clean.distance
    assert attacked.further is not None
    assert attacked.further > 1e-4
    assert attacked.distance == pytest.approx(attacked.further / 2, abs=1e-9)
    assert attacked.robust is not None


def test_standard_error_of_a_share_never_vanishes(teacher: ModelBundle) -> None:
    split = dataclasses.replace(data(40), ids=np.arange(40))
    judged = Jury.of(split, teacher.network(), "cpu", None, 0, labels=False).judge(teacher.network(), robust=False)
    assert judged.accuracy == 1.0
    assert judged.error == pytest.approx(math.sqrt(41 / 42 / 42 / 40))


def test_distance_that_is_not_finite_tells_nothing() -> None:
    assert Judged(0.9, far=math.nan).distance is None
    assert Judged(0.9, 0.5, far=0.1, further=math.inf).distance is None
    assert Judged(0.9, 0.5, far=0.1, further=0.3).distance == pytest.approx(0.2)


def test_score_of_a_robust_recipe_is_the_mean_of_both() -> None:
    assert Judged(0.9, 0.5).score == pytest.approx(0.7)
    assert Judged(0.9).score == 0.9
    assert Judged(None).score is None
