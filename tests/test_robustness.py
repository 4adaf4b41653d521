"""Whole attacks on files with known fates: what is counted, what is refused, and what makes a result inconclusive."""

import dataclasses

import numpy as np
import pytest
import torch
from attack_examples import (
    SHAPE,
    Constant,
    Misleading,
    ModuleSession,
    Saturated,
    Scaled,
    grid_images,
    labels_of,
    linear,
    silent,
    small_network,
    split_of,
    threat_of,
)

from edgeprune import protocols
from edgeprune.config import AttackConfig
from edgeprune.errors import DataError, MeasurementError, UsageError
from edgeprune.robustness import evaluate
from edgeprune.robustness.evaluate import FilePredictions
from edgeprune.robustness.health import Health, warnings
from edgeprune.robustness.second_look import to_8_bits
from edgeprune.robustness.twin import Gradients
from edgeprune.robustness.verdicts import checked_logits, margins, predictions
from edgeprune.types import AttackOutcome

SHA = {"dense": "0" * 64, "compressed": "1" * 64}


def attacked(module, images, labels, epsilon, *, twin=None, session=None, side="dense", **over):
    split = split_of(images, labels)
    return evaluate.attack_file(
        Gradients(twin or module, session or ModuleSession(module), "torch module"),
        split,
        threat_of(split, epsilon, **over),
        sha256=SHA[side],
        progress=silent,
    )


def compared(dense, compressed, epsilon=0.02, confidence=0.95):
    split = split_of(np.zeros((len(dense.ids), *SHAPE), np.float32), dense.labels)
    info = ModuleSession(linear()).info
    return evaluate.compare(dense, compressed, threat_of(split, epsilon), info, confidence)


# ------------------------------------------------------------------------------------------ one file


def test_linear_file_keeps_exactly_the_images_that_are_far_enough():
    module, images = linear(), grid_images(40)
    weight = module[1].weight.detach().double().numpy()
    logits = module(torch.from_numpy(images)).detach().double().numpy()
    exact = np.abs(logits[:, 0] - logits[:, 1]) / np.abs(weight[0] - weight[1]).sum()
    epsilon = float(np.median(exact))
    sure = np.abs(exact / epsilon - 1) > 0.02
    outcome = attacked(module, images, labels_of(module, images), epsilon)
    assert np.array_equal(outcome.fell[sure], (exact < epsilon)[sure])
    assert outcome.record.clean.count == 40
    assert outcome.record.robust.count == 40 - outcome.fell.sum() == 40 - outcome.record.fell
    assert outcome.record.rejected == outcome.record.dead_gradients == 0
    assert not warnings("dense", outcome.health)


def test_images_that_were_wrong_before_are_not_counted_as_fallen():
    module, images = linear(), grid_images(20)
    labels = labels_of(module, images)
    labels[:5] = 1 - labels[:5]
    outcome = attacked(module, images, labels, 0.5)
    assert outcome.record.clean.count == outcome.record.fell == 15
    assert outcome.record.robust.count == 0
    assert not outcome.fell[:5].any()
    assert np.array_equal(outcome.adversarials[:5], images[:5])
    assert (outcome.adversarial_predictions != labels).all()


def test_claims_of_a_runtime_that_changes_its_mind_are_not_counted():
    module, images = linear(), grid_images(30)
    labels = labels_of(module, images)
    honest, seen = ModuleSession(module), set()

    class Fickle:
        info = honest.info

        def logits(self, pixels):
            logits = honest.logits(pixels)
            for row, image in zip(logits, pixels, strict=True):
                known = image.tobytes() in seen
                seen.add(image.tobytes())
                on_grid = np.abs(image * 255 - np.rint(image * 255)).max() < 1e-3
                if not (known or on_grid):
                    row[:] = row[::-1]
            return logits

    outcome = attacked(module, images, labels, 1e-3, session=Fickle())
    assert outcome.record.rejected > 5
    assert outcome.record.fell == int(outcome.fell.sum()) == 30 - outcome.record.robust.count
    assert outcome.record.fell + outcome.record.rejected == outcome.health.claims
    refused = ~outcome.fell
    assert np.array_equal(outcome.adversarials[refused], images[refused])
    assert any("refused when they were verified again" in line for line in warnings("dense", outcome.health))


