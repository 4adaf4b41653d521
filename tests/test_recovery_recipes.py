"""Recipes: the adversary stays inside its reach, the losses are what their papers say, labels are not looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from toy_networks import Chain, bundle_of, split_of, stripes

from edgeprune.errors import UsageError
from edgeprune.records import RecoveryInfo
from edgeprune.recovery.adversary import Adversary, collapsed, perturb
from edgeprune.recovery.images import images_of, shuffled
from edgeprune.recovery.recipes import Lesson, apart, recognised, taught_loss, teacher_of
from edgeprune.recovery.recover import Task, recover
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.types import ModelBundle, Split

if TYPE_CHECKING:
    from edgeprune.types import Ints


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On several, a busy machine adds in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(recipe: str, **more: object) -> RecoverConfig:
    return RecoverConfig.model_validate({"recipe": recipe, "epochs": 3, "batch_size": 16, **more})


def data(count: int = 128, seed: int = 0) -> Split:
    return split_of(*stripes(count, seed=seed))


def pruned(seed: int = 1) -> ModelBundle:
    torch.manual_seed(seed)
    return bundle_of(Chain())


@pytest.fixture(scope="module")
def teacher() -> ModelBundle:
    torch.manual_seed(0)
    bundle = bundle_of(Chain())
    found, _ = recover(bundle, bundle, Task(settings("finetune", epochs=6, learning_rate=0.02), data(256), 0))
    return found


# ------------------------------------------------------------------------------------------------- adversary


class Line(nn.Module):
    """Logits (x w, 0): the worst change of a linear model is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([score, torch.zeros_like(score)], 1)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_adversary_of_a_linear_model_goes_to_the_corner(steps: int) -> None:
    images, network = torch.full((6, 1, 2, 2), 0.5), Line()
    found = perturb(
        network,
        images,
        lambda logits: cross_entropy(logits, torch.zeros(6, dtype=torch.long)),
        Adversary(0.1, steps, (0.0, 1.0)),
        torch.Generator().manual_seed(0),
    )
    moved = found - images
    assert moved.abs().max() <= 0.1 + 1e-6
    assert torch.equal(moved.sign().flatten(1), -network.w.sign().expand(6, 4))
    if steps > 1:
        torch.testing.assert_close(moved.flatten(1), (-0.1 * network.w.sign()).expand(6, 4))
    assert network.w.grad is None


def test_adversary_stays_between_the_bounds_of_the_pixels() -> None:
    images = torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = perturb(Line(), images, lambda out: out[:, 0].sum(), Adversary(0.5, 3, (-1.0, 1.0)), torch.Generator())
    assert -1 <= found.min() <= found.max() <= 1
    assert (found - images).abs().max() <= 0.5 + 1e-6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adversary_starts_anywhere_in_its_reach_and_each_pixel_by_itself(layout: torch.memory_format) -> None:
    images = torch.full((7, 3, 31, 33), 0.5).contiguous(memory_format=layout)
    still = Adversary(0.25, 0, (0.0, 1.0))
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    starts = [perturb(Line(), images, lambda out: out.sum(), still, seed) - images for seed in seeds]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert starts[0].is_contiguous(memory_format=layout)
    assert starts[0].min() == pytest.approx(-0.25)
    assert starts[0].max() == pytest.approx(0.25)
    assert len(starts[0].unique()) == pytest.approx(256, abs=3)
    assert float(starts[0].mean()) == pytest.approx(0, abs=0.005)
    assert float(starts[0].std()) == pytest.approx(0.25 / 3**0.5, rel=0.02)
    beside = torch.corrcoef(torch.stack([starts[0][..., 1:].flatten(), starts[0][..., :-1].flatten()]))
    assert abs(float(beside[0, 1])) < 0.03


def test_network_keeps_its_mode_and_statistics_under_the_adversary() -> None:
    module = pruned().module.train()
    before = module.conv1[1].running_mean.clone()
    perturb(module, torch.rand(4, 3, 8, 8), lambda out: out.sum(), Adversary(0.1, 2, (0, 1)), torch.Generator())
    assert module.training
    assert torch.equal(module.conv1[1].running_mean, before)


@pytest.mark.parametrize(
    ("single", "pgd", "best", "expected"),
    [(0.9, 0.1, 0.1, True), (0.6, 0.5, 0.5, False), (0.5, 0.3, 0.7, True), (0.1, 0.0, 0.0, False)],
)
def test_collapse_is_a_single_step_that_pgd_does_not_confirm(
    single: float, pgd: float, best: float, expected: bool
) -> None:
    assert collapsed(single, pgd, best) is expected


