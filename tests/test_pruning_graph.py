"""Groups: found, tied, proved; every hazard is pruned right or refused with its reason."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from toy_networks import PRUNABLE, SHAPE, Chain, Head, Lambda, Residual, bundle_of, conv_bn, randomized

from edgeprune.errors import PruningError
from edgeprune.models import digest
from edgeprune.pruning.criteria import l2
from edgeprune.pruning.criteria import random as by_chance
from edgeprune.pruning.graph import Limits, trace
from edgeprune.pruning.plan import allocate, apply, make_plan
from edgeprune.pruning.proof import prove, scrambled
from edgeprune.pruning.surgery import silence
from edgeprune.types import ChannelGraph, Goal, Group, Member, ModelBundle

Forward = Callable[[Lambda, Tensor], Tensor]
LAST = "no layer takes its channels in: they are the network's output"


def toy(function: Forward, **layers: nn.Module | nn.Parameter) -> ModelBundle:
    return bundle_of(randomized(Lambda(function, **layers)))


def widths(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: group.width for group in graph.groups}


def reasons(graph: ChannelGraph) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in graph.refusals}


def assert_nothing_is_missing(bundle: ModelBundle, graph: ChannelGraph) -> None:
    """Every layer's outputs are in a group or a refusal."""
    named = {member.name for group in graph.groups for member in group.members if member.role == "out"}
    named.update(name for refusal in graph.refusals for name in (refusal.name, *refusal.layers))
    for name, layer in bundle.module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d) and not name.startswith("attend."):
            assert name in named


def assert_pruned_right(bundle: ModelBundle, ratio: float = 0.5) -> ModelBundle:
    """Prune a bundle and compare, on its own weights, with the dense network whose channels are silenced."""
    graph = trace(bundle)
    assert_nothing_is_missing(bundle, graph)
    scores = l2(bundle, graph, None, seed=0)
    goal = Goal("ratio", ratio)
    plan = make_plan(bundle, graph, scores, allocate(graph, scores, goal, 1), goal, 1, 0)
    pruned = apply(plan, bundle, graph)
    gone = {group.name: [u for u in range(group.width) if u not in group.kept] for group in plan.groups}
    images = torch.rand(3, *bundle.input_shape)
    with torch.no_grad():
        expected = silence(bundle.module, graph.groups, gone)(images)
        torch.testing.assert_close(pruned.module(images), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected, bundle.module(images), rtol=1e-3)
    assert sum(p.numel() for p in pruned.module.parameters()) == plan.parameters < plan.dense_parameters
    return pruned


# ---------------------------------------------------------------------------------------------- known answers

EXPECTED = {
    "Chain": {"conv1.0": 16, "conv2.0": 24},
    "Residual": {"stem.0": 16, "middle.0": 8},
    "Concatenated": {"a.0": 8, "b.0": 12, "join.0": 8},
    "ResidualOverConcatenation": {"whole.0": 8},
    "Grouped": {"first.0": 4, "grouped.0": 8, "last.0": 8},
    "Depthwise": {"expand.0": 24, "project.0": 16},
    "Flattened": {"conv": 6, "fc1": 10},
    "Squeezed": {"conv.0": 16, "squeeze": 4},
    "Transposed": {"down": 12, "up": 8},
}


@pytest.mark.parametrize("name", PRUNABLE)
def test_groups_of_the_toy_networks_are_known(name: str) -> None:
    graph = trace(bundle_of(randomized(PRUNABLE[name]())))
    assert widths(graph) == EXPECTED[name]
    assert list(reasons(graph).values()) == [LAST]


@pytest.mark.parametrize("name", PRUNABLE)
def test_pruned_network_computes_what_the_silenced_one_does(name: str) -> None:
    assert_pruned_right(bundle_of(randomized(PRUNABLE[name]())))


def test_members_name_the_channels_that_go_together() -> None:
    graph = trace(bundle_of(randomized(Residual())))
    stem = {(m.name, m.role) for m in graph.group("stem.0").members}
    assert stem == {
        ("stem.0", "out"), ("stem.1", "out"), ("out.0", "out"), ("out.1", "out"), ("middle.0", "in"), ("head.fc", "in"),
    }  # fmt: skip
    assert all(member.channels == tuple((i,) for i in range(16)) for member in graph.group("stem.0").members)


