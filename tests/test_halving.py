"""Proving many together: what fails is found by halves, what passes passed together, and a deadline is kept."""

from __future__ import annotations

import time

from edgeprune.pruning.halving import failing
from edgeprune.types import Group


def groups(count: int) -> list[Group]:
    return [Group(f"g{number}", 8, ()) for number in range(count)]


def test_only_what_fails_is_named_and_the_rest_passed_together() -> None:
    tried: list[list[str]] = []

    def fails(together: list[Group]) -> str | None:
        tried.append([group.name for group in together])
        return "bad" if {"g2", "g5"} & set(tried[-1]) else None

    assert failing(groups(7), fails) == {"g2": "bad", "g5": "bad"}
    passed = [names for names in tried if not {"g2", "g5"} & set(names)]
    assert sorted(passed[-1]) == ["g0", "g1", "g3", "g4", "g6"]


def test_nothing_is_tried_when_the_time_is_up() -> None:
    reasons = failing(groups(3), lambda _: None, until=time.monotonic() - 1)
    assert set(reasons.values()) == {"not proved: there was no time left"}
    assert len(reasons) == 3


def test_nothing_to_prove_is_nothing_that_fails() -> None:
    assert failing([], lambda _: "never asked") == {}