# ---------------------------------------------------------------------------------------------------- losses


def test_distillation_is_hintons_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, taught = (torch.randn(5, 4, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0])
    given = taught_loss(logits, labels, taught, settings("distill", temperature=2.0, label_weight=0.3))
    p, q = softmax(taught / 2, 1), softmax(logits / 2, 1)
    expected = 0.3 * cross_entropy(logits, labels) + 0.7 * 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(given, expected)


def test_distance_to_itself_is_zero() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert float(apart(logits, log_softmax(logits, 1))) == pytest.approx(0, abs=1e-6)
    other = log_softmax(logits.flip(1), 1)
    torch.testing.assert_close(apart(logits, other), kl_div(log_softmax(logits, 1), other.exp(), reduction="batchmean"))


@pytest.mark.parametrize("recipe", ["distill", "robust-distill"])
def test_without_labels_they_are_not_looked_at(recipe: str, teacher: ModelBundle) -> None:
    images, labels = stripes(96)
    changed = {"labels": False, "eps": "8/255"}
    digests = []
    for known in (labels, (labels + 1) % 4):
        task = Task(settings(recipe, **changed), split_of(images, known), 0)
        found, info = recover(pruned(), teacher, task)
        assert isinstance(info, RecoveryInfo)
        assert info.labels is False
        digests.append(found.digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("recipe", ["finetune", "adversarial"])
def test_recipe_that_needs_labels_says_what_needs_none(recipe: str) -> None:
    with pytest.raises(ValidationError, match=r"needs labels: use (robust-)?distill"):
        settings(recipe, labels=False)


def test_kept_teacher_outputs_are_the_outputs(teacher: ModelBundle) -> None:
    images, chosen = images_of(data(40), "cpu"), np.array([3, 1, 7])
    kept = teacher_of(teacher.network(), settings("distill", augment="none"), images)
    fresh = teacher_of(teacher.network(), settings("distill"), images)
    assert kept is not None
    assert fresh is not None
    assert kept.kept is not None
    assert fresh.kept is None
    batch = images.batch(chosen)
    torch.testing.assert_close(kept(batch, chosen), fresh(batch, chosen))
    assert teacher_of(teacher.network(), settings("finetune"), images) is None


# -------------------------------------------------------------------------------------------- robust recipes


@pytest.mark.parametrize(("recipe", "more"), [("adversarial", {}), ("robust-distill", {"robust_weight": 0.8})])
def test_adversarial_recipes_win_robustness(recipe: str, more: dict[str, object], teacher: ModelBundle) -> None:
    eps = {"eps": "40/255", "augment": "none", "epochs": 8}
    robust = Task(settings(recipe, **eps, **more), data(256), 0)
    found, info = recover(teacher, teacher, robust)
    assert isinstance(info, RecoveryInfo)
    assert info.robust_eps == pytest.approx(40 / 255)
    assert info.robust_before is not None
    assert info.robust_after is not None
    assert info.robust_after > info.robust_before + 0.2
    assert info.accuracy_after is not None
    assert info.accuracy_after > 0.7
    assert found.digest != teacher.digest


def test_natural_recipe_says_what_it_did_to_robustness(teacher: ModelBundle) -> None:
    _, info = recover(pruned(), teacher, Task(settings("finetune"), data(96), 0))
    assert isinstance(info, RecoveryInfo)
    assert info.robust_eps == pytest.approx(2 / 255)
    assert info.robust_after is not None
    assert info.accuracy_after is not None
    assert info.robust_after <= info.accuracy_after


def test_adversarial_recipe_without_epsilon_is_an_error(teacher: ModelBundle) -> None:
    with pytest.raises(UsageError, match="needs an epsilon"):
        recover(pruned(), teacher, Task(settings("adversarial"), data(32), 0))


def test_perturbed_images_weigh_alone_when_they_are_to(teacher: ModelBundle) -> None:
    images, labels = images_of(data(16), "cpu"), torch.from_numpy(data(16).labels())
    chosen, network = np.arange(16), pruned().network()
    losses = []
    for weight in (0.25, 0.75, 1.0):
        one = settings("robust-distill", eps="8/255", robust_weight=weight, perturbed_share=1, augment="none")
        lesson = Lesson(one, images, labels, teacher_of(teacher.network(), one, images), (0.0, 1.0))
        losses.append(lesson.loss(network.eval(), chosen, 1, torch.Generator().manual_seed(0)).item())
    assert losses[1] - losses[0] == pytest.approx(2 * (losses[2] - losses[1]), rel=1e-3)


@pytest.mark.parametrize(
    ("recipe", "more", "perturbed"),
    [
        ("robust-distill", {}, 12),
        ("robust-distill", {"perturbed_share": 0.5}, 8),
        ("robust-distill", {"perturbed_share": 0.01}, 1),
        ("robust-distill", {"robust_weight": 0.5}, 16),
        ("adversarial", {}, 16),
        ("adversarial", {"perturbed_share": 0.5}, 8),
    ],
)
def test_a_part_of_a_batch_stays_as_it_is(
    recipe: str, more: dict[str, float], perturbed: int, teacher: ModelBundle
) -> None:
    images, labels = images_of(data(16), "cpu"), torch.from_numpy(data(16).labels())
    one = settings(recipe, eps="8/255", augment="none", **more)
    lesson = Lesson(one, images, labels, teacher_of(teacher.network(), one, images), (0.0, 1.0))
    network, seen = pruned().network().train(), list[torch.Tensor]()
    network.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()) if module.training else None)
    lesson.loss(network, np.arange(16), 1, torch.Generator().manual_seed(0))
    (shown,), given = seen, images.batch(np.arange(16))
    moved = (shown[-16:] - given).abs().flatten(1).amax(1)  # with a share of the clean loss, all are shown twice
    assert (moved > 0).tolist() == [True] * perturbed + [False] * (16 - perturbed)
    assert moved.max() <= 8 / 255 + 1e-6