def test_channel_that_is_read_twice_goes_from_both_places() -> None:
    graph = trace(bundle_of(randomized(PRUNABLE["Concatenated"]())))
    reader = next(m for m in graph.group("a.0").members if m.name == "join.0")
    assert reader.channels == tuple((i, i + 20) for i in range(8))


def test_channels_of_a_flattened_map_are_its_positions() -> None:
    graph = trace(bundle_of(randomized(PRUNABLE["Flattened"]())))
    reader = next(m for m in graph.group("conv").members if m.name == "fc1")
    assert reader.channels[1] == tuple(range(64, 128))


def test_grouped_convolution_gives_units_of_one_channel_a_group() -> None:
    graph = trace(bundle_of(randomized(PRUNABLE["Grouped"]())))
    makers = [m for m in graph.group("grouped.0").members if m.name == "grouped.0" and m.role == "out"]
    assert makers[0].channels[3] == (3, 11, 19, 27)


def test_residual_over_a_concatenation_keeps_both_branches_even() -> None:
    graph = trace(bundle_of(randomized(PRUNABLE["ResidualOverConcatenation"]())))
    channels = {m.name: m.channels for m in graph.groups[0].members if m.role == "out"}
    assert channels["whole.0"][2] == (2, 10)
    assert channels["a.0"][2] == channels["b.0"][2] == (2,)


def test_layers_carry_their_macs() -> None:
    layers = {layer.name: layer for layer in trace(bundle_of(randomized(Chain()))).layers}
    assert layers["conv1.0"].macs == 64 * 16 * 3 * 9
    assert layers["conv2.0"].macs == 64 * 24 * 16 * 9
    assert layers["head.fc"].macs == 24 * 4


# -------------------------------------------------------------------------------------------------- hazards


