"""Groups that torch-pruning does not find: attention, normalised streams, layers that are called as functions.

Found by watching operators (`flow`), put together (`streams`), completed with what has to follow them (`attention`) and
proved like every other group. A channel that a group of torch-pruning's already takes stays there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from edgeprune.pruning.attention import settle
from edgeprune.pruning.flow import Flow, watch
from edgeprune.pruning.proof import Bench, prove, quick
from edgeprune.pruning.streams import Candidate, candidates
from edgeprune.pruning.surgery import replica
from edgeprune.types import Group, Member, Refusal, Shape

WEIGHTED = frozenset({"CONV", "LINEAR", "DEPTHWISE_CONV", "PARAMETER"})


def more_groups(
    module: nn.Module,
    input_shape: Shape,
    bench: Bench,
    known: Sequence[Group],
    odd: Mapping[str, str],
    refused: Callable[[Group], str | None],
    *,
    until: float,
) -> tuple[list[Group], list[Refusal]]:
    """Proved groups beside the `known` ones, and what was left alone with the reasons.

    `refused` gives the reason why a group must not be used (--ignore). Nothing is started after `until` (monotonic).
    """
    try:
        flow = watch(replica(module).eval(), input_shape)
    except Exception as error:  # noqa: BLE001  # the user's forward pass, watched operator by operator
        return [], [Refusal("attention", f"the operators of the forward pass cannot be watched: {error}")]
    taken = {key for group in known for key in _keys(group.members)}
    found = [each for each in candidates(flow, odd) if not taken & _keys(each.group.members)]
    refusals = [Refusal(each.group.name, reason, _layers(each)) for each in found if (reason := refused(each.group))]
    refusals += _frozen(flow, {name for name, _, _ in taken})
    found = [each for each in found if not refused(each.group)]
    if not found:
        return [], refusals
    groups, failed = settle(module, found, quick(module, input_shape), until=until)
    reasons = dict.fromkeys(failed, "no numbers of its modules were found that would follow its channels")
    together = prove(bench, [*known, *groups], until=until)
    reasons |= {name: reason for name, reason in together.items() if name in {group.name for group in groups}}
    named = {each.group.name: each for each in found}
    refusals += [Refusal(name, reason, _layers(named[name])) for name, reason in reasons.items()]
    return [group for group in groups if group.name not in reasons], refusals


def _frozen(flow: Flow, taken: set[str]) -> list[Refusal]:
    """Layers none of whose outputs may go, with the reason that was met first."""
    refusals = []
    for name, layer in flow.layers.items():
        labels = flow.weights[f"{name}.weight"].dims[0] if f"{name}.weight" in flow.weights else None
        if isinstance(layer, nn.Linear | nn.Conv2d) and labels is not None and name not in taken:
            reasons = [flow.axes.frozen(atom) for term in labels.tolist() for atom in flow.axes.atoms(term)]
            if reasons and all(reasons):
                refusals.append(Refusal(name, reasons[0] or "", (name,)))
    return refusals


def _layers(candidate: Candidate) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member.name for member in candidate.group.members if member.kind in WEIGHTED))


def _keys(members: Iterable[Member]) -> set[tuple[str, int, int]]:
    """What is taken away, index by index: rows of layers and of parameters."""
    return {
        (member.name, member.dim, index)
        for member in members
        if member.role == "out" and member.kind in WEIGHTED
        for unit in member.channels
        for index in unit
    }
