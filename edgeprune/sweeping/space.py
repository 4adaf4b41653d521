"""What a sweep may try: settings with several values, and the points that their combinations are.

Promise: pure, but for reading the configuration file. Every point is a whole, validated `Config`. A value that no
combination allows is an error at once; a combination that its own settings forbid is a point with its reason, and does
not stop the others.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.config import GOALS, Config, flag_of, merged_tables, settings_of, validated
from edgeprune.errors import UsageError
from edgeprune.flags import Flags
from edgeprune.sweeping.settings import SWEPT

LARGEST = 10_000  # points that a space is written out for
_OWN = ("sweep",)  # sections that say how points are tried, and are no part of one


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting with several values, as they were written."""

    section: str
    name: str
    values: tuple[Any, ...]

    @property
    def key(self) -> str:
        """`section.name`, as in the file."""
        return f"{self.section}.{self.name}"

    @property
    def texts(self) -> tuple[str, ...]:
        """The values as they are written on the command line."""
        return tuple(map(as_text, self.values))

    @property
    def ordered(self) -> bool:
        """Whether the values are numbers (a unit may follow), so that neighbours in the list are alike."""
        return all(re.match(r"[-+]?[0-9.]", text) for text in self.texts)


@dataclass(frozen=True, slots=True)
class Point:
    """One combination: what was chosen, as text, by `section.name`.

    `config` is None where the settings forbid the combination, and `reason` says why. `arguments` are those of
    `edgeprune compress` that make it, without the model and the folder.
    """

    name: str
    choices: Mapping[str, str]
    config: Config | None
    reason: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """`base`: the settings that all points share, with `[sweep]`; its own choices are those of one valid point."""

    base: Config
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]

    def point(self, choices: Mapping[str, str]) -> Point:
        """The point of these choices; KeyError when there is none."""
        for point in self.points:
            if point.choices == choices:
                return point
        raise KeyError(str(choices))


def read_space(path: Path | None, flags: Flags) -> Space:
    """The space of a configuration file and flags. Errors: UsageError.

    On the command line, commas part the values of a setting; a setting that is a list itself has several in the file
    only. A setting on the command line takes the place of the file's, values and all.
    """
    single, several = _parted(flags)
    used, merged = merged_tables(path, single)
    axes = _axes(merged.get("sweep", {}), single, several)
    if not axes:
        validated(used, merged, single)
        raise UsageError(
            "a sweep needs a setting with several values",
            hint="for example --speedup 1.5,2,3 --criterion l2,taylor, or lists in [sweep.prune] of edgeprune.toml",
        )
    goals = {axis.name for axis in axes if axis.section == "prune"} & GOALS
    if goals:
        merged["prune"] = {name: value for name, value in merged.get("prune", {}).items() if name not in GOALS - goals}
    if (count := _size(axes)) > LARGEST:
        raise UsageError(f"{count:,} combinations are more than a sweep can be asked for", hint="leave out some values")
    shared = {section: table for section, table in merged.items() if section not in _OWN}
    points = tuple(_points(axes, used, shared, single, path))
    require_every_value(axes, points)
    first = next(point for point in points if point.config is not None)
    own = validated(used, {"sweep": merged.get("sweep", {})}, single)
    assert first.config is not None
    run = first.config.run
    if run.out is not None and "out" not in single.get("run", {}):  # the file's is where `compress` goes
        run = run.model_copy(update={"out": run.out.with_name(f"{run.out.name}-sweep")})
    return Space(first.config.model_copy(update={"sweep": own.sweep, "run": run}), axes, points)


def _parted(flags: Flags) -> tuple[Flags, list[Axis]]:
    """The flags with one value, and those with several."""
    single: Flags = {}
    several = []
    for section, table in flags.items():
        for name, value in table.items():
            parts = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else ()
            if section in SWEPT and len(parts) > 1:
                if not all(parts):
                    raise UsageError(f"--{flag_of(section, name)} {value}: a value is missing")
                several.append(Axis(section, name, tuple(dict.fromkeys(parts))))
            else:
                single.setdefault(section, {})[name] = value
    return single, several


def _axes(table: Mapping[str, Any], single: Flags, several: Sequence[Axis]) -> tuple[Axis, ...]:
    """The flags' axes and, for settings that no flag names, the file's."""
    named = {(section, name) for section, values in single.items() for name in values}
    named |= {(axis.section, axis.name) for axis in several}
    goal_given = any(section == "prune" and name in GOALS for section, name in named)
    found = list(several)
    for section in SWEPT:
        values_of = table.get(section, {})
        for name, values in values_of.items() if isinstance(values_of, Mapping) else ():
            if (section, name) in named or (goal_given and section == "prune" and name in GOALS):
                continue
            if name not in settings_of(section):
                raise UsageError(f"unknown setting: sweep.{section}.{name}", hint=f"known: {_known(section)}")
            if not isinstance(values, list) or not values:
                raise UsageError(f"sweep.{section}.{name} must be a list of values", hint="such as [1.5, 2, 3]")
            found.append(Axis(section, name, tuple(values)))
    return tuple(found)


def _known(section: str) -> str:
    return ", ".join(settings_of(section))


def _size(axes: Sequence[Axis]) -> int:
    size = 1
    for axis in axes:
        size *= len(axis.values)
    return size


def _points(
    axes: Sequence[Axis], used: Path | None, shared: Mapping[str, Mapping[str, Any]], single: Flags, given: Path | None
) -> Iterator[Point]:
    """Every combination, the first axis slowest; settings that come out the same are one point."""
    seen = set()
    for values in itertools.product(*(axis.values for axis in axes)):
        merged = {section: dict(table) for section, table in shared.items()}
        flags: Flags = {section: dict(table) for section, table in single.items() if section not in _OWN}
        for axis, value in zip(axes, values, strict=True):
            merged.setdefault(axis.section, {})[axis.name] = value
            flags.setdefault(axis.section, {})[axis.name] = value
        config, reason = None, ""
        try:
            config = validated(used, merged, flags)
        except UsageError as error:
            reason = str(error)
        choices = {axis.key: as_text(value) for axis, value in zip(axes, values, strict=True)}
        made = json.dumps(choices) if config is None else config.model_dump_json(exclude={"run": {"out"}})
        digest = hashlib.sha256(made.encode()).hexdigest()
        if digest not in seen:
            seen.add(digest)
            arguments = (*(("--config", str(given)) if given else ()), *_arguments(flags))
            yield Point(_name(choices.values(), digest), choices, config, reason, arguments)


def _arguments(flags: Flags) -> Iterator[str]:
    for section, table in flags.items():
        for name, value in table.items():
            if (section, name) != ("run", "out"):
                yield from (f"--{flag_of(section, name)}", as_text(value))


def as_text(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _name(values: Any, digest: str) -> str:
    """A folder's name that says what was chosen, and differs where the settings do."""
    words = [re.sub(r"[^A-Za-z0-9.]+", "-", value).strip("-.")[:24] for value in values]
    return "-".join([*filter(None, words), digest[:6]])


def require_every_value(axes: Sequence[Axis], points: Sequence[Point]) -> None:
    """UsageError for a value that stands in no valid combination: a mistake, not a point."""
    for axis in axes:
        for value in axis.values:
            having = [point for point in points if point.choices[axis.key] == as_text(value)]
            if having and all(point.config is None for point in having):
                raise UsageError(having[0].reason)