def shuffled(self: Lambda, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    x = x.view(-1, 2, 8, 8, 8).transpose(1, 2).flatten(1, 2)
    return self.head(self.b(x))


def chunked(self: Lambda, x: Tensor) -> Tensor:
    left, right = self.a(x).chunk(2, 1)
    return self.head(torch.relu(self.b(left) + self.c(right)))


def gated(self: Lambda, x: Tensor) -> Tensor:
    left, right = self.a(x).chunk(2, 1)
    return self.head(left * torch.sigmoid(right))


def split_by_number(self: Lambda, x: Tensor) -> Tensor:
    left, right = torch.split(self.a(x), [8, 8], 1)
    return self.head(torch.relu(self.b(left) + self.c(right)))


def unevenly_split(self: Lambda, x: Tensor) -> Tensor:
    left, right = torch.split(self.a(x), [4, 12], 1)
    return self.head(torch.relu(self.b(left) + self.c(right)))


def assigned(self: Lambda, x: Tensor) -> Tensor:
    x = self.a(x)
    y = torch.zeros_like(x)
    y[:, :4] = x[:, 4:8]
    y[:, 4:] = x[:, :12]
    return self.head(self.b(y))


def channels_last_flatten(self: Lambda, x: Tensor) -> Tensor:
    return self.head(torch.relu(self.a(x)).permute(0, 2, 3, 1).flatten(1))


def rotated(self: Lambda, x: Tensor) -> Tensor:
    x = self.a(x)
    return self.head(torch.relu(x + torch.cat([x[:, 4:], x[:, :4]], 1)))


def pixel_shuffled(self: Lambda, x: Tensor) -> Tensor:
    return self.head(functional.pixel_shuffle(self.a(x), 2))


def layer_normed(self: Lambda, x: Tensor) -> Tensor:
    x = self.a(x).flatten(2).transpose(1, 2)
    return self.fc(self.norm(x).mean(1))


def group_normed(self: Lambda, x: Tensor) -> Tensor:
    return self.head(torch.relu(self.norm(self.a(x))))


def softmax_over_channels(self: Lambda, x: Tensor) -> Tensor:
    return self.head(self.a(x).softmax(1))


def mean_over_channels(self: Lambda, x: Tensor) -> Tensor:
    x = self.a(x)
    return self.head(self.b(x)) + x.mean((1, 2, 3))[:, None]


def attention(self: Lambda, x: Tensor) -> Tensor:
    tokens = self.a(x).flatten(2).transpose(1, 2)
    q, k, v = self.qkv(tokens).reshape(-1, 64, 3, 2, 8).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return self.fc(self.proj(mixed).mean(1))


def whole_attention(self: Lambda, x: Tensor) -> Tensor:
    tokens = self.a(x).flatten(2).transpose(1, 2)
    return self.fc(self.attend(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def recurrent(self: Lambda, x: Tensor) -> Tensor:
    return self.fc(self.rnn(self.a(x).flatten(2).transpose(1, 2))[0][:, -1])


def padded_shortcut(self: Lambda, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    return self.head(torch.relu(functional.pad(x, (0, 0, 0, 0, 4, 4)) + self.b(x)))


def detached(self: Lambda, x: Tensor) -> Tensor:
    return self.head(self.b(torch.relu(self.a(x)).detach()))


def half_detached(self: Lambda, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    return self.head(self.b(x) + self.c(x.detach()))


def masked(self: Lambda, x: Tensor) -> Tensor:
    return self.head(torch.relu(self.a(x) * self.mask))


def permuted(self: Lambda, x: Tensor) -> Tensor:
    order = torch.arange(15, -1, -1)
    return self.head(self.b(self.a(x)[:, order]))


def functional_weight(self: Lambda, x: Tensor) -> Tensor:
    return self.head(functional.conv2d(torch.relu(self.a(x)), self.kernel, padding=1))


def two_halves_of_a_grouped_convolution(self: Lambda, x: Tensor) -> Tensor:
    return self.head(self.grouped(torch.cat([self.a(x), self.b(x)], 1)))


def dead_end(self: Lambda, x: Tensor) -> Tensor:
    return self.head(self.a(x)) + 0 * self.other(self.b(x))


def a(outputs: int = 16) -> nn.Conv2d:
    return nn.Conv2d(3, outputs, 3, padding=1)


# name: (forward pass, layers, names of what is refused with a part of each reason)
REFUSED: dict[str, tuple[Forward, dict[str, nn.Module | nn.Parameter], dict[str, str]]] = {
    "channel shuffle": (shuffled, {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)}, {"a": "channels"}),
    "split by fixed numbers": (
        split_by_number,
        {"a": a(), "b": nn.Conv2d(8, 8, 1), "c": nn.Conv2d(8, 8, 1), "head": Head(8)},
        {"a": "does not run without its channels"},
    ),
    "uneven split": (
        unevenly_split,
        {"a": a(), "b": nn.Conv2d(4, 8, 1), "c": nn.Conv2d(12, 8, 1), "head": Head(8)},
        {"a": "cannot be followed into b"},
    ),
    "slice assignment": (assigned, {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)}, {"a": "channels"}),
    "flatten in NHWC order": (channels_last_flatten, {"a": a(), "head": nn.Linear(1024, 4)}, {"a": "proof failed"}),
    "rotation added": (rotated, {"a": a(8), "head": Head(8)}, {"a": ""}),
    "pixel shuffle": (pixel_shuffled, {"a": a(), "head": Head(4)}, {"a": ""}),
    "LayerNorm": (layer_normed, {"a": a(), "norm": nn.LayerNorm(16), "fc": nn.Linear(16, 4)}, {"a": "mixes channels"}),
    "GroupNorm": (group_normed, {"a": a(), "norm": nn.GroupNorm(4, 16), "head": Head(16)}, {"a": "mixes channels"}),
    "softmax over channels": (softmax_over_channels, {"a": a(), "head": Head(16)}, {"a": "proof failed"}),
    "mean over channels": (mean_over_channels, {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)}, {"a": ""}),
    "attention": (
        attention,
        {"a": a(), "qkv": nn.Linear(16, 48), "proj": nn.Linear(16, 16), "fc": nn.Linear(16, 4)},
        {"qkv": ""},
    ),
    "MultiheadAttention": (
        whole_attention,
        {"a": a(), "attend": nn.MultiheadAttention(16, 2, batch_first=True), "fc": nn.Linear(16, 4)},
        {"a": "", "attend": "no sound rule"},
    ),
    "LSTM": (
        recurrent,
        {"a": a(), "rnn": nn.LSTM(16, 8, batch_first=True), "fc": nn.Linear(8, 4)},
        {"a": "", "rnn": "no sound rule"},
    ),
    "GRU": (
        recurrent,
        {"a": a(), "rnn": nn.GRU(16, 8, batch_first=True), "fc": nn.Linear(8, 4)},
        {"a": "", "rnn": "no sound rule"},
    ),
    "padded shortcut": (padded_shortcut, {"a": a(8), "b": nn.Conv2d(8, 16, 1), "head": Head(16)}, {"a": ""}),
    "detach": (
        detached,
        {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)},
        {"a": "the traced forward pass does not reach it"},
    ),
    "detach on one side": (
        half_detached,
        {"a": a(), "b": nn.Conv2d(16, 8, 1), "c": nn.Conv2d(16, 8, 1), "head": Head(8)},
        {"a": "does not run without its channels"},
    ),
    "index by a constant": (permuted, {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)}, {"a": ""}),
    "weight in a function": (
        functional_weight,
        {"a": a(), "kernel": nn.Parameter(torch.randn(8, 16, 3, 3)), "head": Head(8)},
        {"a": "kernel"},
    ),
    "half a grouped convolution": (
        two_halves_of_a_grouped_convolution,
        {"a": a(8), "b": a(8), "grouped": nn.Conv2d(16, 8, 1, groups=2), "head": Head(8)},
        {"a": "some of its groups only", "b": "some of its groups only"},
    ),
    "multiplied by nothing": (
        dead_end,
        {"a": a(), "b": a(), "other": Head(16), "head": Head(16)},
        {"b": "does not react"},
    ),
    "weight norm": (
        lambda self, x: self.head(self.a(x)),
        {"a": parametrizations.weight_norm(a()), "head": Head(16)},
        {"a": "weight norm"},
    ),
    "spectral norm": (
        lambda self, x: self.head(self.a(x)),
        {"a": parametrizations.spectral_norm(a()), "head": Head(16)},
        {"a": "spectral norm"},
    ),
    "one channel": (
        lambda self, x: self.head(self.b(self.a(x))),
        {"a": a(1), "b": nn.Conv2d(1, 8, 1), "head": Head(8)},
        {"a": "a single channel"},
    ),
    "depthwise on the image": (
        lambda self, x: self.head(self.b(self.a(x))),
        {"a": nn.Conv2d(3, 3, 3, groups=3), "b": nn.Conv2d(3, 8, 1), "head": Head(8)},
        {"a": "the network's input"},
    ),
    "depthwise with a multiplier": (
        lambda self, x: self.head(self.b(self.a(x))),
        {"a": a(8), "b": nn.Conv2d(8, 16, 3, groups=8), "head": Head(16)},
        {"a": "depend on each other"},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hazard_is_refused_with_its_reason(name: str) -> None:
    function, layers, expected = REFUSED[name]
    bundle = toy(function, **copy.deepcopy(layers))
    graph = trace(bundle)
    found = reasons(graph)
    for layer, part in expected.items():
        assert found[layer]
        assert part in found[layer]
        assert layer not in widths(graph)
    assert_nothing_is_missing(bundle, graph)


PRUNED: dict[str, tuple[Forward, dict[str, nn.Module | nn.Parameter], dict[str, int]]] = {
    "halves of a chunk": (
        chunked,
        {"a": a(), "b": nn.Conv2d(8, 8, 1), "c": nn.Conv2d(8, 8, 1), "head": Head(8)},
        {"a": 8, "b": 8},
    ),
    "gated linear unit": (gated, {"a": a(), "head": Head(8)}, {"a": 8}),
    "every other channel": (
        lambda self, x: self.head(self.b(self.a(x)[:, ::2]) + self.c(self.a(x)[:, 1::2])),
        {"a": a(), "b": nn.Conv2d(8, 8, 1), "c": nn.Conv2d(8, 8, 1), "head": Head(8)},
        {"a": 8, "b": 8},
    ),
    "the same layer twice": (
        lambda self, x: self.head(torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(x))))))),
        {"a": a(), "b": nn.Conv2d(16, 16, 3, padding=1), "head": Head(16)},
        {"a": 16},
    ),
    "bare parameter on the channels": (
        lambda self, x: self.head(torch.relu(self.a(x) * self.scale.view(1, -1, 1, 1))),
        {"a": a(), "scale": nn.Parameter(torch.randn(16)), "head": Head(16)},
        {"a": 16},
    ),
    "PReLU and InstanceNorm": (
        lambda self, x: self.head(self.act(self.norm(self.a(x)))),
        {"a": a(), "norm": nn.InstanceNorm2d(16, affine=True), "act": nn.PReLU(16), "head": Head(16)},
        {"a": 16},
    ),
    "dense block": (
        lambda self, x: self.head(torch.cat([y := self.a(x), z := self.b(y), self.c(torch.cat([y, z], 1))], 1)),
        {"a": a(8), "b": nn.Conv2d(8, 6, 3, padding=1), "c": nn.Conv2d(14, 4, 1), "head": Head(18)},
        {"a": 8, "b": 6, "c": 4},
    ),
    "grouped and transposed": (
        lambda self, x: self.head(torch.relu(self.up(torch.relu(self.a(x))))),
        {"a": a(8), "up": nn.ConvTranspose2d(8, 12, 2, 2, groups=2), "head": Head(12)},
        {"a": 4, "up": 6},
    ),
    "groups of two and of four": (
        lambda self, x: self.head(torch.relu(self.c(self.b(self.a(x))))),
        {"a": a(), "b": nn.Conv2d(16, 16, 1, groups=2), "c": nn.Conv2d(16, 8, 1, groups=4), "head": Head(8)},
        {"a": 8, "b": 4, "c": 2},
    ),
    "attention's values beside a perceptron": (
        lambda self, x: self.fc2(torch.relu(self.fc1(self.norm(self.a(x).flatten(2).transpose(1, 2))))).mean(1),
        {"a": a(), "norm": nn.LayerNorm(16), "fc1": nn.Linear(16, 32), "fc2": nn.Linear(32, 4)},
        {"fc1": 32},
    ),
    "float constants": (
        lambda self, x: self.head(functional.conv2d(self.a(x), torch.ones(1, 16, 1, 1)) * 0 + self.a(x)),
        {"a": a(), "head": Head(16)},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRUNED)
