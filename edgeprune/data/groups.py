"""Which samples show one and the same thing: frames of one sign, pictures of one patient.

Data may say so, in an array or a column: `group` is numbered (or named) across the whole data, `track` within each
class, as in GTSRB. Where it is said, the part of the training split that is held out never shares a group with the
part that is trained on: otherwise held-out accuracy would tell how well frames are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import DataError

if TYPE_CHECKING:
    from edgeprune.types import Ints

_ACROSS, _WITHIN = ("group", "groups"), ("track", "tracks")


def groups_in(names: Collection[str], read: Callable[[str], Any], labels: Ints, where: str) -> Ints | None:
    """The group of every sample, int64 (N,), numbered from 0; None where the data names none.

    `names`: arrays or columns that there are; `read` gives one, (N,) numbers or texts. DataError: one of another shape.
    """
    name = next((each for each in (*_ACROSS, *_WITHIN) if each in names), None)
    if name is None:
        return None
    given = np.asarray(read(name))
    if given.shape != labels.shape or given.dtype.kind not in "iuUS":
        raise DataError(
            f"{name} in {where} is {given.dtype} of shape {given.shape}",
            where=f"there are {len(labels)} samples",
            hint="a group is one whole number, or one name, a sample; leave the array out where there are none",
        )
    numbers = np.unique(given, return_inverse=True)[1].astype(np.int64)
    if name in _WITHIN:
        numbers = np.unique(numbers * (int(labels.max()) + 1) + labels, return_inverse=True)[1].astype(np.int64)
    return numbers
