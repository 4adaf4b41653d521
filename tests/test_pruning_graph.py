"""Groups: found, tied, proved; every hazard is pruned right or refused with its reason."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from pruning_checks import LAST, assert_pruned_right, reasons, toy, widths
from test_pruning_hazards import PRUNED, a
from torch import Tensor, nn
from toy_networks import PRUNABLE, SHAPE, Chain, Head, Lambda, Residual, bundle_of, randomized

from edgeprune.models import digest
from edgeprune.pruning.candidates import covered_by
from edgeprune.pruning.graph import Limits, trace
from edgeprune.pruning.proof import prove, scrambled
from edgeprune.pruning.second_look import followed
from edgeprune.types import Group, Member

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
        x = self.a(x)
        return self.head(self.d(torch.relu(self.c(self.b(torch.relu(x + x.roll(4, 1)))))))

    layers = {"a": a(), "b": nn.Conv2d(16, 8, 1), "c": nn.Conv2d(8, 8, 1), "d": nn.Conv2d(8, 12, 1), "head": Head(12)}
    graph = trace(toy(mixed, **layers))
    assert widths(graph) == {"b": 8, "c": 8, "d": 12}
    assert "proof failed" in reasons(graph)["a"]


def test_no_time_refuses_every_group_with_that_reason() -> None:
    bundle = bundle_of(randomized(Chain()))
    graph = trace(bundle, limits=Limits(total_s=0))
    assert not graph.groups
    assert "no time left" in reasons(graph)["conv1.0"]


def test_group_that_takes_too_long_to_follow_is_refused() -> None:
    covered = covered_by(())
    found = next(followed(Chain(), SHAPE, ["conv1.0"], covered, seconds=0, until=math.inf))[0]
    assert found.group == "following its channels took longer than 0 s"


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
    trace(toy(*PRUNED["LayerNorm"][:1], **copy.deepcopy(PRUNED["LayerNorm"][1])))
    again = trace(bundle_of(randomized(Residual())))
    assert (first.groups, first.refusals, first.layers) == (again.groups, again.refusals, again.layers)


def test_hooks_of_the_network_stay_and_are_part_of_what_is_pruned() -> None:
    bundle = bundle_of(randomized(Chain()))
    bundle.module.conv1.register_forward_hook(lambda layer, inputs, output: output * 2)
    pruned = assert_pruned_right(bundle)
    assert len(bundle.module.conv1._forward_hooks) == len(pruned.module.conv1._forward_hooks) == 1