def test_hazard_is_pruned_right(name: str) -> None:
    function, layers, expected = PRUNED[name]
    bundle = toy(function, **copy.deepcopy(layers))
    found = widths(trace(bundle))
    assert expected.items() <= found.items()
    if found:
        assert_pruned_right(bundle)


def test_network_without_traceable_layers_is_an_error() -> None:
    def hidden(self: Lambda, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.head(self.a(x))

    with pytest.raises(PruningError, match="cannot be traced"):
        trace(toy(hidden, a=a(), head=Head(16)))


def test_tied_weights_are_refused() -> None:
    def forward(self: Lambda, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)) + self.c(self.a(x)))

    bundle = toy(forward, a=a(), b=nn.Conv2d(16, 8, 1), c=nn.Conv2d(16, 8, 1), head=Head(8))
    bundle.module.c.weight = bundle.module.b.weight
    assert "shares its weight" in reasons(trace(bundle))["b"]


def test_stale_buffer_is_refused() -> None:
    bundle = toy(masked, a=a(), head=Head(16))
    bundle.module.register_buffer("mask", torch.rand(1, 16, 1, 1))
    assert "does not run without its channels" in reasons(trace(bundle))["a"]


def test_network_that_only_runs_in_float32_is_proved_there() -> None:
    def single(self: Lambda, x: Tensor) -> Tensor:
        return self.head(functional.conv2d(self.a(x), torch.ones(16, 1, 1, 1), groups=16)[:, :0].sum() + self.a(x))

    bundle = toy(single, a=a(), head=Head(16))
    assert scrambled(bundle.module, SHAPE).tolerance == 1e-4
    assert "a" in widths(trace(bundle)) or "a" in reasons(trace(bundle))


