"""Recovery: exact statistics, exact resumption, and never worse than calibration alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_networks import Chain, Head, Lambda, bundle_of, conv_bn, split_of, stripes

from edgeprune.errors import RecoveryError
from edgeprune.models import digest
from edgeprune.records import RecoveryInfo, Unmeasured
from edgeprune.recovery.calibration import measure_statistics, recalibrate
from edgeprune.recovery.checkpoint import NAME, Checkpoint, read_checkpoint, write_checkpoint
from edgeprune.recovery.held_out import Judged, Jury, hold_out
from edgeprune.recovery.recover import Task, recover
from edgeprune.recovery.schedules import rate_share
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.types import ModelBundle, Preprocessing, Split


def accuracy(network: nn.Module, split: Split) -> float:
    found = Jury.of(split, None, "cpu", None, 0).judge(network, robust=False).accuracy
    assert found is not None
    return found


def settings(recipe: str = "distill", epochs: int = 2, **more: float) -> RecoverConfig:
    return RecoverConfig.model_validate({"recipe": recipe, "epochs": epochs, "batch_size": 16, **more})


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def teacher() -> ModelBundle:
    """A chain that has learned the stripes."""
    torch.manual_seed(0)
    bundle = bundle_of(Chain())
    found, _ = recover(bundle, bundle, Task(settings("finetune", 6, learning_rate=0.02), data(256), 0))
    return found


def data(count: int = 128, seed: int = 0) -> Split:
    return split_of(*stripes(count, seed=seed))


def pruned(seed: int = 1) -> ModelBundle:
    torch.manual_seed(seed)
    return bundle_of(Chain())


# ------------------------------------------------------------------------------------------------ calibration


class Linear(nn.Module):
    """A linear layer into batch norm: its statistics are those of a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(6, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.fc(x.flatten(1)))
        return out


@pytest.mark.parametrize("count", [2, 128, 129, 300])
def test_recalibration_gives_the_mean_and_variance_of_all_images(count: int) -> None:
    module = Linear().eval()
    images = np.random.default_rng(0).normal(2, 3, (count, 1, 2, 3)).astype(np.float32)
    recalibrate(module, split_of(images, np.zeros(count)), "cpu", seed=0)
    with torch.no_grad():
        values = module.fc(torch.from_numpy(images).flatten(1)).double()
    torch.testing.assert_close(module.norm.running_mean.double(), values.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.norm.running_var.double(), values.var(0), rtol=1e-5, atol=1e-5)


