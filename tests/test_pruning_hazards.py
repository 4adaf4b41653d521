"""Hazards: networks that index mappings go wrong on are pruned right, or refused with the reason; never in silence."""

from __future__ import annotations

import copy

import pytest
import torch
from pruning_checks import Forward, assert_nothing_is_missing, assert_pruned_right, reasons, toy, widths
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from toy_networks import SHAPE, Head, Lambda

from edgeprune.pruning.graph import trace
from edgeprune.pruning.proof import scrambled

# -------------------------------------------------------------------------------------------------- hazards


def shuffled(self: Lambda, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    x = x.view(-1, 2, 8, 8, 8).transpose(1, 2).flatten(1, 2)
    return self.head(self.b(x))


def shuffled_by_any_width(self: Lambda, x: Tensor) -> Tensor:
    x = torch.relu(self.a(x))
    x = x.view(len(x), 2, x.shape[1] // 2, 8, 8).transpose(1, 2).flatten(1, 2)
    return self.head(self.b(x))


def shuffled_and_halved(self: Lambda, x: Tensor) -> Tensor:
    """ShuffleNet v2's unit: half passes by, half is computed, both are joined and shuffled."""
    passing, x = torch.relu(self.a(x)).chunk(2, 1)
    x = torch.cat([passing, self.c(torch.relu(self.b(x)))], 1)
    x = x.view(len(x), 2, x.shape[1] // 2, 8, 8).transpose(1, 2).reshape(len(x), -1, 8, 8)
    return self.head(self.d(x))


def split_by_attribute(self: Lambda, x: Tensor) -> Tensor:
    """Res2Net's unit: equal parts of a width that the module remembers."""
    one, two, three = torch.split(self.a(x), self.hidden, 1)
    y = self.b(one)
    return self.head(torch.cat([y, self.c(y + two), three], 1))


def split_by_list(self: Lambda, x: Tensor) -> Tensor:
    left, right = torch.split(self.a(x), self.sizes, 1)
    return self.head(torch.relu(self.b(left) + self.c(right)))


def assigned_by_any_width(self: Lambda, x: Tensor) -> Tensor:
    x = self.a(x)
    y = torch.zeros_like(x)
    y[:, ::2] = x[:, 1::2]
    y[:, 1::2] = x[:, ::2]
    return self.head(self.b(y))


def masked_positions(self: Lambda, x: Tensor) -> Tensor:
    x = self.a(x)
    mask = (torch.arange(64).view(1, 1, 8, 8) % 3 > 0).to(x.dtype)
    return self.head(torch.relu(x * mask) + self.bias)


def one_of_a_dict(self: Lambda, x: Tensor) -> Tensor:
    inner = {"features": torch.relu(self.a(x)), "unused": None}
    return self.head(inner["features"])


def flipped(self: Lambda, x: Tensor) -> Tensor:
    return self.head(self.b(self.a(x).flip(1)))


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
        {"a": "does not run without its channels"},
    ),
    "slice assignment": (assigned, {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)}, {"a": "channels"}),
    "rotation added": (rotated, {"a": a(8), "head": Head(8)}, {"a": ""}),
    "softmax over channels": (softmax_over_channels, {"a": a(), "head": Head(16)}, {"a": "all depend on each other"}),
    "mean over channels": (mean_over_channels, {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)}, {"a": ""}),
    "attention": (
        attention,
        {"a": a(), "qkv": nn.Linear(16, 48), "proj": nn.Linear(16, 16), "fc": nn.Linear(16, 4)},
        {"qkv": ""},
    ),
    "padded shortcut": (
        padded_shortcut,
        {"a": a(8), "b": nn.Conv2d(8, 16, 1), "head": Head(16)},
        {"b": "meet values that no layer makes"},
    ),
    "index by a constant": (permuted, {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)}, {"a": ""}),
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
        {"a": "meet values that no layer makes"},
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
    "pixel shuffle": (pixel_shuffled, {"a": a(), "head": Head(4)}, {"a": 4}),
    "LSTM": (
        recurrent,
        {"a": a(), "rnn": nn.LSTM(16, 8, batch_first=True), "fc": nn.Linear(8, 4)},
        {"a": 16, "rnn": 8},
    ),
    "GRU": (
        recurrent,
        {"a": a(), "rnn": nn.GRU(16, 8, batch_first=True), "fc": nn.Linear(8, 4)},
        {"a": 16, "rnn": 8},
    ),
    "depthwise with a multiplier": (
        lambda self, x: self.head(self.b(self.a(x))),
        {"a": a(8), "b": nn.Conv2d(8, 16, 3, groups=8), "head": Head(16)},
        {"a": 8},
    ),
    "channel shuffle of any width": (
        shuffled_by_any_width,
        {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)},
        {"a": 8, "b": 8},
    ),
    "half passes, is joined and shuffled": (
        shuffled_and_halved,
        {"a": a(), "b": nn.Conv2d(8, 6, 1), "c": nn.Conv2d(6, 8, 1), "d": nn.Conv2d(16, 4, 1), "head": Head(4)},
        {"a": 8, "b": 6, "d": 4},
    ),
    "slice assignment of any width": (
        assigned_by_any_width,
        {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)},
        {"a": 8, "b": 8},
    ),
    "mask over positions, bias over channels": (
        masked_positions,
        {"a": a(), "bias": nn.Parameter(torch.randn(16, 1, 1)), "head": Head(16)},
        {"a": 16},
    ),
    "dict inside": (one_of_a_dict, {"a": a(), "head": Head(16)}, {"a": 16}),
    "channels in reverse": (flipped, {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)}, {"a": 16, "b": 8}),
    "padded shortcut": (padded_shortcut, {"a": a(8), "b": nn.Conv2d(8, 16, 1), "head": Head(16)}, {"a": 8}),
    "bidirectional GRU of two layers": (
        recurrent,
        {"a": a(), "rnn": nn.GRU(16, 6, 2, batch_first=True, bidirectional=True), "fc": nn.Linear(12, 4)},
        {"a": 16, "rnn": 6},
    ),
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
    "flatten in NHWC order": (channels_last_flatten, {"a": a(), "head": nn.Linear(1024, 4)}, {"a": 16}),
    "LayerNorm": (layer_normed, {"a": a(), "norm": nn.LayerNorm(16), "fc": nn.Linear(16, 4)}, {"a": 16}),
    "GroupNorm": (group_normed, {"a": a(), "norm": nn.GroupNorm(4, 16), "head": Head(16)}, {"a": 4}),
    "MultiheadAttention": (
        whole_attention,
        {"a": a(), "attend": nn.MultiheadAttention(16, 2, batch_first=True), "fc": nn.Linear(16, 4)},
        {"a": 8, "attend.out_proj": 16},
    ),
    "detach": (detached, {"a": a(), "b": nn.Conv2d(16, 8, 1), "head": Head(8)}, {"a": 16, "b": 8}),
    "detach on one side": (
        half_detached,
        {"a": a(), "b": nn.Conv2d(16, 8, 1), "c": nn.Conv2d(16, 8, 1), "head": Head(8)},
        {"a": 16, "b": 8},
    ),
    "weight in a function": (
        functional_weight,
        {"a": a(), "kernel": nn.Parameter(torch.randn(8, 16, 3, 3)), "head": Head(8)},
        {"a": 16, "kernel": 8},
    ),
    "half a grouped convolution": (
        two_halves_of_a_grouped_convolution,
        {"a": a(8), "b": a(8), "grouped": nn.Conv2d(16, 8, 1, groups=2), "head": Head(8)},
        {"a": 8, "grouped": 4},
    ),
    "attention's values beside a perceptron": (
        lambda self, x: self.fc2(torch.relu(self.fc1(self.norm(self.a(x).flatten(2).transpose(1, 2))))).mean(1),
        {"a": a(), "norm": nn.LayerNorm(16), "fc1": nn.Linear(16, 32), "fc2": nn.Linear(32, 4)},
        {"a": 16, "fc1": 32},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRUNED)
