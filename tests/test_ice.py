"""Distances, thin ice and the curve where the answers are known."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from attack_examples import ModuleSession, grid_images, linear, silent, split_of
from PIL import Image

from edgeprune.errors import DataError
from edgeprune.records import DistanceSearch, ThreatModel
from edgeprune.robustness import ice
from edgeprune.robustness.curve import Check, Fallen, attack_standing, checks, curve_side, standing, with_fallen
from edgeprune.robustness.distances import Distances, rows_of, search
from edgeprune.robustness.evaluate import part_of
from edgeprune.robustness.twin.source import Gradients
from edgeprune.types import Split

BOUNDS = (0.0, 1.0)


def how(norm: str = "linf", steps: int = 40) -> DistanceSearch:
    return DistanceSearch(
        attack="fmn",
        norm=norm,
        steps=steps,
        restarts=1,
        seed=0,
        samples=1,
        samples_digest="0" * 64,  # type: ignore[arg-type]
    )


def threat(epsilon: float) -> ThreatModel:
    return ThreatModel(
        norm="linf",
        epsilon=str(epsilon),
        epsilon_value=epsilon,
        bounds=BOUNDS,
        attack="pgd",
        steps=20,
        restarts=1,
        seed=0,
        samples=1,
        samples_digest="0" * 64,
    )


def linear_case(count: int = 24) -> tuple[Gradients, Split, np.ndarray, torch.nn.Sequential]:
    """A linear classifier of two classes, images with their true labels but for the last quarter, and its margins."""
    module = linear()
    images = grid_images(count)
    with torch.no_grad():
        logits = module(torch.from_numpy(images)).numpy()
    labels = logits.argmax(1).astype(np.int64)
    labels[-count // 4 :] = 1 - labels[-count // 4 :]
    return Gradients(module, ModuleSession(module), "the network"), split_of(images, labels), logits, module


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2)])
def test_distances_of_a_linear_classifier_are_exact_right_or_wrong(norm: str, order: int) -> None:
    source, split, logits, module = linear_case()
    weights = next(iter(module.parameters()))
    normal = (weights[0] - weights[1]).detach().numpy()
    exact = np.abs(logits[:, 0] - logits[:, 1]) / np.linalg.norm(normal, ord=order)
    found = search(source, split, how(norm), BOUNDS, progress=silent)
    assert found.right.sum() == 18
    np.testing.assert_allclose(found.distances, exact, rtol=2e-3, atol=1e-5)
    assert (found.distances >= exact - 1e-6).all()


def test_only_wanted_and_right_images_are_searched_when_asked() -> None:
    source, split, _, _ = linear_case()
    found = search(source, split, how(), BOUNDS, np.array([0, 1, 23]), progress=silent)
    assert np.flatnonzero(~np.isnan(found.distances)).tolist() == [0, 1]
    assert np.array_equal(found.ids, split.ids)


def test_a_file_that_never_changes_its_mind_has_no_distance() -> None:
    images = grid_images(3)
    stubborn = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    with torch.no_grad():
        stubborn[1].weight.zero_()
        stubborn[1].bias.copy_(torch.tensor([1.0, 0.0]))
    source = Gradients(stubborn, ModuleSession(stubborn), "the network")
    found = search(source, split_of(images, np.zeros(3, np.int64)), how(), BOUNDS, progress=silent)
    assert np.isinf(found.distances).all()


def test_distances_survive_a_file_and_refuse_another(tmp_path) -> None:
    found = Distances(np.arange(3), np.zeros(3, np.int64), np.array([0, 1, 0]), np.array([0.1, np.nan, np.inf]))
    found.save(tmp_path / "d.npz")
    again = Distances.load(tmp_path / "d.npz")
    np.testing.assert_array_equal(again.distances, found.distances)
    (tmp_path / "other.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="does not hold distances"):
        Distances.load(tmp_path / "other.npz")


def test_rows_are_found_by_id_and_strangers_are_bugs() -> None:
    assert rows_of(np.array([2, 5, 9]), np.array([9, 2])).tolist() == [2, 0]
    with pytest.raises(ValueError, match="not among"):
        rows_of(np.array([2, 5]), np.array([7]))


# ------------------------------------------------------------------------------------------------ thin ice


def fates(count: int = 40) -> ice.Fates:
    """Image i is i / 1000 far. The dense file gets all but the last four right; the compressed one loses images 0 and
    2, and wins the last. Under attack image 10 and onwards stand in both, but 10 and 12 only in the dense file."""
    labels = np.zeros(count, np.int64)
    answers = np.where(np.arange(count) >= count - 4, 1, 0)
    compressed = answers.copy()
    compressed[[0, 2]], compressed[-1] = 1, 0
    dense = Distances(np.arange(count) * 3, labels, answers, np.arange(count) / 1000)
    stood = (np.arange(count) >= 10) & (answers == 0)
    stands = stood & ~np.isin(np.arange(count), (10, 12))
    return ice.Fates(dense, compressed, np.arange(count), stood, stands)


def test_ranks_count_flips_both_ways_and_rank_them_by_distance() -> None:
    lost, won, lost_eps, won_eps = ice.ranks(fates(), 0.95)
    assert (lost.images, lost.flipped) == (36, 2)
    assert lost.auroc == pytest.approx((34 + 33) / 68)  # image 2 has one kept image before it
    assert lost.interval is not None
    assert lost.interval.low < lost.auroc < lost.interval.high
    assert lost.p_value == pytest.approx(2 * 2 / 630)  # rank sums 3 and 4 are as small: two of C(36, 2) pairs
    assert (won.images, won.flipped, won.auroc) == (4, 1, 0.0)
    assert (lost_eps.images, lost_eps.flipped) == (26, 2)
    assert won_eps.unmeasured == "no image flipped this way"


def test_deciles_hold_all_right_images_nearest_first() -> None:
    tenths = ice.deciles(fates(), 0.95)
    assert sum(one.lost.total for one in tenths) == 36
    assert [one.lost.count for one in tenths] == [2, *[0] * 9]
    assert tenths[0].lost_at_epsilon is None
    assert sum(one.lost_at_epsilon.count for one in tenths if one.lost_at_epsilon) == 2
    assert tenths[0].low == 0
    assert tenths[-1].high == pytest.approx(0.035)
    assert ice.deciles(fates(12), 0.95) == ()  # eight are right


def test_the_list_at_risk_has_every_fate_nearest_first() -> None:
    found = ice.at_risk(fates(), lambda ids: {int(one): f"{one}" for one in ids})
    by_fate = {fate: [one.id for one in found if one.fate == fate] for fate in ("lost", "lost at epsilon", "held")}
    assert by_fate["lost"] == [0, 6]
    assert by_fate["lost at epsilon"] == [30, 36]
    assert by_fate["held"][:3] == [3, 9, 12]
    assert len(by_fate["held"]) == ice.SHOWN
    assert {one.thumbnail for one in found} == {f"{one.id}" for one in found}


def test_net_change_hides_flips_that_the_counts_show() -> None:
    assert ice.net(fates()) == (1, 2)


def test_quartiles_beyond_what_was_found_are_none() -> None:
    assert ice.quartiles(np.array([1.0, 2.0, 3.0, np.inf])) == (1.0, 2.0, 3.0)
    assert ice.quartiles(np.array([1.0, np.inf, np.inf, np.inf])) == (1.0, None, None)
    assert ice.quartiles(np.zeros(0)) is None


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (5, "L")])
def test_thumbnails_are_small_pngs_of_the_pixels(channels: int, mode: str) -> None:
    image = np.zeros((channels, 200, 100), np.float32)
    image[:, :100] = 2.0
    picture = Image.open(io.BytesIO(base64.b64decode(ice.thumbnail(image, (0.0, 2.0)))))
    assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (32, 64))
    assert np.asarray(picture)[0].max() == 255
    assert np.asarray(picture)[-1].max() == 0


# ------------------------------------------------------------------------------------------------ the curve


def test_the_attack_is_tried_on_what_the_distances_leave_and_the_lower_value_stands() -> None:
    source, split, _, _ = linear_case()
    exact = search(source, split, how(), BOUNDS, progress=silent)
    blind = Distances(exact.ids, exact.labels, exact.predictions, np.full(24, np.inf))
    epsilon = float(np.median(exact.distances[exact.right]))
    left = part_of(split, blind.ids[standing(blind, epsilon)])
    assert len(left) == 18
    fate = attack_standing(source, left, threat(epsilon), side="dense", sha256="1" * 64, device="cpu", progress=silent)
    known = with_fallen(blind, fate)
    expected = standing(exact, epsilon)
    assert np.array_equal(standing(known, epsilon), expected)
    assert (known.distances[known.right & ~expected] <= epsilon).all()


def test_nothing_left_standing_is_not_attacked() -> None:
    source, split, _, _ = linear_case()
    none = part_of(split, split.ids[:0])
    fate = attack_standing(source, none, threat(0.1), side="dense", sha256="1" * 64, device="cpu", progress=silent)
    assert fate == Fallen(ids=(), distances=())


def test_checks_are_paired_and_adjusted_for_their_number() -> None:
    ids, labels = np.arange(40), np.zeros(40, np.int64)
    dense = Distances(ids, labels, labels, np.arange(40) / 100)
    weak = Distances(ids, labels, labels, np.arange(40) / 200)
    done = [Check(threat(epsilon), (dense, dense), (dense, weak), ()) for epsilon in (0.045, 0.095)]
    first, second = checks(done, 0.95)
    assert (first.dense.count, first.compressed.count) == (35, 30)
    assert (first.dense_alone, first.compressed_alone) == (35, 35)
    assert (first.drop.dense_only, first.drop.compressed_only) == (5, 0)
    assert first.drop.p_value == pytest.approx(0.0625)
    assert second.p_holm == pytest.approx(2 * second.drop.p_value)
    assert first.p_holm == pytest.approx(max(0.0625, second.p_holm))


def test_a_curve_keeps_the_right_images_and_those_that_never_fell() -> None:
    of = Distances(np.arange(4), np.zeros(4, np.int64), np.array([0, 0, 1, 0]), np.array([0.3, np.inf, 0.0, 0.1]))
    side = curve_side("1" * 64, of)
    assert (side.right, side.distances) == (3, (0.1, 0.3))
