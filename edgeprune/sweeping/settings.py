"""`[sweep]` of edgeprune.toml: which settings have several values, and how their combinations are tried.

    [sweep.prune]
    speedup = [1.5, 2, 3]
    criterion = ["l2", "taylor"]

    [sweep.recover]
    recipe = ["finetune", "distill"]

Promise: only what makes the file may differ between points. The model, the test data, the target, the threat model and
the way of timing are what points are compared by: they are one for all.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from edgeprune.quantities import Minutes
from edgeprune.sections import Section, setting

Alternatives = dict[str, tuple[Any, ...]]
SWEPT = ("prune", "recover")
"""The sections whose settings may have several values."""


class SweepConfig(Section):
    budget: Minutes | None = setting(
        None, "Search for so long, guided by what was found (Optuna), in place of the whole grid."
    )
    points: int | None = setting(None, "Search with at most so many points, guided by what was found (Optuna).", gt=0)
    engine: Literal["local", "ray"] = setting(
        "local", "Where points run: here, one after the other, or on the nodes of a Ray cluster."
    )
    address: str | None = setting(
        None, "The Ray cluster: auto, or host:port (default: one on this machine, for this sweep alone)."
    )
    log: Literal["mlflow"] | None = setting(None, "Log each point as a run of MLflow, too, where that is installed.")
    prune: Alternatives = Field({}, description="Settings of [prune], each with a list of values.")
    recover: Alternatives = Field({}, description="Settings of [recover], each with a list of values.")

    @field_validator("prune", "recover")
    @classmethod
    def _some_values(cls, axes: Alternatives) -> Alternatives:
        for name, values in axes.items():
            if not values:
                raise ValueError(f"{name} has no value: give it a list with at least one")
        return axes

    @property
    def guided(self) -> bool:
        """Whether points are searched for, not all tried."""
        return self.budget is not None or self.points is not None