def test_a_share_of_the_labels_is_learned_on_perturbed_images_where_it_is_asked_for(teacher: ModelBundle) -> None:
    images, labels = images_of(data(16), "cpu"), torch.from_numpy(data(16).labels())
    network, losses = pruned().network().eval(), []
    for share in (0.0, 0.5, 1.0):
        one = settings("robust-distill", eps="8/255", augment="none", label_weight=share)
        lesson = Lesson(one, images, labels, teacher_of(teacher.network(), one, images), (0.0, 1.0))
        losses.append(lesson.loss(network, np.arange(16), 1, torch.Generator().manual_seed(0)).item())
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-3)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


# ---------------------------------------------------------------------------------------------------- images


class Bright(nn.Module):
    """Two classes: brighter than `line` on average, or not."""

    def __init__(self, line: float) -> None:
        super().__init__()
        self.line = line

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = images.mean((1, 2, 3)) - self.line
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize(("line", "share"), [(-1.0, 1.0), (0.5, None)])
def test_varied_images_are_recognised_by_what_the_network_answers(line: float, share: float | None) -> None:
    split = split_of(np.full((64, 3, 8, 8), 0.5001, dtype=np.float32), np.zeros(64, dtype=np.int64))
    one = settings("robust-distill", eps="8/255")
    lesson = Lesson(one, images_of(split, "cpu"), torch.zeros(64).long(), None, (0.0, 1.0))
    found = recognised(Bright(line), lesson, 0)
    assert found == share or (share is None and 0.3 < found < 0.7)  # half of all lights are darker


