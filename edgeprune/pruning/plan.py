"""From a goal to a plan, and from a plan to a pruned network."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import torch

from edgeprune.errors import PruningError
from edgeprune.pruning import block_surgery
from edgeprune.pruning.allocation import FREE, Rules, Widths, by_macs, by_share, check_scores, kept_units, macs_of
from edgeprune.pruning.block_allocation import Choice, Importance, by_budget, by_ratio, removed_of, without
from edgeprune.pruning.proof import compare, scrambled
from edgeprune.pruning.shortfall import notes_on
from edgeprune.pruning.surgery import WEIGHTED, collect, cut, silence
from edgeprune.records import GroupPlan, LayerChange, PrunePlan, RefusalRecord
from edgeprune.types import ChannelGraph, Goal, Layer, ModelBundle, Scores

TOLERANCE = 1e-3
_HINT = "each group passed alone: leave one of them out with --ignore, and please report the network"


def allocate(graph: ChannelGraph, scores: Scores, goal: Goal, multiple: int, rules: Rules = FREE) -> Widths:
    """Widths for a goal that needs no clock (ratio or macs_ratio); PruningError when nothing can be removed.

    Unless `rules` say otherwise, a ratio is the same in every group, and under a budget of MACs all channels compete.
    """
    if not graph.groups:
        reasons = "\n  ".join(f"{refusal.name}: {refusal.reason}" for refusal in graph.refusals[:3])
        raise PruningError(
            "no group of channels can be pruned", where=reasons, hint="`edgeprune inspect` lists all reasons"
        )
    check_scores(graph, scores)
    if goal.kind == "ratio":
        return by_share(graph, scores, goal.value, rules.ranking or "local", multiple, rules)
    if goal.kind == "macs_ratio":
        return by_macs(graph, scores, goal.value, multiple, rules)
    raise PruningError(f"a goal of {goal.kind} needs measurements: edgeprune.pruning.aim has them made")


def choose(graph: ChannelGraph, importance: Importance, goal: Goal, multiple: int, rules: Rules = FREE) -> Choice:
    """Blocks and widths for a goal that needs no clock, with notes where they do not do what was asked.

    Errors: PruningError when nothing can be removed.
    """
    if importance.scope == "channels":
        widths = allocate(graph, importance.channels, goal, multiple, rules)
        return Choice(widths, (), notes_on(graph, widths, goal, multiple, rules))
    if goal.kind == "ratio":
        return by_ratio(graph, importance, goal.value, multiple, rules)
    if goal.kind == "macs_ratio":
        return by_budget(graph, importance, goal.value, multiple, rules)
    raise PruningError(f"a goal of {goal.kind} needs measurements: edgeprune.pruning.aim has them made")


def make_plan(
    bundle: ModelBundle, graph: ChannelGraph, scores: Scores, widths: Widths, goal: Goal, multiple: int, seed: int
) -> PrunePlan:
    """The plan that keeps the most important units under the given widths."""
    check_scores(graph, scores)
    kept = kept_units(scores, widths)
    plan = PrunePlan(
        parent=bundle.digest,
        goal=goal.kind,
        goal_value=goal.value,
        criterion=scores.criterion,
        normalisation=scores.normalisation,
        channel_multiple=multiple,
        seed=seed,
        groups=tuple(GroupPlan(name=g.name, width=g.width, kept=kept[g.name]) for g in graph.groups),
        refusals=tuple(RefusalRecord(name=r.name, reason=r.reason, layers=r.layers) for r in graph.refusals),
        dense_macs=graph.macs,
        dense_parameters=graph.parameters,
        macs=macs_of(graph, widths),
        parameters=0,
    )
    pruned = cut(bundle.module, graph.groups, removals(plan), share=True)
    return plan.model_copy(update={"parameters": sum(p.numel() for p in pruned.parameters())})


def plan_of(
    bundle: ModelBundle,
    graph: ChannelGraph,
    importance: Importance,
    choice: Choice,
    goal: Goal,
    multiple: int,
    seed: int,
) -> PrunePlan:
    """The plan that removes the chosen blocks and keeps the most important units of what is left."""
    shorter, blocks = without(graph, choice.removed), removed_of(graph, choice.removed)
    plan = make_plan(bundle, shorter, importance.channels, choice.widths, goal, multiple, seed)
    pruned = cut(bundle.module, shorter.groups, removals(plan), share=True)
    scored = importance.blocks
    return plan.model_copy(
        update={
            "scope": importance.scope,
            "removed_blocks": choice.removed,
            "removable_blocks": len(graph.blocks),
            "block_criterion": scored.criterion if scored else None,
            "block_normalisation": scored.normalisation if scored else None,
            "block_refusals": tuple(RefusalRecord(name=r.name, reason=r.reason) for r in graph.block_refusals),
            "dense_macs": graph.macs,
            "dense_parameters": graph.parameters,
            "parameters": sum(p.numel() for p in block_surgery.remove(pruned, blocks, share=True).parameters()),
            "notes": choice.notes,
        }
    )


def removals(plan: PrunePlan) -> dict[str, list[int]]:
    """Group name -> units that go."""
    return {group.name: sorted(set(range(group.width)) - set(group.kept)) for group in plan.groups}


def kept_outputs(plan: PrunePlan, graph: ChannelGraph) -> dict[str, tuple[int, ...]]:
    """Layer -> which of the dense layer's outputs are left, ascending, for every layer that lost some."""
    gone: dict[str, set[int]] = defaultdict(set)
    shorter = without(graph, plan.removed_blocks)
    for place, indices in collect(shorter.groups, removals(plan)).items():
        if place.role == "out" and place.kind in WEIGHTED:
            gone[place.name].update(indices)
    return {
        layer.name: tuple(i for i in range(layer.out_channels) if i not in gone[layer.name])
        for layer in shorter.layers
        if layer.name in gone
    }


