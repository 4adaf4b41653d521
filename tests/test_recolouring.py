"""Square's proposals for linf, laid out for many queries at once, are those of one query after the other."""

import numpy as np
import pytest

from edgeprune.robustness.attacks.recolouring import Recolouring

IMAGES, QUERIES, SHAPE = 3, 40, (2, 7, 9)


def drawn() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    draws = random.random((IMAGES, QUERIES, 4), np.float32)
    signs = (2 * random.integers(0, 2, (IMAGES, QUERIES, SHAPE[0])) - 1).astype(np.int8)
    low = random.random((IMAGES, *SHAPE), np.float32)
    return draws, signs, (low, low + np.float32(0.5))


@pytest.mark.parametrize("side", [1, 3, 7])
def test_each_query_recolours_the_square_that_was_drawn_for_it(side: int) -> None:
    draws, signs, limits = drawn()
    laid = Recolouring.drawn(5, side, draws, signs, limits)
    for query in range(5, QUERIES):
        found = laid.of(query, side)
        assert found is not None
        painted, wanted = np.zeros((IMAGES, *SHAPE), np.float32), np.zeros((IMAGES, *SHAPE), np.float32)
        painted.reshape(-1)[found[0]] = found[1]
        for image in range(IMAGES):
            row = int(draws[image, query, 0] * (SHAPE[1] - side + 1))
            column = int(draws[image, query, 1] * (SHAPE[2] - side + 1))
            square = (slice(row, row + side), slice(column, column + side))
            for channel in range(SHAPE[0]):
                end = limits[int(signs[image, query, channel] > 0)]
                wanted[(image, channel, *square)] = end[(image, channel, *square)]
        assert np.array_equal(painted, wanted)


def test_queries_of_another_side_or_beyond_are_not_among_them() -> None:
    laid = Recolouring.drawn(5, 3, *drawn())
    assert laid.of(4, 3) is None
    assert laid.of(QUERIES, 3) is None
    assert laid.of(5, 2) is None


def test_large_squares_are_laid_out_a_few_at_a_time() -> None:
    random = np.random.default_rng(0)
    low = random.random((40, 3, 64, 64), np.float32)
    draws, signs = random.random((40, 100, 4), np.float32), np.ones((40, 100, 3), np.int8)
    assert len(Recolouring.drawn(1, 60, draws, signs, (low, low)).places) == 1
    assert len(Recolouring.drawn(1, 2, draws, signs, (low, low)).places) == 64
