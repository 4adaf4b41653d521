"""A few draws of the augmentation take turns: the teacher looks once at each, at what the student sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toy_networks import Chain, bundle_of, split_of, stripes

from edgeprune.recovery.draws import Draws
from edgeprune.recovery.images import images_of
from edgeprune.recovery.recipes import Lesson, teacher_of
from edgeprune.recovery.settings import RecoverConfig


class Counted(nn.Module):
    """A network that counts the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.shown = bundle_of(Chain()).network(), 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown += len(images)
        found: torch.Tensor = self.network(images)
        return found


def lesson_of(teacher: nn.Module, **more: object) -> Lesson:
    settings = RecoverConfig.model_validate({"recipe": "distill", "flip": True, **more})
    images = images_of(split_of(*stripes(150)), "cpu")
    return Lesson(settings, images, torch.zeros(150).long(), teacher_of(teacher, settings, images), (0.0, 1.0))


def never() -> bool:
    return False


def test_teacher_looks_once_at_each_draw_however_many_epochs_there_are() -> None:
    teacher = Counted()
    draws = Draws(lesson_of(teacher, draws=2), seed=1)
    shown = [draws.at(epoch, 6, never).images.held for epoch in range(6)]
    assert teacher.shown == 2 * 150
    assert shown[0] is not None
    assert shown[1] is not None
    assert shown[0] is shown[2] is shown[4]
    assert shown[1] is shown[3] is shown[5]
    assert not torch.equal(shown[0], shown[1])


@pytest.mark.parametrize("augment", ["shift", "vary"])
def test_kept_outputs_are_the_teachers_for_the_images_that_the_student_sees(augment: str) -> None:
    teacher = Counted().eval()
    first, positions = lesson_of(teacher, augment=augment), np.array([3, 149, 70])
    lesson = Draws(first, 0).at(0, 6, never)
    assert lesson.teacher is not None
    assert lesson.view is not None
    seen = lesson.view.of(lesson.images.batch(positions), positions)
    with torch.no_grad():
        torch.testing.assert_close(lesson.teacher(seen, positions), teacher(seen))
    assert not torch.equal(seen, first.images.batch(positions))


@pytest.mark.parametrize("draws_that_fit", [0, 1, 2])
def test_images_are_changed_once_where_those_of_all_draws_fit_into_memory(
    draws_that_fit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lesson_of(Counted().eval(), draws=2)
    assert first.images.held is not None
    monkeypatch.setattr("edgeprune.recovery.draws.MOST_BYTES", draws_that_fit * first.images.held.nbytes + 10_000)
    lesson, every = Draws(first, 0).at(0, 6, never), np.arange(150)
    assert lesson.view is not None
    assert (lesson.images is first.images) == (draws_that_fit < 2)
    monkeypatch.setattr("edgeprune.recovery.draws.MOST_BYTES", 2**30)
    held = Draws(first, 0).at(0, 6, never).images.batch(every)
    assert torch.equal(lesson.view.of(lesson.images.batch(every), every), held)


@pytest.mark.parametrize("augment", ["shift", "vary"])
def test_an_epoch_depends_on_its_number_alone(augment: str) -> None:
    lesson = lesson_of(Counted().eval(), draws=2, augment=augment)
    whole, resumed = Draws(lesson, 5), Draws(lesson, 5)
    walked = [whole.at(epoch, 6, never) for epoch in range(6)][5]
    jumped = resumed.at(5, 6, never)
    assert walked.teacher is not None
    assert jumped.teacher is not None
    assert torch.equal(walked.teacher(lesson.images.batch(np.arange(150)), np.arange(150)), jumped.teacher.kept)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"draws": 0}, id="always anew"),
        pytest.param({"recipe": "finetune"}, id="no teacher"),
        pytest.param({"augment": "none", "flip": False}, id="images that do not change"),
    ],
)
def test_without_a_teacher_of_changing_images_there_are_no_draws(more: dict[str, object]) -> None:
    lesson = lesson_of(Counted(), **more)
    assert Draws(lesson, 0).at(0, 6, never) is lesson


def test_outputs_that_take_too_much_memory_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Counted()
    lesson = lesson_of(teacher, draws=4)
    classes = teacher.network(lesson.images.batch(np.arange(1))).shape[1]
    monkeypatch.setattr("edgeprune.recovery.draws.MOST_BYTES", 4 * 4 * 150 * classes - 1)
    assert Draws(lesson, 0).at(0, 6, never) is lesson
    assert teacher.shown == 64


def test_draws_become_more_when_the_epochs_turn_out_to_be_many() -> None:
    lesson = lesson_of(Counted().eval(), recipe="robust-distill", eps="8/255")
    draws = Draws(lesson, 0)
    held = [draws.at(epoch, epochs, never).images.held for epoch, epochs in enumerate((0, 45, 41, 40, 43, 44))]
    assert len(draws.known) == 5
    assert held[5] is held[0]
    assert len({id(each) for each in held}) == 5


def test_when_the_time_is_up_the_teacher_stops_looking() -> None:
    teacher = Counted()
    lesson = lesson_of(teacher)
    asked = iter([False, True])
    assert Draws(lesson, 0).at(0, 6, lambda: next(asked)) is lesson
    assert teacher.shown == 64
