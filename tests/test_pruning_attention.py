"""Attention and normalised streams: heads, widths of heads, norms, and the numbers that modules keep; planted traps."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest
import torch
from pruning_checks import assert_pruned_right, reasons, toy, widths
from torch import Tensor, nn
from torch.nn import functional
from toy_networks import SHAPE, Lambda, bundle_of, randomized

import edgeprune
from edgeprune.config import ModelConfig
from edgeprune.pruning.allocation import macs_of
from edgeprune.pruning.criteria import l2
from edgeprune.pruning.graph import trace
from edgeprune.pruning.masked import without
from edgeprune.pruning.plan import allocate, apply, layer_changes, make_plan
from edgeprune.pruning.proof import prove, scrambled
from edgeprune.pruning.surgery import cut, replica
from edgeprune.types import Architecture, Goal, Group, Member, ModelBundle


def tokens(self: nn.Module, x: Tensor) -> Tensor:
    """The images as 4 x 4 patches: tokens with 16 channels."""
    patches: Tensor = self.patch(x).flatten(2).transpose(1, 2)
    return patches


class Fused(nn.Module):
    """Attention as in timm: one layer for queries, keys and values; `fused` calls torch's own function."""

    def __init__(self, dim: int = 16, heads: int = 4, *, fused: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.fused = heads, dim // heads, dim, fused
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, self.attn_dim))
        return out


