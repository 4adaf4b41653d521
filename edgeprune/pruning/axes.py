"""What each index of each dimension stands for: labels that are followed through a forward pass.

A *label* says when an index of a dimension goes: an index with the label {h, d} (channel d of head h) goes when h goes
or when d goes. Labels are sets of *atoms*. Layers that meet make atoms the same; a dimension that is viewed as two
makes an atom stand for two. Whatever cannot be said exactly is frozen: its atoms never go. Positions (batch, height,
tokens) have no labels at all: they never go either.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

Labels = np.ndarray[tuple[int], np.dtype[np.int64]]
"""A term for each index of a dimension. FIXED: it never goes. OPEN: nothing is known yet, and anything fits."""
FIXED, OPEN = 0, 1
_MOST = 300_000
"""Indices of one dimension that are looked at one by one: beyond, it is frozen."""


class Axes:
    """Atoms, and what is known of them: which are the same, which stand for several, which never go."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._stands_for: dict[int, frozenset[int]] = {}
        self._birth: list[tuple[int, int]] = []  # (size of the axis it was made with, its index there)
        self._axis: list[int] = []
        self._frozen: dict[int, str] = {}
        self._terms: list[frozenset[int]] = [frozenset(), frozenset()]
        self._known: dict[frozenset[int], int] = {}
        self._axes = itertools.count()

    # ------------------------------------------------------------------------------------------------ atoms

    def fresh(self, size: int) -> Labels:
        """New atoms, one an index."""
        axis, start = next(self._axes), len(self._parent)
        self._parent += range(start, start + size)
        self._birth += [(size, index) for index in range(size)]
        self._axis += [axis] * size
        return np.array([self._term(frozenset({start + index})) for index in range(size)], dtype=np.int64)

    def axis_of(self, atom: int) -> int:
        """The axis that an atom was made with."""
        return self._axis[atom]

    def frozen(self, atom: int) -> str | None:
        """Why an atom never goes; None when it may."""
        return self._frozen.get(self._root(atom))

    def atoms(self, term: int) -> frozenset[int]:
        """What a term stands for now."""
        return self.settled(self._terms[term])

    def settled(self, atoms: frozenset[int]) -> frozenset[int]:
        """What atoms that were seen earlier stand for now."""
        found: set[int] = set()
        waiting = list(atoms)
        while waiting:
            root = self._root(waiting.pop())
            if root in self._stands_for:
                waiting += self._stands_for[root]
            else:
                found.add(root)
        return frozenset(found)

    def freeze(self, labels: Labels | None, reason: str) -> None:
        """None of these indices ever goes."""
        for term in () if labels is None else np.unique(labels).tolist():
            for atom in self.atoms(term):
                self._frozen.setdefault(atom, reason)

    # ------------------------------------------------------------------------------------------- dimensions

    def same(self, one: Labels | None, other: Labels | None, reason: str = "it is added to positions") -> Labels | None:
        """Two dimensions that go together, index by index; the labels of what comes of them."""
        if one is None or other is None:
            self.freeze(one, reason)
            self.freeze(other, reason)
            return None
        if one is other or np.array_equal(one, other):
            return one
        for left, right in set(zip(one.tolist(), other.tolist(), strict=True)):
            if left != right and OPEN not in (left, right):
                self._unify(left, right, reason)
        return np.where(one == OPEN, other, one)

    def merge(self, sizes: Sequence[int], parts: Sequence[Labels | None]) -> Labels | None:
        """The labels of dimensions that become one, in row-major order."""
        if all(part is None for part in parts):
            return None
        labels, length = np.zeros(1, dtype=np.int64), 1
        for size, part in zip(sizes, parts, strict=True):
            length *= size
            if length > _MOST:
                for each in parts:
                    self.freeze(each, "a view makes one dimension of too many")
                return None
            if part is None:
                labels = np.repeat(labels, size)
            elif not labels.any():
                labels = np.tile(part, len(labels))
            else:
                labels = np.array([self._both(a, b) for a in labels.tolist() for b in part.tolist()], dtype=np.int64)
        return labels

    def split(self, labels: Labels | None, sizes: Sequence[int]) -> list[Labels | None]:
        """The labels of the dimensions that one becomes, in row-major order."""
        if labels is None or len(sizes) == 0:
            return [None for _ in sizes]
        if sizes[0] == 1:
            return [None, *self.split(labels, sizes[1:])]
        if int(np.prod(sizes)) == sizes[0]:
            return [labels, *(None for _ in sizes[1:])]
        first, rest = self._halves(self._canonical(labels).reshape(sizes[0], -1))
        return [first, *self.split(rest, sizes[1:])]

    # ------------------------------------------------------------------------------------------------ inside

    def _halves(self, grid: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> tuple[Labels | None, Labels | None]:
        if bool((grid == grid[:, :1]).all()):
            return grid[:, 0], None
        if bool((grid == grid[:1]).all()):
            return None, grid[0]
        if grid.size > _MOST:
            self.freeze(grid.ravel(), "a view splits a dimension of too many")
            return None, None
        sets = [[self.atoms(term) for term in row] for row in grid.tolist()]
        rows = [frozenset.intersection(*row) for row in sets]
        columns = [frozenset.intersection(*column) for column in zip(*sets, strict=True)]
        exact = all(sets[i][j] == rows[i] | columns[j] for i in range(len(rows)) for j in range(len(columns)))
        if exact:
            return self._array(rows), self._array(columns)
        flat = [atoms for row in sets for atoms in row]
        if all(len(atoms) == 1 for atoms in flat) and len(set(flat)) == len(flat):
            first, rest = self.fresh(len(rows)), self.fresh(len(columns))
            for i, j in itertools.product(range(len(rows)), range(len(columns))):
                (atom,) = sets[i][j]
                self._define(atom, self.atoms(int(first[i])) | self.atoms(int(rest[j])))
            return first, rest
        self.freeze(grid.ravel(), "a view splits its channels in two different ways")
        return None, None

    def _unify(self, left: int, right: int, reason: str) -> None:
        one, other = self.atoms(left), self.atoms(right)
        if not one or not other:  # FIXED meets what could go
            for atom in one | other:
                self._frozen.setdefault(atom, reason)
            return
        one, other = one - other, other - one
        for a, b in list(self._partners(one, other)):
            self._join(a, b)
            one, other = one - {a}, other - {b}
        if not one and not other:
            return
        if len(one) == 1 and other:
            self._define(next(iter(one)), other)
        elif len(other) == 1 and one:
            self._define(next(iter(other)), one)
        else:
            for atom in one | other:
                self._frozen.setdefault(atom, "it is added to channels of another layout")

    def _partners(self, one: frozenset[int], other: frozenset[int]) -> Iterator[tuple[int, int]]:
        """Atoms of two labels that were made with axes of the same size at the same index."""
        if len(one) == len(other) == 1:
            yield next(iter(one)), next(iter(other))
        elif len(one) > 1 and len(other) > 1:
            places = {self._birth[atom]: atom for atom in other}
            if len(places) == len(other) and len({self._birth[atom] for atom in one}) == len(one):
                yield from ((atom, places[self._birth[atom]]) for atom in one if self._birth[atom] in places)

    def _join(self, a: int, b: int) -> None:
        a, b = sorted((self._root(a), self._root(b)))
        if a == b:
            return
        if a in self._stands_for or b in self._stands_for:
            self._unify(self._term(frozenset({a})), self._term(frozenset({b})), "")
            return
        self._parent[b] = a
        if b in self._frozen:
            self._frozen.setdefault(a, self._frozen.pop(b))

    def _define(self, atom: int, as_atoms: frozenset[int]) -> None:
        """From now on the atom stands for several."""
        atom = self._root(atom)
        expanded = self.atoms(self._term(as_atoms))
        if atom in expanded:
            for each in expanded:
                self._frozen.setdefault(each, "its channels depend on each other")
            return
        self._stands_for[atom] = expanded
        if atom in self._frozen:
            for each in expanded:
                self._frozen.setdefault(each, self._frozen[atom])

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def _term(self, atoms: frozenset[int]) -> int:
        if not atoms:
            return FIXED
        if atoms not in self._known:
            self._known[atoms] = len(self._terms)
            self._terms.append(atoms)
        return self._known[atoms]

    def _both(self, one: int, other: int) -> int:
        if OPEN in (one, other):
            return other if one == OPEN else one
        return self._term(self._terms[one] | self._terms[other])

    def _array(self, sets: Sequence[frozenset[int]]) -> Labels | None:
        labels = np.array([self._term(atoms) for atoms in sets], dtype=np.int64)
        return labels if labels.any() else None

    def _canonical(self, labels: Labels) -> Labels:
        """The same labels, with one term for each set of atoms."""
        terms, where = np.unique(labels, return_inverse=True)
        same = np.array([OPEN if term == OPEN else self._term(self.atoms(term)) for term in terms.tolist()])
        return same[where].astype(np.int64)
