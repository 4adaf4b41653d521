"""Channels that a module without weights makes of nothing: a group with what they are added to, they go with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pruning_checks import assert_pruned_right, reasons, widths
from torch import Tensor, nn
from toy_networks import bundle_of, randomized

from edgeprune.config import ModelConfig
from edgeprune.errors import PruningError
from edgeprune.models import load, save
from edgeprune.pruning.criteria import l2
from edgeprune.pruning.cropping import Cropped, crop
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import apply, make_plan
from edgeprune.types import Goal, ModelBundle


class Padded(nn.Module):
    """The shortcut of a ResNet for CIFAR (option A): every second pixel, zeros for the channels that it lacks."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Called(nn.Module):
    """A function in a module: what it pads by is a number in the code."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class OptionA(nn.Module):
    """Two stages with parameter-free shortcuts between them."""

    def __init__(self, shortcuts: tuple[nn.Module, nn.Module] | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1)
        self.shortcuts = nn.ModuleList(shortcuts or (Padded(4, 4), Padded(0, 8)))
        self.one, self.two = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, 2, 1)
        self.bn = nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.one(x) + self.shortcuts[0](x))
        x = torch.relu(self.bn(self.two(x)) + self.shortcuts[1](x))
        return self.head(x.mean((2, 3)))


def padded_by_lambdas() -> tuple[nn.Module, nn.Module]:
    pads = ((4, 4), (0, 8))
    return tuple(  # type: ignore[return-value]
        Called(lambda x, pad=pad: nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *pad))) for pad in pads
    )


def halved(bundle: ModelBundle) -> ModelBundle:
    graph, goal = trace(bundle), Goal("ratio", 0.5)
    half = {group.name: group.width // 2 for group in graph.groups}
    return apply(make_plan(bundle, graph, l2(bundle, graph, None, seed=0), half, goal, 1, 0), bundle, graph)


@pytest.mark.parametrize("shortcuts", [None, padded_by_lambdas()], ids=["numbers", "lambdas"])
def test_every_channel_of_padded_stages_is_in_a_group(shortcuts: tuple[nn.Module, nn.Module] | None) -> None:
    graph = trace(bundle_of(randomized(OptionA(shortcuts))))
    assert widths(graph) == {"conv1": 8, "one": 8, "two": 8}
    assert set(reasons(graph)) == {"head"}


def test_pruned_network_computes_what_the_silenced_one_does() -> None:
    pruned = assert_pruned_right(bundle_of(randomized(OptionA())))
    assert (pruned.module.one.out_channels, pruned.module.two.out_channels) == (8, 12)


def test_pruned_twice_is_cropped_once() -> None:
    once = halved(bundle_of(randomized(OptionA())))
    twice = assert_pruned_right(once)
    for shortcut in twice.module.shortcuts:
        assert isinstance(shortcut, Cropped)
        assert isinstance(shortcut.inner, Padded)
    assert (twice.module.one.out_channels, twice.module.two.out_channels) == (4, 6)


def test_cropped_network_comes_back_from_its_file(tmp_path: Path) -> None:
    pruned = halved(bundle_of(randomized(OptionA())))
    save(pruned, tmp_path / "pruned.pt")
    images = torch.rand(2, 3, 8, 8)
    back = load(tmp_path / "pruned.pt", ModelConfig(trust=("test_cropping",)))
    with torch.no_grad():
        assert torch.equal(back.module(images), pruned.module(images))


@pytest.mark.parametrize(
    ("made", "carried", "left"),
    [
        ([0, 1, 2, 3], [], [4, 5, 6, 7, 8, 9, 10, 11]),
        ([0, 10], [4, 7], [1, 2, 3, 4, 5, 6, 7, 9]),  # positions of a module that carries two channels less
        ([], [5], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ],
)
def test_crop_knows_where_channels_are_after_others_have_gone(
    made: list[int], carried: list[int], left: list[int]
) -> None:
    network = nn.Sequential(Padded(4, 4))
    crop(network, {"0": made}, {"0": carried})
    values = torch.arange(1.0, 5.0 - len(carried)).view(1, -1, 1, 1)
    whole = nn.functional.pad(values, (0, 0, 0, 0, 4, 4))
    assert torch.equal(network(values), whole[:, left])
    assert isinstance(network[0], Cropped) == bool(made)


def test_second_crop_counts_what_comes_out() -> None:
    network = nn.Sequential(Padded(4, 4))
    crop(network, {"0": [0, 1]}, {})
    crop(network, {"0": [0, 9]}, {"0": [2]})
    values = torch.arange(1.0, 4.0).view(1, -1, 1, 1)
    assert network(values).flatten().tolist() == [0, 1, 2, 3, 0, 0, 0]
    assert network[0].gone == (0, 1, 2, 10)


def test_module_that_is_not_there_is_an_error() -> None:
    with pytest.raises(PruningError, match="no such module"):
        crop(nn.Sequential(), {"9": [0]}, {})
