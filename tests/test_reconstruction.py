"""Closed-form fits: exact where the answer is known, kept only where they help, and honest about what they leave."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_networks import Chain, Depthwise, Grouped, Lambda, bundle_of, conv_bn, randomized, split_of, stripes

from edgeprune.protocols import find
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import allocate, apply, kept_outputs, make_plan
from edgeprune.records import PrunePlan, RecoveryInfo
from edgeprune.recovery.corrections import affordable
from edgeprune.recovery.reconstruction import reconstruct
from edgeprune.recovery.recover import Task, recover
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.reporting.recovered import recovery_lines
from edgeprune.types import Goal, ModelBundle


def cut(module: nn.Module) -> tuple[ModelBundle, ModelBundle, dict[str, tuple[int, ...]], PrunePlan]:
    """(dense, half of it, kept outputs, plan)."""
    dense = bundle_of(module)
    graph = trace(dense)
    scores = find("criterion", "l2")(dense, graph, None, seed=0)
    goal = Goal("ratio", 0.5)
    plan = make_plan(dense, graph, scores, allocate(graph, scores, goal, 1), goal, 1, 0)
    return dense, apply(plan, dense, graph), kept_outputs(plan, graph), plan


def images(count: int = 64) -> Tensor:
    return torch.from_numpy(stripes(count)[0])


def error(pruned: ModelBundle, dense: ModelBundle) -> float:
    with torch.no_grad():
        return float((pruned.network()(images()) - dense.network()(images())).square().mean())


def test_kept_outputs_are_those_of_the_plan() -> None:
    dense, pruned, kept, plan = cut(randomized(Chain()))
    by_name = {group.name: group.kept for group in plan.groups}
    assert kept["conv1.0"] == by_name["conv1.0"]
    assert "head.fc" not in kept
    assert torch.equal(pruned.module.conv1[0].weight, dense.module.conv1[0].weight[list(kept["conv1.0"])])


class Redundant(nn.Module):
    """Channels 4 to 7 repeat 0 to 3: without them, the reader can be made whole again exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        with torch.no_grad():
            self.first.weight[4:], self.first.bias[4:] = self.first.weight[:4].clone(), self.first.bias[:4].clone()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.relu(self.first(x))).mean((2, 3))
        return logits


def test_redundant_channels_are_made_up_for() -> None:
    torch.manual_seed(0)
    dense = bundle_of(Redundant())
    module = Redundant()
    module.first, module.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    with torch.no_grad():
        module.first.weight.copy_(dense.module.first.weight[:4])
        module.first.bias.copy_(dense.module.first.bias[:4])
        module.last.weight.copy_(dense.module.last.weight[:, :4])
        module.last.bias.copy_(dense.module.last.bias)
    pruned = bundle_of(module)
    before = error(pruned, dense)
    fitted = reconstruct(pruned, dense, {"first": range(4)}, images(256))
    assert fitted.layers == ("first", "last")
    assert error(pruned, dense) < 1e-3 * before


@pytest.mark.parametrize("kind", [Chain, Grouped, Depthwise])
def test_every_kind_of_convolution_comes_nearer(kind: type[nn.Module]) -> None:
    dense, pruned, kept, _ = cut(randomized(kind()))
    before = error(pruned, dense)
    fitted = reconstruct(pruned, dense, kept, images())
    assert not fitted.skipped
    assert error(pruned, dense) < before


def test_unpruned_network_stays_as_it_is() -> None:
    dense = bundle_of(randomized(Chain()))
    same = bundle_of(randomized(Chain()))
    reconstruct(same, dense, {}, images())
    assert error(same, dense) < 1e-10


def test_bias_correction_moves_biases_alone_and_mends_the_mean() -> None:
    def forward(self: Lambda, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        return logits

    torch.manual_seed(0)
    dense = bundle_of(Lambda(forward, conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4)))
    pruned = bundle_of(Lambda(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 4)))
    weights = [p.detach().clone() for p in (pruned.module.conv.weight, pruned.module.fc.weight)]
    reconstruct(pruned, dense, {"conv": (0, 2, 4, 6)}, images(), bias_only=True)
    assert all(
        torch.equal(*pair) for pair in zip(weights, (pruned.module.conv.weight, pruned.module.fc.weight), strict=True)
    )
    with torch.no_grad():
        means = [each.network()(images()).mean(0) for each in (dense, pruned)]
    torch.testing.assert_close(means[0], means[1], rtol=1e-4, atol=1e-5)


