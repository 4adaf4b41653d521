"""What stands beside an attack: said in the page, the comment and the terminal, and only where it was done."""

from __future__ import annotations

import io

import pytest
from report_examples import HOSTILE, example_report, example_robustness
from rich.console import Console

from edgeprune.records import Divergence, Interval, Proportion, Replay, Report, Sequential, Unmeasured
from edgeprune.reporting.attacked import attack_lines
from edgeprune.reporting.html import html
from edgeprune.reporting.markdown import markdown
from edgeprune.reporting.terminal import print_summary

REPLAY = Replay(robust=Proportion(count=640, total=1000, interval=Interval(low=0.609, high=0.67)), gap=0.08)
DIVERGENCE = Divergence(
    found=Proportion(count=31, total=100, interval=Interval(low=0.22, high=0.41)), replayed=5, steps=40, restarts=1
)
SEQUENTIAL = Sequential(looks=4, at=2, planned=2000, tolerance=0.02, spent=0.9875, decided="within")


def report(**changes: object) -> Report:
    return example_report(robustness=example_robustness(**changes))


def with_everything() -> Report:
    plain = example_robustness()
    dense = plain.dense.model_copy(update={"unfinished": ("apgd-t 40% done", "square not begun")})
    return report(dense=dense, replay=REPLAY, divergence=DIVERGENCE, sequential=SEQUENTIAL)


def in_terminal(made: Report) -> str:
    console = Console(file=io.StringIO(), width=400)
    print_summary(made, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_all_that_was_done_beside_the_attack_is_said() -> None:
    said = dict(attack_lines(with_everything().robustness))
    assert list(said) == ["Unfinished", "Stopped early", "Replay", "Divergence"]
    assert "on the dense file was run (apgd-t 40% done; square not begun)" in said["Unfinished"]
    assert "look 2 of at most 4, the drop was within the tolerance of 2.0 pt; 2,000 images" in said["Stopped early"]
    assert "98.75 %" in said["Stopped early"]
    assert "leave 64.0 % (60.9–67.0) standing" in said["Replay"]
    assert "leaves 56.0 %, so replay alone would say 8.0 pt too much" in said["Replay"]
    assert "31 of the 100 images that both get right (31.0 %), by the attack itself for 5" in said["Divergence"]


def test_what_was_not_done_is_not_mentioned() -> None:
    assert attack_lines(example_robustness()) == ()
    assert attack_lines(Unmeasured(unmeasured="no data")) == ()
    for render in (html, markdown, in_terminal):
        assert "Replay" not in render(report())


def test_stronger_replay_and_undecided_looks_are_said_as_they_are() -> None:
    weak = REPLAY.model_copy(update={"gap": -0.01})
    looks = SEQUENTIAL.model_copy(update={"at": 4, "decided": "no"})
    said = dict(attack_lines(example_robustness(replay=weak, sequential=looks)))
    assert "1.0 pt less" in said["Replay"]
    assert "the tolerance of 2.0 pt was not decided" in said["Looks"]
    cut = example_robustness(divergence=DIVERGENCE.model_copy(update={"finished": False}))
    assert "the time was up" in dict(attack_lines(cut))["Divergence"]


@pytest.mark.parametrize("render", [html, markdown, in_terminal])
def test_every_rendering_says_it(render: object) -> None:
    assert callable(render)
    shown = " ".join(str(render(with_everything())).split())
    for part in ("Unfinished", "Stopped early", "Replay", "Divergence", "so replay alone would say 8.0 pt too much"):
        assert part in shown


def test_names_of_parts_cannot_write_markup() -> None:
    hostile = example_robustness().dense.model_copy(update={"unfinished": (HOSTILE,)})
    page = html(report(dense=hostile))
    assert HOSTILE not in page
    assert "not all of the attack" in page.lower()