def test_recalibration_of_maps_is_over_positions_too() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3)).eval()
    images = np.random.default_rng(0).random((50, 3, 4, 4)).astype(np.float32)
    recalibrate(module, split_of(images, np.zeros(50)), "cpu", seed=0)
    np.testing.assert_allclose(module[0].running_mean, images.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(
        module[0].running_var, images.transpose(1, 0, 2, 3).reshape(3, -1).var(1, ddof=1), rtol=1e-5
    )


def test_recalibration_changes_statistics_alone() -> None:
    module = pruned().module
    module.conv1[1].momentum = 0.3
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    recalibrate(module, data(64), "cpu", seed=0)
    changed = {name.rpartition(".")[2] for name, t in module.state_dict().items() if not torch.equal(t, before[name])}
    assert changed <= {"running_mean", "running_var", "num_batches_tracked"}
    assert {"running_mean", "running_var"} <= changed
    assert module.conv1[1].momentum == 0.3
    assert not any(layer.training or layer._forward_pre_hooks for layer in module.modules())


def test_norm_that_no_image_reaches_keeps_its_statistics() -> None:
    module = Lambda(lambda self, x: self.used(x), used=nn.BatchNorm2d(3), spare=nn.BatchNorm2d(3)).eval()
    module.spare.running_mean.fill_(7)
    measure_statistics(module, [torch.rand(4, 3, 2, 2)])
    assert module.spare.running_mean.tolist() == [7, 7, 7]
    assert module.used.running_mean.min() > 0


def test_network_without_batch_norm_is_left_as_it_is() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    before = digest(module)
    recalibrate(module, data(16), "cpu", seed=0)
    assert digest(module) == before


# -------------------------------------------------------------------------------------------------- hold-out


def test_held_out_part_is_a_tenth_of_every_class_and_disjoint() -> None:
    split = data(400)
    train, held_out = hold_out(split, 0)
    assert np.bincount(held_out.labels()).tolist() == [10, 10, 10, 10]
    assert sorted([*train.ids, *held_out.ids]) == list(range(400))
    assert hold_out(split, 0)[1].ids.tolist() == held_out.ids.tolist() != hold_out(split, 1)[1].ids.tolist()


def test_held_out_part_has_at_most_four_hundred_images() -> None:
    assert len(hold_out(split_of(np.zeros((40_000, 1, 1, 1)), np.arange(40_000) % 4), 0)[1]) == 400


def test_class_with_one_image_is_trained_on() -> None:
    train, held_out = hold_out(split_of(np.zeros((9, 1, 1, 1)), np.array([0] * 8 + [1])), 0)
    assert 8 in train.ids
    assert len(held_out) == 1


def test_held_out_images_are_never_trained_on(monkeypatch: pytest.MonkeyPatch, teacher: ModelBundle) -> None:
    split = data(128)
    held_out = set(hold_out(split, 3)[1].ids.tolist())
    monkeypatch.setattr(Jury, "judge", lambda *args, **more: Judged(0.5))  # who alone may read them
    monkeypatch.setattr(Jury, "of", lambda split, teacher, *rest, **more: Jury(split, torch.zeros(0), None, *rest))
    split.source.read_ids.clear()  # type: ignore[attr-defined]
    recover(pruned(), teacher, Task(settings(), split, 3))
    assert split.source.read_ids == set(range(128)) - held_out  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("recipe", ["finetune", "distill"])
def test_training_wins_accuracy_back(recipe: str, teacher: ModelBundle) -> None:
    found, info = recover(pruned(), teacher, Task(settings(recipe, 8, learning_rate=0.02), data(256), 0))
    assert isinstance(info, RecoveryInfo)
    assert info.accuracy_before is not None
    assert info.accuracy_after is not None
    assert info.accuracy_after > 0.9 > info.accuracy_before
    assert (info.recipe, info.epochs, info.train_samples, info.held_out) == (recipe, 8, 232, 24)
    assert accuracy(found.network(), data(64, seed=9)) > 0.9
    assert found.digest == digest(found.module)


def test_recovery_changes_neither_network_it_is_given(teacher: ModelBundle) -> None:
    student = pruned()
    digests = student.digest, teacher.digest
    recover(student, teacher, Task(settings(epochs=1), data(64), 0))
    assert (digest(student.module), digest(teacher.module)) == digests
    assert all(p.grad is None for p in (*student.module.parameters(), *teacher.module.parameters()))


def test_calibration_alone_leaves_the_weights(teacher: ModelBundle) -> None:
    student = pruned()
    found, info = recover(student, teacher, Task(settings("calibrate"), data(64), 0))
    assert isinstance(info, RecoveryInfo)
    assert info.epochs == 0
    assert all(torch.equal(p, student.module.get_parameter(n)) for n, p in found.module.named_parameters())
    assert found.digest != student.digest


def test_calibration_is_kept_when_training_does_worse(teacher: ModelBundle) -> None:
    calibrated, _ = recover(teacher, teacher, Task(settings("calibrate"), data(128), 0))
    harmful, harmless = (settings("finetune", 1, learning_rate=rate) for rate in (30.0, 1e-3))
    kept, info = recover(teacher, teacher, Task(harmful, data(128), 0))
    assert isinstance(info, RecoveryInfo)
    assert info.accuracy_after == 1.0
    assert kept.digest == calibrated.digest
    assert recover(teacher, teacher, Task(harmless, data(128), 0))[0].digest != calibrated.digest


def test_divergence_is_an_error_with_a_remedy(teacher: ModelBundle) -> None:
    bundle = bundle_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 4)))
    with pytest.raises(RecoveryError, match="diverged") as caught:
        recover(bundle, teacher, Task(settings("finetune", 3, learning_rate=1e30), data(128), 0))
    assert "--recover-learning-rate" in caught.value.hint


@pytest.mark.parametrize("recipe", ["calibrate", "finetune"])
def test_requires_grad_is_left_as_it_was(recipe: str, teacher: ModelBundle) -> None:
    student = pruned()
    student.module.conv1[0].weight.requires_grad_(False)
    student.module.head.fc.bias.requires_grad_(False)
    found, _ = recover(student, teacher, Task(settings(recipe, 1), data(64), 0))
    frozen = [name for name, parameter in found.module.named_parameters() if not parameter.requires_grad]
    assert frozen == ["conv1.0.weight", "head.fc.bias"]


def test_nothing_is_done_without_a_recipe_or_data(teacher: ModelBundle) -> None:
    student = pruned()
    for task in (
        Task(settings("none"), data(16), 0),
        Task(settings(), None, 0),
        Task(settings(), split_of(*stripes(1)), 0),
    ):
        found, info = recover(student, teacher, task)
        assert found is student
        assert isinstance(info, Unmeasured)