def apply(plan: PrunePlan, bundle: ModelBundle, graph: ChannelGraph) -> ModelBundle:
    """The pruned bundle; the parent is unchanged. Every group was proved alone, here the whole plan is.

    Errors: PruningError when the plan is for other weights or other groups, or the pruned network does not compute
    what the parent computes with the same channels silenced: on random weights in float64, and on its own.
    """
    from edgeprune.models import digest

    blocks, graph = removed_of(graph, plan.removed_blocks), without(graph, plan.removed_blocks)
    _check_fit(plan, bundle, graph)
    gone = removals(plan)
    if reason := compare(scrambled(bundle.module, bundle.input_shape, seed=plan.seed), graph.groups, gone, blocks):
        raise PruningError("the plan failed its proof", where=reason, hint=_HINT)
    pruned = block_surgery.remove(cut(bundle.module, graph.groups, gone), blocks, share=True).eval()
    images = torch.rand(4, *bundle.input_shape, generator=torch.Generator().manual_seed(plan.seed))
    with torch.no_grad():
        quiet = block_surgery.silence(bundle.module, blocks, share=True)
        expected = silence(quiet, graph.groups, gone, share=True).eval()(images)
        actual = pruned(images)
    difference = float((actual - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise PruningError("the plan failed its proof", where=f"outputs differ by {difference:.2g}", hint=_HINT)
    return dataclasses.replace(bundle, module=pruned, digest=digest(pruned))


def sketch(plan: PrunePlan, bundle: ModelBundle, graph: ChannelGraph) -> ModelBundle:
    """The pruned bundle without its proof: for candidates that are timed, never for what is kept."""
    blocks, graph = removed_of(graph, plan.removed_blocks), without(graph, plan.removed_blocks)
    pruned = block_surgery.remove(cut(bundle.module, graph.groups, removals(plan)), blocks, share=True).eval()
    return dataclasses.replace(bundle, module=pruned)


def check_same_shapes(one: ModelBundle, other: ModelBundle) -> None:
    """PruningError unless both networks have the same tensors by name and shape: steps must add up to their plan."""
    shapes = [{name: tuple(t.shape) for name, t in each.module.state_dict().items()} for each in (one, other)]
    odd = next(
        (name for name in sorted(shapes[0].keys() | shapes[1].keys()) if shapes[0].get(name) != shapes[1].get(name)),
        None,
    )
    if odd is not None:
        raise PruningError(
            "the steps do not add up to one plan",
            where=f"{odd} is {shapes[0].get(odd)} by the plan and {shapes[1].get(odd)} by the steps",
            hint="prune in one step (--iterations 1), and please report the network",
        )


def layer_changes(plan: PrunePlan, graph: ChannelGraph, layers: Sequence[str] = ()) -> tuple[LayerChange, ...]:
    """Every layer's channels and MACs before and after; `layers` limits them to those names.

    A layer that went with its block has no channels left.
    """
    kept = {group.name: len(group.kept) for group in plan.groups}
    every, graph = graph.layers, without(graph, plan.removed_blocks)
    gone: dict[str, set[int]] = defaultdict(set)  # a row may go with its head and with its channel of every head
    for place, indices in collect(graph.groups, removals(plan)).items():
        if place.role == "out" and place.kind in WEIGHTED:
            gone[place.name].update(indices)
    changes = []
    for layer in every:
        if layers and layer.name not in layers:
            continue
        if layer not in graph.layers:
            changes.append(_removed(layer))
            continue
        alone = dataclasses.replace(graph, layers=(layer,))
        changes.append(
            LayerChange(
                name=layer.name,
                kind=layer.kind,
                dense_channels=layer.out_channels,
                channels=layer.out_channels - len(gone[layer.name]),
                dense_macs=layer.macs,
                macs=macs_of(alone, kept),
            )
        )
    return tuple(changes)


def _removed(layer: Layer) -> LayerChange:
    return LayerChange(
        name=layer.name,
        kind=layer.kind,
        dense_channels=layer.out_channels,
        channels=0,
        dense_macs=layer.macs,
        macs=0,
    )


def _check_fit(plan: PrunePlan, bundle: ModelBundle, graph: ChannelGraph) -> None:
    if plan.parent != bundle.digest:
        raise PruningError(
            "the plan was made for other weights", where=f"plan {plan.parent[:12]}, network {bundle.digest[:12]}"
        )
    widths = {group.name: group.width for group in graph.groups}
    odd = next((group for group in plan.groups if widths.get(group.name) != group.width), None)
    if odd is not None:
        reason = next((r.reason for r in graph.refusals if r.name == odd.name), "there is no such group")
        raise PruningError(f"the plan cuts {odd.name}, which cannot be cut now", where=reason, hint="make a new plan")
    if not plan.removed_channels and not plan.removed_blocks:
        raise PruningError("the plan removes nothing", hint="ask for more with --ratio or --macs-ratio")
