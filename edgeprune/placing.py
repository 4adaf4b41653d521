"""Prices of layers, corrected by whole networks that are timed as they are: for small networks and goals in time.

Promise: what is timed here steers a search and is reported nowhere as a latency; where networks cannot be timed
together the prices stay those of layers alone, and the plan says which prices it rests on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from edgeprune.console import Console
from edgeprune.errors import MeasurementError

if TYPE_CHECKING:
    from edgeprune.gauging import Timer
    from edgeprune.planning import Wish
    from edgeprune.pruning.block_allocation import Choice
    from edgeprune.pruning.in_place import Placed
    from edgeprune.pruning.timed import TimedChoices
    from edgeprune.types import ModelBundle

_LONGEST_MS = 2.0
"""Of the layers of the dense network: beyond, layers cost what they cost alone, and networks take long to time."""
_PARTS = 0.4, 0.2, 0.2, 0.2
"""Of the networks: each part is drawn around the best that the parts before it know of."""
_SECONDS = 20.0  # a part may take
_NOISY, _SLACK = 0.06, 0.002  # prices that are off by more, or by more than layers alone, tell nothing


def in_place(
    timed: TimedChoices,
    time: Timer,
    bundle: ModelBundle,
    wish: Wish,
    network_of: Callable[[Choice], ModelBundle],
    console: Console,
) -> tuple[TimedChoices, tuple[str, ...]]:
    """The choices at corrected prices, and a note that says what they rest on; as they were where that cannot be.

    Of the networks that were timed, those that keep to the goal are known to the choices.
    """
    import numpy as np

    from edgeprune.pruning.block_allocation import Choice
    from edgeprune.pruning.drawing import around, fast_enough, promising
    from edgeprune.pruning.in_place import FEWEST, Seen, placed

    groups = timed.graph.groups
    alone_ms = float(timed.prices(timed.graph).total(np.zeros(len(groups))))
    if wish.settings.in_place < FEWEST or alone_ms > _LONGEST_MS or wish.settings.scope == "blocks":
        return timed, ()
    goal, draw = wish.goal, np.random.default_rng(wish.seed)
    whole = Choice({group.name: group.width for group in groups})
    share = 1 / goal.value if goal.kind == "speedup" else goal.value / time(bundle).latency_ms
    choices, found = {_key(whole): whole}, dict[str, float]()
    learnt: Placed | None = None
    with console.task("timing whole networks") as progress:
        for part in _PARTS:
            count = round(part * wish.settings.in_place)
            seen = [Seen(choices[key], each) for key, each in found.items()]
            drawn = promising(learnt, seen, share, count, draw) if learnt else around(timed, share, count, draw)
            fresh = {_key(choice): choice for choice in drawn}
            if not fresh:
                break
            choices |= fresh
            wanted: dict[str, Callable[[], ModelBundle]] = {key: partial(network_of, one) for key, one in fresh.items()}
            wanted[_key(whole)] = lambda: bundle
            try:
                found |= time.together(wanted, _SECONDS, progress)
            except MeasurementError as error:
                console.warn(f"{error.what}: layers are priced alone")
                return timed, ()
            if len(found) < FEWEST:
                return timed, ()
            learnt = placed(timed, [Seen(choices[key], each) for key, each in found.items()])
    if learnt is None:  # nothing to draw
        return timed, ()
    if learnt.error > min(learnt.before + _SLACK, _NOISY):
        return timed, ("whole networks were timed in too much noise to tell more than layers alone",)
    known = fast_enough(learnt, list(choices.values()), share)
    told = f"off by {learnt.error:.1%} where layers alone are by {learnt.before:.1%} (standard deviation)"
    return replace(learnt.timed, known=known), (
        f"widths were priced by {learnt.networks} whole networks that were timed: {told}",
    )


def _key(choice: Choice) -> str:
    return " ".join(f"{name}:{width}" for name, width in choice.widths.items())
