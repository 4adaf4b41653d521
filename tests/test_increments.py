"""The time of one more copy of a layer: neighbours add time, and a figure that stands alone is looked at again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from edgeprune.latency import increments
from edgeprune.latency.increments import COPIES, one_more_ms

START_MS, LAYER_MS = 0.5, 0.2


class Machine:
    """A fake clock, and files whose blocks take longer by the factors that a neighbour brings, block by block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, disturbed: dict[int, Iterator[float]]) -> None:
        self.now, self.blocks = 0.0, 0
        self.disturbed, self.factor = disturbed, 1.0
        monkeypatch.setattr(increments.time, "perf_counter", lambda: self.now)
        plain = increments._block_ms

        def block(run: Callable[[], object]) -> float:
            copies = COPIES[self.blocks % len(COPIES)]
            self.blocks += 1
            self.factor = next(self.disturbed.get(copies, iter(())), 1.0)
            return plain(run)

        monkeypatch.setattr(increments, "_block_ms", block)

    def file(self, copies: int) -> Callable[[], None]:
        def run() -> None:
            self.now += self.factor * (START_MS + copies * LAYER_MS) / 1e3

        return run

    def found(self) -> float:
        return one_more_ms([self.file(copies) for copies in COPIES])


def test_a_quiet_machine_tells_the_layer_in_three_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {})
    assert machine.found() == pytest.approx(LAYER_MS)
    assert machine.blocks == 3 * len(COPIES)


@pytest.mark.parametrize("copies", COPIES)
def test_a_file_that_was_disturbed_in_the_first_blocks_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    machine = Machine(monkeypatch, {copies: iter([1.3, 1.2, 1.5, 1.4])})
    assert machine.found() == pytest.approx(LAYER_MS)
    assert machine.blocks == 6 * len(COPIES)


def test_a_machine_that_never_rests_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {COPIES[0]: (1.0 + 0.1 * (count + 1) for count in range(100))})
    assert 0 < machine.found() < LAYER_MS
    assert machine.blocks == 12 * len(COPIES)