def test_preprocessing_is_part_of_what_is_trained(teacher: ModelBundle) -> None:
    preprocessing = Preprocessing(mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    torch.manual_seed(1)
    student = bundle_of(Chain(), preprocessing=preprocessing)
    found, info = recover(student, teacher, Task(settings("finetune", 3), data(128), 0))
    assert isinstance(info, RecoveryInfo)
    assert info.accuracy_after == accuracy(found.network(), hold_out(data(128), 0)[1])


def test_schedule_rises_then_falls() -> None:
    rates = [rate_share(step / 50) for step in range(51)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1, abs=2e-3)
    assert rates[-1] == pytest.approx(1e-3)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


# -------------------------------------------------------------------------------------------------- resuming


class Stop(Exception):
    pass


def with_dropout(seed: int = 1) -> ModelBundle:
    def forward(self: Lambda, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(torch.relu(self.conv(x))))
        return logits

    torch.manual_seed(seed)
    return bundle_of(Lambda(forward, conv=conv_bn(3, 8), drop=nn.Dropout(0.3), head=Head(8)))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path, epoch: int, teacher: ModelBundle) -> None:
    batches_of_four = settings(epochs=3, batch_size=4)  # enough steps for progress inside an epoch
    task = Task(batches_of_four, data(96), 5, checkpoints=tmp_path)

    def interrupt(text: str, share: float) -> None:
        if f"epoch {epoch}/3" in text and share > (epoch - 1) / 3:
            raise Stop

    whole, info = recover(with_dropout(), teacher, dataclasses.replace(task, checkpoints=None))
    with pytest.raises(Stop):
        recover(with_dropout(), teacher, task, progress=interrupt)
    left = torch.load(tmp_path / NAME, weights_only=True)
    assert left["epoch"] == epoch - 1
    torch.manual_seed(99)  # whatever the process did in between
    resumed, again = recover(with_dropout(), teacher, task)
    assert resumed.digest == whole.digest
    assert isinstance(info, RecoveryInfo)
    assert isinstance(again, RecoveryInfo)
    assert again.accuracy_after == info.accuracy_after


@pytest.mark.usefixtures("one_thread")
def test_finished_checkpoint_is_not_trained_further(tmp_path: Path, teacher: ModelBundle) -> None:
    task = Task(settings(), data(64), 0, checkpoints=tmp_path)
    first, _ = recover(pruned(), teacher, task)
    said: list[str] = []
    again, _ = recover(pruned(), teacher, task, progress=lambda text, share: said.append(text))
    assert again.digest == first.digest
    assert said == []


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("change", ["learning_rate", "seed", "data"])
def test_checkpoint_of_another_task_is_not_continued(tmp_path: Path, change: str, teacher: ModelBundle) -> None:
    task = Task(settings(epochs=1), data(64), 0, checkpoints=tmp_path)
    recover(pruned(), teacher, task)
    other = {
        "learning_rate": dataclasses.replace(task, settings=settings(epochs=1, learning_rate=0.001)),
        "seed": dataclasses.replace(task, seed=1),
        "data": dataclasses.replace(task, train=split_of(*stripes(64, seed=5), digest="other")),
    }[change]
    found, _ = recover(pruned(), teacher, other)
    fresh, _ = recover(pruned(), teacher, dataclasses.replace(other, checkpoints=None))
    assert found.digest == fresh.digest


@pytest.mark.parametrize("content", [b"", b"PK", b"garbage" * 100])
def test_damaged_checkpoint_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    assert read_checkpoint(tmp_path, "cpu") is None
    (tmp_path / NAME).write_bytes(content)
    assert read_checkpoint(tmp_path, "cpu") is None


def test_truncated_checkpoint_is_as_good_as_none(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Checkpoint(1, {"w": torch.ones(3)}, {}, {}, {}, {"seen": 5}, "task"))
    assert read_checkpoint(tmp_path, "cpu", task="task") is not None
    assert read_checkpoint(tmp_path, "cpu", task="another") is None
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-100])
    assert read_checkpoint(tmp_path, "cpu", task="task") is None


@pytest.mark.usefixtures("one_thread")
def test_recovery_follows_its_seed_and_leaves_the_generator_alone(teacher: ModelBundle) -> None:
    task = Task(settings(epochs=1), data(64), 0)
    with torch.no_grad():
        first = recover(with_dropout(), teacher, task)[0].digest
    network = with_dropout()
    torch.manual_seed(11)
    state = torch.get_rng_state()
    assert recover(network, teacher, task)[0].digest == first
    assert torch.equal(torch.get_rng_state(), state)
    assert recover(network, teacher, dataclasses.replace(task, seed=1))[0].digest != first
