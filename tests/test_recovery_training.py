"""The training loop: a schedule that ends when the time does, ways back from divergence and collapse, what is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from toy_networks import Chain, bundle_of, split_of, stripes

from edgeprune.errors import RecoveryError
from edgeprune.records import RecoveryInfo
from edgeprune.recovery import recover as recovering
from edgeprune.recovery import training
from edgeprune.recovery.checkpoint import read_checkpoint
from edgeprune.recovery.held_out import Judged, Jury
from edgeprune.recovery.learner import Learner
from edgeprune.recovery.precision import choose
from edgeprune.recovery.recipes import Lesson
from edgeprune.recovery.recover import Task, recover
from edgeprune.recovery.schedules import Pace, rate_share, to_go
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.types import ModelBundle, Split

if TYPE_CHECKING:
    from edgeprune.types import Ints


def settings(recipe: str = "finetune", **more: object) -> RecoverConfig:
    return RecoverConfig.model_validate({"recipe": recipe, "epochs": 3, "batch_size": 16, **more})


def data(count: int = 128) -> Split:
    return split_of(*stripes(count))


def fresh(seed: int = 1) -> ModelBundle:
    torch.manual_seed(seed)
    return bundle_of(Chain())


def recovered(config: RecoverConfig, folder: Path | None = None, count: int = 128) -> tuple[ModelBundle, RecoveryInfo]:
    found, info = recover(fresh(), fresh(0), Task(config, data(count), 0, checkpoints=folder))
    assert isinstance(info, RecoveryInfo)
    return found, info


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_schedule_starts_at_its_warmup_and_ends_at_nothing(schedule: str) -> None:
    assert rate_share(1.0, schedule) == pytest.approx(1e-3)
    assert rate_share(0.5, schedule, 0.5) == pytest.approx(1, abs=2e-3)
    assert rate_share(0.0, schedule, 0.1) == pytest.approx(0.1)
    assert rate_share(0.0, "cosine") == pytest.approx(1, abs=2e-3)


def test_pace_by_the_clock_counts_what_went_by_before_and_keeps_a_reserve() -> None:
    now = [100.0]
    pace = Pace(6, 60.0, spent=15.0, started=100.0, reserve=10.0, clock=lambda: now[0])
    assert pace.done(0, 0, 10) == pytest.approx(0.3)
    now[0] = 110.0
    assert pace.done(3, 0, 10) == pytest.approx(0.5)
    now[0] = 200.0
    assert pace.done(0, 0, 10) == 1.0
    assert pace.over(0, 50.0)
    assert not pace.over(9, 49.0)
    assert pace.label(2) == "epoch 3"
    assert dataclasses.replace(pace, seconds=None).done(3, 5, 10) == pytest.approx(3.5 / 6)


def test_epochs_are_expected_by_the_pace_so_far() -> None:
    now = [100.0]
    pace = Pace(6, 60.0, spent=0.0, started=100.0, reserve=10.0, clock=lambda: now[0])
    assert pace.expected(0) == 0.0
    now[0] = 105.0
    assert pace.expected(4) == pytest.approx(40)
    assert dataclasses.replace(pace, seconds=None).expected(4) == 6


def test_training_by_the_clock_turns_to_perturbed_images_after_its_natural_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps, own = list[int](), Lesson.loss

    def loss(self: Lesson, network: nn.Module, positions: Ints, taken: int, generator: torch.Generator) -> torch.Tensor:
        steps.append(taken)
        return own(self, network, positions, taken, generator)

    def of(settings: RecoverConfig, spent: float, reserve: float) -> Pace:
        return Pace(settings.epochs, 60.0, 0.0, 0.0, clock=lambda: float(len(steps)))  # a step takes a second

    monkeypatch.setattr(Lesson, "loss", loss)
    monkeypatch.setattr(Pace, "of", staticmethod(of))
    config = settings("robust-distill", eps="2/255", minutes=1, batch_size=32, augment="shift", precision="float32")
    recover(fresh(), fresh(0), Task(config, data(64), 0))
    assert steps == [0] * 9 + [1] * 51  # an epoch is one step


def test_a_collapse_is_looked_for_only_after_images_were_perturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch is one step; half a second each after the first, which takes ten."""
    steps, looked, own = list[int](), list[int](), Lesson.loss

    def loss(self: Lesson, network: nn.Module, positions: Ints, taken: int, generator: torch.Generator) -> torch.Tensor:
        steps.append(taken)
        return own(self, network, positions, taken, generator)

    def overfitted(learner: Learner, workshop: object) -> bool:
        looked.append(steps[-1])
        return False

    def of(settings: RecoverConfig, spent: float, reserve: float) -> Pace:
        return Pace(settings.epochs, 60.0, 0.0, 0.0, clock=lambda: 10 + len(steps) / 2 if steps else 0.0)

    monkeypatch.setattr(Lesson, "loss", loss)
    monkeypatch.setattr(Pace, "of", staticmethod(of))
    monkeypatch.setattr(training, "_overfitted", overfitted)
    more = {"batch_size": 32, "augment": "shift", "precision": "float32", "natural_share": 0.25}
    config = settings("robust-distill", eps="2/255", minutes=1, **more)
    recover(fresh(), fresh(0), Task(config, data(64), 0))
    assert steps.index(1) == 10
    assert looked == [1] * (len(steps) - 10)


