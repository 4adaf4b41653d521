"""Pruning in several steps: goals on a schedule, plans that add up, a run that goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from conftest import Command
from toy_networks import Residual, bundle_of, randomized

from edgeprune.errors import PruningError
from edgeprune.pruning.criteria import l2
from edgeprune.pruning.graph import trace
from edgeprune.pruning.iterative import compose, step_epochs, step_goal
from edgeprune.pruning.plan import allocate, apply, make_plan
from edgeprune.records import PrunePlan
from edgeprune.types import Goal, ModelBundle


@pytest.mark.parametrize(
    ("goal", "schedule", "expected"),
    [
        (Goal("ratio", 0.75), "geometric", 0.5),
        (Goal("ratio", 0.75), "linear", 0.375),
        (Goal("macs_ratio", 0.25), "geometric", 0.5),
        (Goal("macs_ratio", 0.25), "linear", 0.625),
        (Goal("speedup", 4.0), "geometric", 2.0),
        (Goal("speedup", 4.0), "linear", 1.6),
        (Goal("latency_ms", 2.0), "geometric", 4.0),
        (Goal("latency_ms", 2.0), "linear", 5.0),
    ],
)
def test_half_way_is_known(goal: Goal, schedule: str, expected: float) -> None:
    half = step_goal(goal, 1, 2, schedule, dense_ms=8.0)  # type: ignore[arg-type]
    assert half.kind == goal.kind
    assert half.value == pytest.approx(expected)
    assert step_goal(goal, 2, 2, schedule, dense_ms=8.0) == goal  # type: ignore[arg-type]


def test_a_latency_that_the_dense_network_has_already_is_asked_for_at_once() -> None:
    goal = Goal("latency_ms", 9.0)
    assert step_goal(goal, 1, 3, "geometric", dense_ms=8.0) == goal


@pytest.mark.parametrize(
    ("total", "steps", "between", "expected"),
    [(6, 1, None, (0, 6)), (6, 3, None, (2, 2)), (7, 3, None, (2, 3)), (2, 5, None, (1, 1)), (6, 3, 1, (1, 6))],
)
def test_epochs_are_split_unless_they_are_set(
    total: int, steps: int, between: int | None, expected: tuple[int, int]
) -> None:
    assert step_epochs(total, steps, between) == expected


def planned(bundle: ModelBundle, ratio: float) -> tuple[PrunePlan, ModelBundle]:
    graph = trace(bundle)
    scores, goal = l2(bundle, graph, None, seed=0), Goal("ratio", ratio)
    plan = make_plan(bundle, graph, scores, allocate(graph, scores, goal, 1), goal, 1, 0)
    return plan, apply(plan, bundle, graph)


def test_two_steps_and_their_one_plan_give_the_same_weights() -> None:
    dense = bundle_of(randomized(Residual()))
    first, middle = planned(dense, 0.25)
    second, last = planned(middle, 0.4)
    whole = compose(first, second)
    once = apply(whole, dense, trace(dense))
    assert whole.parent == dense.digest
    assert (whole.dense_macs, whole.macs) == (first.dense_macs, second.macs)
    for name, tensor in last.module.state_dict().items():
        assert torch.equal(tensor, once.module.state_dict()[name]), name


def test_a_group_that_the_second_step_leaves_alone_stays_as_it_was() -> None:
    first, middle = planned(bundle_of(randomized(Residual())), 0.25)
    second, _ = planned(middle, 0.4)
    fewer = second.model_copy(update={"groups": second.groups[1:]})
    assert compose(first, fewer).groups[0] == first.groups[0]


def test_steps_that_do_not_fit_are_refused() -> None:
    first, middle = planned(bundle_of(randomized(Residual())), 0.25)
    second, _ = planned(middle, 0.4)
    with pytest.raises(PruningError, match="two steps disagree"):
        compose(first, first)
    with pytest.raises(PruningError, match="did not know"):
        compose(first.model_copy(update={"groups": ()}), second)


@pytest.fixture
def stepped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that asks for three steps."""
    folder = tiny.write_project(tmp_path / "stepped")
    changes = {"prune__iterations": "3", "prune__ratio": "0.7", "prune__channel_multiple": "1", "recover__epochs": "3"}
    (folder / "edgeprune.toml").write_text(tiny.settings(**changes, attack__steps="1"), encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def test_a_run_in_three_steps_reports_them_and_goes_on_where_it_stopped(
    stepped: Path, edgeprune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprune.steps import Run

    with monkeypatch.context() as patch:
        patch.setattr(Run, "export", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert edgeprune("compress", "model.pt").code == 130
    assert {path.name for path in (stepped / "run" / "steps").iterdir()} == {"1.pt", "2.pt", "last.pt"}
    said = edgeprune("compress", "model.pt")
    assert said.code == 0, said.err
    for stage in ("step-1", "step-2", "plan", "recover"):
        assert f"{stage}: kept from the run before" in said.err
    report = json.loads((stepped / "run" / "report.json").read_text())
    macs = [step["macs"] for step in report["steps"]] + [report["plan"]["macs"]]
    assert len(macs) == 3
    assert report["plan"]["dense_macs"] > macs[0] > macs[1] > macs[2]
    assert all(step["recovery"]["epochs"] == 1 for step in report["steps"])
    assert report["plan"]["goal_value"] == 0.7
    assert [len(group["kept"]) for group in report["plan"]["groups"]] == [5, 5]
    page = (stepped / "run" / "report.html").read_text()
    assert "3 steps" in page
    assert "3 steps" in (stepped / "run" / "report.md").read_text()


def test_the_plan_of_a_run_in_steps_rebuilds_its_structure(stepped: Path, edgeprune: Command) -> None:
    import edgeprune as package

    assert edgeprune("compress", "model.pt").code == 0
    plan = PrunePlan.model_validate_json((stepped / "run" / "plan.json").read_text())
    dense = bundle_of(tiny.trained(), classes=4, shape=(3, 8, 8))
    rebuilt = apply(plan.model_copy(update={"parent": dense.digest}), dense, trace(dense))
    settings = package.Config().model.model_copy(update={"arch": "tiny:TinyNet"})
    shipped = package.load(stepped / "run" / "pruned.pt", settings)
    shapes = {name: tensor.shape for name, tensor in shipped.module.state_dict().items()}
    assert {name: tensor.shape for name, tensor in rebuilt.module.state_dict().items()} == shapes
