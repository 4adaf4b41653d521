"""What makes a block important. Each criterion is a function; each is registered like a third party's.

`magnitude` and `random` need nothing but the network; `taylor`, `cka` and `loss` look at training images, at most
512 of them, drawn by the seed. Every criterion's numbers are divided by their mean over the blocks, so that a score of
1 is an average block's; what such a block is worth in channels stands in `block_allocation`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import PruningError
from edgeprune.pruning.block_proof import gated, watched
from edgeprune.pruning.block_surgery import remove
from edgeprune.pruning.criteria.scoring import drawn, private
from edgeprune.types import BlockScores, ChannelGraph, ModelBundle, Split

_IMAGES, _BATCH = 512, 128
_NORMALISED = "mean of the blocks = 1"


def magnitude(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> BlockScores:
    """How much a block can add: root mean square of the weights at the ends of its branches.

    These are the weights whose zeros silence the block: the scale of its last batch norm (Ye et al. 2018, for
    channels) or layer scale, else its last layer, where each row counts with its length, so that wide layers do not
    seem weak. A link of a chain, which adds nothing, has the mean of the others. No data, no seed.
    """
    raw: dict[str, float] = {}
    for block in graph.blocks:
        part = bundle.module.get_submodule(block.name)
        weights = [part.get_parameter(name).detach().double() for name in block.silencers if not name.endswith("bias")]
        if weights:
            sizes = [float(_rows(weight).square().mean()) for weight in weights]
            raw[block.name] = math.sqrt(sum(sizes) / len(sizes))
    usual = sum(raw.values()) / len(raw) if raw else 1.0
    blind = sum(block.name not in raw for block in graph.blocks)
    note = f"; {blind} of {len(graph.blocks)} blocks add nothing to their input and have the mean" if blind else ""
    return _scores("magnitude", graph, {b.name: raw.get(b.name, usual) for b in graph.blocks}, note)


def random(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> BlockScores:
    """Uniform numbers, drawn by the seed: what every other criterion has to beat."""
    generator = np.random.default_rng(seed)
    return _scores("random", graph, {block.name: float(generator.random()) for block in graph.blocks})


def taylor(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> BlockScores:
    """Sum over a block's gates, one a channel, of the squared first-order change of the loss when a gate closes.

    Molchanov et al. 2019, with the gates on what the block adds to what would stay in its place; averaged over batches
    of training images. Errors: UsageError without training data; PruningError when a gradient is not finite.
    """
    chosen = drawn("taylor", train, _IMAGES, seed)
    working = private(bundle)
    network = working.network()
    sums = {block.name: 0.0 for block in graph.blocks}
    with torch.enable_grad(), gated(working.module, graph.blocks, channels=True) as gates:
        for images, labels in chosen.batches(_BATCH):
            loss = nn.functional.cross_entropy(network(torch.from_numpy(images)), torch.from_numpy(labels))
            slopes = torch.autograd.grad(loss, list(gates.values()))
            for name, slope in zip(gates, slopes, strict=True):
                sums[name] += float(slope.double().square().sum())
    return _scores("taylor", graph, sums)


def cka(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> BlockScores:
    """How far a block's output is from its input: 1 - linear CKA (Kornblith et al. 2019).

    In minibatches, with the unbiased estimate of HSIC, summed before they are divided (Nguyen et al. 2021). Labels
    are not looked at. Errors: UsageError without training data; PruningError with fewer than four images.
    """
    chosen = drawn("cka", train, _IMAGES, seed)
    if len(chosen) < _FEWEST:
        raise PruningError(
            f"the block criterion cka needs {_FEWEST} training images", hint="use --block-criterion magnitude"
        )
    working = private(bundle)
    network = working.network()
    sums = {block.name: np.zeros(3) for block in graph.blocks}

    def look(name: str, given: Tensor, output: Tensor) -> None:
        if len(given) >= _FEWEST:
            one, other = (_similarities(tensor) for tensor in (given, output))
            sums[name] += [_hsic(one, other), _hsic(one, one), _hsic(other, other)]

    with torch.no_grad(), watched(working.module, graph.blocks, look):
        for images, _ in chosen.batches(_BATCH):
            network(torch.from_numpy(images))
    distances = {}
    for name, (between, first, second) in sums.items():
        alike = between / math.sqrt(first * second) if first > 0 and second > 0 else 0.0
        distances[name] = max(0.0, 1 - alike)
    return _scores("cka", graph, distances)


def loss(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> BlockScores:
    """How much the cross-entropy on training images rises when the block alone is removed.

    Where it falls without a block, all rises are counted from the deepest fall. The network is run once a block.
    Errors: UsageError without labelled training data.
    """
    chosen = drawn("loss", train, _IMAGES, seed)
    dense = _loss_of(bundle, bundle.module, chosen)
    rises = {
        block.name: _loss_of(bundle, remove(bundle.module, [block], share=True), chosen) - dense
        for block in graph.blocks
    }
    deepest = min(0.0, *rises.values()) if rises else 0.0
    return _scores("loss", graph, {name: rise - deepest for name, rise in rises.items()})


_FEWEST = 4


def check_block_scores(graph: ChannelGraph, scores: BlockScores) -> None:
    """PruningError unless every block has one finite score that is not negative: a criterion may be a plugin."""
    for block in graph.blocks:
        value = scores.values.get(block.name)
        if value is None or not math.isfinite(value) or value < 0:
            raise PruningError(
                f"the block criterion {scores.criterion} does not score {block.name}",
                where=f"it needs one finite number that is not negative, and there is {value}",
                hint="use another --block-criterion; of training data, look for images or labels that are odd",
            )


def _scores(name: str, graph: ChannelGraph, raw: Mapping[str, float], note: str = "") -> BlockScores:
    if not all(math.isfinite(value) for value in raw.values()):
        raise PruningError(f"the block criterion {name} finds scores that are not finite")
    mean = sum(raw.values()) / max(1, len(raw))
    values = {block.name: raw[block.name] / mean if mean > 0 else 1.0 for block in graph.blocks}
    return BlockScores(name, values, _NORMALISED + note)


def _rows(weight: Tensor) -> Tensor:
    """Length of each row of a layer's weight; a scale as it is."""
    return weight.flatten(1).norm(dim=1) if weight.dim() > 1 else weight


def _loss_of(bundle: ModelBundle, module: nn.Module, images: Split) -> float:
    network = dataclasses.replace(bundle, module=module.eval()).network()
    total = 0.0
    with torch.no_grad():
        for pixels, labels in images.batches(_BATCH):
            logits = network(torch.from_numpy(pixels))
            total += float(nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum"))
    return total / len(images)


def _similarities(tensor: Tensor) -> Tensor:
    """Inner products of the images' representations without the diagonal: float64 (N, N)."""
    flat = tensor.flatten(1).double()
    return (flat @ flat.T).fill_diagonal_(0)


def _hsic(one: Tensor, other: Tensor) -> float:
    """Unbiased estimate of HSIC from two matrices of similarities without diagonals (Song et al. 2012)."""
    n = len(one)
    trace = float((one * other).sum())
    means = float(one.sum() * other.sum()) / ((n - 1) * (n - 2))
    mixed = 2 / (n - 2) * float(one.sum(0) @ other.sum(0))
    return (trace + means - mixed) / (n * (n - 3))