def test_time_to_go_follows_from_the_pace() -> None:
    assert to_go(30.0, 0.25) == "1:30 to go"
    assert to_go(30.0, 0.0) == ""


def test_minutes_are_kept_to() -> None:
    said: list[float] = []
    config = settings(minutes=0.02, epochs=1)
    torch.manual_seed(1)
    _, info = recover(fresh(), fresh(0), Task(config, data(64), 0), progress=lambda text, share: said.append(share))
    assert isinstance(info, RecoveryInfo)
    assert info.minutes == 0.02
    assert info.epochs > 1
    assert said == sorted(said)
    assert max(said) > 0.5
    assert 1.0 < info.seconds < 20


def test_resumed_training_keeps_the_remaining_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(minutes=0.02)
    _, first = recovered(config, tmp_path)
    done: list[int] = []
    monkeypatch.setattr(training, "_epoch", lambda *args: done.append(1))
    _, again = recovered(config, tmp_path)
    assert not done
    assert again.epochs == first.epochs
    assert any("with the minutes that were left" in note for note in again.notes)


def test_minutes_cover_what_recovery_did_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, begun = training._opened, list[float]()

    def opened(network: object, start: Judged, workshop: training.Workshop) -> Learner:
        learner = plain(network, start, dataclasses.replace(workshop, before=60.0))  # type: ignore[arg-type]
        begun.append(learner.course.spent)
        return learner

    monkeypatch.setattr(training, "_opened", opened)
    _, info = recovered(settings(minutes=1))
    assert begun[0] >= 60
    assert info.epochs == 0


def test_steps_share_minutes_and_not_epochs() -> None:
    with pytest.raises(ValidationError, match="leave out iteration_epochs or minutes"):
        settings(minutes=1, iteration_epochs=2)


# --------------------------------------------------------------------------------------------------- ways back