def cheat(change):
    """An attack that claims `change` of every image as an adversarial."""

    def attack(_victim, images, _labels, _budget, *, progress):
        progress("cheating", 1.0)
        every = torch.ones(len(images), dtype=torch.bool)
        return AttackOutcome(change(images), every, every)

    return attack


@pytest.mark.parametrize(
    "change",
    [
        lambda images: (images + 0.5).clamp(0, 1),
        lambda images: images - 2.0,
        lambda images: images * torch.nan,
        lambda images: images,
    ],
    ids=["too far", "outside the pixel range", "not a number", "not misclassified"],
)
def test_claims_that_break_the_threat_model_are_refused(monkeypatch, change):
    monkeypatch.setattr(protocols, "find", lambda _kind, _name: cheat(change))
    module, images = linear(), grid_images(12)
    session = ModuleSession(lambda pixels: module(torch.nan_to_num(pixels)))
    outcome = attacked(module, images, labels_of(module, images), 0.01, session=session)
    assert outcome.record.rejected == 12
    assert outcome.record.fell == 0
    assert outcome.record.robust.count == 12
    assert outcome.health.flat is None


def test_adversarials_that_rounding_undoes_are_counted_apart():
    module, images = linear(), grid_images(60)
    labels = labels_of(module, images)
    outcome = attacked(module, images, labels, 0.4 / 255)
    assert outcome.record.fell > 0
    assert outcome.record.rounded == 0  # less than half a level: rounding brings the clean image back
    wide = attacked(module, images, labels, 8 / 255)
    assert wide.record.rounded > 0.8 * wide.record.fell
    assert not (wide.rounded_fell & ~wide.fell).any()


def test_rounding_keeps_the_ends_of_the_pixel_range():
    images = np.array([[0.0, 0.49 / 255, 0.51 / 255, 1.0]], np.float32)
    assert np.allclose(to_8_bits(images, (0.0, 1.0)) * 255, [[0, 0, 1, 255]])
    assert np.allclose(to_8_bits(images * 255, (0.0, 255.0)), [[0, 0, 1, 255]])


def test_disagreement_of_network_and_file_is_measured():
    module, images = linear(), grid_images(40)
    outcome = attacked(module, images, labels_of(module, images), 0.01, twin=Scaled(module, -1.0))
    assert outcome.record.twin_disagreement == 1.0
    assert any("network and file disagree on 40 of 40" in line for line in warnings("dense", outcome.health))


def test_errors_of_the_network_are_not_taken_for_errors_of_the_device():
    class Broken(torch.nn.Module):
        def forward(self, images):
            raise RuntimeError("a bug in the network")

    images = grid_images(4)
    with pytest.raises(RuntimeError, match="a bug in the network"):
        attacked(linear(), images, labels_of(linear(), images), 0.1, twin=Broken())


def test_no_images_is_an_error():
    with pytest.raises(DataError, match="no images"):
        attacked(linear(), grid_images(0), np.zeros(0, np.int64), 0.1)


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_device_that_is_not_there_is_a_usage_error(device):
    module, images = linear(), grid_images(4)
    split = split_of(images, labels_of(module, images))
    with pytest.raises(UsageError, match=f"cannot use the device {device}"):
        evaluate.attack_file(
            Gradients(module, ModuleSession(module), "torch module"),
            split,
            threat_of(split, 0.1),
            sha256=SHA["dense"],
            device=device,
            progress=silent,
        )


# ---------------------------------------------------------------------- attacks that failed are not robustness


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Constant(2), "same logits whatever the image"),
        (Constant(2, reached=True), "same logits whatever the image"),
        (Saturated(linear()), "zero or non-finite gradient"),
        (Misleading(linear()), "did not move"),
    ],
    ids=["ignores its input", "ignores its input, times zero", "saturated", "misleading gradients"],
)
def test_planted_failures_are_never_reported_robust(module, words):
    images = grid_images(30)
    labels = labels_of(module, images)
    outcome = attacked(module, images, labels, 0.01)
    assert outcome.record.robust.count > 0
    comparison = compared(outcome, outcome)
    assert not comparison.conclusive
    assert any(words in line for line in comparison.warnings)
    assert {line.split(":")[0] for line in comparison.warnings} == {"dense", "compressed"}


