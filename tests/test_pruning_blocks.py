"""Whole blocks: found, proved, and gone, with networks whose shallower form is written out by hand."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pruning_checks import assert_pruned_right
from torch import Tensor, nn
from toy_networks import bundle_of, randomized

from edgeprune.config import ModelConfig
from edgeprune.errors import PruningError
from edgeprune.models import load, save
from edgeprune.models.bundle import read
from edgeprune.models.trust import Trust
from edgeprune.pruning import block_surgery
from edgeprune.pruning.block_allocation import Choice, Importance, without
from edgeprune.pruning.block_proof import prove
from edgeprune.pruning.block_scores import magnitude
from edgeprune.pruning.blocks import with_blocks
from edgeprune.pruning.criteria import l2
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import apply, layer_changes, plan_of
from edgeprune.pruning.proof import scrambled
from edgeprune.types import Architecture, ChannelGraph, Goal, ModelBundle

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    """A residual block with the activation behind the sum; a projection where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, functional: bool = False) -> None:
        super().__init__()
        self.one, self.two = conv(inputs, outputs, stride), conv(outputs, outputs)
        self.shortcut = conv(inputs, outputs, stride) if stride > 1 or inputs != outputs else nn.Sequential()
        self.relu = nn.ReLU()
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        total = self.two(torch.relu(self.one(x))) + self.shortcut(x)
        return torch.relu(total) if self.functional else self.relu(total)


class Inverted(nn.Module):
    """An inverted residual: nothing behind the sum, a state outside in its dropout."""

    def __init__(self, width: int, shortcut: bool = True) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU6(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1, groups=2 * width),
            nn.ReLU6(),
            nn.Conv2d(2 * width, width if shortcut else width + 8, 1),
        )
        self.drop, self.shortcut = nn.Dropout(0.5), shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.conv(x)) if self.shortcut else self.conv(x)


class Encoder(nn.Module):
    """A transformer's layer: two sums, one after the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attend(normed, normed, normed)[0]
        return x + self.mlp(self.norm2(x))


class Dense(nn.Module):
    """A dense block: what it makes is put beside its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = conv(width, 8), conv(width + 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.relu(self.one(x))], 1)
        return torch.cat([x, torch.relu(self.two(x))], 1)