def diverging(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> list[float]:
    """Make the loss not finite in these calls of an epoch; the rates of all calls."""
    rates: list[float] = []
    plain = training._epoch

    def epoch(learner: Learner, *rest: object) -> None:
        rates.append(learner.course.rate)
        plain(learner, *rest)  # type: ignore[arg-type]
        if len(rates) in at:
            raise training._DivergedError("the loss is nan")

    monkeypatch.setattr(training, "_epoch", epoch)
    return rates


def test_divergence_is_taken_back_and_tried_again_at_a_lower_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = diverging(monkeypatch, {2})
    _, info = recovered(settings())
    assert rates == [1, 1, pytest.approx(0.1), pytest.approx(0.1)]
    assert info.epochs == 3
    assert info.notes == ("training diverged (the loss is nan): taken back, then a learning rate of 0.0014",)


def test_second_divergence_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    diverging(monkeypatch, {1, 2})
    with pytest.raises(RecoveryError, match="diverged twice") as caught:
        recovered(settings())
    assert "--recover-learning-rate" in caught.value.hint
    assert "0.014, and again at 0.0014" in caught.value.where


def test_what_is_taken_back_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything was learned, a diverged epoch and its retry equal a training at the lower rate."""
    diverging(monkeypatch, {1})
    found, _ = recovered(settings())
    monkeypatch.undo()
    plain, _ = recovered(settings(learning_rate=0.014 * 0.1))
    assert found.digest == plain.digest


def test_loss_that_explodes_is_divergence() -> None:
    course = training.Course("float32", 1)
    training._watch([2.0] * 8, course)
    training._watch([2.0] * 8 + [30.0] * 8, course)
    with pytest.raises(training._DivergedError, match="rose from 2 to 50"):
        training._watch([2.0] * 8 + [50.0] * 8, course)


def test_collapse_is_taken_back_and_goes_on_with_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    steps: list[int] = []
    plain = training._epoch

    def stood(self: Jury, network: object, steps: int, most: int = 0) -> float:
        calls.append(steps)
        return 0.9 if steps == 1 or len(calls) < 4 else 0.1  # the second look at PGD finds nothing standing

    def epoch(learner: Learner, *rest: object) -> bool:
        steps.append(learner.course.steps)
        return plain(learner, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Jury, "under_attack", stood)
    monkeypatch.setattr(training, "_epoch", epoch)
    _, info = recovered(settings("adversarial", eps="8/255"))
    assert steps.count(2) == 3 - (steps.count(1) - 1)
    assert steps == sorted(steps)
    assert any("collapsed" in note for note in info.notes)
    assert info.epochs == 3


# --------------------------------------------------------------------------------------------------- what is kept


def test_patience_ends_training_early(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter([0.9, 0.9, 0.5, 0.4] + [0.3] * 20)
    monkeypatch.setattr(Jury, "judge", lambda *args, **more: Judged(next(verdicts)))
    _, info = recovered(settings(epochs=9, patience=2))
    assert info.epochs == 2
    assert any("stopped early" in note for note in info.notes)


def kept(recipe: str, verdicts: list[Judged], monkeypatch: pytest.MonkeyPatch) -> float | None:
    """Accuracy of the state that is kept: the first verdict is the start's, then an epoch each."""
    told = iter([verdicts[0], *verdicts, *[Judged(0.0)] * 2])
    monkeypatch.setattr(Jury, "judge", lambda *args, **more: next(told))
    found: list[Judged] = []

    def noted(*args: Any, **more: Any) -> training.Trained:
        made = training.train(*args, **more)
        found.append(made.judged)
        return made

    monkeypatch.setattr(recovering, "train", noted)
    recover(fresh(), fresh(0), Task(settings(recipe, epochs=len(verdicts) - 1, patience=99), data(), 0))
    return found[0].accuracy


@pytest.mark.parametrize(
    ("recipe", "verdicts", "best"),
    [
        pytest.param("distill", [(0.90, 0.8), (0.89, 0.3), (0.90, 0.4)], 0.89, id="of-equals-the-nearest"),
        pytest.param("distill", [(0.90, 0.8), (0.87, 0.1), (0.91, 0.9)], 0.90, id="never-what-is-worse-than-chance"),
        pytest.param("distill", [(0.90 - 0.015 * k, 0.8 - 0.1 * k) for k in range(4)], 0.885, id="steps-do-not-add-up"),
        pytest.param("distill", [(0.80, 0.8), (0.81, 0.1), (0.90, 0.5)], 0.90, id="a-better-one-though-it-is-further"),
        pytest.param("finetune", [(0.90, 0.8), (0.89, 0.3), (0.91, 0.9)], 0.91, id="no-teacher-no-distance"),
    ],
)
def test_with_a_teacher_the_nearest_of_the_states_that_chance_may_tell_apart_is_kept(
    recipe: str, verdicts: list[tuple[float, float]], best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [Judged(accuracy, None, 0.02, far) for accuracy, far in verdicts]
    assert kept(recipe, said, monkeypatch) == pytest.approx(best)


def test_running_mean_of_the_weights_is_what_is_kept() -> None:
    plain, _ = recovered(settings(epochs=6), count=256)
    mean, info = recovered(settings(epochs=6, average=0.9), count=256)
    assert mean.digest != plain.digest
    assert info.accuracy_after is not None
    assert info.accuracy_after > 0.8


def test_running_mean_survives_a_kill(tmp_path: Path) -> None:
    config = settings(average=0.8)
    whole, _ = recovered(config)

    def interrupt(text: str, share: float) -> None:
        if "epoch 3/3" in text:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        recover(fresh(), fresh(0), Task(config, data(), 0, checkpoints=tmp_path), progress=interrupt)
    again, _ = recovered(config, tmp_path)
    assert again.digest == whole.digest


def test_progress_says_speed_and_the_time_to_go() -> None:
    said: list[str] = []
    recover(fresh(), fresh(0), Task(settings(batch_size=4), data(), 0), progress=lambda text, share: said.append(text))
    assert "images/s" in said[0]
    assert "to go" in said[-1]


# ----------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("device", "threads", "said"), [("cpu", 1, ""), ("cpu", 2, "on several threads"), ("cuda:0", 1, "on cuda:0")]
)
def test_resumption_that_is_not_bit_equal_says_so(
    monkeypatch: pytest.MonkeyPatch, device: str, threads: int, said: str
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    notes = training._taken_up(3, settings(), device)
    assert (said in notes[0]) if said else notes == []


def test_precision_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"float32": 0.10, "bfloat16": 0.05}
    monkeypatch.setattr("edgeprune.recovery.precision._seconds", lambda device, step, each: costs[each])
    steps: list[str] = []
    assert choose("auto", "cpu", steps.append) == "bfloat16"
    assert steps == ["float32", "bfloat16"]
    costs["bfloat16"] = 0.095
    assert choose("auto", "cpu", steps.append) == "float32"
    costs["float32"] = 0.001
    assert choose("auto", "cpu", steps.append) == "float32"
    assert choose("bfloat16", "cpu", steps.append) == "bfloat16"


def test_network_without_bfloat16_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.recovery.precision._seconds", lambda device, step, each: 1.0)

    def step(precision: str) -> None:
        if precision == "bfloat16":
            raise RuntimeError("not implemented for 'BFloat16'")

    assert choose("auto", "cpu", step) == "float32"


def test_precision_of_a_killed_training_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(text: str, share: float) -> None:
        raise InterruptedError

    monkeypatch.setattr(training, "choose", lambda *args: "bfloat16")
    with pytest.raises(InterruptedError):
        recover(fresh(), fresh(0), Task(settings(), data(), 0, checkpoints=tmp_path), progress=interrupt)
    monkeypatch.setattr(training, "choose", lambda *args: "float32")
    _, info = recovered(settings(), tmp_path)
    assert info.precision == "bfloat16"


@pytest.mark.parametrize("draws", [0, 2])
def test_robust_training_on_varied_images_that_was_killed_ends_with_the_same_weights(
    tmp_path: Path, draws: int
) -> None:
    def interrupt(text: str, share: float) -> None:
        if share >= 0.6:
            raise InterruptedError

    config = settings(
        "robust-distill", eps="8/255", augment="vary", draws=draws, epochs=5, flip=True, precision="float32"
    )
    whole, _ = recovered(config)
    with pytest.raises(InterruptedError):
        recover(fresh(), fresh(0), Task(config, data(), 0, checkpoints=tmp_path), progress=interrupt)
    assert (tmp_path / "recovery.checkpoint").exists()
    assert recovered(config, tmp_path)[0].digest == whole.digest


def test_bfloat16_learns_too() -> None:
    _, info = recovered(settings(epochs=6, precision="bfloat16"), count=256)
    assert info.precision == "bfloat16"
    assert info.accuracy_after is not None
    assert info.accuracy_after > 0.8


def test_checkpoint_holds_plain_numbers(tmp_path: Path) -> None:
    recovered(settings(epochs=1), tmp_path)
    held = torch.load(tmp_path / "recovery.checkpoint", weights_only=True)
    found = read_checkpoint(tmp_path, "cpu", task=held["task"])
    assert found is not None
    assert training.Course(**found.course).seen > 0
