"""Cutting: zeroed channels removed give the same outputs, and a plan that does not fit is an error."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from toy_networks import PRUNABLE, Chain, Flattened, Residual, bundle_of, randomized

from edgeprune.errors import PruningError
from edgeprune.models import digest
from edgeprune.pruning.allocation import macs_of
from edgeprune.pruning.criteria import l2
from edgeprune.pruning.graph import trace
from edgeprune.pruning.plan import allocate, apply, layer_changes, make_plan, removals
from edgeprune.pruning.surgery import cut, per_unit, replica, silence
from edgeprune.records import PrunePlan
from edgeprune.types import ChannelGraph, Goal, Group, Member, ModelBundle, Refusal

RATIO = Goal("ratio", 0.5)


def planned(bundle: ModelBundle, goal: Goal = RATIO, multiple: int = 1) -> tuple[PrunePlan, ChannelGraph]:
    graph = trace(bundle)
    scores = l2(bundle, graph, None, seed=0)
    return make_plan(bundle, graph, scores, allocate(graph, scores, goal, multiple), goal, multiple, 0), graph


def test_zeroed_channels_removed_give_identical_outputs() -> None:
    bundle = bundle_of(randomized(Chain()))
    group = trace(bundle).group("conv1.0")
    gone = [1, 4, 9]
    with torch.no_grad():  # zero by hand: the filters, and their shift in the batch norm behind them
        bundle.module.conv1[0].weight[gone] = 0
        bundle.module.conv1[1].running_mean[gone] = 0
        bundle.module.conv1[1].bias[gone] = 0
    pruned = cut(bundle.module, [group], {"conv1.0": gone}).double()
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(pruned(images), bundle.module.double()(images), rtol=1e-12, atol=1e-12)


def test_cut_removes_exactly_the_given_rows_and_columns() -> None:
    module = randomized(Chain())
    pruned = cut(module, [trace(bundle_of(module)).group("conv1.0")], {"conv1.0": [0, 3]})
    kept = [i for i in range(16) if i not in (0, 3)]
    assert torch.equal(pruned.conv1[0].weight, module.conv1[0].weight[kept])
    assert torch.equal(pruned.conv1[1].running_var, module.conv1[1].running_var[kept])
    assert torch.equal(pruned.conv2[0].weight, module.conv2[0].weight[:, kept])
    assert (pruned.conv1[0].out_channels, pruned.conv1[1].num_features, pruned.conv2[0].in_channels) == (14, 14, 14)


def test_silence_changes_readers_alone() -> None:
    module = randomized(Flattened())
    silent = silence(module, [trace(bundle_of(module)).group("conv")], {"conv": [1]})
    changed = [name for name, value in silent.state_dict().items() if not torch.equal(value, module.state_dict()[name])]
    assert changed == ["fc1.weight"]
    assert torch.count_nonzero(silent.fc1.weight[:, 64:128]) == 0
    assert torch.equal(silent.fc1.weight[:, :64], module.fc1.weight[:, :64])


def test_grouped_convolution_may_lose_different_channels_in_each_group() -> None:
    conv = randomized(nn.Conv2d(8, 4, 1, groups=2))
    member = Member("", "CONV", "in", ((0, 7), (1, 4), (2, 5), (3, 6)))
    group = Group("g", 4, (member,))
    images = torch.rand(2, 8, 3, 3)
    kept = [i for i in range(8) if i not in (0, 7)]
    pruned = cut(conv, [group], {"g": [0]})
    assert pruned.in_channels == 6
    torch.testing.assert_close(pruned(images[:, kept]), silence(conv, [group], {"g": [0]})(images))


def test_uneven_cut_of_a_grouped_convolution_is_an_error() -> None:
    member = Member("", "CONV", "in", tuple((i,) for i in range(8)))
    with pytest.raises(PruningError, match="groups of different size"):
        cut(nn.Conv2d(8, 4, 1, groups=2), [Group("g", 8, (member,))], {"g": [0]})


def test_every_channel_of_a_group_cannot_go() -> None:
    module = randomized(Chain())
    with pytest.raises(PruningError, match=r"every channel of conv1\.0"):
        cut(module, trace(bundle_of(module)).groups, {"conv1.0": range(16)})


@pytest.mark.parametrize("removals", [{"nowhere": [0]}, {"conv1.0": [16]}, {"conv1.0": [-1]}])
def test_removal_that_does_not_exist_is_an_error(removals: dict[str, list[int]]) -> None:
    module = randomized(Chain())
    with pytest.raises(PruningError):
        cut(module, trace(bundle_of(module)).groups, removals)


def test_member_that_does_not_fit_its_layer_is_an_error() -> None:
    group = Group("fc", 2, (Member("fc", "LINEAR", "out", ((0,), (9,))),))
    with pytest.raises(PruningError, match="cannot cut"):
        cut(nn.Sequential(nn.Linear(2, 2)), [group], {"fc": [0]})


def test_sharing_replica_holds_the_same_tensors_and_other_layers() -> None:
    module = randomized(Residual())
    shared = replica(module, share=True)
    assert all(shared.get_parameter(name) is value for name, value in module.named_parameters())
    assert shared.stem is not module.stem


def test_network_that_cannot_be_copied_is_an_error_with_a_remedy() -> None:
    module = nn.Linear(3, 3)
    module.computed = module.weight * 2  # what old-style weight norm leaves behind: not a leaf
    with pytest.raises(PruningError, match="cannot be copied"):
        replica(module)


def test_sums_over_a_weight_agree_with_sums_by_hand() -> None:
    conv = randomized(nn.Conv2d(8, 6, 3, groups=2))
    outward = Member("", "CONV", "out", ((0, 3), (1, 4), (2, 5)))
    inward = Member("", "CONV", "in", ((0, 4), (1, 5), (2, 6), (3, 7)))
    values = conv.weight.detach().double()
    by_row, by_column = values.sum((1, 2, 3)), values.sum((0, 2, 3))
    torch.testing.assert_close(per_unit(conv, values, outward), by_row[:3] + by_row[3:])
    torch.testing.assert_close(per_unit(conv, values, inward), by_column)
    transposed = randomized(nn.ConvTranspose2d(4, 6, 2, groups=2))
    values = transposed.weight.detach().double()
    found = per_unit(transposed, values, Member("", "CONV", "out", tuple((i,) for i in range(6))))
    torch.testing.assert_close(found, torch.cat([values[:2].sum((0, 2, 3)), values[2:].sum((0, 2, 3))]))


# ------------------------------------------------------------------------------------------------- whole plans


@pytest.mark.parametrize("name", PRUNABLE)
def test_macs_and_parameters_of_a_plan_are_those_of_a_fresh_count(name: str) -> None:
    bundle = bundle_of(randomized(PRUNABLE[name]()))
    plan, graph = planned(bundle)
    fresh = trace(apply(plan, bundle, graph))
    assert plan.macs == fresh.macs < graph.macs == plan.dense_macs
    assert plan.parameters == fresh.parameters < graph.parameters == plan.dense_parameters
    changes = {change.name: change for change in layer_changes(plan, graph)}
    assert {layer.name: (layer.out_channels, layer.macs) for layer in fresh.layers} == {
        name: (change.channels, change.macs) for name, change in changes.items()
    }


@pytest.mark.parametrize("name", PRUNABLE)
def test_macs_of_single_widths_agree_with_a_fresh_count(name: str) -> None:
    bundle = bundle_of(randomized(PRUNABLE[name]()))
    graph = trace(bundle)
    for group in graph.groups:
        pruned = cut(bundle.module, graph.groups, {group.name: [0]})
        assert macs_of(graph, {group.name: group.width - 1}) == trace(bundle_of(pruned)).macs


def test_plan_for_other_weights_is_an_error() -> None:
    plan, graph = planned(bundle_of(randomized(Chain())))
    with pytest.raises(PruningError, match="other weights"):
        apply(plan, bundle_of(randomized(Chain(), seed=1)), graph)


def test_plan_for_a_group_that_is_refused_now_says_why() -> None:
    bundle = bundle_of(randomized(Chain()))
    plan, graph = planned(bundle)
    missing = dataclasses.replace(graph, groups=graph.groups[1:], refusals=(Refusal("conv1.0", "it took too long"),))
    with pytest.raises(PruningError, match=r"conv1\.0.*\n.*it took too long"):
        apply(plan, bundle, missing)


def test_plan_that_removes_nothing_is_an_error_with_a_remedy() -> None:
    bundle = bundle_of(randomized(Chain()))
    with pytest.raises(PruningError, match="removes nothing") as caught:
        planned(bundle, multiple=64)
    assert "--channel-multiple" in str(caught.value)
    plan, graph = planned(bundle)
    whole = tuple(group.model_copy(update={"kept": tuple(range(group.width))}) for group in plan.groups)
    with pytest.raises(PruningError, match="removes nothing"):
        apply(plan.model_copy(update={"groups": whole}), bundle, graph)


def test_whole_plan_is_proved_even_where_each_group_would_pass() -> None:
    bundle = bundle_of(randomized(Chain()))
    plan, graph = planned(bundle)
    wrong = dataclasses.replace(
        graph,
        groups=tuple(
            dataclasses.replace(
                group,
                members=tuple(
                    dataclasses.replace(m, channels=m.channels[::-1]) if m.role == "in" else m for m in group.members
                ),
            )
            for group in graph.groups
        ),
    )
    with pytest.raises(PruningError, match="plan failed its proof"):
        apply(plan, bundle, wrong)


def test_pruned_bundle_has_a_digest_of_its_own_and_the_same_form() -> None:
    bundle = bundle_of(randomized(Chain()))
    plan, graph = planned(bundle)
    pruned = apply(plan, bundle, graph)
    assert pruned.digest == digest(pruned.module) != bundle.digest
    assert (pruned.input_shape, pruned.classes) == (bundle.input_shape, bundle.classes)
    assert not any(layer.training for layer in pruned.module.modules())
    assert removals(plan)["conv1.0"] == [i for i in range(16) if i not in plan.groups[0].kept]


def test_same_plan_gives_the_same_weights() -> None:
    bundle = bundle_of(randomized(Residual()))
    plan, graph = planned(bundle)
    assert apply(plan, bundle, graph).digest == apply(plan, bundle, trace(bundle)).digest


def test_network_without_groups_says_why() -> None:
    bundle = bundle_of(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    with pytest.raises(PruningError, match=r"no group of channels can be pruned\n.*network's output"):
        planned(bundle)