# ------------------------------------------------------------------------------------------------- the proof


@pytest.mark.parametrize("seed", range(5))
def test_wrong_index_mapping_fails_the_proof(seed: int) -> None:
    bundle = bundle_of(randomized(Chain()))
    group = trace(bundle).group("conv1.0")
    order = list(range(16))
    random.Random(seed).shuffle(order)
    wrong = tuple(
        Member(m.name, m.kind, m.role, tuple((order[i],) for i in range(16)), m.dim) if m.role == "in" else m
        for m in group.members
    )
    bench = scrambled(bundle.module, SHAPE)
    assert prove(bench, [group]) == {}
    assert "proof failed" in prove(bench, [Group(group.name, 16, wrong)])[group.name]


def test_missing_reader_fails_the_proof() -> None:
    bundle = bundle_of(randomized(PRUNABLE["Concatenated"]()))
    group = trace(bundle).group("a.0")
    members = tuple(
        Member(m.name, m.kind, m.role, tuple(unit[:1] for unit in m.channels), m.dim) for m in group.members
    )
    assert prove(scrambled(bundle.module, SHAPE), [Group("a.0", 8, members)])["a.0"]


def test_dead_weights_do_not_hide_anything() -> None:
    bundle = bundle_of(Chain())
    with torch.no_grad():
        for parameter in bundle.module.parameters():
            parameter.zero_()
    assert widths(trace(bundle)) == EXPECTED["Chain"]