def test_a_file_that_stands_at_any_epsilon_is_doubted():
    images = grid_images(30)
    module = Misleading(Scaled(linear(), 1.0))
    outcome = attacked(module, images, labels_of(module, images), 0.01)
    stubborn = dataclasses.replace(outcome, health=outcome.health.model_copy(update={"probe_stood": 2}))
    assert any("2 of 10 images stood" in line for line in warnings("dense", stubborn.health))


def test_nothing_right_means_nothing_attacked():
    module, images = linear(), grid_images(10)
    outcome = attacked(module, images, 1 - labels_of(module, images), 0.01)
    assert outcome.record.clean.count == outcome.record.robust.count == 0
    assert [line for line in warnings("dense", outcome.health) if "nothing was attacked" in line]


def test_one_class_in_the_data_is_no_sign_of_failure():
    module, images = small_network(), grid_images(60)
    labels = labels_of(module, images)
    mine = labels == np.bincount(labels).argmax()
    outcome = attacked(module, images[mine], labels[mine], 0.03)
    assert not warnings("dense", outcome.health)


HEALTHY = Health(
    images=100,
    attacked=90,
    dead=0,
    survivors=50,
    flat=0,
    twin_disagreements=0,
    claims=40,
    rejected=0,
    probed=10,
    probe_stood=0,
    constant=False,
)


@pytest.mark.parametrize(
    ("change", "inside", "outside"),
    [
        ("dead", 4, 5),
        ("flat", 5, 6),
        ("twin_disagreements", 2, 3),
        ("rejected", 1, 2),
        ("probe_stood", 0, 1),
        ("constant", False, True),
    ],
)
def test_each_indicator_has_its_threshold(change, inside, outside):
    assert warnings("dense", HEALTHY.model_copy(update={change: inside})) == ()
    (line,) = warnings("dense", HEALTHY.model_copy(update={change: outside}))
    assert line.startswith("dense: ")


def test_an_attack_that_cannot_say_whether_its_loss_moved_is_not_blamed():
    assert warnings("dense", HEALTHY.model_copy(update={"flat": None})) == ()


# ------------------------------------------------------------------------------------------- both files


