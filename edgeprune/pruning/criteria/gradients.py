"""Importance from gradients: what the loss does when a channel goes, to first and to second order.

A channel goes when nothing reads it, as in `edgeprune.pruning.surgery.silence`: a gate between a channel and all that
reads it closes from 1 to 0. The bundle that is scored is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn

from edgeprune.errors import PruningError, UsageError
from edgeprune.protocols import Criterion
from edgeprune.pruning.criteria.scoring import by_unit, channel_axis, drawn, private, readers, scores_of
from edgeprune.pruning.surgery import per_unit, weight_name
from edgeprune.types import AttackBudget, ChannelGraph, Group, ModelBundle, Scores, Split

_TAYLOR_IMAGES, _BATCH = 2048, 128
_OBD_IMAGES, _OBD_BATCH = 512, 16
_ALL_LABELS, _DRAWN_LABELS = 10, 2
ADVERSARIAL_EPSILON = 8 / 255
"""Share of the pixels' range, linf: see `adv_taylor`."""
_ADVERSARIAL_STEPS = 5

Prepare = Callable[[nn.Module, Tensor, Tensor], Tensor]


def taylor(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Squared first-order change of the loss when a channel goes (Molchanov et al. 2019).

    (Sum over the weights that read the channel of gradient times weight)^2, which is the squared gradient at a gate
    of 1 on the channel; averaged over batches of 128 of at most 2,048 training images, drawn by the seed. Errors:
    UsageError without labelled training data; PruningError when a gradient is not finite.
    """
    chosen = drawn("taylor", train, _TAYLOR_IMAGES, seed)
    return _first_order("taylor", bundle, graph, chosen, lambda network, images, labels: images)


def adv_taylor(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """`taylor` of the adversarial loss: gradients at PGD examples of the dense network (Madry et al. 2018; scores from
    a robust objective as in Sehwag et al. 2020, "HYDRA").

    Five steps from one random start in the linf ball of 8/255 of the pixels' range: a constant, since a criterion is
    given no threat model, and the default of the `attack.eps` that is measured. `adv_taylor_at` sets another. Nothing
    that is reported is measured with it. Errors: those of `taylor`.
    """
    low, high = bundle.preprocessing.bounds
    budget = AttackBudget("linf", ADVERSARIAL_EPSILON * (high - low), _ADVERSARIAL_STEPS, 1, seed)
    return _under_attack("adv-taylor", bundle, graph, drawn("adv-taylor", train, _TAYLOR_IMAGES, seed), budget)


def adv_taylor_at(epsilon: str) -> Criterion:
    """`adv_taylor` at an epsilon of your own, in pixel units as in `attack.eps`: ``adv-taylor:2/255``.

    Worth setting where 8/255 leaves nothing standing: gradients at images that are lost anyway say little. Errors:
    UsageError when it is no positive number.
    """
    name = f"adv-taylor:{epsilon}"
    try:
        radius = float(Fraction(epsilon))
    except (ValueError, ZeroDivisionError):
        radius = 0.0
    if not radius > 0:
        raise UsageError(f"unknown criterion: {name}", hint="an epsilon in pixel units follows, as in adv-taylor:2/255")

    def criterion(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
        budget = AttackBudget("linf", radius, _ADVERSARIAL_STEPS, 1, seed)
        return _under_attack(name, bundle, graph, drawn(name, train, _TAYLOR_IMAGES, seed), budget)

    return criterion


def thin_taylor(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """`taylor` in which images on thin ice weigh more: those near the dense network's decision boundary.

    An image's distance is that of the linearised boundary to the runner-up class, margin over the l2 norm of its
    gradient (the step of Moosavi-Dezfooli et al. 2016, "DeepFool"), in pixel units; its weight is 2^(-distance / median
    distance): 1 on the boundary, 1/2 at the median. Weighing images by their distance to the boundary is Zhang et al.
    2021, "Geometry-aware Instance-reweighted Adversarial Training", done there for training. Errors: those of `taylor`;
    PruningError when no image has a boundary.
    """
    chosen = drawn("thin-taylor", train, _TAYLOR_IMAGES, seed)
    network = private(bundle).network()
    far = torch.cat([boundary_distances(network, torch.from_numpy(pixels)) for pixels, _ in chosen.batches(_BATCH)])
    near = far[torch.isfinite(far)]
    if not len(near):
        raise PruningError(
            "the criterion thin-taylor finds no decision boundary: all gradients vanish or are not finite",
            hint="use --criterion taylor",
        )
    weights = torch.exp2(-far / near.median().clamp_min(torch.finfo(torch.float64).tiny))
    return _first_order("thin-taylor", bundle, graph, chosen, lambda network, images, labels: images, weights)


def boundary_distances(network: nn.Module, images: Tensor) -> Tensor:
    """Linearised l2 distance of each image to the boundary between its class and the runner-up, float64 (N,), >= 0.

    images: float32 (N, C, H, W) pixels. Infinite where the gradient vanishes.
    """
    with torch.enable_grad():
        points = images.detach().clone().requires_grad_(True)
        best = network(points).topk(2, dim=1).values
        margins = best[:, 0] - best[:, 1]
        (slopes,) = torch.autograd.grad(margins.sum(), points)
    lengths = slopes.double().flatten(1).norm(dim=1).cpu()
    return torch.where(lengths > 0, margins.detach().double().cpu() / lengths, torch.inf)


def obd(bundle: ModelBundle, graph: ChannelGraph, train: Split | None, *, seed: int) -> Scores:
    """Optimal brain damage: half the second derivative of the loss at a gate on each channel (LeCun et al. 1990).

    The Hessian's diagonal in its Gauss-Newton form, which for cross-entropy is the Fisher information: the mean over
    images, and over labels as the *network* believes them, of the squared gradient at the gate. Per image, not per
    batch (Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", who take the data's
    labels). It is the exact second derivative where logits are linear in the gate. Up to ten classes it is computed,
    beyond that estimated from two labels an image, drawn by the seed. At most 512 training images. As in the paper
    the first order is left out: the network is taken to be trained. Errors: those of `taylor`.
    """
    chosen = drawn("obd", train, _OBD_IMAGES, seed)
    working = private(bundle)
    network = working.network()
    generator = torch.Generator().manual_seed(seed)
    sums = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in graph.groups}
    with _gated(working.module, graph) as gates, torch.enable_grad():
        for images, _ in chosen.batches(_OBD_BATCH):
            gates.placed.clear()
            logits = network(torch.from_numpy(images))
            for labels, shares in _believed(logits.detach(), generator):
                losses = nn.functional.cross_entropy(logits, labels, reduction="none")
                slopes = gates.slopes(losses.sum(), len(images))
                for group in graph.groups:
                    sums[group.name] += shares @ _of_group(slopes, group, len(images)).square()
    return scores_of("obd", graph, lambda group: sums[group.name] / (2 * len(chosen)))


def _under_attack(name: str, bundle: ModelBundle, graph: ChannelGraph, train: Split, budget: AttackBudget) -> Scores:
    """`_first_order` at the ends of PGD's steps from one random start."""
    from edgeprune.robustness.attacks.descent import step_lengths
    from edgeprune.robustness.gradients import input_gradients
    from edgeprune.robustness.norms import ascend, box, project, random_starts

    def attacked(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        limits = box(images, budget, bundle.preprocessing.bounds)
        points = project(images + random_starts(images, budget, 0), images, limits, budget)
        for step in range(budget.steps):
            gradients, _ = input_gradients(network, points, labels)
            lengths = step_lengths(torch.full((len(images),), step), budget)
            points = project(ascend(points, gradients, lengths, budget.norm), images, limits, budget)
        return points

    return _first_order(name, bundle, graph, train, attacked)


def _first_order(
    name: str,
    bundle: ModelBundle,
    graph: ChannelGraph,
    train: Split,
    prepare: Prepare,
    weights: Tensor | None = None,
) -> Scores:
    """Squared effect of each unit, summed over batches of what `prepare` makes of the images.

    `weights`, float64 (N,): how much each image of `train` counts, in its order.
    """
    working = private(bundle)
    module, network = working.module, working.network()
    sums = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in graph.groups}
    start = 0
    for pixels, classes in train.batches(_BATCH):
        labels = torch.from_numpy(classes)
        images = prepare(network, torch.from_numpy(pixels), labels)
        share = torch.ones(len(labels)) if weights is None else weights[start : start + len(labels)].float()
        start += len(labels)
        module.zero_grad(set_to_none=True)
        with torch.enable_grad():
            losses = nn.functional.cross_entropy(network(images), labels, reduction="none")
            (losses * share).mean().backward()  # type: ignore[no-untyped-call]
        for group in graph.groups:
            sums[group.name] += _effect(module, group).square()
    return scores_of(name, graph, lambda group: sums[group.name])


def _effect(module: nn.Module, group: Group) -> Tensor:
    """Gradient times weight, summed over all weights that read a unit. float64 (width,)."""
    total = torch.zeros(group.width, dtype=torch.float64)
    known = dict(module.named_parameters())
    for member in group.members:
        name = weight_name(member)
        weight = known.get(name) if member.role in ("in", "zero") else None
        if weight is not None and weight.grad is not None:
            effect = weight.detach().double() * weight.grad.double()
            total += per_unit(module.get_submodule(name.rpartition(".")[0]), effect, member)
    return total


def _believed(logits: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Labels (N,) and how much each counts, float64 (N,): all classes by their probability, or two draws."""
    probabilities = logits.double().softmax(1)
    if not bool(torch.isfinite(probabilities).all()):
        raise PruningError("the criterion obd finds logits that are not finite")
    classes = logits.shape[1]
    if classes <= _ALL_LABELS:
        for label in range(classes):
            yield torch.full((len(logits),), label), probabilities[:, label].cpu()
        return
    draws = torch.multinomial(probabilities.cpu(), _DRAWN_LABELS, replacement=True, generator=generator)
    for labels in draws.T:
        yield labels.to(logits.device), torch.full((len(logits),), 1 / _DRAWN_LABELS, dtype=torch.float64)


@dataclass(slots=True, eq=False)
class _Gates:
    """Gates of 1 on what every reader reads, one for each image and channel, in the order of the calls."""

    placed: list[tuple[str, Tensor]] = field(default_factory=list)

    def slopes(self, loss: Tensor, images: int) -> dict[str, Tensor]:
        """Layer name -> gradient at its gates, float64 (images, input channels).

        A layer may see an image in several pieces (windows), which follow each other along its first dimension.
        """
        gates = [gate for _, gate in self.placed]
        found = torch.autograd.grad(loss, gates, retain_graph=True, allow_unused=True, materialize_grads=True)
        slopes: dict[str, Tensor] = {}
        for (name, _), slope in zip(self.placed, found, strict=True):
            if slope.shape[0] % images:
                raise PruningError(
                    f"the criterion obd cannot tell images apart in {name}",
                    where=f"it reads {slope.shape[0]} pieces of {images} images",
                    hint="use --criterion taylor",
                )
            whole = slope.double().reshape(images, -1, slope.shape[1]).sum(1)
            slopes[name] = slopes[name] + whole if name in slopes else whole
        return slopes


@contextmanager
def _gated(module: nn.Module, graph: ChannelGraph) -> Iterator[_Gates]:
    """Puts gates before every layer that reads a group's channels, for as long as the context lasts."""
    gates, hooks = _Gates(), []
    for name in sorted(readers(graph.groups)):

        def close(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> tuple[Tensor, ...]:
            seen, axis = inputs[0], channel_axis(layer)
            gate = torch.ones(seen.shape[0], seen.shape[axis], dtype=seen.dtype, device=seen.device, requires_grad=True)
            gates.placed.append((name, gate))
            shape = [1] * seen.ndim
            shape[0], shape[axis] = gate.shape
            return (seen * gate.view(shape), *inputs[1:])

        hooks.append(module.get_submodule(name).register_forward_pre_hook(close))
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


def _of_group(slopes: dict[str, Tensor], group: Group, images: int) -> Tensor:
    """Gradient at one gate for each image and unit, whatever reads the unit. float64 (images, width)."""
    total = torch.zeros(images, group.width, dtype=torch.float64)
    for member in group.members:
        if member.role == "in" and member.name in slopes:
            total += by_unit(slopes[member.name], member)
    return total