def test_images_change_only_as_far_as_the_dense_network_knows_them_again(
    teacher: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recovered(recipe: str, vary: float, shift: float = 0.8, **more: object) -> tuple[str, tuple[str, ...]]:
        def known(_: nn.Module, lesson: Lesson, __: int) -> float:
            assert not lesson.settings.flip  # asked for, whatever the network makes of it
            return {"vary": vary, "shift": shift}[lesson.settings.augmentation]

        monkeypatch.setattr("edgeprune.recovery.recover.recognised", known)
        task = Task(settings(recipe, eps="8/255", epochs=1, precision="float32", **more), data(64), 0)
        found, info = recover(pruned(), teacher, task)
        assert isinstance(info, RecoveryInfo)
        return found.digest, info.notes

    varied, fallen, shifted = (recovered("robust-distill", *share) for share in ((0.8,), (0.79,), (0.0,)))
    assert fallen[0] == shifted[0] == recovered("robust-distill", 0.0, 0.0, augment="shift")[0] != varied[0]
    assert varied[1] == ()
    assert fallen[1] == ("images were shifted, not varied: the dense network knows 79% of the varied ones again",)
    left, told = recovered("robust-distill", 0.25, 0.5)
    assert left == recovered("robust-distill", 1.0, 1.0, augment="none")[0] != shifted[0]
    assert told == (
        "images were neither varied nor shifted: the dense network knows 25% of the varied ones and 50% of the "
        "shifted ones again",
    )
    assert recovered("robust-distill", 0.0, 0.0, augment="vary") == varied
    natural, told = recovered("finetune", 1.0, 0.5, flip=True)
    assert natural == recovered("finetune", 1.0, augment="none", flip=True)[0] != recovered("finetune", 1.0)[0]
    assert told == ("images were neither varied nor shifted: the dense network knows 50% of the shifted ones again",)


def test_few_images_make_smaller_batches() -> None:
    assert [RecoverConfig().batch_of(count) for count in (10, 450, 6000)] == [16, 28, 128]
    assert RecoverConfig(batch_size=64).batch_of(450) == 64


@pytest.mark.parametrize(
    ("recipe", "images", "steps", "more", "size"),
    [
        ("robust-distill", 6000, 399, {}, 64),
        ("robust-distill", 6000, 400, {}, 128),
        ("robust-distill", 450, 100, {}, 28),
        ("robust-distill", 6000, 100, {"batch_size": 100}, 100),
        ("distill", 6000, 100, {}, 128),
    ],
)
def test_a_robust_distillation_of_few_steps_has_twice_as_many(
    recipe: str, images: int, steps: float, more: dict[str, int], size: int
) -> None:
    told = RecoverConfig.model_validate({"recipe": recipe, "eps": "8/255", **more})
    assert told.in_steps(steps, images).batch_of(images) == size


def test_batches_are_halved_by_how_long_the_training_is(teacher: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, own = set[int](), Lesson.loss

    def loss(self: Lesson, network: nn.Module, positions: Ints, steps: int, generator: torch.Generator) -> torch.Tensor:
        sizes.add(len(positions))
        return own(self, network, positions, steps, generator)

    monkeypatch.setattr(Lesson, "loss", loss)
    config = RecoverConfig(recipe="robust-distill", eps="8/255", epochs=1, precision="float32", augment="none")
    recover(pruned(), teacher, Task(config, data(1200), 0))
    assert sizes == {64}  # a sixteenth of what is not held out would be 67


def test_images_change_as_suits_the_recipe_unless_told() -> None:
    assert settings("distill").augmentation == settings("adversarial", eps="8/255").augmentation == "shift"
    assert settings("robust-distill", eps="8/255").augmentation == "vary"
    assert settings("robust-distill", eps="8/255", augment="shift").augmentation == "shift"
    assert not settings("distill", augment="none").changes
    assert settings("distill", augment="none", flip=True).changes


def test_robust_distillation_has_more_draws_the_longer_it_is() -> None:
    def draws(recipe: str, epochs: float, **more: object) -> int:
        return settings(recipe, eps="8/255", **more).draw_count(epochs)

    assert draws("robust-distill", 0) == draws("robust-distill", 6) == 2
    assert draws("robust-distill", 9) == 3
    assert draws("robust-distill", 12) == draws("robust-distill", 39.9) == 4
    assert draws("robust-distill", 40) == 5
    assert draws("robust-distill", 100) == 12
    assert draws("robust-distill", 100, draws=0) == 0
    assert draws("distill", 1) == draws("distill", 100) == draws("adversarial", 100) == 4


def test_labels_are_a_share_of_distillation_where_they_may_be_looked_at() -> None:
    assert settings("distill").label_share == pytest.approx(0.1)
    assert settings("distill", labels=False).label_share == 0
    assert settings("robust-distill", eps="8/255").label_share == pytest.approx(0.3)
    assert settings("robust-distill", eps="8/255", label_weight=0.0).label_share == 0
    assert settings("robust-distill", eps="8/255", label_weight=0.7, labels=False).label_share == 0


def test_a_robust_training_begins_on_images_as_they_are() -> None:
    images = images_of(data(32), "cpu")
    network, labels = pruned().network().train(), torch.from_numpy(data(32).labels())
    one, other = (settings(each, eps="8/255", augment="none") for each in ("adversarial", "finetune"))
    losses = [
        float(
            Lesson(each, images, labels, None, (0.0, 1.0)).loss(network, np.arange(32), 0, torch.Generator()).detach()
        )
        for each in (one, other)
    ]
    assert losses[0] == losses[1]


def test_images_that_do_not_fit_are_read_each_time() -> None:
    split = dataclasses.replace(data(20), ids=np.arange(4, 16))
    held, read = images_of(split, "cpu"), images_of(split, "cpu", most_bytes=100)
    assert held.held is not None
    assert read.held is None
    chosen = np.array([5, 0, 11])
    torch.testing.assert_close(held.batch(chosen), read.batch(chosen))
    assert len(held) == 12


def test_smaller_last_batch_is_left_out() -> None:
    assert [len(batch) for batch in shuffled(50, 0, 16)] == [16, 16, 16]
    assert [len(batch) for batch in shuffled(10, 0, 16)] == [10]
