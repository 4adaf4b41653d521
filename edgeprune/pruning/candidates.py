"""What may become a group: the channels of one layer and all that goes with them, from the recording of a forward pass.

`edgeprune.pruning.second_look` has another source for what the recording loses.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from edgeprune.pruning.origins import Origins
from edgeprune.pruning.proof import Bench, prove
from edgeprune.pruning.recording import record
from edgeprune.pruning.units import group_of, weights_that_cannot_be_cut
from edgeprune.types import Group, Progress, Refusal, Shape

Covered = defaultdict[str, set[int]]
"""Layer name -> output channels that are in a group."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer's channels as a group, or the reason why they are none; and the layers that they run through."""

    name: str
    layers: tuple[str, ...]
    group: Group | str


def covered_by(groups: Sequence[Group]) -> Covered:
    """The output channels that are in these groups."""
    covered: Covered = defaultdict(set)
    for group in groups:
        for member in group.members:
            if member.role == "out":
                covered[member.name].update(channel for unit in member.channels for channel in unit)
    return covered


def recorded(module: nn.Module, input_shape: Shape, until: float) -> Iterator[Candidate]:
    """Candidates of all layers that one forward pass runs through. Nothing is followed after `until` (monotonic clock).

    Errors: whatever the network's forward pass raises while it is watched.
    """
    origins = Origins.of(module, record(module, input_shape))
    odd, covered = weights_that_cannot_be_cut(module), covered_by(())
    for name, _ in module.named_modules():
        labels = origins.notes.makers.get(name)
        outputs = [index for index in range(len(labels)) if index not in covered[name]] if labels is not None else []
        if not outputs:
            continue
        covered[name].update(outputs)
        if time.monotonic() > until:
            yield Candidate(name, (name,), "not followed: there was no time left")
            continue
        touches = origins.follow(name, outputs)
        if isinstance(touches, str):
            yield Candidate(name, (name,), touches)
            continue
        group = group_of(name, outputs, touches, odd)
        for touch in touches:
            if touch.outward and touch.name and not isinstance(group, str):
                covered[touch.name].update(channel for channel, _ in touch.channels)
        yield Candidate(name, tuple(dict.fromkeys(touch.name for touch in touches if touch.name)), group)


def proved(
    bench: Bench,
    found: Sequence[Candidate],
    left_alone: Callable[[Group], str | None],
    *,
    until: float,
    progress: Progress | None = None,
) -> tuple[tuple[Group, ...], tuple[Refusal, ...]]:
    """The candidates that pass their proof, and refusals of the others. `left_alone` says why one must not be used."""
    kept = {each.name: left_alone(each.group) for each in found if isinstance(each.group, Group)}
    wanted = [each.group for each in found if isinstance(each.group, Group) and not kept[each.name]]
    failed = prove(bench, wanted, until=until, progress=progress)
    refusals = [
        Refusal(each.name, reason, each.layers)
        for each in found
        if (reason := each.group if isinstance(each.group, str) else kept[each.name] or failed.get(each.name))
    ]
    return tuple(group for group in wanted if group.name not in failed), tuple(refusals)
