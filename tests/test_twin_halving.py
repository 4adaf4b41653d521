"""A first convolution that halves the image: torch's result, and torch's gradient."""

import pytest
import torch
from torch.nn import functional

from edgeprune.robustness.twin.halving import MOST_CHANNELS, halved, halves
from edgeprune.robustness.twin.windows import Window


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (12, 5)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 1), (3, 3)])
@pytest.mark.parametrize("taps", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 3), (7, 7)])
def test_gradient_is_torchs_own(taps, padding, size):
    if any(side + 2 * before < tap for side, before, tap in zip(size, padding, taps, strict=True)):
        pytest.skip("the window does not fit")
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=draw).requires_grad_(True)
    weight, bias = torch.randn(5, 3, *taps, generator=draw), torch.randn(5, generator=draw)
    expected, found = functional.conv2d(x, weight, bias, 2, padding), halved(x, weight, bias, padding)
    back = torch.randn(expected.shape, generator=draw)
    wanted, given = (torch.autograd.grad((each * back).sum(), x)[0] for each in (expected, found))
    assert torch.equal(expected, found)
    assert torch.allclose(wanted, given, atol=1e-4)


@pytest.mark.parametrize(
    ("strides", "channels", "taken"),
    [((2, 2), MOST_CHANNELS, True), ((2, 2), MOST_CHANNELS + 1, False), ((1, 1), 1, False), ((2, 1), 1, False)],
)
def test_only_what_gains_is_taken(strides, channels, taken):
    window = Window((3, 3), strides, (1, 1), (1, 1, 1, 1), "NOTSET", False)
    assert halves(window, torch.zeros(4, channels, 3, 3)) == taken