def test_flips_are_counted_both_ways():
    images = grid_images(80)
    dense, compressed = linear(seed=0), linear(seed=0)
    with torch.no_grad():
        compressed[1].weight.add_(0.4 * torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
        compressed[1].bias.copy_(-compressed[1].weight.sum(1) * 0.5)
    labels = labels_of(dense, images)
    outcomes = [
        attacked(module, images, labels, 0.03, side=side)
        for module, side in ((dense, "dense"), (compressed, "compressed"))
    ]
    comparison = compared(*outcomes)
    right = [outcome.robust_right for outcome in outcomes]
    assert comparison.conclusive, comparison.warnings
    assert comparison.drop.dense_only == int((right[0] & ~right[1]).sum()) > 0
    assert comparison.drop.compressed_only == int((right[1] & ~right[0]).sum()) > 0
    assert comparison.drop.value == pytest.approx(comparison.dense.robust.value - comparison.compressed.robust.value)
    assert comparison.clean_drop.value == pytest.approx(
        comparison.dense.clean.value - comparison.compressed.clean.value
    )


def test_confidence_asked_for_is_the_confidence_of_every_interval():
    module, images = linear(), grid_images(20)
    outcome = attacked(module, images, labels_of(module, images), 0.02)
    comparison = compared(outcome, outcome, confidence=0.8)
    assert comparison.drop.confidence == comparison.clean_drop.confidence == 0.8
    assert comparison.dense.robust.interval.confidence == comparison.compressed.clean.interval.confidence == 0.8


def test_files_attacked_on_different_images_are_not_compared():
    module = linear()
    few, many = (attacked(module, grid_images(n), labels_of(module, grid_images(n)), 0.02) for n in (10, 12))
    with pytest.raises(DataError, match="different images"):
        compared(few, many)


def test_same_file_twice_has_no_drop():
    module, images = small_network(), grid_images(30)
    labels = labels_of(module, images)
    once, again = (attacked(module, images, labels, 0.02, restarts=2) for _ in range(2))
    assert np.array_equal(once.adversarials, again.adversarials)
    drop = compared(once, again).drop
    assert (drop.dense_only, drop.compressed_only, drop.p_value) == (0, 0, 1.0)


def test_accuracy_is_compared_in_pairs():
    labels = np.array([0, 1, 2, 1])
    info = ModuleSession(linear()).info
    dense = FilePredictions(SHA["dense"], info, np.array([0, 1, 2, 0]))
    compressed = FilePredictions(SHA["compressed"], info, np.array([0, 0, 0, 1]))
    comparison = evaluate.accuracy_comparison(dense, compressed, labels, 0.9)
    assert (comparison.dense.count, comparison.compressed.count, comparison.dense.total) == (3, 2, 4)
    assert (comparison.drop.dense_only, comparison.drop.compressed_only) == (2, 1)
    assert (comparison.dense_sha256, comparison.compressed_sha256) == (SHA["dense"], SHA["compressed"])
    assert comparison.drop.confidence == 0.9


# ------------------------------------------------------------------------------------------ predictions


def test_predictions_come_in_the_order_of_the_split():
    module, images = linear(classes=4), grid_images(50)
    labels, seen = labels_of(module, images), []
    session = ModuleSession(module)
    found = evaluate.predict(session, split_of(images, labels), batch=7, progress=lambda _t, share: seen.append(share))
    assert np.array_equal(found, labels)
    assert found.dtype == np.int64
    assert seen == sorted(seen)
    assert seen[-1] == 1


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_logits_that_are_no_numbers_name_the_runtime(value):
    session = ModuleSession(lambda pixels: torch.full((len(pixels), 2), float(value)), name="someruntime")
    with pytest.raises(MeasurementError, match="someruntime returned NaN or infinite logits on 3 of 3"):
        evaluate.predict(session, split_of(grid_images(3), np.zeros(3, np.int64)))


def test_logits_of_another_number_of_classes_are_refused():
    session, split = ModuleSession(linear(classes=4)), split_of(grid_images(3), np.array([0, 1, 2]))
    assert len(evaluate.predict(session, split, classes=4)) == 3
    with pytest.raises(MeasurementError, match="4 logits an image where the network has 3 classes"):
        evaluate.predict(session, split, classes=3)
    with pytest.raises(DataError, match="a label is 4, but the file has 4 classes"):
        evaluate.predict(session, split_of(grid_images(1), np.array([4])))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 5), (3, 5, 1)])
def test_outputs_that_are_no_logits_are_refused(shape):
    with pytest.raises(MeasurementError, match="returned an output of shape"):
        checked_logits(lambda _pixels: np.zeros(shape, np.float32), grid_images(3))


def test_margins_are_signed_distances_of_the_logits():
    logits = np.array([[3, 1, 2], [0, 5, 1], [2, 2, 0]], np.float32)
    assert margins(logits, np.array([0, 2, 0])).tolist() == [1, -4, 0]
    assert predictions(logits).tolist() == [0, 1, 0]


# -------------------------------------------------------------------------------- threat model and subset


def test_threat_model_names_the_images_and_keeps_the_exact_epsilon():
    split = split_of(grid_images(9), np.arange(9) % 3)
    threat = evaluate.threat_model(AttackConfig(eps="8/255", norm="l2"), (0.0, 1.0), split, 7)
    assert (threat.epsilon, threat.epsilon_value) == ("8/255", 8 / 255)
    assert (threat.samples, threat.samples_digest, threat.seed, threat.norm) == (9, split.digest, 7, "l2")


def test_subset_is_stratified_ascending_and_repeatable():
    split = split_of(grid_images(100), np.repeat([0, 1, 2], [50, 30, 20]))
    subset = evaluate.attack_subset(split, 20, 3)
    assert np.bincount(subset.labels()).tolist() == [10, 6, 4]
    assert (np.diff(subset.ids) > 0).all()
    assert np.array_equal(subset.ids, evaluate.attack_subset(split, 20, 3).ids)
    other = evaluate.attack_subset(split, 20, 4)
    assert subset.digest == evaluate.attack_subset(split, 20, 3).digest
    assert len({split.digest, subset.digest, other.digest}) == 3


def test_subset_of_everything_is_the_split_itself():
    split = split_of(grid_images(5), np.arange(5))
    assert evaluate.attack_subset(split, None, 0) is split
    assert evaluate.attack_subset(split, 5, 0) is split