def test_hazard_is_pruned_right(name: str) -> None:
    function, layers, expected = PRUNED[name]
    bundle = toy(function, **copy.deepcopy(layers))
    assert widths(trace(bundle)) == expected
    assert_pruned_right(bundle)


def test_network_without_gradients_is_refused_since_the_proof_would_be_blind() -> None:
    def hidden(self: Lambda, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.head(torch.relu(self.a(x)))

    assert "has no gradient" in reasons(trace(toy(hidden, a=a(), head=Head(16))))["a"]


def test_tied_weights_are_refused() -> None:
    def forward(self: Lambda, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)) + self.c(self.a(x)))

    bundle = toy(forward, a=a(), b=nn.Conv2d(16, 8, 1), c=nn.Conv2d(16, 8, 1), head=Head(8))
    bundle.module.c.weight = bundle.module.b.weight
    assert "shares its weight" in reasons(trace(bundle))["b"]


def test_width_that_a_module_remembers_follows() -> None:
    bundle = toy(split_by_attribute, a=a(18), b=nn.Conv2d(6, 6, 1), c=nn.Conv2d(6, 6, 1), head=Head(18))
    bundle.module.hidden = 6
    assert assert_pruned_right(bundle).module.hidden == 3
    assert bundle.module.hidden == 6


@pytest.mark.parametrize(("sizes", "after"), [([8, 12], [4, 8]), ((9, 9), (5, 5))])
def test_sizes_that_a_module_remembers_follow(sizes: list[int], after: list[int]) -> None:
    layers = {"b": nn.Conv2d(sizes[0], 6, 1), "c": nn.Conv2d(sizes[1], 6, 1)}
    bundle = toy(split_by_list, a=a(sum(sizes)), **layers, head=Head(6))
    bundle.module.sizes = sizes
    assert assert_pruned_right(bundle).module.sizes == after


def test_zeros_that_pad_a_shortcut_stay_and_the_stream_between_them_goes() -> None:
    bundle = toy(padded_shortcut, a=a(8), b=nn.Conv2d(8, 16, 1), head=Head(16))
    pruned = assert_pruned_right(bundle)
    assert (pruned.module.a.out_channels, pruned.module.b.out_channels, pruned.module.head.fc.in_features) == (
        4,
        12,
        12,
    )


def test_buffer_follows_the_channels() -> None:
    bundle = toy(masked, a=a(), head=Head(16))
    bundle.module.register_buffer("mask", torch.rand(1, 16, 1, 1))
    assert widths(trace(bundle)) == {"a": 16}
    assert assert_pruned_right(bundle).module.mask.shape == (1, 8, 1, 1)


def test_network_that_only_runs_in_float32_is_proved_there() -> None:
    def blurred(self: Lambda, x: Tensor) -> Tensor:
        smooth = functional.conv2d(x, torch.full((3, 1, 3, 3), 1 / 9), padding=1, groups=3)
        return self.head(torch.relu(self.a(smooth)))

    bundle = toy(blurred, a=a(), head=Head(16))
    assert scrambled(bundle.module, SHAPE).tolerance == 1e-4
    assert widths(trace(bundle)) == {"a": 16}
    assert_pruned_right(bundle)
