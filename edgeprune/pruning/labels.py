"""Labels: which channel every element of a tensor belongs to, kept beside the tensor as it flows through a network.

A label is a float64 tensor of the shape of what it labels (float64, since every operation that moves values about
takes it, and it holds every integer up to 2^53). 0 stands for values that belong to no channel: the image, constants.
Labels that have to go together are noted as ties, and resolved once, at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(slots=True, eq=False)
class Ties:
    """Labels that go together, labels that must stay, and labels that were lost, with the reason."""

    count: int = 1
    pairs: list[Tensor] = field(default_factory=list)
    fixed: list[Tensor] = field(default_factory=list)
    lost: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def fresh(self, count: int) -> Tensor:
        """`count` new labels, float64 (count,)."""
        self.count += count
        return torch.arange(self.count - count, self.count, dtype=torch.float64)

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Labels at the same position (shapes broadcast) go together; 0 ties nothing."""
        one, other = together(one, other)
        here = (one != other) & (one != 0) & (other != 0)
        if bool(here.any()):
            pairs = torch.stack([one[here], other[here]])
            self.pairs.append(torch.unique(pairs, dim=1))

    def tie_along(self, label: Tensor, dim: int) -> Tensor:
        """Everything along a dimension goes together. The label of what is left of it, the dimension kept as 1."""
        kept = label.amax(dim, keepdim=True)
        self.tie(label, kept)
        return kept

    def of_slices(self, label: Tensor, dim: int) -> Tensor:
        """One label for each index of `dim`, (size,): whatever lies at the same index goes together."""
        columns = compact(label).movedim(dim, 0)
        columns = columns.reshape(columns.shape[0], -1)
        kept = columns.amax(1)
        self.tie(columns, kept[:, None])
        return kept if len(kept) == label.shape[dim] else kept.expand(label.shape[dim])

    def fix(self, label: Tensor) -> None:
        """The channels of these labels cannot go."""
        self.fixed.append(compact(label).flatten())

    def lose(self, label: Tensor, reason: str) -> None:
        """The channels of these labels cannot be followed."""
        found = compact(label).flatten()
        if bool((found != 0).any()):
            self.lost[reason].append(found)

    def resolved(self) -> Ints:
        """The class of every label; labels of one class go together."""
        if not self.pairs:
            return np.arange(self.count)
        one, other = torch.cat(self.pairs, 1).numpy().astype(np.int64)
        edges = coo_matrix((np.ones(len(one), dtype=np.int8), (one, other)), shape=(self.count, self.count))
        classes: Ints = connected_components(edges, directed=False)[1].astype(np.int64)
        return classes


def compact(label: Tensor) -> Tensor:
    """The label without its repetitions: dimensions along which nothing varies have size 1."""
    for dim in range(label.dim()):
        if label.shape[dim] > 1 and (label.stride(dim) == 0 or not varies(label, dim)):
            label = label.narrow(dim, 0, 1)
    return label


def spread(label: Tensor) -> Tensor:
    """The label in a form that costs no memory where it repeats itself."""
    return compact(label).expand(label.shape)


def varies(label: Tensor, dim: int) -> bool:
    """Does the label change along a dimension?"""
    if label.shape[dim] < 2 or label.stride(dim) == 0:
        return False
    return not bool((label == label.narrow(dim, 0, 1)).all())


def together(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both without their repetitions, broadcast to one another."""
    one, other = compact(one), compact(other)
    shape = torch.broadcast_shapes(one.shape, other.shape)  # type: ignore[no-untyped-call]
    return one.expand(shape), other.expand(shape)


def segments(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Dimensions of two shapes of one size that hold the same elements, from left to right."""
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        size, wanted = (before[i] if left else 1), (after[j] if right else 1)
        i, j = i + 1, j + 1
        while size != wanted:
            if size < wanted:
                size, left, i = size * before[i], [*left, i], i + 1
            else:
                wanted, right, j = wanted * after[j], [*right, j], j + 1
        yield left, right