class Separate(nn.Module):
    """Three layers, widths of keys and values of their own, a bias for every head that is cached in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.key_dim, self.val_dim = 2, 4, 6
        self.q, self.k, self.v = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 12)
        self.proj, self.biases = nn.Linear(12, 16), nn.Parameter(torch.randn(2, 4))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        if "biases" not in self.cache:
            self.cache["biases"] = self.biases * 2
        q = self.q(x).view(batch, count, self.heads, self.key_dim).transpose(1, 2)
        k = self.k(x).view(batch, count, self.heads, self.key_dim).transpose(1, 2)
        v = self.v(x).view(batch, count, self.heads, self.val_dim).transpose(1, 2)
        attention = (q @ k.transpose(-2, -1) * 0.5 + self.cache["biases"][:, None]).softmax(-1)
        out: Tensor = self.proj((attention @ v).transpose(1, 2).flatten(2))
        return out


class Windowed(nn.Module):
    """As torchvision's Swin: layers called as functions, and a width that is the stream's."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 4, nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        qkv = functional.linear(x, self.qkv.weight, self.qkv.bias)
        qkv = qkv.reshape(batch, count, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * (width // self.num_heads) ** -0.5, qkv[1], qkv[2]
        attention = (q @ k.transpose(-2, -1) + self.table.permute(1, 0)[:, None]).softmax(-1)
        mixed = (attention @ v).transpose(1, 2).reshape(batch, count, width)
        return functional.linear(mixed, self.proj.weight, self.proj.bias)


class Block(nn.Module):
    """Patches, a class token, positions, one pre-norm block around an attention, a norm, a classifier."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed_dim, self.patch = 16, nn.Conv2d(3, 16, 4, stride=4)
        self.cls, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 4, 16))
        self.norm1, self.attention, self.norm2, self.norm = (
            nn.LayerNorm(16), attention, nn.LayerNorm(16), nn.LayerNorm(16),
        )  # fmt: skip
        self.gamma, self.fc1, self.fc2, self.head = (
            nn.Parameter(torch.randn(16)), nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = tokens(self, x) + self.positions
        x = x + self.attention(self.norm1(x))
        x = x + self.gamma * self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


class Cached(Block):
    """A block with an attention that caches, built without arguments."""

    def __init__(self) -> None:
        super().__init__(Separate())


class Whole(nn.Module):
    """torch's own attention, which takes everything from one width."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mha(x, x, x, need_weights=False)[0]
        return out


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023): divides by a mean over channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        size = size / (size.mean(1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias.view(1, -1, 1, 1), self.weight.view(1, -1, 1, 1), x * size)


def block(attention: nn.Module) -> ModelBundle:
    return bundle_of(randomized(Block(attention)))


# ------------------------------------------------------------------------------------------------ known answers

STREAM = {"patch": 16, "fc1": 24}
ATTENTIONS: dict[str, tuple[nn.Module, dict[str, int]]] = {
    "fused": (Fused(), STREAM | {"attention.qkv:heads": 4, "attention.qkv:width": 4}),
    "torch's function": (Fused(fused=True), STREAM | {"attention.qkv:heads": 4, "attention.qkv:width": 4}),
    "separate": (Separate(), STREAM | {"attention.q:heads": 2, "attention.q:width": 4, "attention.v": 6}),
    "windowed": (Windowed(), STREAM | {"patch": 4}),
    "nn.MultiheadAttention": (Whole(), STREAM | {"patch": 4}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_has_known_groups(name: str) -> None:
    attention, expected = ATTENTIONS[name]
    assert widths(trace(block(replica(attention)))) == expected


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_pruned_right(name: str) -> None:
    pruned = assert_pruned_right(block(replica(ATTENTIONS[name][0])))
    assert pruned.module.patch.out_channels == pruned.module.norm1.normalized_shape[0] == 8


def test_numbers_of_an_attention_follow_its_heads_and_their_width() -> None:
    attention = assert_pruned_right(block(Fused())).module.attention
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (2, 2, 4)
    assert (attention.qkv.out_features, attention.proj.in_features) == (12, 4)
    assert attention.scale == 0.5  # as it was: what stays is computed as before


def test_numbers_of_torchs_attention_follow_the_stream() -> None:
    mha = assert_pruned_right(block(Whole())).module.attention.mha
    assert (mha.embed_dim, mha.head_dim, mha.num_heads, mha.kdim, mha.vdim) == (8, 2, 4, 8, 8)
    assert mha.in_proj_weight.shape == (24, 8)


def test_a_head_that_goes_takes_its_rows_and_columns_and_no_others() -> None:
    bundle = block(Fused())
    group = trace(bundle).group("attention.qkv:heads")
    pruned = cut(bundle.module, [group], {group.name: [1]}).attention
    rows = [i for i in range(48) if i % 16 // 4 != 1]
    assert torch.equal(pruned.qkv.weight, bundle.module.attention.qkv.weight[rows])
    assert torch.equal(pruned.proj.weight, bundle.module.attention.proj.weight[:, rows[:12]])


@pytest.mark.parametrize(("fused", "factor"), [(False, 1.0), (True, 0.75**0.5)])
def test_queries_are_scaled_only_where_the_divisor_follows(fused: bool, factor: float) -> None:
    bundle = block(Fused(fused=fused))
    group = trace(bundle).group("attention.qkv:width")
    pruned = cut(bundle.module, [group], {group.name: [3]}).attention
    rows = [i for i in range(16) if i % 4 != 3]
    dense = bundle.module.attention.qkv
    torch.testing.assert_close(pruned.qkv.weight[:12], dense.weight[rows] * factor)
    torch.testing.assert_close(pruned.qkv.bias[:12], dense.bias[rows] * factor)
    assert torch.equal(pruned.qkv.weight[12:24], dense.weight[[i + 16 for i in rows]])


def test_cached_biases_are_computed_anew() -> None:
    bundle = block(Separate())
    bundle.module(torch.rand(1, *SHAPE))
    assert bundle.module.attention.cache["biases"].grad_fn is not None  # what a deep copy refuses
    pruned = assert_pruned_right(bundle)
    assert pruned.module.attention.cache["biases"].shape == (1, 4)


def test_normalised_streams_are_pruned_right() -> None:
    conv = {"a": nn.Conv2d(3, 12, 3, padding=1), "b": nn.Conv2d(12, 12, 1), "head": nn.Linear(12, 4)}

    def forward(self: Lambda, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head((x + self.b(self.norm(x))).mean((2, 3)))

    for norm, units in ((nn.GroupNorm(3, 12), 4), (nn.GroupNorm(1, 12), 12), (ResponseNorm(12), 12)):
        bundle = toy(forward, **{name: replica(layer) for name, layer in conv.items()}, norm=norm)
        assert widths(trace(bundle)) == {"a": units}
        assert_pruned_right(bundle)


def test_macs_of_crossing_groups_are_those_of_a_fresh_count() -> None:
    bundle = block(Fused())
    graph = trace(bundle)
    scores, goal = l2(bundle, graph, None, seed=0), Goal("ratio", 0.5)
    plan = make_plan(bundle, graph, scores, allocate(graph, scores, goal, 1), goal, 1, 0)
    pruned = apply(plan, bundle, graph)
    fresh = trace(pruned)
    assert plan.macs == fresh.macs == macs_of(graph, {group.name: len(group.kept) for group in plan.groups})
    changes = {change.name: change.channels for change in layer_changes(plan, graph)}
    assert changes["attention.qkv"] == pruned.module.attention.qkv.out_features == 12


def test_pruned_attention_comes_back_from_its_file(tmp_path: Path) -> None:
    for attention in (Fused(), Whole(), Separate()):
        pruned = assert_pruned_right(block(attention))
        edgeprune.save(pruned, tmp_path / "pruned.pt")
        again = edgeprune.load(tmp_path / "pruned.pt", ModelConfig(trust=("test_pruning_attention",)))
        images = torch.rand(2, *SHAPE)
        with torch.no_grad():
            assert torch.equal(again.module(images), pruned.module(images))


# ------------------------------------------------------------------------------------------------ the reference


def test_masked_layer_norm_is_the_layer_norm_of_the_channels_that_stay() -> None:
    norm, small, kept = randomized(nn.LayerNorm(6)), nn.LayerNorm(4), [0, 2, 3, 5]
    with torch.no_grad():
        small.weight.copy_(norm.weight[kept])
        small.bias.copy_(norm.bias[kept])
    x = torch.randn(2, 3, 6)
    without(norm, "LN", 0, [1, 4])
    torch.testing.assert_close(norm(x)[..., kept], small(x[..., kept]))


def test_masked_group_norm_is_the_group_norm_of_the_channels_that_stay() -> None:
    norm, small, kept = randomized(nn.GroupNorm(2, 6)), nn.GroupNorm(2, 4), [0, 2, 3, 5]
    with torch.no_grad():
        small.weight.copy_(norm.weight[kept])
        small.bias.copy_(norm.bias[kept])
    x = torch.randn(2, 6, 5, 5)
    without(norm, "GN", 0, [1])
    without(norm, "GN", 0, [4])
    torch.testing.assert_close(norm(x)[:, kept], small(x[:, kept]))


# ----------------------------------------------------------------------------------------------- planted mistakes


def shifted(group: Group, name: str, role: str) -> Group:
    """The group with one member's channels handed to the next unit."""

    def wrong(member: Member) -> Member:
        if (member.name, member.role) != (name, role) or member.kind == "SCALE":
            return member
        return dataclasses.replace(member, channels=(*member.channels[1:], member.channels[0]))

    changed = dataclasses.replace(group, members=tuple(wrong(member) for member in group.members))
    assert changed != group
    return changed


@pytest.mark.parametrize(
    ("name", "member", "role"),
    [
        ("patch", "norm1", "out"), ("patch", "norm", "out"), ("patch", "positions", "out"), ("patch", "cls", "out"),
        ("patch", "gamma", "out"), ("patch", "attention.qkv", "in"), ("patch", "attention.proj", "out"),
        ("attention.qkv:heads", "attention.qkv", "out"), ("attention.qkv:heads", "attention.proj", "in"),
        ("attention.qkv:width", "attention.qkv", "out"), ("attention.qkv:width", "attention.proj", "in"),
    ],
)  # fmt: skip
def test_wrong_mapping_cannot_hide(name: str, member: str, role: str) -> None:
    bundle = block(Fused())
    group = trace(bundle).group(name)
    bench = scrambled(bundle.module, SHAPE)
    assert prove(bench, [group]) == {}
    assert name in prove(bench, [shifted(group, member, role)])


def test_norm_that_is_not_told_fails_the_proof() -> None:
    bundle = block(Fused())
    group = trace(bundle).group("patch")
    untold = dataclasses.replace(group, members=tuple(m for m in group.members if m.name != "norm2"))
    assert "patch" in prove(scrambled(bundle.module, SHAPE), [untold])


def test_stale_number_of_heads_fails_the_proof() -> None:
    bundle = block(Fused())
    group = trace(bundle).group("attention.qkv:heads")
    stale = tuple(member for member in group.members if member.kind != "ATTRIBUTE")
    assert group.name in prove(scrambled(bundle.module, SHAPE), [dataclasses.replace(group, members=stale)])


def test_scale_that_does_not_follow_fails_the_proof() -> None:
    bundle = block(Fused(fused=True))
    group = trace(bundle).group("attention.qkv:width")
    stale = tuple(member for member in group.members if member.kind != "SCALE")
    found = prove(scrambled(bundle.module, SHAPE), [dataclasses.replace(group, members=stale)])
    assert "proof failed" in found[group.name]


def test_number_of_heads_that_nobody_can_change_is_refused() -> None:
    class Constant(Fused):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).reshape(-1, 4, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            out: Tensor = self.proj(mixed.transpose(1, 2).reshape(-1, 4, 16))
            return out

    graph = trace(block(Constant()))
    assert widths(graph) == STREAM
    assert "attention.qkv" in {layer for refusal in graph.refusals for layer in refusal.layers}


def test_softmax_over_the_channels_of_a_head_leaves_only_whole_heads() -> None:
    class Channels(Fused):
        def forward(self, x: Tensor) -> Tensor:
            batch, count, _ = x.shape
            qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 4, 1)
            q, k, v = (functional.normalize(part, dim=-1) for part in qkv.unbind(0))
            mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            out: Tensor = self.proj(mixed.permute(0, 3, 1, 2).reshape(batch, count, self.attn_dim))
            return out

    bundle = block(Channels())
    assert widths(trace(bundle)) == STREAM | {"attention.qkv": 4}
    assert_pruned_right(bundle)


def test_mean_over_channels_outside_of_a_norm_is_refused() -> None:
    def forward(self: Lambda, x: Tensor) -> Tensor:
        x = self.patch(x)
        return self.head((x - x.mean(1, keepdim=True)).mean((2, 3)))

    graph = trace(toy(forward, patch=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 4)))
    assert not graph.groups
    assert "patch" in reasons(graph)


def test_cache_does_not_keep_a_network_from_its_constructor(tmp_path: Path) -> None:
    bundle = bundle_of(randomized(Cached()))
    built = Architecture("constructor", "test_pruning_attention:Cached")
    pruned = assert_pruned_right(dataclasses.replace(bundle, architecture=built))
    edgeprune.save(pruned, tmp_path / "pruned.pt")
    with zipfile.ZipFile(tmp_path / "pruned.pt") as file:
        assert json.loads(file.read("edgeprune.json"))["form"] == "constructor"
    again = edgeprune.load(tmp_path / "pruned.pt", ModelConfig(trust=("test_pruning_attention",)))
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(again.module(images), pruned.module(images))


def test_table_that_nothing_learned_makes_is_no_group() -> None:
    def forward(self: Lambda, x: Tensor) -> Tensor:
        bias = self.fc2(torch.relu(self.fc1(self.table)))
        return self.head(torch.relu(self.patch(x) + bias.T[..., None]).mean((2, 3)))

    layers = {"patch": nn.Conv2d(3, 8, 3), "fc1": nn.Linear(2, 6), "fc2": nn.Linear(6, 8), "head": nn.Linear(8, 4)}
    bundle = toy(forward, **layers)
    bundle.module.register_buffer("table", torch.rand(1, 2))
    assert widths(trace(bundle)) == {"patch": 8, "fc1": 6}
    assert_pruned_right(bundle)


def test_stream_that_is_the_output_says_so() -> None:
    def forward(self: Lambda, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return (x + self.fc2(torch.relu(self.fc1(self.norm(x))))).mean(1)

    layers = {"patch": nn.Conv2d(3, 4, 3), "norm": nn.LayerNorm(4), "fc1": nn.Linear(4, 6), "fc2": nn.Linear(6, 4)}
    graph = trace(toy(forward, **layers))
    assert widths(graph) == {"fc1": 6}
    assert reasons(graph)["patch"] == "it makes the network's output"
