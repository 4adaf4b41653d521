"""`[budget]` of edgeprune.toml: what a file must hold to ship, everywhere or for one runtime, precision or target.

    [budget]
    accuracy_drop = "1 pt"
    speedup = { min = "1.5x", level = "warn" }

    [budget.openvino]
    latency_ms = "2 ms"

Promise: a table of a name of its own (`[budget.openvino]`, `[budget.int8]`, `[budget.raspberry-pi-5]`) sets budgets for
what was measured in that runtime, precision or on that target, in the place of the general ones of the same names.
A budget is an error unless it says `warn`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from edgeprune.quantities import Bytes, Drop, Milliseconds, Share, Times
from edgeprune.sections import Section, setting

AT_LEAST = frozenset({"speedup", "accuracy", "robust_accuracy"})
"""Budgets that are floors; all others are ceilings."""

_FORM = {"min", "max", "level"}


@dataclass(frozen=True, slots=True)
class Rule:
    """One budget: `metric` within `limit`. `scope` names the runtime, precision or target that it is for ("": all)."""

    metric: str
    limit: float
    level: Literal["error", "warn"] = "error"
    scope: str = ""


class Limits(Section):
    """The budgets that can be set, everywhere or in a scope."""

    accuracy: Share | None = setting(None, "Smallest clean accuracy.", flag="min-accuracy")
    robust_accuracy: Share | None = setting(None, "Smallest robust accuracy.", flag="min-robust-accuracy")
    accuracy_drop: Drop | None = setting(None, "Largest drop of clean accuracy.", flag="max-accuracy-drop")
    robust_accuracy_drop: Drop | None = setting(
        None, "Largest drop of robust accuracy.", flag="max-robust-accuracy-drop"
    )
    latency_ms: Milliseconds | None = setting(None, "Largest p50.", flag="max-latency-ms")
    latency_p90_ms: Milliseconds | None = setting(None, "Largest p90.", flag="max-latency-p90-ms")
    speedup: Times | None = setting(None, "Smallest measured speed-up.", flag="min-speedup")
    size_bytes: Bytes | None = setting(None, "Largest file.", flag="max-size")
    size_ratio: Times | None = setting(None, "Largest file, as a share of the dense one.", flag="max-size-ratio")
    macs_ratio: Times | None = setting(None, "Most MACs, as a share of the dense network's.", flag="max-macs-ratio")
    memory_bytes: Bytes | None = setting(None, "Largest peak memory of a process that serves it.", flag="max-memory")
    warn: tuple[str, ...] = setting((), "Budgets that only warn.")

    @model_validator(mode="before")
    @classmethod
    def _with_levels(cls, given: object) -> object:
        """`speedup = { min = "1.5x", level = "warn" }` is `speedup = "1.5x"` and a name in `warn`."""
        if not isinstance(given, Mapping):
            return given
        plain, warn = dict(given), _names(given.get("warn", ()))
        for name, value in given.items():
            if name in METRICS and isinstance(value, Mapping):
                plain[name], level = _limit(name, value)
                warn += (name,) if level == "warn" else ()
        return {**plain, "warn": warn}

    @field_validator("warn")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in METRICS]
        if unknown:
            raise ValueError(f"{unknown[0]} is no budget; known: {', '.join(METRICS)}")
        return tuple(sorted(set(names)))

    def limits(self) -> dict[str, float]:
        """The budgets that were set here, by name."""
        return {name: float(value) for name in METRICS if (value := getattr(self, name)) is not None}


METRICS = tuple(name for name in Limits.model_fields if name != "warn")
"""The budgets, in the order in which a verdict lists them."""


class BudgetConfig(Limits):
    """`[budget]`: the general budgets, those of each scope, and how they are judged."""

    confidence: float = setting(0.95, "Confidence of the bounds that are judged.", gt=0.5, lt=1)
    allow_estimates: bool = setting(False, "Let an estimated latency count (true or false).")
    test_digest: Annotated[str, Field(pattern="^[0-9a-f]{12,64}$")] | None = setting(
        None, "Digest, or its first 12 digits or more, that the report's test data must have."
    )
    scopes: dict[str, Limits] = Field({}, description="Budgets of one runtime, precision or target, by its name.")

    @model_validator(mode="before")
    @classmethod
    def _with_scopes(cls, given: object) -> object:
        """A table that is no budget is a scope: `[budget.openvino]`."""
        if not isinstance(given, Mapping):
            return given
        known = {**cls.model_fields}
        tables = {name: value for name, value in given.items() if isinstance(value, Mapping) and name not in known}
        rest = {name: value for name, value in given.items() if name not in tables}
        return {**rest, "scopes": {**given.get("scopes", {}), **tables}} if tables else rest

    def rules(self) -> tuple[Rule, ...]:
        """Every budget that was set, the general ones first."""
        everywhere = [(name, "", self) for name in self.limits()]
        scoped = [(name, scope, limits) for scope, limits in self.scopes.items() for name in limits.limits()]
        return tuple(
            Rule(name, at.limits()[name], "warn" if name in {*self.warn, *at.warn} else "error", scope)
            for name, scope, at in (*everywhere, *scoped)
        )

    def stated(self) -> dict[str, float | str | bool]:
        """What was set, flat, for a report: {"accuracy_drop": 0.01, "openvino.latency_ms": 2.0, "confidence": 0.95}."""
        found: dict[str, float | str | bool] = {
            f"{rule.scope}.{rule.metric}" if rule.scope else rule.metric: rule.limit for rule in self.rules()
        }
        warned = [f"{rule.scope}.{rule.metric}".lstrip(".") for rule in self.rules() if rule.level == "warn"]
        if warned:
            found["warn"] = ", ".join(warned)
        if self.test_digest:
            found["test_digest"] = self.test_digest
        return {**found, "confidence": self.confidence, "allow_estimates": self.allow_estimates}


def _limit(name: str, table: Mapping[Any, Any]) -> tuple[object, object]:
    """(limit, level) of a budget that was written as a table; ValueError says how to write it."""
    end = "min" if name in AT_LEAST else "max"
    level = table.get("level", "error")
    if table.keys() - {end, "level"} or end not in table or level not in ("error", "warn"):
        example = f'{{ {end} = ..., level = "warn" }}'
        raise ValueError(f'{name} must be a number, or {example}; level is "error" or "warn"')
    return table[end], level


def _names(value: object) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
