"""From a goal to a plan, and from a plan to a pruned network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from edgeprune.errors import PruningError
from edgeprune.pruning.allocation import Widths, by_macs, kept_units, macs_of, uniform
from edgeprune.pruning.surgery import cut, silence
from edgeprune.records import GroupPlan, LayerChange, PrunePlan, RefusalRecord
from edgeprune.types import ChannelGraph, Goal, ModelBundle, Scores

TOLERANCE = 1e-3


def allocate(graph: ChannelGraph, scores: Scores, goal: Goal, multiple: int) -> Widths:
    """Widths for a goal that needs no clock (ratio or macs_ratio); PruningError when nothing can be removed."""
    if not graph.groups:
        reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in graph.refusals[:3])
        raise PruningError("no group of channels can be pruned", where=reasons, hint="`edgeprune inspect` lists them all")
    if goal.kind == "ratio":
        return uniform(graph, goal.value, multiple)
    return by_macs(graph, scores, goal.value, multiple)


def make_plan(
    bundle: ModelBundle, graph: ChannelGraph, scores: Scores, widths: Widths, goal: Goal, multiple: int, seed: int
) -> PrunePlan:
    """The plan that keeps the most important units under the given widths."""
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
    pruned = cut(bundle.module, graph.groups, removals(plan))
    return plan.model_copy(update={"parameters": sum(p.numel() for p in pruned.parameters())})


def removals(plan: PrunePlan) -> dict[str, list[int]]:
    """Group name -> units that go."""
    return {group.name: sorted(set(range(group.width)) - set(group.kept)) for group in plan.groups}


def apply(plan: PrunePlan, bundle: ModelBundle, graph: ChannelGraph) -> ModelBundle:
    """The pruned bundle; the parent is unchanged. Every group was proved alone, here the whole plan is.

    Errors: PruningError when the plan is for other weights, or the pruned network does not compute what the parent
    computes with the same channels silenced.
    """
    from edgeprune.models import digest

    if plan.parent != bundle.digest:
        raise PruningError("the plan was made for other weights", where=f"plan {plan.parent[:12]}, network {bundle.digest[:12]}")
    gone = removals(plan)
    pruned = cut(bundle.module, graph.groups, gone).eval()
    generator = torch.Generator().manual_seed(plan.seed)
    images = torch.rand(4, *bundle.input_shape, generator=generator)
    with torch.no_grad():
        expected = silence(bundle.module, graph.groups, gone)(images)
        actual = pruned(images)
    difference = float((actual - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise PruningError(
            f"the pruned network failed its proof (outputs differ by {difference:.2g})",
            hint="each group passed alone: please report the network; --ignore leaves layers out",
        )
    return dataclasses.replace(bundle, module=pruned, digest=digest(pruned))


def layer_changes(plan: PrunePlan, graph: ChannelGraph, layers: Sequence[str] = ()) -> tuple[LayerChange, ...]:
    """Every layer's channels and MACs before and after; `layers` limits them to those names."""
    kept = {group.name: len(group.kept) for group in plan.groups}
    changes = []
    for layer in graph.layers:
        if layers and layer.name not in layers:
            continue
        out = layer.out_channels
        for group in graph.groups:
            for member in group.members:
                if member.name == layer.name and member.role == "out":
                    out -= (group.width - kept[group.name]) * len(member.channels[0])
        alone = dataclasses.replace(graph, layers=(layer,))
        changes.append(
            LayerChange(
                name=layer.name,
                kind=layer.kind,
                dense_channels=layer.out_channels,
                channels=out,
                dense_macs=layer.macs,
                macs=macs_of(alone, kept),
            )
        )
    return tuple(changes)
