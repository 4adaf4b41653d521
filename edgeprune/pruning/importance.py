"""The scores that a plan needs, from the criteria that the settings name: of channels, of blocks, or of both."""

from __future__ import annotations

from edgeprune import protocols
from edgeprune.config import PruneConfig
from edgeprune.pruning.block_allocation import Importance
from edgeprune.types import ChannelGraph, ModelBundle, Split


def importance_of(
    bundle: ModelBundle, graph: ChannelGraph, train: Split | None, settings: PruneConfig, seed: int
) -> Importance:
    """Scores by `settings.criterion` and `settings.block_criterion`, whichever the scope needs.

    The default of the latter is `loss` with training data and `magnitude` without. Errors: those of the criteria;
    UsageError for a name that none of them has.
    """
    if settings.scope != "channels":
        name = settings.block_criterion or ("magnitude" if train is None else "loss")
        by_block: protocols.BlockCriterion = protocols.find("block criterion", name)
        blocks = by_block(bundle, graph, train, seed=seed)
        if settings.scope == "blocks":
            return Importance.of_blocks(graph, blocks)
    criterion: protocols.Criterion = protocols.find("criterion", settings.criterion)
    channels = criterion(bundle, graph, train, seed=seed)
    return Importance("channels", channels) if settings.scope == "channels" else Importance("both", channels, blocks)
