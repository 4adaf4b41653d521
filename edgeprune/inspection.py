"""What could be pruned, what cannot be and why: read off a network without changing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from edgeprune import preflight
from edgeprune.config import Config
from edgeprune.console import Console
from edgeprune.errors import PruningError
from edgeprune.files import sha256_of
from edgeprune.latency.profiles import load_profile
from edgeprune.records import Proportion, Record, RefusalRecord, Sha256, Unmeasured
from edgeprune.types import Block, BlockScores, ModelBundle


class GroupLine(Record):
    """A proved group: its width, what the goal would leave, the layers that go with it."""

    name: str
    width: int
    kept: int
    layers: tuple[str, ...]


class BlockLine(Record):
    """A proved block: what goes with it, what stays in its place (nothing: the identity), its score."""

    name: str
    kind: str
    macs: int
    parameters: int
    layers: tuple[str, ...]
    stays: tuple[str, ...]
    removed: bool
    score: float | None


class Inspection(Record):
    """A network as pruning sees it.

    `accuracy` is of the torch module on the test data: nothing was exported. `goal` is what `kept` follows; with a
    goal in time it is the half of the MACs, since nothing is measured here.
    """

    model: str
    file_sha256: Sha256
    digest: Sha256
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    macs: int
    parameters: int
    kept_macs: int
    goal: str
    criterion: str
    channel_multiple: int
    groups: tuple[GroupLine, ...]
    refusals: tuple[RefusalRecord, ...]
    scope: Literal["channels", "blocks", "both"]
    blocks: tuple[BlockLine, ...]
    block_criterion: str | None
    block_refusals: tuple[RefusalRecord, ...]
    accuracy: Proportion | Unmeasured
    seconds: float
    notes: tuple[str, ...] = ()


def inspect(model: Path, config: Config, console: Console) -> Inspection:
    """Trace and prove the groups of `model` and plan with the configured goal, without cutting.

    Errors: those of loading the model and the data; PruningError when the network cannot be traced.
    """
    from edgeprune.data import open_split
    from edgeprune.models import load
    from edgeprune.pruning.allocation import Rules
    from edgeprune.pruning.block_allocation import Choice, macs_after, without
    from edgeprune.pruning.blocks import with_blocks
    from edgeprune.pruning.graph import trace
    from edgeprune.pruning.importance import importance_of
    from edgeprune.pruning.limits import bounds_of
    from edgeprune.pruning.plan import choose
    from edgeprune.types import Goal

    profile = load_profile(config.run.target)
    bundle = load(model, config.model)
    preflight.check_model(bundle, config)
    train = open_split(config.data.train, "train", bundle, trust=config.model.trust) if config.data.train else None
    with console.task("tracing and proving groups") as progress:
        graph = trace(bundle, ignore=config.prune.ignore, progress=progress)
    with console.task("finding and proving blocks"):
        graph = with_blocks(bundle, graph, ignore=config.prune.ignore)
    multiple = config.prune.channel_multiple or profile.multiple_for(config.latency.runtimes[0])
    goal = config.prune.goal()
    if goal.kind in ("speedup", "latency_ms"):
        goal = Goal("macs_ratio", 0.5)
    scored = None
    try:
        importance = importance_of(bundle, graph, train, config.prune, config.run.seed)
        scored = importance.blocks
        rules = Rules(config.prune.ranking, bounds_of(graph, config.prune.limits()))
        choice = choose(graph, importance, goal, multiple, rules)
    except PruningError as error:
        choice = Choice({group.name: group.width for group in graph.groups}, notes=(str(error),))
    return Inspection(
        model=model.name,
        file_sha256=sha256_of(model),
        digest=bundle.digest,
        input_shape=bundle.input_shape,
        classes=bundle.classes,
        macs=graph.macs,
        parameters=graph.parameters,
        kept_macs=macs_after(graph, choice),
        goal=f"{goal.kind} {goal.value:g}",
        criterion=config.prune.criterion,
        channel_multiple=multiple,
        groups=tuple(
            GroupLine(
                name=g.name,
                width=g.width,
                kept=choice.widths[g.name],
                layers=tuple(dict.fromkeys(m.name for m in g.members)),
            )
            for g in without(graph, choice.removed).groups
        ),
        refusals=tuple(RefusalRecord(name=r.name, reason=r.reason, layers=r.layers) for r in graph.refusals),
        scope=config.prune.scope,
        blocks=tuple(_line(block, choice.removed, scored) for block in graph.blocks),
        block_criterion=scored.criterion if scored else None,
        block_refusals=tuple(RefusalRecord(name=r.name, reason=r.reason) for r in graph.block_refusals),
        accuracy=_accuracy(bundle, config, console),
        seconds=graph.seconds,
        notes=choice.notes,
    )


def _line(block: Block, removed: tuple[str, ...], scored: BlockScores | None) -> BlockLine:
    return BlockLine(
        name=block.name,
        kind=block.kind,
        macs=block.macs,
        parameters=block.parameters,
        layers=block.layers,
        stays=tuple(name for _, name in block.keep),
        removed=block.name in removed,
        score=scored.values[block.name] if scored else None,
    )


def _accuracy(bundle: ModelBundle, config: Config, console: Console) -> Proportion | Unmeasured:
    import torch

    from edgeprune.data import open_split
    from edgeprune.robustness.statistics import proportion

    if config.data.test is None:
        return Unmeasured(unmeasured="no test data was given (--test)")
    split = open_split(
        config.data.test, "test", bundle, samples=config.data.samples, seed=config.run.seed, trust=config.model.trust
    )
    preflight.check_samples(split, config)
    network, right, seen = bundle.network(), 0, 0
    with console.task("accuracy of the torch module") as progress, torch.no_grad():
        for images, labels in split.batches(256):
            right += int(np.sum(network(torch.from_numpy(images)).argmax(1).numpy() == labels))
            seen += len(labels)
            progress(f"{seen} of {len(split)} images", seen / len(split))
    return proportion(right, len(split), config.budget.confidence)