def test_layers_that_cannot_be_fitted_say_why() -> None:
    def forward(self: Lambda, x: Tensor) -> Tensor:
        x = self.circular(self.twice(self.twice(self.unknown(x))))
        logits: Tensor = x.mean((2, 3))
        return logits

    def layers() -> dict[str, nn.Module]:
        return {
            "unknown": nn.Conv2d(3, 4, 1),
            "twice": nn.Conv2d(4, 4, 1),
            "circular": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        }

    pruned = bundle_of(Lambda(forward, **layers()))
    dense = bundle_of(Lambda(forward, **{**layers(), "unknown": nn.Conv2d(3, 8, 1)}))
    fitted = reconstruct(pruned, dense, {}, images(4))
    assert fitted.layers == ()
    reasons = dict(fitted.skipped)
    assert "channels" in reasons["unknown"]
    assert "more than once" in reasons["twice"]
    assert "padding" in reasons["circular"]


def test_recovery_measures_corrections_and_keeps_what_helps() -> None:
    torch.manual_seed(0)
    start = bundle_of(Chain())
    split = split_of(*stripes(256))
    teacher, _ = recover(start, start, Task(RecoverConfig(recipe="finetune", batch_size=16), split, 0))
    dense, pruned, kept, _ = cut(teacher.module)
    task = Task(RecoverConfig(recipe="calibrate"), split, 0, kept=kept)
    found, info = recover(pruned, dense, task)
    assert isinstance(info, RecoveryInfo)
    correction = info.corrections[-1]
    assert correction.kept
    assert correction.distance_after < correction.distance_before
    assert correction.accuracy_after >= correction.accuracy_before
    assert info.accuracy_after == correction.accuracy_after
    plain, before = recover(pruned, dense, dataclasses.replace(task, kept=None))
    assert isinstance(before, RecoveryInfo)
    assert before.corrections == ()
    assert error(found, dense) != error(plain, dense)


@pytest.mark.parametrize("layer", ["conv1.0", "head.fc"])
def test_network_whose_answers_are_no_numbers_is_fitted_all_the_same(layer: str) -> None:
    dense, pruned, kept, _ = cut(randomized(Chain()))
    with torch.no_grad():
        pruned.module.get_parameter(f"{layer}.weight").mul_(math.inf)
    task = Task(RecoverConfig(recipe="calibrate"), split_of(*stripes(256)), 0, kept=kept)
    _, info = recover(pruned, dense, task)
    assert isinstance(info, RecoveryInfo)
    assert info.corrections
    for made in info.corrections:
        assert made.distance_before is None
        assert made.kept == (made.distance_after is not None)
    lines = recovery_lines(info)
    assert any("distance to the dense network unmeasured to" in line for line in lines)


@pytest.mark.parametrize(
    ("more", "fitted"),
    [
        ({"epochs": 8}, True),  # 230 images, in batches of 16: 15 steps an epoch
        ({"epochs": 9}, False),
        ({"epochs": 1, "reconstruct": False}, False),
        ({"epochs": 9, "reconstruct": True}, True),
        ({"minutes": "0.002m"}, True),
        ({"minutes": "1h", "patience": 1}, False),
    ],
)
def test_layers_are_fitted_before_a_training_of_few_steps(more: dict[str, Any], fitted: bool) -> None:
    dense, pruned, kept, _ = cut(randomized(Chain()))
    settings = RecoverConfig(recipe="distill", batch_size=16, **more)
    _, info = recover(pruned, dense, Task(settings, split_of(*stripes(256)), 0, kept=kept))
    assert isinstance(info, RecoveryInfo)
    assert bool(info.corrections) == fitted


def test_norm_that_follows_absorbs_the_mean() -> None:
    dense = bundle_of(randomized(conv_bn(3, 4)))
    pruned = bundle_of(randomized(conv_bn(3, 4)))
    with torch.no_grad():
        pruned.module[0].weight += 0.1
    reconstruct(pruned, dense, {}, images())
    assert (pruned.module[0].weight - dense.module[0].weight).abs().max() < 0.05


def test_fit_of_a_deep_network_looks_at_fewer_images() -> None:
    def deep(count: int) -> nn.Sequential:
        return nn.Sequential(*[nn.Conv2d(1, 1, 1) for _ in range(count)])

    assert affordable(deep(3), 10_000) == 512
    assert affordable(deep(20), 4000) == 300
    assert affordable(deep(100), 1000) == 64