def test_one_bad_group_among_good_ones_is_the_only_one_refused() -> None:
    def mixed(self: Lambda, x: Tensor) -> Tensor:
        return self.head(self.d(torch.relu(self.c(self.b(torch.relu(self.a(x)).flip(1))))))

    layers = {"a": a(), "b": nn.Conv2d(16, 8, 1), "c": nn.Conv2d(8, 8, 1), "d": nn.Conv2d(8, 12, 1), "head": Head(12)}
    graph = trace(toy(mixed, **layers))
    assert widths(graph) == {"b": 8, "c": 8, "d": 12}
    assert "proof failed" in reasons(graph)["a"]


def test_no_time_refuses_every_group_with_that_reason() -> None:
    bundle = bundle_of(randomized(Chain()))
    graph = trace(bundle, limits=Limits(total_s=0))
    assert not graph.groups
    assert "took longer" in reasons(graph)["conv1.0"]


def test_group_that_takes_too_long_to_follow_is_refused() -> None:
    found = reasons(trace(bundle_of(randomized(Chain())), limits=Limits(group_s=0)))
    assert found["conv1.0"] == "following its channels took longer than 0 s"


def test_time_that_runs_out_before_the_proof_is_a_reason() -> None:
    bundle = bundle_of(randomized(Chain()))
    groups = trace(bundle).groups
    assert prove(scrambled(bundle.module, SHAPE), groups, until=0.0) == {
        group.name: "not proved: there was no time left" for group in groups
    }


# ------------------------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize("pattern", ["conv1.0", "conv1", "conv1.*", "conv1*", "*1.0"])
def test_ignored_layers_are_left_alone(pattern: str) -> None:
    graph = trace(bundle_of(randomized(Chain())), ignore=[pattern])
    assert widths(graph) == {"conv2.0": 24}
    assert reasons(graph)["conv1.0"] == f"--ignore {pattern}"


def test_ignoring_a_reader_does_not_protect_what_it_reads() -> None:
    assert "stem.0" in widths(trace(bundle_of(randomized(Residual())), ignore=["middle"]))


def test_progress_rises_to_at_most_one() -> None:
    seen: list[float] = []
    trace(bundle_of(randomized(Residual())), progress=lambda text, share: seen.append(share))
    assert seen == sorted(seen)
    assert 0 <= seen[0] <= seen[-1] <= 1


# ------------------------------------------------------------------------------------------------ side effects


def test_frozen_network_is_pruned_all_the_same_and_stays_frozen() -> None:
    bundle = bundle_of(randomized(Residual()))
    for parameter in bundle.module.parameters():
        parameter.requires_grad_(False)
    pruned = assert_pruned_right(bundle)
    assert not any(parameter.requires_grad for parameter in pruned.module.parameters())
    assert not any(parameter.requires_grad for parameter in bundle.module.parameters())


def test_partly_frozen_network_stays_as_it_was() -> None:
    bundle = bundle_of(randomized(Chain()))
    bundle.module.conv1[0].weight.requires_grad_(False)
    pruned = assert_pruned_right(bundle)
    frozen = [name for name, parameter in pruned.module.named_parameters() if not parameter.requires_grad]
    assert frozen == ["conv1.0.weight"]


def test_parent_is_unchanged_bit_for_bit() -> None:
    bundle = bundle_of(randomized(PRUNABLE["Grouped"]()))
    before = {name: (id(tensor), tensor.clone()) for name, tensor in bundle.module.state_dict(keep_vars=True).items()}
    attributes = [repr(layer) for layer in bundle.module.modules()]
    assert_pruned_right(bundle)
    after = bundle.module.state_dict(keep_vars=True)
    assert digest(bundle.module) == bundle.digest
    assert [repr(layer) for layer in bundle.module.modules()] == attributes
    for name, (identity, values) in before.items():
        assert id(after[name]) == identity
        assert torch.equal(after[name], values)
        assert after[name].grad is None
    assert not any(layer.training or layer._forward_hooks for layer in bundle.module.modules())