class Net(nn.Module):
    """A stem, whatever blocks, a head."""

    def __init__(self, *blocks: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Tokens(nn.Module):
    """Encoder layers over patches."""

    def __init__(self, count: int = 3, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.layers = nn.ModuleList([Encoder(width) for _ in range(count)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def resnet() -> Net:
    return Net(Basic(16, 16), Basic(16, 32, 2), Basic(32, 32), Inverted(32), width=32)


def bundled(module: nn.Module) -> ModelBundle:
    return bundle_of(randomized(module))


def graph_of(bundle: ModelBundle, ignore: tuple[str, ...] = ()) -> ChannelGraph:
    return with_blocks(bundle, trace(bundle, ignore=ignore), ignore=ignore)


def names(graph: ChannelGraph) -> list[str]:
    return [block.name for block in graph.blocks]


def reasons(graph: ChannelGraph) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in graph.block_refusals}


def removed(bundle: ModelBundle, *blocks: str, channels: float = 0.0) -> ModelBundle:
    """The bundle without the blocks, through a plan; with `channels`, without that share of every group too."""
    graph = graph_of(bundle)
    shorter = without(graph, blocks)
    widths = {g.name: max(1, round(g.width * (1 - channels))) for g in shorter.groups}
    scored = Importance("both", l2(bundle, graph, None, seed=0), magnitude(bundle, graph, None, seed=0))
    plan = plan_of(bundle, graph, scored, Choice(widths, blocks), Goal("ratio", 0.5), 1, 0)
    pruned = apply(plan, bundle, graph)
    assert plan.parameters == sum(p.numel() for p in pruned.module.parameters())
    assert plan.macs == trace(pruned).macs
    return pruned


def outputs(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(IMAGES)


def test_residual_blocks_are_found_with_what_stays_in_their_place() -> None:
    graph = graph_of(bundled(resnet()))
    assert {block.name: (block.kind, block.keep) for block in graph.blocks} == {
        "blocks.0": ("residual", ()),  # its input has been through a ReLU
        "blocks.1": ("residual", (("module", "shortcut"), ("module", "relu"))),
        "blocks.2": ("residual", ()),
        "blocks.3": ("residual", ()),
    }
    assert graph.blocks[1].layers == ("blocks.1.one.0", "blocks.1.two.0")
    assert graph.blocks[1].macs == 4 * 4 * 9 * (16 * 32 + 32 * 32)
    assert reasons(graph) == {"stem": "it adds nothing to its input, and turns 3x8x8 into 16x8x8"}


def test_activation_stays_where_the_input_has_not_been_through_it() -> None:
    graph = graph_of(bundled(Net(Inverted(16), Basic(16, 16), Basic(16, 16, functional=True))))
    assert [block.keep for block in graph.blocks] == [(), (("module", "relu"),), ()]
    assert graph_of(bundled(Net(Inverted(16), Basic(16, 16, functional=True)))).blocks[1].keep == (
        ("activation", "ReLU"),
    )


@pytest.mark.parametrize("gone", [(0,), (1,), (2, 3), (3, 0, 1, 2)])
def test_network_without_blocks_is_the_shallower_one_written_by_hand(gone: tuple[int, ...]) -> None:
    bundle = bundled(resnet())
    pruned = removed(bundle, *(f"blocks.{i}" for i in gone))
    by_hand = copy.deepcopy(bundle.module)
    parts = list(by_hand.blocks)
    if 1 in gone:
        parts[1] = nn.Sequential(parts[1].shortcut, nn.ReLU())
    by_hand.blocks = nn.Sequential(*(part for i, part in enumerate(parts) if i not in gone or i == 1))
    assert torch.equal(outputs(pruned.module), outputs(by_hand))
    assert not torch.allclose(outputs(bundle.module), outputs(by_hand), rtol=1e-3)
    assert pruned.digest != bundle.digest


def test_encoder_layers_go_with_both_of_their_sums() -> None:
    bundle = bundled(Tokens())
    graph = graph_of(bundle)
    assert names(graph) == ["layers.0", "layers.1", "layers.2"]
    by_hand = copy.deepcopy(bundle.module)
    del by_hand.layers[1]
    assert torch.equal(outputs(removed(bundle, "layers.1").module), outputs(by_hand))


def test_link_of_a_chain_goes_and_the_groups_around_it_become_one() -> None:
    links = [nn.Sequential(*conv(16, 16), nn.ReLU()) for _ in range(3)]
    bundle = bundled(Net(*links))
    graph = graph_of(bundle)
    assert [(block.name, block.kind, block.keep) for block in graph.blocks] == [
        (f"blocks.{i}", "chain", ()) for i in range(3)
    ]
    assert "stage" in reasons(graph)["blocks"]
    shorter = without(graph, ["blocks.0", "blocks.1"])
    assert [(g.name, {m.name for m in g.members}) for g in shorter.groups] == [
        ("stem.0", {"stem.0", "blocks.2.0"}),
        ("blocks.2.0", {"blocks.2.0", "blocks.2.1", "head"}),
    ]
    pruned = removed(bundle, "blocks.0", "blocks.1", channels=0.5)
    assert pruned.module.stem[0].out_channels == pruned.module.blocks[2][0].in_channels == 8


def test_links_are_found_in_a_network_behind_its_normalisation() -> None:
    links = [nn.Sequential(*conv(16, 16), nn.ReLU()) for _ in range(2)]
    graph = graph_of(bundled(nn.Sequential(nn.BatchNorm2d(3), Net(*links))))
    assert names(graph) == ["1.blocks.0", "1.blocks.1"]


def test_depthwise_link_leaves_its_group_as_it_is() -> None:
    depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU())
    bundle = bundled(Net(depthwise, conv(16, 24), width=24))
    shorter = without(graph_of(bundle), ["blocks.0"])
    assert {member.name for member in shorter.group("stem.0").members} == {"stem.0", "blocks.1.0"}
    assert removed(bundle, "blocks.0", channels=0.5).module.blocks[1][0].in_channels == 8


@pytest.mark.parametrize("module", [resnet(), Tokens(), Net(Basic(16, 16), Inverted(16))], ids=["res", "vit", "flat"])
def test_blocks_and_channels_go_together(module: nn.Module) -> None:
    bundle = bundled(module)
    blocks = names(graph_of(bundle))[:2]
    pruned = removed(bundle, *blocks, channels=0.5)
    assert torch.isfinite(outputs(pruned.module)).all()
    assert pruned.module is not bundle.module
    assert torch.equal(
        outputs(bundle.module), outputs(bundled(copy.deepcopy(module)).module)
    )  # the parent is unchanged


def test_inner_groups_vanish_with_their_block_and_the_stream_stays() -> None:
    bundle = bundled(Net(Basic(16, 16), Basic(16, 16)))
    graph = graph_of(bundle)
    shorter = without(graph, ["blocks.0"])
    assert {group.name for group in graph.groups} - {group.name for group in shorter.groups} == {"blocks.0.one.0"}
    members = {member.name for member in shorter.group("stem.0").members}
    assert not any(name.startswith("blocks.0.") for name in members)
    assert shorter.macs == graph.macs - graph.blocks[0].macs
    assert shorter.parameters == graph.parameters - graph.blocks[0].parameters


def test_removed_layers_are_reported_as_removed() -> None:
    bundle = bundled(Net(Basic(16, 16), Basic(16, 16)))
    graph = graph_of(bundle)
    scored = Importance.of_blocks(graph, magnitude(bundle, graph, None, seed=0))
    choice = Choice({g.name: g.width for g in without(graph, ["blocks.1"]).groups}, ("blocks.1",))
    plan = plan_of(bundle, graph, scored, choice, Goal("ratio", 0.5), 1, 0)
    changes = {change.name: change for change in layer_changes(plan, graph)}
    assert set(changes) == {layer.name for layer in graph.layers}
    assert (changes["blocks.1.one.0"].channels, changes["blocks.1.one.0"].macs) == (0, 0)
    assert changes["blocks.0.one.0"].channels == 16
    assert plan.macs == sum(change.macs for change in changes.values()) == graph.macs - graph.blocks[1].macs
    assert plan.criterion == "none"
    assert plan.removed_channels == 0
    assert "blocks.1.one.0" not in {group.name for group in plan.groups}


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "another shape": (lambda: Net(Dense(16), width=32), "blocks.0", "turns 16x8x8 into 32x8x8"),
    "no shortcut": (lambda: Net(Inverted(16, shortcut=False), width=24), "blocks.0", "turns 16x8x8 into 24x8x8"),
    "runs twice": (lambda: Net(*[Basic(16, 16)] * 2), "blocks.0", "it runs 2 times"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_block_is_refused_with_a_reason(case: str) -> None:
    make, name, reason = REFUSED[case]
    graph = graph_of(bundled(make()))
    assert names(graph) == []
    assert reason in reasons(graph)[name]


class Twins(nn.Module):
    """Two branches of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(16, 16), conv(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x)


class Padded(nn.Module):
    """A shortcut that the forward pass computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv(16, 32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))


class Offset(nn.Module):
    """A branch that its weights cannot silence: a sigmoid ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = conv(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.branch(x))


@pytest.mark.parametrize(
    ("block", "width", "reason"),
    [
        (Twins, 16, "neither is a shortcut"),
        (Padded, 32, "which no module does"),
        (Offset, 16, "the proof failed"),
    ],
)
def test_blocks_that_cannot_be_without_their_branch_are_refused(
    block: type[nn.Module], width: int, reason: str
) -> None:
    graph = graph_of(bundled(Net(block(), Basic(width, width), width=width)))
    assert names(graph) == ["blocks.1"]
    assert reason in reasons(graph)["blocks.0"]


class Unread(Net):
    """A network that never looks at its last block's additions."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        return self.head((x + 0 * self.blocks[1](x)).mean((2, 3)))


def test_block_that_the_output_does_not_depend_on_is_refused() -> None:
    graph = graph_of(bundled(Unread(Basic(16, 16), Basic(16, 16))))
    assert names(graph) == ["blocks.0"]
    assert "does not react" in reasons(graph)["blocks.1"]


class Nosy(Net):
    """A network that asks its first block for more than its output."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.blocks[0].relu is not None
        return super().forward(x)


def test_block_whose_insides_the_network_needs_is_refused() -> None:
    graph = graph_of(bundled(Nosy(Basic(16, 16), Basic(16, 16))))
    assert names(graph) == ["blocks.1"]
    assert "does not run without it" in reasons(graph)["blocks.0"]


def test_proof_sees_a_wrong_remainder() -> None:
    bundle = bundled(resnet())
    block = graph_of(bundle).blocks[1]
    bench = scrambled(bundle.module, bundle.input_shape)
    assert prove(bench, [block]) == {}
    wrong = dataclasses.replace(block, keep=(("module", "shortcut"),))
    assert "the proof failed" in prove(bench, [wrong])[block.name]


@pytest.mark.parametrize("pattern", ["blocks.2", "blocks.2.*", "blocks.2.one*", "blocks.2.two.0"])
def test_ignored_block_is_left_alone(pattern: str) -> None:
    graph = graph_of(bundled(resnet()), (pattern,))
    assert names(graph) == ["blocks.0", "blocks.1", "blocks.3"]
    assert reasons(graph)["blocks.2"] == f"--ignore {pattern}"


def test_network_without_gradients_has_no_blocks_and_says_why() -> None:
    bundle = bundled(resnet())
    graph = trace(bundle)

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().mean((2, 3))

    found = with_blocks(dataclasses.replace(bundle, module=Detached()), graph)
    assert found.blocks == ()
    assert "no gradient" in found.block_refusals[0].reason


def test_plan_for_a_block_that_is_not_there_is_refused() -> None:
    bundle = bundled(resnet())
    with pytest.raises(PruningError, match=r"the block blocks\.9"):
        without(graph_of(bundle), ["blocks.9"])
    with pytest.raises(PruningError, match="does not have"):
        block_surgery.remove(Tokens(), graph_of(bundle).blocks[:1])


def test_channels_alone_are_pruned_as_before() -> None:
    assert_pruned_right(bundled(resnet()))


@pytest.mark.parametrize("kind", ["constructor", "module"])
def test_bundle_without_blocks_is_saved_and_loaded_bit_equal(kind: str, tmp_path: Path) -> None:
    bundle = bundled(resnet())
    if kind == "constructor":
        bundle = dataclasses.replace(bundle, architecture=Architecture("constructor", "test_pruning_blocks:resnet"))
    pruned = removed(bundle, "blocks.1", "blocks.2", channels=0.5)
    save(pruned, tmp_path / "short.pt")
    settings = ModelConfig(trust=("test_pruning_blocks", "test_pruning_blocks.resnet"))
    again = load(tmp_path / "short.pt", settings)
    assert read(tmp_path / "short.pt", Trust(settings.trust))[1].form == kind
    assert torch.equal(outputs(again.module), outputs(pruned.module))
    assert isinstance(again.module.get_submodule("blocks.2"), nn.Identity)


def test_exported_file_has_no_trace_of_a_removed_block(tmp_path: Path) -> None:
    import onnx
    from edgeprune.export.onnx import export_onnx

    bundle = bundled(resnet())
    counts = {}
    for name, each in {"dense": bundle, "short": removed(bundle, "blocks.0", "blocks.2", "blocks.3")}.items():
        export_onnx(each, tmp_path / f"{name}.onnx")
        counts[name] = [node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node]
    assert "Identity" not in counts["short"]
    assert counts["short"].count("Conv") == 4  # stem, and the block with a projection
    assert counts["dense"].count("Conv") == 4 + 2 + 2 + 3
    assert counts["short"].count("Relu") == 3
