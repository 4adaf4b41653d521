"""Views: what is moved, mirrored, warped and lit is what was drawn, and the same seed draws it again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.recovery.settings import RecoverConfig
from edgeprune.recovery.views import View


def drawn(count: int, size: int, seed: int = 0, **more: object) -> View:
    settings = RecoverConfig.model_validate({"recipe": "distill", **more})
    return View.drawn(count, (size, size), settings, (0.0, 1.0), torch.Generator().manual_seed(seed))


def noise(count: int, size: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(7))


def still(count: int) -> torch.Tensor:
    """Affine maps that change nothing."""
    return torch.eye(2, 3).expand(count, 2, 3).clone()


def test_shifted_image_is_a_window_of_the_padded_one() -> None:
    images = noise(5, 16, 2)
    moved = drawn(5, 16, seed=1).of(images, np.arange(5))
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    for image, whole in zip(moved, padded, strict=True):
        windows = [whole[:, r : r + 16, c : c + 16] for r in range(3) for c in range(3)]
        assert any(torch.equal(image, window) for window in windows)
    assert not torch.equal(moved, images)


def test_mirroring_is_half_of_the_images_and_only_when_asked_for() -> None:
    images = noise(64, 4, 1)
    found = drawn(64, 4, augment="none", flip=True).of(images, np.arange(64))
    flipped = [torch.equal(one, other.flip(-1)) for one, other in zip(found, images, strict=True)]
    assert 16 < sum(flipped) < 48
    assert all(torch.equal(one, other) for one, other, yes in zip(found, images, flipped, strict=True) if not yes)
    assert RecoverConfig().flip is False
    assert drawn(64, 4, augment="vary").mirrors is None


@pytest.mark.parametrize("augment", ["shift", "vary", "none"])
def test_an_image_looks_the_same_in_any_batch_and_by_the_same_seed(augment: str) -> None:
    images, some = noise(40, 8), np.array([7, 0, 31])
    view, again = (drawn(40, 8, seed=2, augment=augment, flip=True) for _ in range(2))
    whole = view.of(images, np.arange(40))
    torch.testing.assert_close(view.of(images[torch.from_numpy(some)], some), whole[torch.from_numpy(some)])
    assert torch.equal(again.of(images, np.arange(40)), whole)
    assert not torch.equal(drawn(40, 8, seed=3, augment=augment, flip=True).of(images, np.arange(40)), whole)


def test_a_map_that_changes_nothing_changes_nothing() -> None:
    images = noise(4, 9)
    torch.testing.assert_close(View(warps=still(4)).of(images, np.arange(4)), images)
    torch.testing.assert_close(View(lights=torch.ones(4, 2)).of(images, np.arange(4)), images)


def test_a_turn_by_a_right_angle_is_exact() -> None:
    images, angle = noise(2, 8), math.pi / 2
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    found = View(warps=turn.expand(2, 2, 3)).of(images, np.arange(2))
    torch.testing.assert_close(found, images.rot90(1, (2, 3)), rtol=0, atol=1e-5)


def test_a_warp_by_whole_pixels_is_a_shift_with_edges_repeated() -> None:
    images, warps = noise(2, 16), still(2)
    warps[:, 0, 2] = 2 / 16  # a width is 2: one pixel
    found = View(warps=warps).of(images, np.arange(2))
    torch.testing.assert_close(found[..., :-1], images[..., 1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[..., -1], images[..., -1], rtol=0, atol=1e-5)


def test_light_is_contrast_about_the_mean_then_brightness_from_the_lowest_pixel() -> None:
    images = torch.tensor([0.25, 0.75]).reshape(1, 1, 1, 2)
    for (contrast, brightness), expected in {(0.5, 1.0): (0.375, 0.625), (1.0, 0.5): (0.125, 0.375)}.items():
        view = View(lights=torch.tensor([[contrast, brightness]]))
        torch.testing.assert_close(view.of(images, np.arange(1)).flatten(), torch.tensor(expected))
    moved = View(lights=torch.tensor([[0.5, 1.2]]), bounds=(-1.0, 2.0)).of(3 * images - 1, np.arange(1))
    same = View(lights=torch.tensor([[0.5, 1.2]])).of(images, np.arange(1))
    torch.testing.assert_close(moved, 3 * same - 1)


def test_variations_are_small_and_stay_inside_the_bounds() -> None:
    view = drawn(4000, 8, augment="vary")
    assert view.moves is None
    assert view.warps is not None
    assert view.lights is not None
    scale = view.warps[:, :, :2].det().sqrt()
    assert 1 / 1.1 - 1e-4 <= scale.min() < 0.95
    assert 1.05 < scale.max() <= 1.1 + 1e-4
    turned = torch.atan2(view.warps[:, 1, 0], view.warps[:, 0, 0]).abs()
    assert math.radians(4.5) < turned.max() <= math.radians(5) + 1e-4
    assert view.warps[:, :, 2].abs().max() <= 2 / 16
    assert math.exp(-0.3) <= view.lights.min() < 1 < view.lights.max() <= math.exp(0.3) + 1e-6
    images = noise(4000, 8)
    found = view.of(images, np.arange(4000))
    assert 0 <= found.min() <= found.max() <= 1