def test_pruned_network_shares_no_memory_with_its_parent() -> None:
    bundle = bundle_of(randomized(Residual()))
    pruned = assert_pruned_right(bundle)
    theirs = {tensor.data_ptr() for tensor in bundle.module.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in pruned.module.state_dict().values()}


def test_tracing_leaves_the_generators_and_the_grad_mode_alone() -> None:
    bundle = bundle_of(randomized(Chain()))
    torch.manual_seed(3)
    np.random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    with torch.no_grad():
        trace(bundle)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]


def test_two_prunings_in_one_process_share_nothing() -> None:
    first = trace(bundle_of(randomized(Residual())))
    for other in ("Grouped", "Concatenated", "Flattened"):
        assert_pruned_right(bundle_of(randomized(PRUNABLE[other]())))
    trace(toy(*REFUSED["LayerNorm"][:1], **copy.deepcopy(REFUSED["LayerNorm"][1])))
    again = trace(bundle_of(randomized(Residual())))
    assert (first.groups, first.refusals, first.layers) == (again.groups, again.refusals, again.layers)


def test_hooks_of_the_network_stay_and_are_part_of_what_is_pruned() -> None:
    bundle = bundle_of(randomized(Chain()))
    bundle.module.conv1.register_forward_hook(lambda layer, inputs, output: output * 2)
    pruned = assert_pruned_right(bundle)
    assert len(bundle.module.conv1._forward_hooks) == len(pruned.module.conv1._forward_hooks) == 1


# ------------------------------------------------------------------------------------------- random networks


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Stages of residual, concatenated, grouped and depthwise parts, of random width and order."""
    width = draw(st.sampled_from([4, 6, 8, 12]))
    return Stages(width, draw(st.lists(st.sampled_from(sorted(Stages.KINDS)), min_size=1, max_size=4)))


class Stages(nn.Module):
    KINDS = ("residual", "concatenated", "grouped", "depthwise", "wider", "gated")

    def __init__(self, width: int, kinds: list[str]) -> None:
        super().__init__()
        self.kinds, self.stem, self.stages = kinds, conv_bn(3, width), nn.ModuleList()
        for kind in kinds:
            parts = {
                "residual": lambda w: [conv_bn(w, w + 2), conv_bn(w + 2, w)],
                "concatenated": lambda w: [conv_bn(w, 4), conv_bn(w, 6)],
                "grouped": lambda w: [conv_bn(w, 2 * w, groups=2), conv_bn(2 * w, w, kernel=1)],
                "depthwise": lambda w: [conv_bn(w, 2 * w, kernel=1), conv_bn(2 * w, 2 * w, groups=2 * w)],
                "wider": lambda w: [conv_bn(w, w + 4)],
                "gated": lambda w: [nn.Conv2d(w, 3, 1), nn.Conv2d(3, w, 1)],
            }[kind](width)
            self.stages.append(nn.ModuleList(parts))
            width = {"concatenated": width + 10, "depthwise": 2 * width, "wider": width + 4}.get(kind, width)
        self.head = Head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for kind, parts in zip(self.kinds, self.stages, strict=True):
            if kind == "residual":
                x = torch.relu(x + parts[1](torch.relu(parts[0](x))))
            elif kind == "concatenated":
                x = torch.relu(torch.cat([x, parts[0](x), parts[1](x)], 1))
            elif kind == "gated":
                x = x * torch.sigmoid(parts[1](torch.relu(parts[0](x.mean((2, 3), keepdim=True)))))
            else:
                for part in parts:
                    x = torch.relu(part(x))
        return self.head(x)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(networks(), st.floats(0.2, 0.8), st.integers(0, 100))
def test_random_networks_are_pruned_right(module: nn.Module, ratio: float, seed: int) -> None:
    bundle = bundle_of(randomized(module, seed))
    graph = trace(bundle)
    assert_nothing_is_missing(bundle, graph)
    assert list(reasons(graph).values()) == [LAST]
    scores, goal = by_chance(bundle, graph, None, seed=seed), Goal("ratio", ratio)
    pruned = apply(make_plan(bundle, graph, scores, allocate(graph, scores, goal, 1), goal, 1, seed), bundle, graph)
    again = trace(pruned)
    wanted = allocate(graph, scores, goal, 1)
    assert {group.name: group.width for group in again.groups} == {n: w for n, w in wanted.items() if w > 1}
    assert set(reasons(again)) - {"head.fc"} == {name for name, width in wanted.items() if width == 1}
